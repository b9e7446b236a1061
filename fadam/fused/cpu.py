"""FAdam's step in C++ (`cpu.cpp`), compiled for this machine on first use and kept (see `fadam.fused.build`)."""

from __future__ import annotations

import ctypes
from array import array
from collections.abc import Sequence
from functools import cache
from itertools import chain
from operator import attrgetter
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fadam.bookkeeping import Tensors, written
from fadam.fused import build
from fadam.fused.build import BuildError
from fadam.metric import dense_strides
from fadam.options import Options

_SOURCE = Path(__file__).with_name("cpu.cpp")

# As the enums of cpu.cpp.
_TYPES = {torch.float32: 0, torch.float64: 1, torch.bfloat16: 2, torch.float16: 3}
_EPS_MODES = {"adaptive": 0, "scaled": 1, "fixed": 2}
_GRADIENT, _METRIC, _APPLY, _RUN = 1, 2, 4, 7


class _Call(ctypes.Structure):
    """FAdamCall of cpu.cpp."""

    _fields_ = (
        ("num_tensors", ctypes.c_int64),
        *((name, ctypes.c_void_p) for name in ("params", "grads", "momentums", "fims", "steps", "types")),
        *((name, ctypes.c_void_p) for name in ("sizes", "numels", "offsets", "indices")),
        *((name, ctypes.c_void_p) for name in ("gradient_sums", "metric_sums")),
        *((name, ctypes.c_double) for name in ("lr", "beta1", "beta2", "eps", "eps2", "clip", "rho")),
        *((name, ctypes.c_double) for name in ("weight_decay", "grad_scale")),
        *((name, ctypes.c_int32) for name in ("eps_mode", "maximize", "stochastic_rounding", "threads")),
    )


class _Threads(ctypes.Structure):
    """FAdamThreads of cpu.cpp."""

    _fields_ = tuple((name, ctypes.c_void_p) for name in ("parallel", "rank", "threads"))


def refusal(tensors: Tensors, options: Options) -> str | None:
    """Why :class:`CpuBackend` cannot take this step, as a clause, or None if it can; without tensors, any step.

    The first call compiles the library, if no earlier process of this user has.
    """
    for name, only in (("momentum_mode", "natural"), ("decay_mode", "natural"), ("correct_momentum", False)):
        if getattr(options, name) != only:
            return f"it has {name}={only!r} only"
    if options.differentiable:
        return "autograd does not see into it"
    four, steps = tensors.four, tensors.steps
    if not all(map(attrgetter("is_cpu"), chain(*four))):
        return "not all tensors are on the CPU"
    for dtype in set(map(attrgetter("dtype"), chain(*four))):
        if dtype not in _TYPES:
            return f"it knows no {dtype}"
    if any(layout != torch.strided for layout in set(map(attrgetter("layout"), chain(*four)))):
        return "not all tensors are strided"
    # What goes there are addresses alone.
    shapes = list(map(Tensor.size, tensors.params))
    if any(list(map(Tensor.size, list_)) != shapes for list_ in four[1:]):
        return "a gradient or state is not of its parameter's shape"
    if not all(map(attrgetter("is_cpu"), steps)) or set(map(attrgetter("dtype"), steps)) - {torch.float32}:
        return "not all steps are float32 on the CPU"
    try:
        _library()
    except BuildError as error:
        return str(error)
    return None


