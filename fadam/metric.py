"""The lines of Algorithm 1 (arXiv:2405.12807) on one tensor, as functions without side effects.

The single-tensor loop and the diagnostics are written with these; the multi-tensor backend has the same lines on
lists. RMS values, epsilon and clip stay 0-d tensors on the tensor's own device, so that nothing here waits for it.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

Scalar = float | Tensor


def working_dtype(*tensors: Tensor) -> torch.dtype:
    """The dtype to compute in: the widest of the tensors', and float32 at least."""
    dtype = torch.float32
    for x in tensors:
        dtype = torch.promote_types(dtype, x.dtype)
    return dtype


def norm_dtype(device: torch.device) -> torch.dtype:
    """float64, so that squares of float32 numbers neither overflow nor vanish; float32 where a device lacks it."""
    return torch.float32 if device.type == "mps" else torch.float64


def rms(x: Tensor) -> Tensor:
    """Root mean square over the whole tensor, a 0-d tensor in `norm_dtype`."""
    norm: Tensor = torch.linalg.vector_norm(x, dtype=torch.promote_types(x.dtype, norm_dtype(x.device)))
    return norm / math.sqrt(x.numel())


def fake(x: Tensor) -> bool:
    """Whether it stands for a tensor that is not there, as in memory estimators (FakeTensorMode)."""
    module = sys.modules.get("torch._subclasses.fake_tensor")
    return module is not None and isinstance(x, module.FakeTensor)


def traced(x: Tensor) -> bool:
    """Whether its numbers cannot be read: while a compiler makes a graph, and in a fake tensor."""
    return torch.compiler.is_compiling() or fake(x)


def count(step: Tensor, capturable: bool) -> Scalar:
    """t as a host number, whose powers cost no kernels; as a tensor where a graph will be replayed or `step` is on a
    device."""
    if capturable or not step.is_cpu or traced(step):
        return step.to(norm_dtype(step.device))
    return step.item()


def bias_correction(beta: float, t: Scalar) -> Scalar:
    """1 - beta^t; from a tensor t by expm1, which keeps its digits in float32 where beta is near 1."""
    if isinstance(t, Tensor):
        return -torch.expm1(t * math.log(beta)) if beta > 0 else 1.0
    return 1.0 - float(beta**t)


def fim_weights(beta2: float, t: Scalar) -> tuple[Scalar, Scalar]:
    """beta2_t = beta2 (1 - beta2^(t-1)) / (1 - beta2^t), and 1 - beta2_t = (1 - beta2) / (1 - beta2^t).

    At t = 1 they are exactly 0 and 1, whatever beta2 is, so that f_0 never matters.
    """
    correction = bias_correction(beta2, t)
    return beta2 * bias_correction(beta2, t - 1) / correction, (1 - beta2) / correction


def empirical_fim(f: Tensor, g: Tensor, beta2: float, t: Scalar) -> Tensor:
    """f_t = beta2_t f_{t-1} + (1 - beta2_t) g_t^2, kept finite: an infinite f would never come back."""
    beta2_t, rest2_t = fim_weights(beta2, t)
    if isinstance(rest2_t, Tensor):
        f = torch.addcmul(f * beta2_t, g * rest2_t, g)
    else:
        f = torch.addcmul(f * beta2_t, g, g, value=rest2_t)
    return f.clamp(max=torch.finfo(f.dtype).max)


def epsilon(g: Tensor, eps: float, eps2: float, eps_mode: str) -> Scalar:
    """eps_t: "adaptive" min(eps, eps2 RMS(g)) and "scaled" eps min(1, RMS(g)), 0-d tensors; "fixed" eps."""
    if eps_mode == "adaptive":
        return (rms(g) * eps2).clamp(max=eps)
    if eps_mode == "scaled":
        return rms(g).clamp(max=1) * eps
    return eps


def fim_root(f: Tensor, rho: float, differentiable: bool = False) -> Tensor:
    """f^rho. For autograd, entries with f = 0 count as constant: the slope of a root there is infinite."""
    if differentiable:
        unknown = f == 0
        return fim_root(f.masked_fill(unknown, 1), rho).masked_fill(unknown, 0)
    return f.sqrt() if rho == 0.5 else f**rho


