"""Callbacks that all tasks share: history and divergence, random state, progress, what FAdam does."""

from __future__ import annotations

import math
import random
import statistics
import sys
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar, RichProgressBar
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.types import STEP_OUTPUT
from torch import nn
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from experiments.core.checks import NON_FINITE
from experiments.core.errors import ConfigError, DivergedError
from experiments.core.module import TaskModule
from fadam.clipping import clipped_twice
from fadam.lightning import FAdamMonitor


def is_evaluation(name: str) -> bool:
    """Whether a logged value is an evaluation of a split, `<split>/<metric>`, and not a state of training."""
    return "/" in name and not name.startswith(("train/", "lr-"))


def everyones(mine: Any) -> list[Any]:
    """An object of each process, in their order. To be called by all of them."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return [mine]
    found: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(found, mine)
    return found


def all_finite(module: nn.Module) -> bool:
    """Whether every weight is finite; of a sharded module, this process's part of each."""
    parts = (t.to_local() if isinstance(t, DTensor) else t for t in module.state_dict().values())
    return all(bool(t.isfinite().all()) for t in parts)


def has_nan(metrics: Mapping[str, Any]) -> bool:
    """Whether a metric is not a number. An infinite one may be honest, such as a loss of zero probability."""
    return any(isinstance(value, float) and math.isnan(value) for value in metrics.values())


class History(Callback):
    """Keeps what the run record needs: every evaluation, what was seen, step times, and whether the loss stayed finite.

    A loss that is not finite ends the run, which then counts as diverged. The check costs one device synchronisation
    every `check_every` batches. At the end the weights and the final evaluation are looked at too: the last step's loss
    is from before its update.
    """

    def __init__(self, check_every: int = 20) -> None:
        if check_every < 1:
            raise ConfigError(f"callbacks.history.check_every must be at least 1, got {check_every}")
        self.check_every = check_every
        self.evaluations: list[dict[str, Any]] = []
        self.seen: dict[str, float] = {}
        self.step_times: list[float] = []
        self.seconds = 0.0
        self.diverged = False
        # Option -> the metric that it names, for the evaluations to report; the run sets it.
        self.watched: dict[str, str] = {}
        self._loss_sum: torch.Tensor | None = None
        self._loss_count = 0
        self._clock = self._batch_clock = time.perf_counter()

    def state_dict(self) -> dict[str, Any]:
        return {
            "evaluations": self.evaluations,
            "seen": self.all_seen(),
            "step_times": self.step_times,
            "seconds": self.seconds + time.perf_counter() - self._clock,
            "diverged": self.diverged,
            # Of a run that is ended between two evaluations.
            "_loss_sum": self._loss_sum,
            "_loss_count": self._loss_count,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        for name, value in state_dict.items():
            setattr(self, name, value)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._clock = time.perf_counter()

    def all_seen(self) -> dict[str, float]:
        """What all processes have seen. To be called by all of them."""
        # Each counts as if the others' batches held as much as its own.
        found = everyones(self.seen)
        return {name: sum(seen[name] for seen in found) / len(found) for name in self.seen}

    def elapsed(self) -> float:
        return self.seconds + time.perf_counter() - self._clock

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self._batch_clock = time.perf_counter()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: STEP_OUTPUT, batch: Any, batch_idx: int
    ) -> None:
        assert isinstance(pl_module, TaskModule)
        assert isinstance(outputs, dict)
        loss = _loss(trainer, outputs)
        self._loss_sum = loss if self._loss_sum is None else self._loss_sum + loss
        self._loss_count += 1
        self.step_times.append(time.perf_counter() - self._batch_clock)
        for name, amount in pl_module.seen(batch).items():
            self.seen[name] = self.seen.get(name, 0.0) + amount * trainer.world_size
        last = trainer.fit_loop.epoch_loop.batch_progress.is_last_batch
        if (batch_idx + 1) % self.check_every == 0 or last:
            self._check_finite(trainer)

    def _check_finite(self, trainer: Trainer) -> None:
        bad = self._loss_sum is not None and not math.isfinite(self._loss_sum.item())
        # All processes end together, or none.
        if trainer.strategy.reduce_boolean_decision(bad, all=False):
            self.diverged = True
            trainer.should_stop = True

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        final = self.evaluations[-1] if self.evaluations else {}
        bad = not all_finite(pl_module) or has_nan(final)
        self.diverged = trainer.strategy.reduce_boolean_decision(self.diverged or bad, all=False)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.sanity_checking:
            return
        step = trainer.global_step
        if self.evaluations and self.evaluations[-1]["step"] == step:
            return
        entry: dict[str, Any] = {"step": step}
        entry |= {name: value.item() for name, value in trainer.callback_metrics.items() if is_evaluation(name)}
        for option, metric in self.watched.items():
            if metric not in entry:
                reported = ", ".join(sorted(entry.keys() - {"step"}))
                allowed = f"one of {reported}, which evaluations report" if reported else "reported by evaluations"
                raise ConfigError(f"{option} must be {allowed}, got {metric!r}")
        if self._loss_sum is not None:
            entry["train/loss"] = trainer.strategy.reduce(self._loss_sum).item() / self._loss_count
            self.diverged = self.diverged or not math.isfinite(entry["train/loss"])
            trainer.should_stop = trainer.should_stop or self.diverged
        self._loss_sum, self._loss_count = None, 0
        entry["seconds"] = round(self.elapsed(), 2)
        self.evaluations.append(entry)

    @property
    def step_time(self) -> float:
        """Median seconds of a training batch, forward to optimizer step, without data loading and evaluation."""
        return statistics.median(self.step_times) if self.step_times else math.nan