class CpuBackend:
    r"""One step of Algorithm 1 of arXiv:2405.12807 on CPU tensors, whole or in three phases.

    Either `run`, or `gradient_sums`, `metric_sums` and `apply` in this order; between them, the sums can be added to
    those of other shards. Nothing is changed before `apply`.

    Arithmetic is in float32, or in float64 where one of a tensor's four is float64; sums are in float64. A result does
    not depend on the number of threads, which is torch's (:func:`torch.get_num_threads`).

    Args:
        tensors: real ones on the CPU, the four of a tensor of the same shape, in any mix of float32, float64, bfloat16
            and float16. Those whose strides are not the parameter's, and parameters with gaps between their elements,
            are copied for the time of the step. Steps are on the host.
        options: what `refusal` accepts.

    Raises:
        BuildError: if the library is not to be had; `refusal` would have said so.
    """

    def __init__(self, tensors: Tensors, options: Options) -> None:
        self._step, self._threads = _library()
        self._tensors = tensors
        self._copies: list[tuple[Tensor, Tensor]] = []  # what was handed over, and what takes its place
        lists = self._alike(*map(list, tensors.four))
        num_tensors = len(lists[0])
        # The arrays must live as long as the call that points to them.
        addresses = [array("Q", map(Tensor.data_ptr, list_)) for list_ in (*lists, tensors.steps)]
        self._arrays = [
            *addresses,
            _types(lists),
            array("q", map(Tensor.numel, lists[0])),
            array("q", tensors.numels) if tensors.numels is not None else None,
            array("q", tensors.offsets) if tensors.offsets is not None else None,
            array("q", tensors.indices) if tensors.indices is not None else None,
        ]
        self._lists = (*lists, tensors.steps)  # keeps the addresses valid
        self._sums = torch.zeros(3, num_tensors, dtype=torch.float64, device="cpu")
        self._call = _Call(
            num_tensors,
            *(a.buffer_info()[0] if a is not None else None for a in self._arrays),
            self._sums.data_ptr(),
            self._sums.data_ptr() + 8 * num_tensors,
            float(options.lr),
            options.beta1,
            options.beta2,
            options.eps,
            options.eps2,
            options.clip or 0.0,
            options.fim_rho,
            options.weight_decay,
            float(tensors.grad_scale) if tensors.grad_scale is not None else 0.0,
            _EPS_MODES[options.eps_mode],
            options.maximize,
            options.stochastic_rounding,
            torch.get_num_threads(),
        )

    def gradient_sums(self) -> Tensor:
        """The sum of g^2 over each tensor, float64 (N,); 0 where eps_t does not depend on it."""
        self._take(_GRADIENT)
        return self._sums[0].clone()

    def metric_sums(self, gradient_sums: Tensor) -> Tensor:
        """The sums of n^2 and of w^2 over each tensor before the clip, float64 (2, N); 0 without a clip.

        Args:
            gradient_sums: of each logical tensor, (N,).
        """
        self._sums[0].copy_(gradient_sums)
        self._take(_METRIC)
        return self._sums[1:].clone()

    def apply(self, metric_sums: Tensor) -> None:
        """Write f_t, m_t and theta_t.

        Args:
            metric_sums: of each logical tensor, (2, N).
        """
        self._sums[1:].copy_(metric_sums)
        self._write(_APPLY)

    def run(self) -> None:
        """The three phases in one go, where no tensor is sharded."""
        self._write(_RUN)

    def _write(self, phases: int) -> None:
        tensors = self._tensors
        if tensors.found_inf is not None and tensors.found_inf.item() != 0:
            return
        self._take(phases)
        for original, copy in self._copies:
            original.copy_(copy)
        written(tensors.params, tensors.momentums, tensors.fims)

    def _take(self, phases: int) -> None:
        if self._step(ctypes.byref(self._call), phases, ctypes.byref(self._threads)) != 0:
            raise MemoryError("FAdam: no memory for the partial sums of a step")

    def _alike(self, *lists: list[Tensor]) -> tuple[list[Tensor], ...]:
        """The lists, with copies where the four tensors do not lie in memory alike and densely."""
        if all(map(Tensor.is_contiguous, chain(*lists))) and not any(map(Tensor.is_neg, chain(*lists))):
            return lists
        for i, four in enumerate(zip(*lists, strict=True)):
            strides = dense_strides(four[0])
            for tensors, x in zip(lists, four, strict=True):
                if x.stride() != strides or x.is_neg():
                    tensors[i] = torch.empty_strided(x.shape, strides, dtype=x.dtype, device="cpu").copy_(x)
                    if tensors is not lists[1]:
                        self._copies.append((x, tensors[i]))
        return lists


def _types(lists: Sequence[Sequence[Tensor]]) -> array[int]:
    each = [[x.dtype for x in tensors] for tensors in lists]
    codes = array("B", bytes(4 * len(each[0])))
    for k, dtypes in enumerate(each):
        codes[k::4] = array("B", map(_TYPES.__getitem__, dtypes))
    return codes


def _runtime() -> _Threads:
    """The threads of the OpenMP runtime that torch brought into the process; none where there is no such runtime.

    The library is not linked to a runtime: a second one would keep threads of its own beside torch's.
    """
    process = ctypes.CDLL(None)
    names = ("GOMP_parallel", "omp_get_thread_num", "omp_get_num_threads")
    try:
        return _Threads(*(ctypes.cast(getattr(process, name), ctypes.c_void_p) for name in names))
    except AttributeError:
        return _Threads()


@cache
def _load() -> tuple[Any, _Threads] | str:
    """The step of the compiled library and its threads, or why there is none; found out once a process."""
    try:
        step = build.load(_SOURCE).fadam_cpu
        step.argtypes = (ctypes.POINTER(_Call), ctypes.c_int32, ctypes.POINTER(_Threads))
        return step, _runtime()
    except BuildError as error:
        return str(error)
    except Exception as error:  # whatever is odd about this system, a training run goes on without
        return f"the compiled library cannot be had ({type(error).__name__}: {error})"


def _library() -> tuple[Any, _Threads]:
    loaded = _load()
    if isinstance(loaded, str):
        raise BuildError(loaded)
    return loaded
