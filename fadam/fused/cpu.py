"""FAdam's step in C++ (`cpu.cpp`), compiled for this machine on first use.

The compiled library is kept in the folder that the environment variable ``FADAM_CACHE`` names, by default
``$XDG_CACHE_HOME/fadam`` or ``~/.cache/fadam``, under a name that changes with source, compiler, flags and processor.
The compiler is ``$CXX``, or else the first of c++, g++ and clang++ that is there.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
from array import array
from collections.abc import Mapping, Sequence
from functools import cache
from itertools import chain
from operator import attrgetter
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fadam.metric import dense_strides

_SOURCE = Path(__file__).with_name("cpu.cpp")
_FLAGS = ("-O3", "-std=c++17", "-fopenmp-simd", "-fno-math-errno", "-fno-trapping-math", "-shared", "-fPIC")
_NATIVE = ("-march=native",)
_COMPILERS = ("c++", "g++", "clang++")

# As the enums of cpu.cpp.
_TYPES = {torch.float32: 0, torch.float64: 1, torch.bfloat16: 2, torch.float16: 3}
_EPS_MODES = {"adaptive": 0, "scaled": 1, "fixed": 2}
_GRADIENT, _METRIC, _APPLY, _RUN = 1, 2, 4, 7


class _Call(ctypes.Structure):
    """FAdamCall of cpu.cpp."""

    _fields_ = (
        ("size", ctypes.c_int64),
        *((name, ctypes.c_void_p) for name in ("params", "grads", "momentums", "fims", "steps", "types")),
        *((name, ctypes.c_void_p) for name in ("numels", "logical", "offsets", "indices")),
        *((name, ctypes.c_void_p) for name in ("gradient_sums", "metric_sums")),
        *((name, ctypes.c_double) for name in ("lr", "beta1", "beta2", "eps", "eps2", "clip", "rho")),
        *((name, ctypes.c_double) for name in ("weight_decay", "grad_scale")),
        *((name, ctypes.c_int32) for name in ("eps_mode", "maximize", "stochastic_rounding", "threads")),
    )


class _Threads(ctypes.Structure):
    """FAdamThreads of cpu.cpp."""

    _fields_ = tuple((name, ctypes.c_void_p) for name in ("parallel", "number", "count"))


class BuildError(RuntimeError):
    """The library could not be built or loaded; the message is a clause that says why."""


def refusal(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    momentums: Sequence[Tensor],
    fims: Sequence[Tensor],
    steps: Sequence[Tensor],
    options: Mapping[str, Any],
) -> str | None:
    """Why :class:`CpuBackend` cannot take this step, as a clause, or None if it can.

    The first call compiles the library, if no earlier process of this user has.

    Args:
        params, grads, momentums, fims, steps: as for `CpuBackend`.
        options: what is chosen of ``momentum_mode``, ``decay_mode``, ``correct_momentum``, ``differentiable`` and
            ``stochastic_rounding``.
    """
    for name, only in (("momentum_mode", "natural"), ("decay_mode", "natural"), ("correct_momentum", False)):
        if options.get(name, only) != only:
            return f"it has {name}={only!r} only"
    if options.get("differentiable"):
        return "autograd does not see into it"
    tensors = (params, grads, momentums, fims)
    if not all(map(attrgetter("is_cpu"), chain(*tensors))):
        return "not all tensors are on the CPU"
    for dtype in set(map(attrgetter("dtype"), chain(*tensors))):
        if dtype not in _TYPES:
            return f"it knows no {dtype}"
    if any(layout != torch.strided for layout in set(map(attrgetter("layout"), chain(*tensors)))):
        return "not all tensors are strided"
    # What goes there are addresses alone.
    sizes = list(map(Tensor.numel, params))
    if any(list(map(Tensor.numel, list_)) != sizes for list_ in tensors[1:]):
        return "a gradient or state is not of its parameter's size"
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
        params, grads, momentums, fims: real tensors on the CPU, of the same shape each four, in any mix of float32,
            float64, bfloat16 and float16. Those whose strides are not the parameter's, and parameters with gaps between
            their elements, are copied for the time of the step.
        steps: t, that is after this step, 0-d float32 tensors on the host.
        lr, beta1, beta2, eps, eps2, clip, fim_rho, weight_decay, eps_mode, maximize: as for :class:`fadam.FAdam`.
        momentum_mode, decay_mode, correct_momentum, capturable: accepted for the sake of one signature; see `refusal`.
        stochastic_rounding: round a bfloat16 parameter up or down with a probability by distance. The random bits are
            those of `fadam.metric.stochastic_bfloat16`, so that equal steps round equally.
        numels: elements of each logical tensor, which RMS values are over; None if the tensors are whole.
        offsets: number of a tensor's first element in its logical tensor, for the random bits.
        indices: number of each tensor, for the random bits; None is its place in the list.
        grad_scale: what gradients are divided by first, one element.
        found_inf: one element; if it is not 0, `apply` and `run` do nothing.

    Raises:
        BuildError: if the library is not to be had; `refusal` would have said so.
    """

    def __init__(
        self,
        params: Sequence[Tensor],
        grads: Sequence[Tensor],
        momentums: Sequence[Tensor],
        fims: Sequence[Tensor],
        steps: Sequence[Tensor],
        *,
        lr: float | Tensor,
        beta1: float,
        beta2: float,
        eps: float,
        eps2: float,
        clip: float | None,
        fim_rho: float,
        weight_decay: float,
        eps_mode: str = "adaptive",
        momentum_mode: str = "natural",
        decay_mode: str = "natural",
        correct_momentum: bool = False,
        maximize: bool = False,
        capturable: bool = False,
        stochastic_rounding: bool = False,
        numels: Sequence[int] | None = None,
        offsets: Sequence[int] | None = None,
        indices: Sequence[int] | None = None,
        grad_scale: Tensor | None = None,
        found_inf: Tensor | None = None,
    ) -> None:
        self._step, self._threads = _library()
        self._found_inf = found_inf
        self._copies: list[tuple[Tensor, Tensor]] = []  # what was handed over, and what takes its place
        lists = self._alike(list(params), list(grads), list(momentums), list(fims))
        count = len(lists[0])
        # The arrays must live as long as the call that points to them.
        addresses = [array("Q", map(Tensor.data_ptr, tensors)) for tensors in (*lists, steps)]
        self._arrays = [
            *addresses,
            _types(lists),
            array("q", map(Tensor.numel, lists[0])),
            array("q", numels) if numels is not None else None,
            array("q", offsets) if offsets is not None else None,
            array("q", indices) if indices is not None else None,
        ]
        self._tensors = (*lists, steps)  # keeps the addresses valid
        self._sums = torch.zeros(3, count, dtype=torch.float64, device="cpu")
        self._call = _Call(
            count,
            *(a.buffer_info()[0] if a is not None else None for a in self._arrays),
            self._sums.data_ptr(),
            self._sums.data_ptr() + 8 * count,
            float(lr),
            beta1,
            beta2,
            eps,
            eps2,
            clip or 0.0,
            fim_rho,
            weight_decay,
            float(grad_scale) if grad_scale is not None else 0.0,
            _EPS_MODES[eps_mode],
            maximize,
            stochastic_rounding,
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
        if self._found_inf is not None and self._found_inf.item() != 0:
            return
        self._take(phases)
        for original, copy in self._copies:
            original.copy_(copy)

    def _take(self, phases: int) -> None:
        if self._step(ctypes.byref(self._call), phases, ctypes.byref(self._threads)) != 0:
            raise MemoryError("FAdam: no memory for the partial sums of a step")

    def _alike(self, *lists: list[Tensor]) -> tuple[list[Tensor], ...]:
        """The lists, with copies where the four tensors do not lie in memory alike and densely."""
        if all(map(Tensor.is_contiguous, chain(*lists))) and not any(map(Tensor.is_neg, lists[1])):
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
    """The step of the compiled library and its threads, or why there is none."""
    try:
        step = ctypes.CDLL(str(_built())).fadam_cpu
        step.argtypes = (ctypes.POINTER(_Call), ctypes.c_int32, ctypes.POINTER(_Threads))
        return step, _runtime()
    except BuildError as error:
        return str(error)
    except OSError as error:
        return f"the compiled library does not load ({error})"


def _library() -> tuple[Any, _Threads]:
    loaded = _load()
    if isinstance(loaded, str):
        raise BuildError(loaded)
    return loaded


def _cache() -> Path:
    """The folder of compiled libraries."""
    named = os.environ.get("FADAM_CACHE")
    return Path(named) if named else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fadam"


def _compiler() -> list[str]:
    named = os.environ.get("CXX")
    for command in [shlex.split(named)] if named else [[name] for name in _COMPILERS]:
        if command and shutil.which(command[0]):
            return command
    wanted = named or ", ".join(_COMPILERS[:-1]) + " or " + _COMPILERS[-1]
    raise BuildError(f"there is no C++ compiler to build it with ({wanted} is not on the PATH)")


def _processor() -> str:
    """What -march=native depends on: the processor's features, as far as the system tells."""
    try:
        lines = Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines()
    except OSError:
        lines = []
    keys = ("vendor_id", "cpu family", "model", "model name", "flags", "Features", "CPU implementer", "CPU part")
    return "\n".join([platform.machine(), *(line for line in lines if line.partition("\t")[0].strip() in keys)])


def _built() -> Path:
    """The compiled library, built if it is not there."""
    compiler = _compiler()
    version = subprocess.run([*compiler, "--version"], capture_output=True, text=True, check=False).stdout
    parts = (_SOURCE.read_text(), *compiler, version, *_FLAGS, *_NATIVE, _processor())
    folder = _cache()
    target = folder / f"cpu-{hashlib.sha256(chr(0).join(parts).encode()).hexdigest()[:24]}.so"
    if target.exists():
        return target
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        # Another process may be at it too: each writes a file of its own, and the last one renamed stays.
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            fresh = Path(scratch) / target.name
            _compile(compiler, fresh)
            fresh.replace(target)
    except OSError as error:
        raise BuildError(
            f"the folder {folder} for compiled code cannot be written ({error.strerror or error}); "
            "FADAM_CACHE can name another"
        ) from None
    return target


def _compile(compiler: Sequence[str], target: Path) -> None:
    # Not every compiler knows the processor that it runs on.
    for native in (_NATIVE, ()):
        command = [*compiler, *native, *_FLAGS, str(_SOURCE), "-o", str(target)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode == 0:
            return
    last = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[0]
    raise BuildError(f"{shlex.join(compiler)} does not compile it: {last}")
