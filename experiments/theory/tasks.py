"""How close is FAdam's f_t to the diagonal Fisher information of the three tasks' own models (claim C10)?

    python -m experiments.theory.tasks [TASK ...] [--out runs/fisher/tasks.json]

The models, data and learning rates are those of the experiments `<task>_cpu`; speech has layer norm, since with batch
norm no utterance has a gradient of its own. FAdam trains with batches of three sizes, from several seeds; beside it,
FAdams of other beta2 and learning rate 0 see the same gradients. On the way are compared (`compared`), all layers
together and with the largest batches one by one, at every stage:

- `free`: `diagonal_fim` of each beta2, with the factor of its docstring;
- `empirical` and `true`: passes over samples of the training data, `fadam.fisher`.

A sample is an utterance, a sequence of tokens or an image, its loss weighted as in training (per symbol, token or
value). `ceiling` is the rank correlation of two true Fishers from disjoint halves of the samples: their own noise sets
about that bound for everything compared with them. `excess` is (B - 1) g^2 / empirical, the share by which the
docstring says that the factor is too large at these weights. A VQ-VAE's training loss has a commitment term besides the
likelihood, whose gradient `free` alone has, in the encoder.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import json
import re
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, open_dict
from torch import Tensor, nn
from torch.nn import functional as F

from experiments.asr.data import SpeechBatch
from experiments.core import resolvers as resolvers
from experiments.core import run
from experiments.core.files import write_whole
from experiments.vqvae.likelihood import DiscretizedLogistic
from fadam import FAdam
from fadam.fisher import Fim, Loss, Method, diagonal_fim, empirical_fim, true_fim

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
SEEDS = (1, 2, 3)
BATCHES = (1, 4, 16)  # samples of a training step
BETAS2 = (0.9, 0.99, 0.999)
STAGES = (12, 50, 200)  # optimizer steps; of smaller batches, the last one alone
WARMUP = 100
SAMPLES = 48  # of each pass, half of them for each of the two true ones
ENTRIES = 4096  # of a layer, for its rank correlation
BASE = ("trainer=cpu", "optimizer=fadam", "logger=none")


@dataclass(frozen=True)
class Task:
    """What the measurement has to know of a task.

    Attributes:
        name: of the experiment `<name>_cpu`.
        overrides: of its config, besides the batch.
        batch: override that sets the number of samples of a batch.
        training: (module, batch) -> the mean loss of training.
        samples: batch -> tensors with samples along axis 0.
        loss: (model, samples) -> negative log-likelihood of one sample, weighted as in training.
        draw: samples with labels drawn from the model.
        method: of the passes.
        left_out: pattern of parameters that the likelihood does not reach.
    """

    name: str
    overrides: tuple[str, ...]
    batch: str
    training: Callable[[Any, Any], Tensor]
    samples: Callable[[Any], Any]
    loss: Loss
    draw: Callable[[nn.Module, Any, torch.Generator], Any]
    method: Method = "vmap"
    left_out: str = "^$"


# ---- speech ----------------------------------------------------------------------------------------------------------
def _ctc(model: Any, batch: Any) -> Tensor:
    """Each utterance's loss per symbol of the data's transcript (B,)."""
    features, lengths, targets, target_lengths, symbols = batch
    log_probs, frames = model(features, lengths)
    losses = F.ctc_loss(log_probs.transpose(0, 1), targets, frames, target_lengths, blank=0, reduction="none")
    per_symbol: Tensor = losses / symbols
    return per_symbol


def _speech_samples(batch: SpeechBatch) -> tuple[Tensor, ...]:
    symbols = batch.target_lengths.clamp(min=1)
    return batch.features, batch.feature_lengths, batch.targets, batch.target_lengths, symbols


def _speech_draw(model: Any, batch: Any, generator: torch.Generator) -> Any:
    """A symbol for each frame, repeats merged and blanks dropped: CTC's own distribution of transcripts."""
    features, lengths, _, _, symbols = batch
    log_probs, frames = model(features, lengths)  # (B, T', V)
    paths = torch.multinomial(log_probs.exp().flatten(0, 1), 1, generator=generator).view(log_probs.shape[:2])
    drawn = []
    for path, n in zip(paths, frames.tolist(), strict=True):
        merged = torch.unique_consecutive(path[:n])
        drawn.append(merged[merged != 0])
    targets = nn.utils.rnn.pad_sequence(drawn, batch_first=True) if drawn else paths
    return features, lengths, targets, torch.tensor([len(d) for d in drawn]), symbols


