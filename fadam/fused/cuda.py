"""FAdam's step on CUDA devices by Triton (the kernels are in `fadam.fused.cuda_kernels`).

Every kernel covers all tensors of a parameter group that share their dtypes, so that the number of launches does not
depend on how many tensors there are or how large: five for the published algorithm, of which two do nothing unless
eps_t < eps somewhere; see `CudaBackend.run`. The host never waits for the device.

The kernels find the tensors through tables in device memory. What does not change from step to step (a `_Plan`) is
kept, keyed by addresses, sizes and dtypes, as long as the first tensor's momentum lives, and holds no tensor of the
caller's. Addresses of gradients, which often do change, are sent in one asynchronous copy when they have.
"""

from __future__ import annotations

import contextlib
import math
from collections import OrderedDict
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from itertools import accumulate, chain
from operator import attrgetter
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from fadam.bookkeeping import Tensors, written
from fadam.foreach import ForeachBackend
from fadam.fused import cuda_kernels as kernels
from fadam.metric import dense_strides, fim_weights
from fadam.options import Options

_TYPES = {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}

# Elements a program takes at a time, by 8 warps: 16 bytes a thread and tensor, whatever the narrowest dtype is.
_BLOCK = 1024
_WARPS = 8
# A chunk is some power of two of elements, so that there are about so many programs: enough to even out their ends
# on 132 multiprocessors, few enough that looking up the tensor costs little beside its bytes.
_PROGRAMS = 16384
_CHUNKS = (2048, 32768)
# Addresses that one launch writes while a graph is captured.
_ADDRESSES = 32
# Plans that are kept of each list that begins with one tensor: what else has a gradient may change from step to step.
_KEPT = 8


def refusal(tensors: Tensors, options: Options) -> str | None:
    """Why :class:`CudaBackend` cannot take this step, as a clause, or None if it can; without tensors, any step."""
    for name, only in (("momentum_mode", "natural"), ("decay_mode", "natural"), ("correct_momentum", False)):
        if getattr(options, name) != only:
            return f"on CUDA devices it has {name}={only!r} only"
    if options.differentiable:
        return "it has no autograd"
    if tuple(int(part) for part in triton.__version__.split(".")[:2]) < (3, 3):  # without tuples among arguments
        return f"it needs Triton 3.3 or later, not {triton.__version__}"
    if torch.version.hip is not None:
        return "it has not been tried on ROCm"
    if not torch.cuda.is_available():
        return "there is no CUDA device"
    params, four, steps = tensors.params, tensors.four, tensors.steps
    device = params[0].device if params else torch.device("cuda", torch.cuda.current_device())
    if device.type != "cuda":
        return f"there are {device.type} tensors among CUDA ones"
    major, minor = torch.cuda.get_device_capability(device)
    if major < 8:
        return f"it needs a device of compute capability 8.0 or later, not {major}.{minor}"

    # All of it in every step, because the kernels get addresses alone; by what costs the host least.
    if set(map(Tensor.get_device, chain(*four))) - {device.index}:
        return "not all gradients and states are on the device of the parameters"
    places = set(map(attrgetter("device"), steps))
    if len(places) > 1 or not places <= {torch.device("cpu"), device}:
        return "not all steps are on the host or all on the device of the parameters"
    for dtype in set(map(attrgetter("dtype"), chain(*four))):
        if dtype not in _TYPES:
            return f"on CUDA devices it has no {dtype} tensors"
    shapes = list(map(Tensor.size, params))
    if any(list(map(Tensor.size, list_)) != shapes for list_ in four[1:]):
        return "a gradient or state is not of its parameter's shape"
    if set(map(attrgetter("dtype"), steps)) - {torch.float32}:
        return "not all steps are float32"
    if options.capturable:  # copies would have new addresses in every step
        for three in zip(params, tensors.momentums, tensors.fims, strict=True):
            if any(x.is_neg() for x in three) or not (all(x.is_contiguous() for x in three) or _one_layout(three)):
                return "with capturable=True it needs dense parameters, and states that lie in memory as they do"
    if device not in _trials:
        if _is_capturing(device):
            return f"no step before the capture has tried it on {device}"
        _trials[device] = _trial(device)
    return _trials[device]


