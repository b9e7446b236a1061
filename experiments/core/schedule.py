"""Learning-rate schedules: linear warm-up, then a decay to a share of the peak. Stepped once per optimizer step."""

from __future__ import annotations

import math
from typing import Literal

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from experiments.core.errors import ConfigError

Shape = Literal["cosine", "linear", "constant"]


class WarmupDecay:
    """Factor on the peak learning rate at each step. An object, so that `LambdaLR` saves its numbers in checkpoints."""

    def __init__(self, total_steps: int, warmup_steps: int, shape: Shape, final_ratio: float) -> None:
        if shape not in ("cosine", "linear", "constant"):
            raise ConfigError(f"scheduler.shape must be cosine, linear or constant, got {shape!r}")
        if type(warmup_steps) is not int or not 0 <= warmup_steps < total_steps:
            raise ConfigError(
                f"scheduler.warmup_steps must be a whole number from 0 to less than the {total_steps} steps of the "
                f"run, got {warmup_steps!r}"
            )
        if not 0.0 <= final_ratio <= 1.0:
            raise ConfigError(f"scheduler.final_ratio must lie between 0 and 1, got {final_ratio}")
        self.total_steps, self.warmup_steps = total_steps, warmup_steps
        self.shape, self.final_ratio = shape, final_ratio

    def __call__(self, step: int) -> float:
        if step < self.warmup_steps:
            return (step + 1) / self.warmup_steps
        if self.shape == "constant":
            return 1.0
        done = min(1.0, (step - self.warmup_steps) / (self.total_steps - self.warmup_steps))
        left = 0.5 * (1.0 + math.cos(math.pi * done)) if self.shape == "cosine" else 1.0 - done
        return self.final_ratio + (1.0 - self.final_ratio) * left


def warmup_decay(
    optimizer: Optimizer,
    total_steps: int,
    warmup_steps: int = 0,
    shape: Shape = "cosine",
    final_ratio: float = 0.0,
) -> LambdaLR:
    """Schedule whose peak is each parameter group's `lr`.

    Args:
        total_steps: optimizer steps of the whole run.
        warmup_steps: steps of linear warm-up.
        shape: of the decay after the warm-up.
        final_ratio: learning rate at the end, as a share of the peak.

    Raises:
        ConfigError: an option is out of range.
    """
    return LambdaLR(optimizer, WarmupDecay(total_steps, warmup_steps, shape, final_ratio))
