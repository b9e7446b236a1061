"""Which implementation steps a list of tensors, and what every implementation offers.

The paper's step needs sums over whole tensors in two places: RMS(g) before the metric, RMS(n) and RMS(w) after it.
A backend therefore does it in three phases, between which `fadam.sharding` adds up the sums of the processes that
hold one tensor together.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from fadam.foreach import ForeachBackend

# Where torch's multi-tensor kernels are real ones; elsewhere they are a loop over tensors and gain nothing.
_FOREACH_DEVICES = ("cuda", "xpu")
# Imported at the first step that could use them: Triton and a compiler cost seconds.
_FUSED = {"cpu": ("fadam.fused.cpu", "CpuBackend"), "cuda": ("fadam.fused.cuda", "CudaBackend")}


class Backend(Protocol):
    """One step of Algorithm 1 on N real, non-empty tensors of one device, in three phases or in one.

    It is built as ``Backend(params, grads, momentums, fims, steps, **options)`` with t already counted up, and used
    once. `numels` among the options gives the elements of the logical tensors, where those given are shards of them,
    `offsets` the numbers of their first elements in these, and `indices` those of the tensors, both for the stochastic
    rounding.
    """

    def gradient_sums(self) -> Tensor:
        """(N,): sum of g^2 of each tensor, in float64 where the device has it."""
        ...

    def metric_sums(self, gradient_sums: Tensor) -> Tensor:
        """(2, N): sums of n^2 and of w^2 before the clip, 0 where they are not needed; writes f_t."""
        ...

    def apply(self, metric_sums: Tensor) -> None:
        """Write m_t and theta_t."""
        ...

    def run(self) -> None:
        """The three phases with nothing in between, by the shortest way there is."""
        ...


@functools.cache
def fused_backend(device: str) -> tuple[Any, str]:
    """The module of the fused implementation for a device type and its class's name; or None and why there is none."""
    if device not in _FUSED:
        return None, f"there is none for {device} tensors, only for " + " and ".join(_FUSED)
    module, name = _FUSED[device]
    try:
        return importlib.import_module(module), name
    except Exception as error:  # whatever a broken installation of what it needs may raise
        return None, f"{module} cannot be imported: {error}"


def fused_refusal(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    momentums: Sequence[Tensor],
    fims: Sequence[Tensor],
    steps: Sequence[Tensor],
    options: Mapping[str, Any],
    device: str,
) -> str | None:
    """Why the fused implementation cannot step these tensors; None if it can. Without tensors: whether there is
    one."""
    module, name = fused_backend(device)
    if module is None:
        return name
    try:
        reason: str | None = module.refusal(params, grads, momentums, fims, steps, options)
    except Exception as error:  # a build that fails in an unforeseen way must not end a training run
        reason = f"{type(error).__name__}: {error}"
    return reason


def is_ablation(options: Mapping[str, Any]) -> bool:
    """Whether a switch leaves the published algorithm, which is all that fused implementations know."""
    changed = options["momentum_mode"] != "natural" or options["decay_mode"] != "natural" or options["correct_momentum"]
    return bool(changed)


def choose(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    momentums: Sequence[Tensor],
    fims: Sequence[Tensor],
    steps: Sequence[Tensor],
    *,
    foreach: bool | None,
    fused: bool | None,
    differentiable: bool,
    options: Mapping[str, Any],
) -> Callable[..., Backend] | None:
    """The implementation for these tensors of one device; None is the single-tensor loop.

    Raises:
        RuntimeError: if `fused` is true and cannot be had, with the reason.
    """
    if differentiable:
        return None
    if foreach is not None and not fused:
        return ForeachBackend if foreach else None
    device = params[0].device.type
    plain = {type(p) for p in params} <= {Tensor, torch.nn.Parameter}
    # A graph compiler does its own fusing and cannot look into ours.
    if fused is not False and not is_ablation(options) and not torch.compiler.is_compiling():
        reason = "it takes plain tensors only"
        if plain:
            refused = fused_refusal(params, grads, momentums, fims, steps, options, device)
            if refused is None:
                module, name = fused_backend(device)
                backend: Callable[..., Backend] = getattr(module, name)
                return backend
            reason = refused
        if fused:
            raise RuntimeError(f"FAdam: fused=True is not available: {reason}")
    return ForeachBackend if plain and device in _FOREACH_DEVICES else None