class GradientScale(Callback):
    """Multiplies every gradient by `factor` before clipping and the optimizer see it: the study's test of how an
    optimizer depends on the scale of the loss. Under Lightning's accumulation every batch's share is scaled once.
    """

    def __init__(self, factor: float) -> None:
        if not (math.isfinite(factor) and factor > 0):
            raise ConfigError(f"callbacks.gradient_scale.factor must be a finite number > 0, got {factor}")
        self.factor = factor

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
        gradients = [p.grad for p in pl_module.parameters() if p.grad is not None]
        if gradients:
            torch._foreach_mul_(gradients, self.factor)


class NonFiniteGradients(Callback):
    """Handles a step whose gradients are not all finite, before they are scaled, clipped or used.

    Args:
        policy: "keep" leaves them to the optimizer, at no cost. "error" ends the run, naming a parameter; "skip" leaves
            the step out, schedule and data going on, and counts it. Both cost one device synchronisation a step.

    Raises:
        ConfigError: unknown `policy`.
    """

    def __init__(self, policy: str = "keep") -> None:
        if policy not in NON_FINITE:
            raise ConfigError(f"nonfinite_gradients must be keep, error or skip, got {policy!r}")
        self.policy, self.skipped = policy, 0

    def state_dict(self) -> dict[str, Any]:
        return {"skipped": self.skipped} if self.policy == "skip" else {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.skipped = state_dict["skipped"]

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        if self.policy == "keep":
            return
        named = [(name, p, p.grad) for name, p in pl_module.named_parameters() if p.grad is not None]
        grads = [grad.to_local() if isinstance(grad, DTensor) else grad for _, _, grad in named]
        # One synchronisation: a maximum of magnitudes is finite where all of them are.
        norms = torch._foreach_norm([g for g in grads if g.numel()], ord=math.inf) if grads else ()
        bad = bool(norms) and not bool(torch.stack([n.float() for n in norms]).isfinite().all())
        if not trainer.strategy.reduce_boolean_decision(bad, all=False):
            return
        if self.policy == "error":
            for (name, _, _), grad in zip(named, grads, strict=True):
                count = int((~grad.isfinite()).sum())
                if count:
                    raise DivergedError(
                        f"the gradient of {name} is not finite at step {trainer.global_step + 1} ({count} of "
                        f"{grad.numel()} numbers); nonfinite_gradients=skip leaves such steps out"
                    )
            raise DivergedError(f"a gradient is not finite at step {trainer.global_step + 1}, in another process")
        self.skipped += 1
        for _, parameter, _ in named:
            parameter.grad = None  # no optimizer steps a parameter without one


class EvaluationWeights(Callback):
    """For optimizers that keep other weights for evaluation than for training, such as schedule-free AdamW: calls their
    `eval()` before each evaluation and at the end, and `train()` before training goes on. Checkpoints hold the weights
    of training; a test of a checkpoint finds those of evaluation with the optimizer's state in it.
    """

    def _switch(self, trainer: Trainer, mode: str) -> None:
        for optimizer in trainer.optimizers:
            getattr(optimizer, mode)()

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        if trainer.state.fn != TrainerFn.TESTING:
            return
        assert isinstance(pl_module, TaskModule)
        optimizer: Any = pl_module.build_optimizer()
        optimizer.load_state_dict(checkpoint["optimizer_states"][0])
        optimizer.eval()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._switch(trainer, "train")

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._switch(trainer, "eval")

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._switch(trainer, "train")

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._switch(trainer, "eval")


class RandomState(Callback):
    """Carries the random generators' states through checkpoints, so that a resumed run is the uninterrupted one.

    With several processes, each draws its own random numbers in training, and a checkpoint holds all their states.
    """

    def __init__(self) -> None:
        self._loaded: dict[str, Any] | None = None

    def state_dict(self) -> dict[str, Any]:
        states = everyones(self._own())
        return states[0] if len(states) == 1 else {"processes": states}

    def _own(self) -> dict[str, Any]:
        kind, keys, position, has_gauss, cached = np.random.get_state(legacy=True)  # noqa: NPY002
        version, internal, gauss = random.getstate()
        state = {
            "torch": torch.get_rng_state(),
            "numpy": [kind, [int(k) for k in keys], int(position), int(has_gauss), float(cached)],
            "python": [version, list(internal), gauss],
        }
        if torch.cuda.is_available():
            alone = not torch.distributed.is_initialized()
            state["cuda"] = torch.cuda.get_rng_state_all() if alone else [torch.cuda.get_rng_state()]
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._loaded = state_dict

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.global_rank > 0:
            seeds = np.random.SeedSequence([torch.initial_seed() % 2**63, trainer.global_rank]).generate_state(3)
            torch.manual_seed(int(seeds[0]))
            np.random.seed(seeds[1])  # noqa: NPY002
            random.seed(int(seeds[2]))

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        # Here and not earlier: building loaders draws from the generators.
        if self._loaded is None:
            return
        state, self._loaded = self._loaded, None
        if "processes" in state:
            state = state["processes"][trainer.global_rank % len(state["processes"])]
        torch.set_rng_state(state["torch"].cpu())
        kind, keys, position, has_gauss, cached = state["numpy"]
        np.random.set_state((kind, np.array(keys, dtype=np.uint32), position, has_gauss, cached))  # noqa: NPY002
        version, internal, gauss = state["python"]
        random.setstate((version, tuple(internal), gauss))
        if "cuda" in state and torch.cuda.is_available():
            if len(state["cuda"]) == 1:
                torch.cuda.set_rng_state(state["cuda"][0].cpu())
            else:
                torch.cuda.set_rng_state_all([s.cpu() for s in state["cuda"]])


class ClippedTwice(Callback):
    """Says in one line where the trainer clips what FAdam clips anyway, and keeps the line for the record."""

    def __init__(self, label: str) -> None:
        self.label, self.said = label, ""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.said = clipped_twice(trainer.optimizers[0], trainer.gradient_clip_val, "trainer.gradient_clip_val")
        if self.said and trainer.is_global_zero:
            print(f"{self.label}: {self.said}", flush=True)


class FisherMonitor(FAdamMonitor):
    """Logs what FAdam is about to do, see `fadam.diagnose`. Of clipping `ClippedTwice` tells."""

    def __init__(self, every_n_steps: int = 50) -> None:
        if every_n_steps < 1:
            raise ConfigError(f"callbacks.fisher.every_n_steps must be at least 1, got {every_n_steps}")
        super().__init__(every_n_steps)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        pass


def _loss(trainer: Trainer, outputs: Mapping[str, Any]) -> torch.Tensor:
    """A training step's loss, which Lightning has divided for accumulation; 0-d float32."""
    loss: torch.Tensor = outputs["loss"].detach().float() * trainer.accumulate_grad_batches
    return loss


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02d}"


