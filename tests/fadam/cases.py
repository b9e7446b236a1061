"""Tables and helpers that the tests of fadam share: every path, shapes, and runs of the oracle."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor

from fadam import FAdam
from fadam.reference import State, reference_step

TORCH_PATHS: dict[str, dict[str, Any]] = {
    "single": {"foreach": False},
    "foreach": {"foreach": True},
    "single-capturable": {"foreach": False, "capturable": True},
    "foreach-capturable": {"foreach": True, "capturable": True},
}
# On the host here; what leaves the published algorithm is done by one of the others.
PATHS = {**TORCH_PATHS, "fused": {"fused": True}, "fused-capturable": {"fused": True, "capturable": True}}

SHAPES: dict[str, tuple[int, ...]] = {
    "scalar": (),
    "empty": (0, 3),
    "one": (1,),
    "vector": (17,),
    "matrix": (5, 7),
    "kernel": (3, 2, 3, 3),
}


@cache
def tensors(dtype: torch.dtype = torch.float64, seed: int = 0, scale: float = 1.0) -> tuple[Tensor, ...]:
    """One tensor of every shape and two that are not contiguous, filled with float64 normals, then rounded.

    The same tensors for the same arguments: not to be changed.
    """
    generator = torch.Generator().manual_seed(seed)

    def normal(shape: tuple[int, ...]) -> Tensor:
        return (scale * torch.randn(shape, generator=generator, dtype=torch.float64)).to(dtype)

    return (*(normal(shape) for shape in SHAPES.values()), normal((6, 4)).t(), normal((4, 6))[:, ::2])


def leaves(values: Sequence[Tensor]) -> list[Tensor]:
    """Parameters that share nothing with `values` and keep their strides."""
    return [x.detach().clone(memory_format=torch.preserve_format).requires_grad_() for x in values]


def run(opt: FAdam, params: Sequence[Tensor], gradients: Callable[[int], Sequence[Tensor]], steps: int) -> None:
    """Take `steps` steps; `gradients(t)` gives one gradient a parameter, t from 1."""
    for t in range(1, steps + 1):
        for p, g in zip(params, gradients(t), strict=True):
            p.grad = g.to(p.dtype)
        opt.step()


def run_reference(
    values: Sequence[Tensor],
    gradients: Callable[[int], Sequence[Tensor]],
    steps: int,
    dtype: torch.dtype = torch.float64,
    **options: Any,
) -> list[Tensor]:
    """The same by the oracle in float64, with parameters and gradients rounded to `dtype` where a run rounds them."""
    thetas = [x.double() for x in values]
    states = [State.initial(x) for x in thetas]
    for t in range(1, steps + 1):
        for i, g in enumerate(gradients(t)):
            if thetas[i].numel() > 0:
                theta, states[i] = reference_step(thetas[i], g.to(dtype).double(), states[i], **options)
                thetas[i] = theta.to(dtype).double()
    return thetas