_trials: dict[torch.device, str | None] = {}  # what came of them


def _trial(device: torch.device) -> str | None:
    """Why the kernels cannot be trusted on this device, or None: two small steps, compared with the multi-tensor loop.

    Once a process, in the first step, and the only time that the host waits: Triton needs a C compiler at run time, and
    a driver that takes its code, and training should go on without them.
    """
    options = Options(lr=0.01, weight_decay=0.1)
    backends: tuple[Callable[[Tensors, Options], Any], ...] = CudaBackend, ForeachBackend
    generator = torch.Generator("cpu").manual_seed(0)
    host: dict[str, Any] = {"dtype": torch.float32, "device": "cpu"}
    rooms = [torch.randn(size, generator=generator, **host) for size in (8, 2100, 900)]
    found: list[list[Tensor]] = []
    try:
        for backend in backends:
            values = [x.to(device, copy=True) for x in rooms]
            params = [values[0][0], values[1], values[2][1:]]  # the last one without 16-byte accesses
            momentums, fims = [torch.zeros_like(x) for x in params], [torch.ones_like(x) for x in params]
            for t, scale in enumerate((1e-9, 1.0), 1):
                grads = [scale * x.flip(0) if x.dim() else x + 1 for x in params]
                steps = [torch.tensor(float(t), **host) for _ in params]
                backend(Tensors(params, grads, momentums, fims, steps), options).run()
            found.append([torch.cat([x.reshape(-1) for x in xs]) for xs in (params, momentums, fims)])
        if all(torch.allclose(x, y, rtol=1e-4, atol=1e-6) for x, y in zip(*found, strict=True)):
            return None
        return f"a trial on {device} came out different from the multi-tensor loop"
    except Exception as error:  # whatever a compiler, a driver or a launch may raise
        return f"a trial on {device} failed: {type(error).__name__}: {error}"