class ProgressLine(ProgressBar):
    """One printed line every few seconds, for output that several runs share or that goes to a file."""

    def __init__(self, label: str, watch: str, every_s: float = 15.0) -> None:
        super().__init__()
        self.label, self.watch, self.every_s = label, watch, every_s
        self._last = self._start = 0.0
        self._start_step = 0

    def disable(self) -> None:
        self.every_s = math.inf

    def _print(self, text: str) -> None:
        print(f"{self.label:<34} {text}", flush=True)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._start = self._last = time.monotonic()
        self._start_step = trainer.global_step
        self._print(f"starts at step {trainer.global_step} of {trainer.max_steps}")

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: STEP_OUTPUT, batch: Any, batch_idx: int
    ) -> None:
        now, step = time.monotonic(), trainer.global_step
        if now - self._last < self.every_s or step == self._start_step:
            return
        self._last = now
        assert isinstance(outputs, dict)
        pace = (now - self._start) / (step - self._start_step)
        parts = [f"step {step}/{trainer.max_steps}", f"loss {_loss(trainer, outputs).item():.3f}"]
        watched = trainer.callback_metrics.get(self.watch)
        if watched is not None:
            parts.append(f"{self.watch} {watched.item():.4g}")
        parts += [f"{pace:.3f} s/step", f"{_clock(pace * (trainer.max_steps - step))} left"]
        self._print("  ".join(parts))

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        watched = trainer.callback_metrics.get(self.watch)
        if watched is not None and not trainer.sanity_checking:
            self._print(f"step {trainer.global_step}/{trainer.max_steps}  {self.watch} {watched.item():.4g}")


