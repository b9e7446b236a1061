"""Learning rates over the steps."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from experiments.core.errors import ConfigError
from experiments.core.schedule import warmup_decay


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ("linear", [0.5, 1.0, 1.0, 0.775, 0.55, 0.325, 0.1]),
        ("constant", [0.5, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0]),
        ("cosine", [0.5, 1.0, *(0.1 + 0.45 * (1 + math.cos(math.pi * k / 4)) for k in range(5))]),
    ],
)
def test_schedule(shape, expected: list[float]) -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=2.0)
    scheduler = warmup_decay(optimizer, total_steps=6, warmup_steps=2, shape=shape, final_ratio=0.1)
    seen = [optimizer.param_groups[0]["lr"]]
    for _ in range(6):
        optimizer.step()
        scheduler.step()
        seen.append(optimizer.param_groups[0]["lr"])
    assert seen == pytest.approx([2.0 * e for e in expected])


@pytest.mark.parametrize("warmup_steps", [0.1, 1.5, True, -1, 6])
def test_a_warm_up_is_a_whole_number_of_steps(warmup_steps) -> None:
    """A share of the run would multiply the rate by more than 1."""
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=2.0)
    with pytest.raises(ConfigError, match=rf"warmup_steps must be a whole number .* of the run, got {warmup_steps}"):
        warmup_decay(optimizer, total_steps=6, warmup_steps=warmup_steps)
