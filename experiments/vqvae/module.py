"""Training and evaluation of a VQ-VAE: negative log-likelihood plus codebook and commitment losses."""

from __future__ import annotations

import csv
import math
from typing import Any

import numpy as np
import torch
from lightning.pytorch.utilities.types import STEP_OUTPUT
from omegaconf import DictConfig
from torch import Tensor

from experiments.core.errors import ConfigError
from experiments.core.module import TaskModule
from experiments.vqvae.data import Labelled
from experiments.vqvae.likelihood import CHANNELS, LEVELS
from experiments.vqvae.metrics import Scores, SplitScores, perceptual_metrics
from experiments.vqvae.model import VQVAE, Output
from experiments.vqvae.pictures import codebook_plot, reconstruction_picture
from experiments.vqvae.quantiser import move_state

PICTURES = 16
START = 1 << 31  # keeps the draw of `start_images` apart from the draws of the epochs
COLLAPSED_BELOW = 2.0


class ImageModule(TaskModule):
    """The loss is NLL per dimension in nats + codebook_weight * codebook loss + beta * commitment loss.

    Beta weighs only the commitment term (arXiv:1711.00937, equation 3).

    Args:
        beta: weight of the commitment loss.
        codebook_weight: weight of the codebook loss.
        start_images: training images, drawn by the data seed, from whose vectors the codebook starts; 0: those of the
            first quantised batch. The more, the less the codebook depends on which images these are.
        perceptual: in the test, measure LPIPS and rFID where their weights are on this machine.
        others: see `TaskModule`.

    Raises:
        ConfigError: an option is out of range.
    """

    model: VQVAE

    def __init__(
        self,
        *args: Any,
        beta: float = 0.25,
        codebook_weight: float = 1.0,
        start_images: int = 0,
        perceptual: bool = False,
        **others: Any,
    ) -> None:
        super().__init__(*args, **others)
        for name, value in (("beta", beta), ("codebook_weight", codebook_weight)):
            if not value >= 0.0:
                raise ConfigError(f"module.{name} must be at least 0, got {value}")
        if start_images < 0:
            raise ConfigError(f"module.start_images must be at least 0, got {start_images}")
        self.start_images = start_images
        self.beta, self.codebook_weight, self.use_perceptual = beta, codebook_weight, perceptual
        self.scores: Scores | None = None
        self.perplexity = math.inf

    @property
    def data(self) -> Any:
        return self.trainer.datamodule  # type: ignore[attr-defined]

    def setup(self, stage: str) -> None:
        size = self.data.image_size
        expected = getattr(self.model, "image_size", size)
        if size != expected:
            raise ConfigError(f"model.image_size must be {size}, the size of the images, got {expected}")
        step = getattr(self.model, "downsampling", 1)
        if size % step:
            raise ConfigError(f"model.downsampling must divide {size}, the size of the images, got {step}")
        if self.model.likelihood.levels != LEVELS:
            raise ConfigError(
                f"likelihood.levels must be {LEVELS}, the values of a channel of the images, "
                f"got {self.model.likelihood.levels}"
            )
        codes, discrete = self.model.quantiser.codes, self.model.likelihood.discrete
        self.val_scores, self.test_scores = (
            SplitScores(codes, discrete, len(self.data.labelled(split).images)) for split in ("val", "test")
        )

    def nll(self, output: Output, images: Tensor) -> Tensor:
        """Negative log-likelihood per dimension in nats, for each image (B,)."""
        return -self.model.likelihood.log_prob(output.parameters, images) / images[0].numel()

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        output = self.model(batch)
        nll = self.nll(output, batch).mean()
        quantised = output.quantised
        loss: Tensor = nll + self.codebook_weight * quantised.codebook_loss + self.beta * quantised.commitment_loss
        self.log_dict(
            {
                "train/loss_step": loss.detach(),
                "train/nll": nll.detach(),
                "train/codebook_loss": quantised.codebook_loss.detach(),
                "train/commitment_loss": quantised.commitment_loss.detach(),
            },
            batch_size=len(batch),
        )
        return loss

    @torch.no_grad()
    def on_train_batch_start(self, batch: Tensor, batch_idx: int) -> None:
        quantiser = self.model.quantiser
        if not self.start_images or not quantiser.starts_next:
            return
        tiles = self.data.split("train")
        drawn = np.random.default_rng([self.data.data_seed, START]).permutation(len(tiles))[: self.start_images]
        quantiser.eval()  # moves no codes
        with self.trainer.precision_plugin.forward_context():
            vectors = [
                self.model(tiles.__getitems__(part).to(self.device)).vectors
                for part in np.array_split(drawn, -(-len(drawn) // len(batch)))
            ]
        quantiser.train()
        quantiser.start(torch.cat(vectors))

    def on_train_batch_end(self, outputs: STEP_OUTPUT, batch: Tensor, batch_idx: int) -> None:
        if (batch_idx + 1) % self.trainer.accumulate_grad_batches:
            return  # no step of the optimizer yet
        restart = self.model.quantiser.restart_idle()
        if restart is None or self.model.quantiser.learning == "ema":
            return
        optimizers = self.optimizers(use_pl_optimizer=False)
        for optimizer in optimizers if isinstance(optimizers, list) else [optimizers]:
            move_state(optimizer, self.model.quantiser.embedding.weight, restart)

    def evaluate(self, scores: SplitScores, batch: Labelled) -> None:
        output = self.model(batch.tiles)
        bits = self.nll(output, batch.tiles) / math.log(2.0) if self.model.likelihood.discrete else None
        mean = self.model.likelihood.mean(output.parameters)
        scores.update(bits, mean, batch.tiles, output.quantised.indices, batch.photographs)

    def report_scores(self, split: str, scores: SplitScores) -> None:
        self.scores = scores.compute_and_reset()
        self.perplexity = float(self.scores.metrics["codebook_perplexity"])
        self.report({f"{split}/{name}": value for name, value in self.scores.metrics.items()})

    def validation_step(self, batch: Labelled, batch_idx: int) -> None:
        self.evaluate(self.val_scores, batch)

    def on_validation_epoch_end(self) -> None:
        self.report_scores("val", self.val_scores)

    def on_test_start(self) -> None:
        if not self.use_perceptual:
            return
        found, reasons = perceptual_metrics()
        for name, reason in reasons.items():
            self.trainer.print(f"{name} is not measured: {reason}")
        self.test_scores.perceptual.update({name: metric.to(self.device) for name, metric in found.items()})

    def test_step(self, batch: Labelled, batch_idx: int) -> None:
        self.evaluate(self.test_scores, batch)

    def on_test_epoch_end(self) -> None:
        self.report_scores("test", self.test_scores)

    def probe(self, data: DictConfig) -> Tensor:
        size = getattr(self.model, "image_size", 32)
        images = torch.zeros(data.batch_size, CHANNELS, size, size, dtype=torch.uint8)
        self.model.quantiser.eval()  # moves no codes, which would need their values
        output = self.model(images)
        losses: Tensor = output.quantised.codebook_loss + output.quantised.commitment_loss
        return self.nll(output, images).mean() + losses

    def seen(self, batch: Tensor) -> dict[str, float]:
        return {"images": float(len(batch))}

    def flags(self) -> dict[str, bool]:
        """Whether at the last evaluation the codes' perplexity was under 2: the decoder then hardly depends on them."""
        return {"collapsed": self.perplexity < COLLAPSED_BELOW}

    @torch.no_grad()
    def save_artifacts(self, stem: str) -> list[str]:
        """`<stem>.png`: test images above their reconstructions, the same images in every run of these data;
        `<stem>-codes.png`: how often each code was used on the whole split; `<stem>-photographs.csv`: the test's errors
        of each photograph, for a standard error over photographs."""
        paths = [f"{stem}.png", f"{stem}-codes.png", f"{stem}-photographs.csv"]
        tiles = self.data.split("test")
        count = min(PICTURES, len(tiles))
        chosen = [(2 * i + 1) * len(tiles) // (2 * count) for i in range(count)]
        images = tiles.__getitems__(chosen)
        self.eval()
        # On all processes: a sharded model is gathered by all of them.
        output = self.model(images.to(self.device))
        mean = self.model.likelihood.mean(output.parameters).cpu()
        if not self.trainer.is_global_zero:
            return paths
        reconstruction_picture(paths[0], images, (mean * 255.0).round().clamp(0, 255).to(torch.uint8))
        assert self.scores is not None
        codebook_plot(paths[1], self.scores.counts.cpu().numpy(), self.perplexity)
        columns: dict[str, list[Any]] = {
            "photograph": self.data.labelled("test").names(),
            "tiles": self.scores.tiles.int().tolist(),
        }
        columns |= {name: [f"{v:.7g}" for v in values.tolist()] for name, values in self.scores.photographs.items()}
        with open(paths[2], "w", encoding="utf-8", newline="") as file:
            table = csv.writer(file, lineterminator="\n")
            table.writerow(columns)
            table.writerows(zip(*columns.values(), strict=True))
        return paths
