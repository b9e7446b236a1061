"""Training and evaluation of a language model: loss, perplexity and bits per byte over whole splits."""

from __future__ import annotations

import math
import time
from typing import Any

import torch
from lightning.fabric.utilities.throughput import get_available_flops
from omegaconf import DictConfig
from torch import Tensor

from experiments.core.errors import ConfigError
from experiments.core.module import TaskModule
from experiments.llm.data import IGNORE, TextBatch
from experiments.llm.model import LanguageModel

PROMPT, CONTINUATION = 48, 64  # tokens of a text sample


class LanguageModule(TaskModule):
    """Next-token prediction; the loss is nats per token.

    Bits per byte are the nats of all tokens, end tokens included, over ln 2 and the UTF-8 bytes of the text.

    Args:
        samples: prompts from the test split, each continued greedily and by sampling.
        temperature: of the sampling.
        others: see `TaskModule`.

    Raises:
        ConfigError: an option is out of range.
    """

    model: LanguageModel
    token_bytes: Tensor  # (V,)
    sums: Tensor  # (3,) nats, tokens and bytes of the evaluation under way

    def __init__(self, *args: Any, samples: int = 2, temperature: float = 0.8, **others: Any) -> None:
        super().__init__(*args, **others)
        if samples < 0:
            raise ConfigError(f"module.samples must be at least 0, got {samples}")
        if not temperature > 0.0:
            raise ConfigError(f"module.temperature must be above 0, got {temperature}")
        self.sample_count, self.temperature = samples, temperature
        self.register_buffer("token_bytes", torch.zeros(0, dtype=torch.int64), persistent=False)
        self.register_buffer("sums", torch.zeros(3, dtype=torch.float64), persistent=False)
        self.kept: list[dict[str, Any]] = []
        self._tokens = 0
        self._mark = math.nan

    @property
    def data(self) -> Any:
        return self.trainer.datamodule  # type: ignore[attr-defined]

    def setup(self, stage: str) -> None:
        known, length = self.data.tokenizer.vocab_size, self.data.length
        if self.model.vocab_size != known:
            raise ConfigError(
                f"model.vocab_size must be {known}, the size of the tokenizer, got {self.model.vocab_size}"
            )
        if length > self.model.max_length:
            raise ConfigError(f"data.length must be at most model.max_length={self.model.max_length}, got {length}")
        self.token_bytes = torch.from_numpy(self.data.tokenizer.token_bytes).to(self.device)  # (V,)

    def training_step(self, batch: TextBatch, batch_idx: int) -> Tensor:
        loss: Tensor = self.model(batch.inputs, batch.targets).mean()
        return loss

    def on_train_start(self) -> None:
        self._restart_clock()

    def on_validation_end(self) -> None:
        self._restart_clock()

    def _restart_clock(self) -> None:
        self._tokens, self._mark = 0, time.perf_counter()

    def on_train_batch_end(self, outputs: Any, batch: TextBatch, batch_idx: int) -> None:
        self._tokens += batch.inputs.numel() * self.trainer.world_size
        accumulated = self.trainer.accumulate_grad_batches
        if (batch_idx + 1) % (self.trainer.log_every_n_steps * accumulated):  # type: ignore[attr-defined]
            return
        loss = outputs["loss"].detach() * accumulated
        if loss.is_cuda:
            torch.cuda.synchronize(loss.device)
        rate = self._tokens / (time.perf_counter() - self._mark)
        self.log("train/loss_step", loss)
        self.log("speed/tokens_per_second", rate)
        if loss.is_cuda:
            # None for a chip that Lightning does not know.
            peak = get_available_flops(loss.device, self.compute_dtype)
            if peak:
                used = rate * self.model.flops_per_token(self.data.length) / self.trainer.world_size
                self.log("speed/mfu", used / peak)
        self._restart_clock()

    @property
    def compute_dtype(self) -> torch.dtype:
        """Type of the matrix products under the trainer's precision."""
        precision = str(self.trainer.precision)
        return torch.bfloat16 if "bf16" in precision else torch.float16 if "16" in precision else torch.float32

    def _evaluate(self, batch: TextBatch) -> None:
        nats = self.model(batch.inputs, batch.targets)  # (B, T)
        counted = batch.targets != IGNORE
        covered = self.token_bytes[batch.targets.clamp(min=0)] * counted  # (B, T) bytes
        self.sums += torch.stack([nats.double().sum(), counted.sum().double(), covered.sum().double()])

    def _report(self, split: str) -> None:
        nats, tokens, covered = self.trainer.strategy.reduce(self.sums, reduce_op="sum").tolist()
        self.sums.zero_()
        loss = nats / tokens
        self.report(
            {
                f"{split}/loss": loss,
                f"{split}/perplexity": math.exp(loss) if loss < 700.0 else math.inf,
                f"{split}/bits_per_byte": nats / math.log(2.0) / covered,
            }
        )

    def on_validation_epoch_start(self) -> None:
        self.sums.zero_()

    def validation_step(self, batch: TextBatch, batch_idx: int) -> None:
        self._evaluate(batch)

    def on_validation_epoch_end(self) -> None:
        self._report("val")

    def on_test_epoch_start(self) -> None:
        self.sums.zero_()

    def test_step(self, batch: TextBatch, batch_idx: int) -> None:
        self._evaluate(batch)

    def on_test_epoch_end(self) -> None:
        self._report("test")
        # Here, where the model still is on its device.
        self.kept = self._continue_prompts()

    def seen(self, batch: TextBatch) -> dict[str, float]:
        return {"tokens": float(batch.inputs.numel()), "sequences": float(len(batch.inputs))}

    def probe(self, data: DictConfig) -> Tensor:
        tokens = torch.zeros(data.batch_size, data.length, dtype=torch.int64)  # (B, T)
        loss: Tensor = self.model(tokens, tokens).mean()
        return loss

    def _continue_prompts(self) -> list[dict[str, Any]]:
        """The same beginnings of test documents in every run, each continued greedily and by sampling."""
        data, kept = self.data, []
        prompt = min(PROMPT, data.length // 2)
        added = min(CONTINUATION, data.length - prompt)
        for number, (before, after) in enumerate(data.prompts(self.sample_count, prompt, added)):
            tokens = torch.from_numpy(before.astype("int64")).to(self.device)
            for way, temperature in (("greedy", 0.0), ("sampled", self.temperature)):
                found = self.model.continue_text(tokens, added, data.tokenizer.end, temperature, seed=number)
                kept.append(
                    {
                        "split": "sample",
                        "id": f"test-{number}-{way}",
                        "prompt": data.tokenizer.decode(before.tolist()),
                        "reference": data.tokenizer.decode(after.tolist()),
                        "hypothesis": data.tokenizer.decode(found.tolist()),
                    }
                )
        return kept

    def samples(self) -> list[dict[str, Any]]:
        return self.kept