def metric(f: Tensor, eps_t: Scalar, rho: float, differentiable: bool = False) -> Tensor:
    """d_t = f_t^rho + eps_t^(2 rho); infinite where that is 0, so that quotients are 0 there."""
    d = fim_root(f, rho, differentiable) + eps_t ** (2 * rho)
    return d.masked_fill(d == 0, math.inf)


def natural(x: Tensor, d: Tensor) -> Tensor:
    """x / d for an x that is not in d's FIM; a quotient too large for the dtype becomes its largest number.

    g / d needs no such care: d holds (1 - beta2_t)^rho g^(2 rho) at least, or has lost it to underflow, and in both
    cases the quotient of finite numbers is finite for any rho up to 1.
    """
    limit = torch.finfo(x.dtype).max
    return (x / d).clamp(min=-limit, max=limit)


def clip_divisor(x: Tensor, clip: float) -> Tensor:
    """max(1, RMS(x) / clip), a 0-d tensor; x divided by it has an RMS of `clip` at most."""
    return (rms(x) / clip).clamp(min=1)


def store(target: Tensor, value: Tensor) -> None:
    """Write `value` into a state tensor, rounded to its dtype, whose largest number replaces what is larger."""
    if target.dtype != value.dtype:
        limit = torch.finfo(target.dtype).max
        value = value.clamp(min=-limit, max=limit)
    target.copy_(value)


def dense_strides(x: Tensor) -> tuple[int, ...]:
    """The strides of `x`, without its gaps if there are any between its elements."""
    if x.is_contiguous():
        return x.stride()
    return torch.empty_like(x, device="meta", memory_format=torch.preserve_format).stride()


def _scrambled(x: Any) -> Any:
    """A bijection of the integers under 2^32 whose bits are as good as random; the multipliers are those of Chris
    Wellons' hash-prospector. Of a host number or an int64 tensor."""
    x = ((x ^ (x >> 16)) * 0x7FEB352D) & 0xFFFFFFFF
    x = ((x ^ (x >> 15)) * 0x846CA68B) & 0xFFFFFFFF
    return x ^ (x >> 16)


def stochastic_bfloat16(
    x: Tensor, t: Scalar, index: int, offset: int = 0, strides: Sequence[int] | None = None
) -> Tensor:
    """x rounded to one of the two bfloat16 numbers around it, the nearer the likelier, so that the mean is kept.

    The random bits are a function of (t, index, number of the element + offset) alone: no generator, so that
    replicas agree and a resumed run goes on exactly. The fused implementations have the same function.

    Args:
        x: any shape and real dtype.
        t: the step, from 1.
        index: number of the tensor.
        offset: number of its first element.
        strides: the order by which elements are numbered, that of their place in memory; None is that of the axes.
    """
    now = t.to(torch.int64) if isinstance(t, Tensor) else int(t)
    key = _scrambled((_scrambled(now) + index) & 0xFFFFFFFF)
    place = torch.arange(offset, offset + x.numel(), device=x.device)
    place = place.view(x.shape) if strides is None else place.as_strided(x.shape, strides)
    place = (place ^ ((place >> 32) * 0x9E3779B1)) & 0xFFFFFFFF
    noise = _scrambled((_scrambled(place ^ key) + key) & 0xFFFFFFFF) & 0xFFFF
    # The upper half of a float32 is a bfloat16: random lower bits carry into it with the right probability.
    x = x.float()
    rounded = ((x.view(torch.int32) + noise.to(torch.int32)) & -0x10000).view(torch.float32)
    return torch.where(x.isfinite(), rounded, x).to(torch.bfloat16)


class Undo:
    """What was written before, put back at a step's end where `found_inf` is not 0; the host does not read it."""

    def __init__(self, found_inf: Tensor | None, *lists: Sequence[Tensor]) -> None:
        self._found = None if found_inf is None else found_inf != 0
        self._before = [] if found_inf is None else [(x, x.clone()) for tensors in lists for x in tensors]

    def __call__(self) -> None:
        for now, before in self._before:
            assert self._found is not None
            now.copy_(torch.where(self._found, before, now))
