"""Which implementation steps a list of tensors, and what every implementation offers.

The paper's step needs sums over whole tensors in two places: RMS(g) before the metric, RMS(n) and RMS(w) after it.
An implementation that can step shards therefore does it in three phases, between which `fadam.sharding` adds up the
sums of the processes that hold one tensor together.
"""

from __future__ import annotations

import functools
import importlib
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from fadam.blocks import BlockBackend, SingleBlockBackend, fits
from fadam.bookkeeping import Tensors
from fadam.foreach import ForeachBackend
from fadam.metric import fake
from fadam.options import Options
from fadam.single import SingleBackend

# Where torch's multi-tensor kernels are real ones; elsewhere they are a loop over tensors and gain nothing.
_FOREACH_DEVICES = ("cuda", "xpu")
# Where fused=None takes the fused implementation. Not yet on CUDA devices: its kernels agree with the reference on one
# (results/bench/gpu.md), but nothing says yet that they are faster than the multi-tensor step.
_BY_DEFAULT = ("cpu",)
_PLAIN = (Tensor, torch.nn.Parameter)
# Imported at the first step that could use them: Triton and a compiler cost seconds.
_FUSED = {"cpu": ("fadam.fused.cpu", "CpuBackend"), "cuda": ("fadam.fused.cuda", "CudaBackend")}
_NOTHING = Tensors([], [], [], [], [])


class Backend(Protocol):
    """One step of Algorithm 1 on N real, non-empty tensors of one device, counted up already.

    It is built as ``Backend(tensors, options)`` and used once.
    """

    def run(self) -> None:
        """Write f_t, m_t and theta_t, by the shortest way there is."""
        ...


class PhasedBackend(Backend, Protocol):
    """One that can step shards: `run`, or these three in their order, with other shards' sums added in between."""

    def gradient_sums(self) -> Tensor:
        """(N,): sum of g^2 of each tensor, in float64 where the device has it."""
        ...

    def metric_sums(self, gradient_sums: Tensor) -> Tensor:
        """(2, N): sums of n^2 and of w^2 before the clip, 0 where they are not needed; f_t may be written."""
        ...

    def apply(self, metric_sums: Tensor) -> None:
        """Write m_t and theta_t, and f_t if that has not been."""
        ...


class Taken(NamedTuple):
    """Which implementation steps some tensors."""

    path: str  # "fused", "foreach" or "single"
    reason: str  # why it is not the fused one, or ""


def choose(tensors: Tensors, options: Options) -> Callable[[Tensors, Options], Backend]:
    """The implementation for these tensors of one device.

    Raises:
        RuntimeError: if `fused` is true and cannot be had, with the reason.
    """
    path = take_path(tensors, options).path
    if path == "fused":
        return _fused(tensors)
    if fits(tensors, options):  # torch's multi-tensor kernels are loops on a CPU too
        return SingleBlockBackend if path == "single" else BlockBackend
    return SingleBackend if path == "single" else ForeachBackend


def choose_for_shards(tensors: Tensors, options: Options) -> Callable[[Tensors, Options], PhasedBackend]:
    """The implementation for these shards of one device; in the place of the single-tensor loop, which has no phases,
    the multi-tensor one.

    Raises:
        RuntimeError: as `choose`.
    """
    return _fused(tensors) if take_path(tensors, options).path == "fused" else ForeachBackend


def take_path(tensors: Tensors, options: Options) -> Taken:
    """What `choose` chooses, and why; where a default does without the fused implementation for something that this
    machine lacks, a warning says so once.

    Raises:
        RuntimeError: as `choose`.
    """
    if options.differentiable:
        return Taken("single", "differentiable=True")
    if options.foreach is not None and not options.fused:
        return Taken("foreach" if options.foreach else "single", f"foreach={options.foreach}")
    params = tensors.params
    device = params[0].device.type
    plain = all(type(p) in _PLAIN or fake(p) for p in params)
    other = "foreach" if plain and device in _FOREACH_DEVICES else "single"
    if options.fused is False:
        return Taken(other, "fused=False")
    if not options.published:
        return Taken(other, "it does the published algorithm only")
    if torch.compiler.is_compiling():
        return Taken(other, "a compiler does its own fusing")
    if options.fused is None and device not in _BY_DEFAULT:
        return Taken(
            other, "it is not the default on other devices than the CPU; fused=True takes it where there is one"
        )
    if not plain:
        reason: str | None = "it takes plain tensors only"
    elif fake(params[0]):
        reason = None if options.fused else "the tensors are fake ones"
    else:
        reason = fused_refusal(tensors, options, device)
    if reason is None:
        return Taken("fused", "")
    if options.fused:
        raise RuntimeError(f"FAdam: fused=True is not available: {reason}")
    if plain and not fake(params[0]):
        lacking = unavailable(options, device)
        if lacking is not None:
            _warn_once(other, lacking)
    return Taken(other, reason)


# ---- fused implementations -------------------------------------------------------------------------------------------
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


def fused_refusal(tensors: Tensors, options: Options, device: str) -> str | None:
    """Why the fused implementation cannot step these tensors; None if it can. Without tensors: whether there is
    one."""
    module, name = fused_backend(device)
    if module is None:
        return name
    try:
        reason: str | None = module.refusal(tensors, options)
    except Exception as error:  # a build that fails in an unforeseen way must not end a training run
        reason = f"{type(error).__name__}: {error}"
    return reason


def unavailable(options: Options, device: str) -> str | None:
    """Why there is no fused implementation for any tensors of a device; None if there is."""
    return fused_refusal(_NOTHING, options, device)


def _fused(tensors: Tensors) -> Callable[[Tensors, Options], PhasedBackend]:
    if fake(tensors.params[0]):
        return UnseenBackend
    module, name = fused_backend(tensors.params[0].device.type)
    backend: Callable[[Tensors, Options], PhasedBackend] = getattr(module, name)
    return backend


class UnseenBackend:
    """The fused step of tensors that are not there (FakeTensorMode): it writes in place and takes no memory."""

    def __init__(self, tensors: Tensors, options: Options) -> None:
        self._param, self._size = tensors.params[0], len(tensors.params)

    def gradient_sums(self) -> Tensor:
        return self._param.new_zeros(self._size, dtype=torch.float64)

    def metric_sums(self, gradient_sums: Tensor) -> Tensor:
        return self._param.new_zeros(2, self._size, dtype=torch.float64)

    def apply(self, metric_sums: Tensor) -> None:
        pass

    def run(self) -> None:
        pass


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
