"""The loops on the CPU, block by block, are the loops of other devices to the last bit."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from fadam import FAdam, blocks
from tests.fadam.cases import leaves, run, tensors

CASES: dict[str, dict[str, Any]] = {
    "defaults": {},
    "no clip": {"clip": None},
    "no decay": {"weight_decay": 0.0},
    "rho, scaled": {"fim_rho": 0.7, "eps_mode": "scaled", "eps": 0.5, "maximize": True},
    "fixed": {"eps_mode": "fixed", "weight_decay": 0.5},
    "eps 0": {"eps": 0.0},
    "eps large": {"eps": 0.5},
    "gradient": {"momentum_mode": "gradient", "correct_momentum": True},
    "decoupled": {"decay_mode": "decoupled", "correct_momentum": True},
    "narrow": {"momentum_dtype": torch.bfloat16, "fim_dtype": torch.float16},
    "narrow, gradient": {"momentum_dtype": torch.float16, "fim_dtype": torch.bfloat16, "momentum_mode": "gradient"},
    "wide": {"momentum_dtype": torch.float32, "fim_dtype": torch.float64},
    "rounding": {"stochastic_rounding": True, "lr": 0.1},
    "rate": {"lr": torch.tensor(0.1)},
}


def values(dtype: torch.dtype, seed: int, scale: float = 1.0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    large = scale * torch.randn(1000, generator=generator)
    return [*tensors(dtype, seed, scale), large.to(dtype), large.view(20, 50).to(dtype).t()]


def changing(dtype: torch.dtype, t: int) -> list[Tensor]:
    grads = [g.clone() for g in values(dtype, t, 10.0 ** (-5 + (7 * t) % 11))]
    for g in grads:
        if g.dim() > 0:
            g[::3] = 0
    return grads


@pytest.mark.parametrize("foreach", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("length", [None, 96])
def test_same_bits(
    case: str, dtype: torch.dtype, foreach: bool, length: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With blocks of 96 elements, too, of which the large tensors have several. Their sums have another order, in
    float64: nothing shows of it in float32."""
    if length is not None:
        monkeypatch.setattr(blocks, "_BLOCK", length)
    found = []
    for loop in (blocks.fits, lambda *_: False):
        monkeypatch.setattr("fadam.backend.fits", loop)
        params = leaves(values(dtype, 1000))
        opt = FAdam(params, foreach=foreach, **CASES[case])
        run(opt, params, lambda t: changing(dtype, t), 5)
        found.append([*params, *(opt.state[p][name] for p in params for name in ("step", "momentum", "fim"))])
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("size", [1000, 2000])
def test_scratch_memory_is_that_of_a_block(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "_BLOCK", 64)
    made: list[int] = []
    empty = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *args, **kwargs: made.append(args[0]) or empty(*args, **kwargs))
    params = leaves([torch.ones(size), torch.ones(10)])
    run(FAdam(params, foreach=False), params, lambda t: [torch.ones_like(p) for p in params], 2)
    assert made
    assert set(made) == {64}