class CudaBackend:
    """One step of Algorithm 1 of arXiv:2405.12807 on N real, non-empty CUDA tensors of one device.

    ``run()`` does the step; or the three phases one after another do, between which the sums of the shards of one
    tensor may be added up. Everything is written in the last phase, f_t too.

    Bytes moved in float32, the published algorithm: 40 a parameter in ``run()`` (12 for the sums, taking eps_t = eps
    for granted, and 28 for the update), 52 for a tensor where eps_t < eps; 44 in three phases.

    Args:
        tensors: N of float32, bfloat16 or float16 in any mixture. Gradients whose strides are not the parameter's are
            copied; parameters that are not dense, and states whose strides differ from theirs, are copied and copied
            back, which a captured graph cannot have. Steps are all on the host, or all on the device.
        options: what `refusal` accepts; `lr` on the host or the device.

    Raises:
        RuntimeError: when a CUDA graph is captured without a step on the same tensors before it.
    """

    def __init__(self, tensors: Tensors, options: Options) -> None:
        params, four = tensors.params, tensors.four
        self._tensors, self._options = tensors, options
        self._device = params[0].device
        self._num_slots = len(params)  # columns of the sums
        self._ceiling = float(options.eps ** (2 * options.fim_rho))
        self._rows = 0 if options.clip is None else 1 if options.weight_decay == 0 else 2  # of sums of n^2 and w^2
        self._constants = {  # that kernels are compiled for
            "RHO": options.fim_rho,
            "EPS_MODE": options.eps_mode,
            "MAXIMIZE": options.maximize,
            "WITH_W": options.weight_decay != 0,
        }
        self._rates = {
            "beta1": options.beta1,
            "rest1": 1 - options.beta1,
            "weight_decay": options.weight_decay,
            "clip": 1.0 if options.clip is None else options.clip,
        }
        lr = options.rate
        if isinstance(lr, Tensor) and lr.device != self._device:
            lr = lr.item() if lr.is_cpu else lr.to(self._device, non_blocking=True)
        self._lr = lr
        self._sums: Tensor | None = None

        numels = [p.numel() for p in params] if tensors.numels is None else tensors.numels
        offsets = [0] * self._num_slots if tensors.offsets is None else tensors.offsets
        indices = range(self._num_slots) if tensors.indices is None else tensors.indices
        groups: dict[tuple[torch.dtype, ...], Sequence[int]] = {(): range(self._num_slots)}
        if any(len(set(map(attrgetter("dtype"), list_))) > 1 for list_ in four):
            groups = {}
            for i, row in enumerate(zip(*four, strict=True)):
                key = tuple(x.dtype for x in row)
                groups[key] = [*groups.get(key, ()), i]
        self._copies: list[tuple[Tensor, Tensor]] = []
        with self._on_device():
            self._parts = [
                self._part([[x[i] for i in index] for x in (*four, tensors.steps)],
                           [[x[i] for i in index] for x in (numels, range(self._num_slots), offsets, indices)])
                for index in groups.values()
            ]  # fmt: skip

    def gradient_sums(self) -> Tensor:
        """(N,) float64: sum of g^2 of each tensor; zeros with ``eps_mode="fixed"``, which needs none."""
        if self._options.eps_mode == "fixed":
            return torch.zeros(self._num_slots, dtype=torch.float64, device=self._device)
        sums = self._new_sums()
        with self._on_device():
            for part in self._parts:
                self._gradient(part)
                self._reduce(part, sums, 0, 1)
        return sums[0]

    def metric_sums(self, gradient_sums: Tensor) -> Tensor:
        """(2, N) float64: sums of n^2 and w^2 before the clip, zeros where they are not needed."""
        sums = self._new_sums()
        sums[0].copy_(gradient_sums)
        if self._rows < 2:
            sums[1 + self._rows :].zero_()
        if self._rows > 0:
            with self._on_device():
                for part in self._parts:
                    self._metric(part, sums)
                    self._reduce(part, sums, 1, self._rows)
        self._sums = sums
        return sums[1:]

    def apply(self, metric_sums: Tensor) -> None:
        """Write f_t, m_t and theta_t."""
        assert self._sums is not None  # from metric_sums()
        sums = self._sums
        if metric_sums.data_ptr() != sums[1:].data_ptr():
            sums[1:].copy_(metric_sums)
        self._apply(sums)

    def run(self) -> None:
        """The whole step.

        Launches for tensors that agree in their dtypes, and one more for steps on the device:

        - adaptive eps, clip: 5. Sums of g^2, n^2 and w^2 with eps_t = eps, their reduction, both once more for the
          tensors whose eps_t is less, and the update;
        - scaled eps, clip: 5. Sums of g^2, reduction, sums of n^2 and w^2, reduction, update;
        - fixed eps, clip: 3, and so without clip and with one of the other two; fixed eps without clip: 1.
        """
        sums = self._new_sums()
        guess = self._options.eps_mode == "adaptive" and self._rows > 0
        with self._on_device():
            for part in self._parts:
                if guess:
                    self._metric(part, sums, guess=True)
                    self._reduce(part, sums, 0, 1 + self._rows, guess=True)
                    self._metric(part, sums, redo=True)
                    self._reduce(part, sums, 1, self._rows, redo=True)
                    continue
                if self._options.eps_mode != "fixed":
                    self._gradient(part)
                    self._reduce(part, sums, 0, 1)
                if self._rows > 0:
                    self._metric(part, sums)
                    self._reduce(part, sums, 1, self._rows)
        self._apply(sums)

    # One launch each.

    def _gradient(self, part: _Part) -> None:
        plan = part.plan
        self._launch(
            kernels.gradient_kernel,
            (plan.num_chunks,),
            *(plan.table, part.gradients, plan.chunks, part.partials, self._tensors.grad_scale),
            *(plan.num_tensors, plan.chunk_size),
            G=plan.types["G"],
            MAXIMIZE=self._options.maximize,
            BLOCK=plan.block,
            num_warps=_WARPS,
        )

    def _metric(self, part: _Part, sums: Tensor, guess: bool = False, redo: bool = False) -> None:
        plan = part.plan
        self._launch(
            kernels.metric_kernel,
            (plan.num_chunks,),
            *(plan.table, part.gradients, plan.chunks, part.partials, sums, part.weights, self._tensors.grad_scale),
            *(part.beta2_t, part.rest2_t, self._ceiling, self._options.eps, self._options.eps2),
            *(plan.num_tensors, plan.num_chunks, plan.chunk_size),
            **{name: plan.types[name] for name in "GFP"},
            **self._constants,
            GUESS=guess,
            REDO=redo,
            BLOCK=plan.block,
            num_warps=_WARPS,
        )

    def _reduce(self, part: _Part, sums: Tensor, row: int, rows: int, guess: bool = False, redo: bool = False) -> None:
        """Rows `row` to `row + rows` of the sums; with `redo`, only of tensors whose eps_t is less than eps."""
        plan = part.plan
        self._launch(
            kernels.sum_kernel,
            (plan.num_tensors, rows),
            *(plan.table, part.partials, sums, self._options.eps, self._options.eps2),
            *(plan.num_tensors, plan.num_chunks, self._num_slots, row),
            GUESS=guess,
            REDO=redo,
            BLOCK=1024,
            num_warps=4,
        )

    def _apply(self, sums: Tensor) -> None:
        with self._on_device():
            for part in self._parts:
                plan = part.plan
                self._launch(
                    kernels.apply_kernel,
                    (plan.num_chunks,),
                    *(plan.table, part.gradients, plan.chunks, sums, part.weights, self._lr),
                    *(self._tensors.grad_scale, self._tensors.found_inf, part.beta2_t, part.rest2_t, part.t),
                    *(self._ceiling, self._options.eps, self._options.eps2),
                    **self._rates,
                    **plan.limits,
                    num_tensors=plan.num_tensors,
                    num_slots=self._num_slots,
                    chunk_size=plan.chunk_size,
                    **plan.types,
                    **self._constants,
                    CLIP=self._options.clip is not None,
                    STOCHASTIC=self._options.stochastic_rounding and plan.types["P"] is tl.bfloat16,
                    LR_TENSOR=isinstance(self._lr, Tensor),
                    BLOCK=plan.block,
                    num_warps=_WARPS,
                )
            for target, copy in self._copies:
                target.copy_(copy)
        written(self._tensors.params, self._tensors.momentums, self._tensors.fims)

    def _launch(self, kernel: Any, grid: tuple[int, ...], *args: Any, **options: Any) -> None:
        kernel[grid](*args, **options)

    def _on_device(self) -> contextlib.AbstractContextManager[Any]:
        """Triton launches on the current device."""
        if self._device.type != "cuda" or self._device.index == torch.cuda.current_device():
            return contextlib.nullcontext()
        return torch.cuda.device(self._device)

    def _new_sums(self) -> Tensor:
        return torch.empty((3, self._num_slots), dtype=torch.float64, device=self._device)

    def _part(self, tensors: list[list[Tensor]], numbers: list[list[int]]) -> _Part:
        params, grads, momentums, fims, steps = tensors
        beta2, capturable = self._options.beta2, self._options.capturable
        owner = momentums[0]
        four = (params, grads, momentums, fims)
        if not all(map(Tensor.is_contiguous, chain(*four))) or any(map(Tensor.is_neg, chain(*four))):
            self._copy_unlike(params, grads, momentums, fims)
        plan = _plan(owner, params, grads[0].dtype, momentums, fims, numbers, capturable, self._launch)
        gradients = plan.addresses("gradients", grads, self._launch)
        partials = torch.empty(3 * plan.num_chunks + 1, dtype=torch.float64, device=self._device)
        part = _Part(plan, gradients, partials, tensors)
        if capturable or not steps[0].is_cpu:
            part.weights = torch.empty((3, plan.num_tensors), dtype=torch.float32, device=self._device)
            self._launch(
                kernels.fim_weights_kernel,
                (-(-plan.num_tensors // 128),),
                *(plan.addresses("steps", steps, self._launch), part.weights),
                *(math.log(beta2) if beta2 > 0 else -math.inf, 1.0 - beta2, plan.num_tensors),
                BLOCK=128,
                num_warps=4,
            )
            return part
        ts = [step.item() for step in steps]
        if len(set(ts)) == 1:
            beta2_t, rest2_t = fim_weights(beta2, ts[0])
            part.beta2_t, part.rest2_t, part.t = float(beta2_t), float(rest2_t), int(ts[0])
        else:
            weights = zip(*(fim_weights(beta2, t) for t in ts), strict=True)
            part.weights = _to_device([*weights, ts], torch.float32, self._device)
        return part

    def _copy_unlike(
        self, params: list[Tensor], grads: list[Tensor], momentums: list[Tensor], fims: list[Tensor]
    ) -> None:
        """Put copies into the lists where four tensors do not lie in memory alike and without gaps."""
        for k, (p, g, m, f) in enumerate(zip(params, grads, momentums, fims, strict=True)):
            noted = any(map(Tensor.is_neg, (p, m, f)))  # an address does not tell of it
            if all(map(Tensor.is_contiguous, (p, g, m, f))) and not noted and not g.is_neg():
                continue
            # A plan holds no address of a gradient, so that a copy of one changes from step to step at no cost.
            strides = dense_strides(p)
            if g.stride() != strides or g.is_neg():
                grads[k] = _with_strides(g, strides)
            if noted or not _one_layout((p, m, f)):
                for list_, x in ((params, p), (momentums, m), (fims, f)):
                    if x.stride() != strides or x.is_neg():
                        list_[k] = _with_strides(x, strides)
                        self._copies.append((x, list_[k]))


class _Part:
    """Tensors of a step that agree in their dtypes, and what their kernels need."""

    def __init__(self, plan: _Plan, gradients: Tensor, partials: Tensor, tensors: list[list[Tensor]]) -> None:
        self.plan = plan
        self.tensors = tensors  # so that they stay where the tables say
        self.gradients = gradients  # addresses, int64 (N,)
        self.partials = partials  # sums of g^2, n^2 and w^2 of each chunk, and a flag; float64 (3 num_chunks + 1,)
        # beta2_t, 1 - beta2_t and t: one number for all tensors, or a table, float32 (3, N)
        self.beta2_t, self.rest2_t, self.t = 0.0, 0.0, 0
        self.weights: Tensor | None = None


class _Plan:
    """What the kernels need to know of a list of tensors and does not change from step to step."""

    def __init__(
        self,
        types: Mapping[str, Any],
        limits: Mapping[str, float],
        block: int,
        columns: Sequence[tuple[int, ...]],
        device: torch.device,
        stream: int,
    ) -> None:
        """`columns` are those of the table of tensors (see `fadam.fused.cuda_kernels`) but for FIRST and COUNT."""
        self.types, self.limits, self.block, self.stream = types, limits, block, stream
        self.num_tensors = len(columns)
        sizes = [column[kernels.SIZE.value] for column in columns]
        self.chunk_size = _CHUNKS[0]
        while self.chunk_size < _CHUNKS[1] and sum(sizes) > _PROGRAMS * self.chunk_size:
            self.chunk_size *= 2
        counts = [-(-size // self.chunk_size) for size in sizes]
        firsts = [0, *accumulate(counts)]
        self.num_chunks = firsts.pop()
        rows: list[Sequence[int]] = [*zip(*columns, strict=True)]
        rows[kernels.FIRST.value : kernels.FIRST.value] = [firsts, counts]
        self.table = _to_device(rows, torch.int64, device)
        host: dict[str, Any] = {"dtype": torch.int64, "device": "cpu"}
        tensor = torch.repeat_interleave(torch.arange(self.num_tensors, **host), torch.tensor(counts, **host))
        number = torch.arange(self.num_chunks, **host) - torch.tensor(firsts, **host)[tensor]
        self.chunks = _to_device(torch.stack([tensor, number], 1), torch.int32, device)
        self._known: dict[str, tuple[list[int], Tensor]] = {}
        self._captured: list[Tensor] = []

    def addresses(self, name: str, tensors: Sequence[Tensor], launch: Callable[..., None]) -> Tensor:
        """A table of the tensors' addresses in device memory: the last one of that name, if they are the same."""
        now = list(map(Tensor.data_ptr, tensors))
        known, table = self._known.get(name, (None, self.table))
        capturing = _is_capturing(table.device)
        if known == now:
            if capturing:
                self._captured.append(table)  # the graph does not hold it
            return table
        if capturing:
            table = torch.empty(self.num_tensors, dtype=torch.int64, device=table.device)
            write_addresses(table, now, launch)
            return table
        table = _to_device(now, torch.int64, table.device)
        self._known[name] = now, table
        return table


# By the tensor that they go with, and then by what they are for, the last used one last.
_plans: MutableMapping[Tensor, OrderedDict[tuple[Any, ...], _Plan]] = WeakTensorKeyDictionary()
_captured_plans: list[_Plan] = []  # for good: nothing tells when a graph is gone


def _plan(
    owner: Tensor,
    params: Sequence[Tensor],
    gradient_dtype: torch.dtype,
    momentums: Sequence[Tensor],
    fims: Sequence[Tensor],
    numbers: Sequence[Sequence[int]],
    capturable: bool,
    launch: Callable[..., None],
) -> _Plan:
    """The plan for these tensors, from those kept with `owner` if it is there; `numbers` are elements of the logical
    tensors, places in the caller's list, first elements, and what stands for the tensors in random bits."""
    device = params[0].device
    dtypes = gradient_dtype, fims[0].dtype, momentums[0].dtype, params[0].dtype
    addresses = (map(Tensor.data_ptr, tensors) for tensors in (params, momentums, fims))
    columns = tuple(zip(*addresses, map(Tensor.numel, params), *numbers, strict=True))
    key = device, dtypes, columns
    kept = _plans.setdefault(owner, OrderedDict())
    plan = kept.get(key)
    stream = torch.cuda.current_stream(device).cuda_stream if device.type == "cuda" else 0
    if _is_capturing(device):
        if plan is None:
            raise RuntimeError(
                "FAdam: a CUDA graph was captured without a step on the same tensors before it, "
                "which compiles the kernels and lays out their tables; take one outside the graph"
            )
        _captured_plans.append(plan)
    elif plan is None or plan.stream != stream:  # nothing orders the copies of one stream before the kernels of another
        types = dict(zip("GFMP", (_TYPES[dtype] for dtype in dtypes), strict=True))
        limits = {"m_largest": torch.finfo(dtypes[2]).max, "f_largest": torch.finfo(dtypes[1]).max}
        block = _BLOCK * 4 // min(dtype.itemsize for dtype in dtypes)
        plan = kept[key] = _Plan(types, limits, block, columns, device, stream)
        if capturable:
            write_addresses(
                torch.empty_like(plan.table[0]), [plan.table.data_ptr()], launch
            )  # compiles it for a capture
    kept.move_to_end(key)
    if len(kept) > _KEPT:
        kept.popitem(last=False)
    return plan


def write_addresses(table: Tensor, addresses: list[int], launch: Callable[..., None]) -> None:
    """Fill a table by launches that carry the numbers, which unlike copies from the host can be replayed anywhere."""
    for first in range(0, len(addresses), _ADDRESSES):
        odd = [2 * address + 1 for address in addresses[first : first + _ADDRESSES]]
        odd += [odd[-1]] * (_ADDRESSES - len(odd))
        launch(
            kernels.address_kernel,
            (1,),
            *(table, tuple(odd), first, len(addresses)),
            ADDRESSES=_ADDRESSES,
            num_warps=1,
        )


def _is_capturing(device: torch.device) -> bool:
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()


def _with_strides(x: Tensor, strides: Sequence[int]) -> Tensor:
    return torch.empty_strided(x.shape, strides, dtype=x.dtype, device=x.device).copy_(x)


def _one_layout(tensors: Sequence[Tensor]) -> bool:
    """Whether the elements of all lie in one order in memory, without gaps, so that the order does not matter."""
    strides = tensors[0].stride()
    if any(x.stride() != strides for x in tensors):
        return False
    expected = 1
    for stride, length in sorted(zip(strides, tensors[0].shape, strict=True)):
        if length != 1 and stride != expected:
            return False
        expected *= length
    return True


def _to_device(values: Any, dtype: torch.dtype, device: torch.device) -> Tensor:
    """On a CUDA device by one asynchronous copy from pinned memory, which its allocator keeps until it is done."""
    pin = device.type == "cuda"
    if isinstance(values, Tensor):
        host: Tensor = values.to(dtype)
        host = host.pin_memory() if pin else host
    else:
        host = torch.tensor(values, dtype=dtype, device="cpu", pin_memory=pin)
    return host.to(device, non_blocking=True)
