"""Which implementation steps a list of tensors, and what every implementation offers.

The paper's step needs sums over whole tensors in two places: RMS(g) before the metric, RMS(n) and RMS(w) after it.
A backend therefore does it in three phases, between which `fadam.sharding` adds up the sums of the processes that
hold one tensor together.
"""

from __future__ import annotations

import functools
import importlib
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from fadam.foreach import ForeachBackend
from fadam.metric import fake

# Where torch's multi-tensor kernels are real ones; elsewhere they are a loop over tensors and gain nothing.
_FOREACH_DEVICES = ("cuda", "xpu")
# Where fused=None takes the fused implementation. Not yet on CUDA devices: its kernels have run in Triton's interpreter
# only, and no run on a GPU stands in results/bench.
_BY_DEFAULT = ("cpu",)
_PLAIN = (Tensor, torch.nn.Parameter)
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


class Unseen:
    """The fused step of tensors that are not there (FakeTensorMode): it writes in place and takes no memory."""

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def run(self) -> None:
        pass


class Taken(NamedTuple):
    """Which implementation steps some tensors."""

    path: str  # "fused", "foreach" or "single"
    reason: str  # why it is not the fused one, or ""


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
) -> Callable[..., Any] | None:
    """The implementation for these tensors of one device; None is the single-tensor loop.

    Raises:
        RuntimeError: if `fused` is true and cannot be had, with the reason.
    """
    lists = params, grads, momentums, fims, steps
    taken = take_path(*lists, foreach=foreach, fused=fused, differentiable=differentiable, options=options)
    if taken.path != "fused":
        return ForeachBackend if taken.path == "foreach" else None
    if fake(params[0]):
        return Unseen
    module, name = fused_backend(params[0].device.type)
    backend: Callable[..., Backend] = getattr(module, name)
    return backend


def take_path(
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
) -> Taken:
    """What `choose` chooses, and why; where a default does without the fused implementation for something that this
    machine lacks, a warning says so once.

    Raises:
        RuntimeError: as `choose`.
    """
    if differentiable:
        return Taken("single", "differentiable=True")
    if foreach is not None and not fused:
        return Taken("foreach" if foreach else "single", f"foreach={foreach}")
    device = params[0].device.type
    plain = all(type(p) in _PLAIN or fake(p) for p in params)
    other = "foreach" if plain and device in _FOREACH_DEVICES else "single"
    if fused is False:
        return Taken(other, "fused=False")
    if is_ablation(options):
        return Taken(other, "it does the published algorithm only")
    if torch.compiler.is_compiling():
        return Taken(other, "a compiler does its own fusing")
    if fused is None and device not in _BY_DEFAULT:
        return Taken(
            other, "it is not the default on other devices than the CPU; fused=True takes it where there is one"
        )
    if not plain:
        reason: str | None = "it takes plain tensors only"
    elif fake(params[0]):
        reason = None if fused else "the tensors are fake ones"
    else:
        reason = fused_refusal(params, grads, momentums, fims, steps, options, device)
    if reason is None:
        return Taken("fused", "")
    if fused:
        raise RuntimeError(f"FAdam: fused=True is not available: {reason}")
    if plain and not fake(params[0]):
        lacking = fused_refusal([], [], [], [], [], options, device)
        if lacking is not None:
            _warn_once(other, lacking)
    return Taken(other, reason)


@functools.cache
def _warn_once(path: str, lacking: str) -> None:
    loop = "single-tensor loop" if path == "single" else "multi-tensor implementation"
    warnings.warn(
        f"FAdam: the {loop} takes the step on the CPU, several times slower than the fused implementation, because "
        f"{lacking}. What would help: a C++ compiler such as g++, at the first step only, or the environment variable "
        "FADAM_CACHE with a folder that holds the library already compiled for this processor. fused=False takes the "
        "loop without this warning; FAdam.paths() tells which one is taken.",
        stacklevel=2,
    )
