"""A second oracle: the public port of FAdam in pytorch_optimizer, written apart from this one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from fadam import FAdam
from fadam.reference import State, reference_step
from tests.fadam.cases import leaves, run, run_reference, tensors
from tests.fadam.test_paths import OPTIONS, changing

port = pytest.importorskip("pytorch_optimizer", reason="of the extra `bench`").FAdam

WORDS = {"eta": "lr", "lam": "weight_decay", "c": "clip", "rho": "p", "eps": "eps", "eps2": "eps_2"}
WIDE = {"momentum_dtype": torch.float64, "fim_dtype": torch.float64}


def ported(params: Sequence[Tensor], symbols: dict[str, Any]) -> Any:
    options = {word: symbols[symbol] for symbol, word in WORDS.items() if symbol in symbols}
    betas = symbols.get("beta1", 0.9), symbols.get("beta2", 0.999)
    return port(params, **{"lr": 1e-3, "weight_decay": 1e-3, "betas": betas, **options, **WIDE})


def gradients(t: int, eps: float) -> list[Tensor]:
    """Those of the other tests, but none that is all zero, at which the two differ; with eps 0 not even an entry, which
    is 0 / 0 there."""
    grads = [g for g in changing(t) if g.numel() > 0]
    return [torch.where(g == 0, 10.0 ** -(t % 5), g) if eps == 0 or not g.any() else g for g in grads]


@pytest.mark.parametrize("case", OPTIONS)
def test_the_port_and_the_reference_agree(case: str) -> None:
    _, symbols = OPTIONS[case]
    values = [x for x in tensors(seed=1000) if x.numel() > 0]
    params = leaves(values)

    def grads(t: int) -> list[Tensor]:
        return gradients(t, symbols.get("eps", 1e-8))

    run(ported(params, symbols), params, grads, 40)
    for p, theta in zip(params, run_reference(values, grads, 40, **symbols), strict=True):
        torch.testing.assert_close(p.detach(), theta, rtol=1e-11, atol=1e-12)


def test_where_they_differ() -> None:
    """A tensor whose gradient has always been zero: nothing is known of its metric. Here it rests; there its weight
    decay, clipped, moves it."""
    value = torch.tensor([1.0, -2.0], dtype=torch.float64)
    (ours,), (theirs,) = leaves([value]), leaves([value])
    run(FAdam([ours], lr=0.1, weight_decay=0.5), [ours], lambda t: [torch.zeros(2)], 1)
    run(ported([theirs], {"eta": 0.1, "lam": 0.5}), [theirs], lambda t: [torch.zeros(2)], 1)
    rests, _ = reference_step(value, torch.zeros_like(value), State.initial(value), eta=0.1, lam=0.5)
    torch.testing.assert_close(ours.detach(), rests, rtol=0, atol=0)
    torch.testing.assert_close(ours.detach(), value, rtol=0, atol=0)
    moved = value - 0.1 * 0.5 * value / value.square().mean().sqrt()
    torch.testing.assert_close(theirs.detach(), moved, rtol=1e-12, atol=0)