class ProgressBarWithMetric(RichProgressBar):
    """Lightning's rich bar, with the training loss and the metric that matters."""

    def __init__(self, watch: str) -> None:
        super().__init__(leave=False)
        self.watch = watch
        self.loss: torch.Tensor | None = None

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: STEP_OUTPUT, batch: Any, batch_idx: int
    ) -> None:
        assert isinstance(outputs, dict)
        self.loss = _loss(trainer, outputs)
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        shown = {} if self.loss is None else {"loss": f"{self.loss.item():.3f}"}
        watched = trainer.callback_metrics.get(self.watch)
        return shown if watched is None else shown | {self.watch: f"{watched.item():.4g}"}


def progress(kind: str, label: str, watch: str, multirun: bool) -> Callback:
    """The progress display.

    Args:
        kind: "rich" bar, "line", or "auto": a bar in a terminal that one run has for itself, lines elsewhere.
        label: what to call the run.
        watch: the metric to show.
        multirun: several runs share the terminal.

    Raises:
        ConfigError: unknown `kind`.
    """
    if kind not in ("auto", "rich", "line"):
        raise ConfigError(f"progress must be auto, rich or line, got {kind!r}")
    if kind == "rich" or (kind == "auto" and sys.stdout.isatty() and not multirun):
        return ProgressBarWithMetric(watch)
    return ProgressLine(label, watch)