# ---- language --------------------------------------------------------------------------------------------------------
def _tokens_draw(model: Any, batch: Any, generator: torch.Generator) -> Any:
    """Each next token from the model, given the data's before it."""
    inputs, targets = batch
    p = model.llama(input_ids=inputs, use_cache=False).logits.softmax(-1)
    return inputs, torch.multinomial(p.flatten(0, 1), 1, generator=generator).view_as(targets)


# ---- images ----------------------------------------------------------------------------------------------------------
def _image_training(module: Any, images: Tensor) -> Tensor:
    output = module.model(images)
    q = output.quantised
    codes: Tensor = module.codebook_weight * q.codebook_loss + module.beta * q.commitment_loss
    nll: Tensor = module.nll(output, images).mean()
    return nll + codes


def _image_loss(model: Any, batch: Any) -> Tensor:
    images, targets = batch
    loss: Tensor = -model.likelihood.log_prob(model(images).parameters, targets) / targets[0].numel()
    return loss


def _image_draw(model: Any, batch: Any, generator: torch.Generator) -> Any:
    """Images from the mixtures of logistic distributions, rounded to levels as their bins are cut."""
    likelihood = model.likelihood
    assert isinstance(likelihood, DiscretizedLogistic)
    weights, means, log_scales = model(batch[0]).parameters.unbind(2)  # each (B, 3, M, H, W)
    p = weights.softmax(2).movedim(2, -1)  # (B, 3, H, W, M)
    chosen = torch.multinomial(p.flatten(0, -2), 1, generator=generator).view(p.shape[:-1]).unsqueeze(2)
    mean = means.gather(2, chosen).squeeze(2)
    scale = log_scales.clamp(min=likelihood.min_log_scale).exp().gather(2, chosen).squeeze(2)
    u = torch.rand(mean.shape, generator=generator).clamp(1e-6, 1 - 1e-6)
    x = mean + scale * (u.log() - (-u).log1p())
    top = likelihood.levels - 1
    return batch[0], ((x + 1) * top / 2).round().clamp(0, top).to(torch.uint8)


TASKS = {
    task.name: task
    for task in (
        Task(
            "asr", ("+model.norm=layer", "data.batch_seconds=1e6"), "data.max_utterances",
            lambda module, batch: _ctc(module.model, _speech_samples(batch)).mean(),
            _speech_samples, lambda model, batch: _ctc(model, batch).sum(), _speech_draw, "loop",
        ),
        Task(
            "llm", (), "data.batch_size",
            lambda module, batch: module.model(batch.inputs, batch.targets).mean(),
            lambda batch: (batch.inputs, batch.targets), lambda model, batch: model(*batch).mean(-1).sum(),
            _tokens_draw,
        ),
        Task(
            "vqvae", ("model.quantiser.start_after=0", "model.quantiser.restart_after=0"), "data.batch_size",
            _image_training, lambda images: (images, images), _image_loss, _image_draw,
            left_out=r"quantiser\.embedding",
        ),
    )
}  # fmt: skip


# ---- the measurement -------------------------------------------------------------------------------------------------
def configuration(task: Task, seed: int, batch: int, steps: int, extra: Sequence[str] = ()) -> DictConfig:
    """The config of `<task>_cpu` with that seed and batch."""
    overrides = [f"experiment={task.name}_cpu", *BASE, f"seed={seed}", *task.overrides, f"{task.batch}={batch}"]
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        cfg = compose("train", overrides=[*overrides, *extra, f"trainer.max_steps={steps}", f"eval_every={steps}"])
    with open_dict(cfg):
        cfg.pop("hydra", None)
    return cfg


def layer(name: str) -> str:
    """A parameter's layer: its name up to the first number, or its first two words."""
    numbered = re.match(r"(.*?\.\d+)\.", name)
    return numbered[1] if numbered else ".".join(name.split(".")[:2])


def layers(fim: Mapping[str, Tensor], left_out: str) -> dict[str, Tensor]:
    """Values by layer, flat, and of `all` layers."""
    kept = {name: value for name, value in fim.items() if not re.search(left_out, name)}
    groups: dict[str, list[Tensor]] = {}
    for name, value in kept.items():
        groups.setdefault(layer(name), []).append(value.flatten())
    found = {name: torch.cat(values) for name, values in groups.items()}
    return found | {"all": torch.cat(list(found.values()))}


def ranks(x: Tensor) -> Tensor:
    """Places (N,) of the elements, the mean of them where elements are equal."""
    _, inverse, counts = torch.unique(x, return_inverse=True, return_counts=True)
    places: Tensor = counts.cumsum(0).double() - (counts - 1) / 2
    return places[inverse]


def rank_correlation(one: Tensor, other: Tensor) -> float:
    """Spearman's, from `ENTRIES` evenly spaced elements at most; NaN where one of them is constant."""
    stride = -(-len(one) // ENTRIES)
    return float(torch.corrcoef(torch.stack([ranks(one[::stride]), ranks(other[::stride])]))[0, 1])


def compared(one: Tensor, other: Tensor) -> dict[str, float]:
    """Rank correlation and ratio of the sums."""
    return {"rank": rank_correlation(one, other), "ratio": float(one.sum() / other.sum())}


def gradient_square(model: nn.Module, task: Task, samples: Any, fim: Fim, n: int) -> dict[str, Tensor]:
    """The square of the mean gradient, without the share of the noise that `n` samples leave in it; may be below 0."""
    parameters = {name: p for name, p in model.named_parameters() if name in fim}
    total = [torch.zeros_like(p) for p in parameters.values()]
    for part in zip(*(x.split(8) for x in samples), strict=True):
        loss = task.loss(model, part).sum()
        for t, g in zip(total, torch.autograd.grad(loss, list(parameters.values()), allow_unused=True), strict=True):
            if g is not None:
                t += g / n
    return {name: (n * t.square() - fim[name]) / (n - 1) for name, t in zip(parameters, total, strict=True)}


def measure(
    task: Task, module: Any, samples: Any, n: int, free: Mapping[float, Fim], batch: int
) -> Iterator[dict[str, Any]]:
    """One row a layer."""
    model = copy.deepcopy(module.model).eval()
    halves = [tuple(x[part] for x in samples) for part in (slice(0, n // 2), slice(n // 2, n))]
    options: dict[str, Any] = {"method": task.method, "chunk_size": 8}
    found = [true_fim(model, task.loss, [h], sample=task.draw, seed=i, **options) for i, h in enumerate(halves)]
    empirical = empirical_fim(model, task.loss, [samples], **options)
    square = layers(gradient_square(model, task, samples, empirical, n), task.left_out)
    one, other = (layers(f, task.left_out) for f in found)
    averages = {b: layers(f, task.left_out) for b, f in free.items()}
    for name, e in layers(empirical, task.left_out).items():
        true = (one[name] + other[name]) / 2
        yield {
            "layer": name,
            "entries": len(e),
            "ceiling": rank_correlation(one[name], other[name]),
            "excess": float((batch - 1) * square[name].sum() / e.sum()),
            "empirical_true": compared(e, true),
            "free": [
                {"beta2": b, "empirical": compared(a[name], e), "true": compared(a[name], true)}
                for b, a in averages.items()
            ],
        }


def pool(task: Task, seed: int, n: int, extra: Sequence[str] = ()) -> Any:
    """Tensors of `n` training samples, those of the first batch of another order than the training's."""
    cfg = configuration(task, seed, n, 1, (*extra, f"data_seed={999 + seed}"))
    data = run.build_data(cfg)
    data.prepare_data()
    data.setup("fit")
    return task.samples(next(iter(data.train_dataloader())))


def train(
    task: Task, seed: int, batch: int, stages: Sequence[int], n: int, extra: Sequence[str] = (), single: bool = True
) -> Iterator[dict[str, Any]]:
    """Train, and measure at every stage: a row of all layers together and, if `single`, one of each layer."""
    samples = pool(task, seed, n, extra)
    n = len(samples[0])
    cfg = configuration(task, seed, batch, max(stages), extra)
    data = run.build_data(cfg)
    data.setup("fit")
    module = run.build_module(cfg)
    model = module.model.train()
    rate = float(cfg.optimizer.lr)
    optimizer = FAdam(model.named_parameters(), lr=rate, weight_decay=0.0)
    warm = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda t: min(1.0, (t + 1) / WARMUP))
    twins = {
        beta2: FAdam(
            [(name, p.detach().clone().requires_grad_()) for name, p in model.named_parameters()],
            lr=0.0, betas=(0.9, beta2), weight_decay=0.0,
        )
        for beta2 in BETAS2
    }  # fmt: skip
    for step, items in enumerate(itertools.islice(data.train_dataloader(), max(stages)), 1):
        optimizer.zero_grad()
        torch.autograd.backward(task.training(module, items))
        for twin in twins.values():
            for copied, p in zip(twin.param_groups[0]["params"], model.parameters(), strict=True):
                copied.grad = p.grad
            twin.step()
        if step in stages:
            free = {beta2: diagonal_fim(twin, batch_size=batch) for beta2, twin in twins.items()}
            of = {"task": task.name, "seed": seed, "batch": batch, "step": step, "lr": rate}
            found = measure(task, module, samples, n, free, batch)
            yield from (of | row for row in found if single or row["layer"] == "all")
        optimizer.step()
        warm.step()


def rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: rounded(v) for name, v in value.items()}
    if isinstance(value, list):
        return [rounded(v) for v in value]
    return float(f"{value:.4g}") if isinstance(value, float) else value


def text(record: Mapping[str, Any]) -> str:
    """JSON with each row on a line of its own."""
    head = json.dumps({name: value for name, value in record.items() if name != "rows"}, indent=1)
    rows = ",\n".join("  " + json.dumps(row, separators=(",", ":")) for row in record["rows"])
    return head.removesuffix("\n}") + f',\n "rows": [\n{rows}\n ]\n}}\n'


def settings() -> dict[str, Any]:
    names = ("SEEDS", "BATCHES", "BETAS2", "STAGES", "WARMUP", "SAMPLES", "ENTRIES")
    plain: dict[str, Any] = json.loads(json.dumps({name.lower(): globals()[name] for name in names}))
    return plain


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m experiments.theory.tasks", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("tasks", nargs="*", metavar="TASK", help=f"of {', '.join(TASKS)} (default: all)")
    parser.add_argument("--out", default="runs/fisher/tasks.json", help="default: %(default)s")
    options = parser.parse_args(argv)
    unknown = [name for name in options.tasks if name not in TASKS]
    if unknown:
        print(f"error: TASK={unknown[0]} is not allowed; TASK must be one of {', '.join(TASKS)}", file=sys.stderr)
        return 2
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", message="There is a performance drop")  # vmap takes attention sample by sample
    path = Path(options.out)
    kept: dict[str, Any] = {
        "schema": 2, "command": "python -m experiments.theory.tasks", "settings": settings(),
        "versions": {"torch": torch.__version__.split("+")[0]}, "rows": [],
    }  # fmt: skip
    if path.exists():
        old = json.loads(path.read_text(encoding="utf-8"))
        if (old["schema"], old["settings"]) == (kept["schema"], kept["settings"]):
            kept["rows"] = old["rows"]
    done = {(row["task"], row["seed"], row["batch"]) for row in kept["rows"]}
    every = list(itertools.product(SEEDS, options.tasks or TASKS, BATCHES))
    for number, (seed, name, batch) in enumerate(every, 1):
        if (name, seed, batch) in done:
            continue
        start = time.process_time()
        largest = batch == max(BATCHES)
        found = train(TASKS[name], seed, batch, STAGES if largest else STAGES[-1:], SAMPLES, single=largest)
        kept["rows"] += [rounded(row) for row in found]
        write_whole(path, text(kept))
        took = f"{time.process_time() - start:.0f} s"
        print(f"{number} of {len(every)}: {name}, seed {seed}, batches of {batch} ({took})", flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
