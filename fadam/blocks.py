"""The loops on the CPU, block by block: the lines of Algorithm 1 in memory that stays in a core's cache.

On whole tensors each line would allocate a tensor, whose pages the system has to clear, and pass over main memory. Here
a tensor is passed over once for RMS(g), once for f_t and the RMS values of n_t and w_t, and once for the update, which
makes n_t and w_t anew. One that is no larger than a block is passed over once.

RMS values are from sums in float64. Where a sum in float32 leaves no doubt that the other side of a min or max is taken
(eps_t = eps, nothing to clip), the number itself does not matter.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from fadam.bookkeeping import Tensors
from fadam.metric import bias_correction, dense_strides, fake, fim_weights, stochastic_bfloat16, store, working_dtype
from fadam.options import Options
from fadam.single import SingleBackend

_BLOCK = 131072  # elements, so that its arrays stay in a cache; with fewer, the calls cost more than is saved
_PLAIN = (Tensor, torch.nn.Parameter)
_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
_MARGIN = 1.05  # a root of a sum of 131,072 squares in float32 is off by far less
_LARGE = 1e30  # a sum of squares below it has not overflown; what vanished among them does not matter


def fits(tensors: Tensors, options: Options) -> bool:
    """Whether a `BlockBackend` can step these tensors; neither a graph nor autograd can use its host numbers."""
    if options.capturable or options.differentiable or torch.compiler.is_compiling():
        return False
    if not tensors.steps[0].is_cpu or fake(tensors.steps[0]):
        return False
    return all(
        type(x) in _PLAIN and x.is_cpu and x.layout == torch.strided and x.dtype in _DTYPES
        for list_ in tensors.four
        for x in list_
    )


class Limits(NamedTuple):
    largest: float
    harmless: float  # no square below its square overflows, in sums neither
    tiny: float


@functools.cache
def _limits(dtype: torch.dtype) -> Limits:
    info = torch.finfo(dtype)
    return Limits(info.max, math.sqrt(info.max) / 100, info.tiny)


class BlockBackend:
    """A backend (see `fadam.backend.Backend`) for tensors that `fits` accepts, with the numbers of `ForeachBackend`."""

    def __init__(self, tensors: Tensors, options: Options) -> None:
        self.tensors, self.options = tensors, options
        self.lr, self.beta1 = options.rate, options.beta1
        self.natural_momentum = options.momentum_mode == "natural"
        self.natural_decay = options.decay_mode == "natural"
        self.scale = None if tensors.grad_scale is None else float(tensors.grad_scale)
        self._rooms: dict[tuple[str, torch.dtype, int], Tensor] = {}
        self._weights: dict[float, tuple[float, float]] = {}

    def run(self) -> None:
        if self.tensors.found_inf is not None and self.tensors.found_inf.item() != 0:
            return
        indices = range(len(self.tensors.params)) if self.tensors.indices is None else self.tensors.indices
        for i, tensors in enumerate(zip(*self.tensors.four, self.tensors.steps, strict=True)):
            self.step(*tensors, indices[i])

    def step(self, param: Tensor, grad: Tensor, momentum: Tensor, fim: Tensor, step: Tensor, index: int) -> None:
        """Write f_t, m_t and theta_t of one tensor; `step` is t, `index` its number for the random bits."""
        strides = dense_strides(param)
        p, g, m, f = (_flat(x, strides) for x in (param, grad, momentum, fim))
        _OneTensor(self, p, g, m, f, step.item(), index).update()
        for x, y in ((param, p), (momentum, m), (fim, f)):
            if x.data_ptr() != y.data_ptr():
                x.copy_(y.as_strided(x.shape, strides))

    def room(self, name: str, like: Tensor, dtype: torch.dtype) -> Tensor:
        """Scratch memory of that name, as long as `like`. One block at a time uses it."""
        size = like.shape[0]
        view = self._rooms.get((name, dtype, size))
        if view is None and size > _BLOCK:
            view = torch.empty(size, dtype=dtype, device="cpu")  # not kept: the next tensor is of another size
        elif view is None:
            block = self._rooms.get((name, dtype, _BLOCK))
            if block is None:
                block = self._rooms[name, dtype, _BLOCK] = torch.empty(_BLOCK, dtype=dtype, device="cpu")
            view = self._rooms[name, dtype, size] = block[:size]
        return view

    def weights(self, t: float) -> tuple[float, float]:
        """beta2_t and 1 - beta2_t."""
        known = self._weights.get(t)
        if known is None:
            beta2_t, rest2_t = fim_weights(self.options.beta2, t)
            known = self._weights[t] = float(beta2_t), float(rest2_t)
        return known


class SingleBlockBackend(BlockBackend):
    """The same with the numbers of `SingleBackend`, which computes 0-d tensors in float64, as their RMS values are."""

    def step(self, param: Tensor, grad: Tensor, momentum: Tensor, fim: Tensor, step: Tensor, index: int) -> None:
        if param.dim() > 0:
            super().step(param, grad, momentum, fim, step, index)
        else:
            scale = self.tensors.grad_scale
            one = Tensors([param], [grad], [momentum], [fim], [step], indices=[index], grad_scale=scale)
            SingleBackend(one, self.options).run()


class Block(NamedTuple):
    """Where one is in its tensor, and its part of the four; all flat."""

    start: int
    param: Tensor
    grad: Tensor
    momentum: Tensor
    fim: Tensor


class Directions(NamedTuple):
    """What a block's update is made of, before the clip; in the working dtype."""

    g: Tensor
    f: Tensor  # f_t
    n: Tensor  # n_t, or the average of g in the metric
    w: Tensor | None  # w_t, or the parameter with decoupled decay; None without decay
    average: Tensor | None  # of g, where that is averaged


class _OneTensor:
    """One tensor's step; all four are flat and lie in memory alike."""

    def __init__(
        self, backend: BlockBackend, param: Tensor, grad: Tensor, momentum: Tensor, fim: Tensor, t: float, index: int
    ) -> None:
        self.backend, self.options, self.t, self.index, self.size = backend, backend.options, t, index, param.shape[0]
        self.dtype = torch.float32
        if not param.dtype == grad.dtype == momentum.dtype == fim.dtype == torch.float32:
            self.dtype = working_dtype(param, grad, momentum, fim)
        self.limits = _limits(self.dtype)
        self.beta2_t, self.rest2_t = backend.weights(t)
        self.correction = bias_correction(backend.beta1, t) if self.options.correct_momentum else 1.0
        self.overflows = self.options.clip is None  # whether theta / d may overflow, or has in another block
        if self.size <= _BLOCK or self.dtype == torch.float64:  # in float64 the last digits show the order of a sum
            self.blocks = [Block(0, param, grad, momentum, fim)]
        else:
            parts = (torch.split(x, _BLOCK) for x in (param, grad, momentum, fim))
            self.blocks = [Block(_BLOCK * i, *four) for i, four in enumerate(zip(*parts, strict=True))]

    def update(self) -> None:
        clip = self.options.clip
        self._epsilon()
        n_divisor = w_divisor = 1.0
        kept = None
        if clip is not None and len(self.blocks) == 1:
            kept = self._directions(self.blocks[0], first=True)
            if not self._surely_below(kept.n, clip):
                n_divisor = self._divisor([self._norm(kept.n)])
            w_divisor = self._divisor([self._decay_norm(kept.w)])
        elif clip is not None:
            n_norms, w_norms = [], []
            for block in self.blocks:
                directions = self._directions(block, first=True)
                n_norms.append(self._norm(directions.n))
                w_norms.append(self._decay_norm(directions.w))
            n_divisor, w_divisor = self._divisor(n_norms), self._divisor(w_norms)
        for block in self.blocks:
            self._apply(block, kept or self._directions(block, first=clip is None), n_divisor, w_divisor)

    def _epsilon(self) -> None:
        """eps_t^(2 rho), and whether the square of a gradient may overflow."""
        options = self.options
        self.large = True
        eps_t = options.eps
        if options.eps_mode != "fixed":
            factor, most = (options.eps2, options.eps) if options.eps_mode == "adaptive" else (1.0, 1.0)
            total = math.inf
            if self.dtype == torch.float32:
                total = sum(_quick_sum(self._gradient(block)) for block in self.blocks)
            if total < _LARGE and factor * math.sqrt(total / self.size) > _MARGIN * most:
                self.large = False
            else:
                norm = _root([self._norm(self._gradient(block)) for block in self.blocks])
                self.large = not norm < self.limits.harmless
                x = norm / math.sqrt(self.size) * factor
                eps_t = most if x > most else x  # NaN stays
                if options.eps_mode == "scaled":
                    eps_t *= options.eps
        self.eps_term = eps_t ** (2 * options.fim_rho)

    def _surely_below(self, x: Tensor, rms: float) -> bool:
        if self.dtype != torch.float32:
            return False
        total = _quick_sum(x)
        return total < _LARGE and _MARGIN * math.sqrt(total / self.size) < rms

    def _norm(self, x: Tensor) -> float:
        """The root of the sum of squares."""
        if self.dtype == torch.float64:
            norm: float = torch.linalg.vector_norm(x).item()
            return norm
        wide = self.backend.room("sum", x, torch.float64).copy_(x)
        return math.sqrt(torch.dot(wide, wide).item())

    def _decay_norm(self, w: Tensor | None) -> float:
        """That of w_t, which is bounded first where theta / d has overflowed; 0 where the decay is not clipped."""
        if w is None or not self.backend.natural_decay:
            return 0.0
        norm = self._norm(w)
        if not math.isfinite(norm):
            self.overflows = True
            norm = self._norm(w.clamp_(min=-self.limits.largest, max=self.limits.largest))
        return norm

    def _divisor(self, norms: Sequence[float]) -> float:
        """max(1, RMS / clip), NaN for a NaN."""
        assert self.options.clip is not None
        ratio = _root(norms) / math.sqrt(self.size) / self.options.clip
        return 1.0 if ratio < 1 else ratio

    def _wide(self, x: Tensor, name: str) -> Tensor:
        """In the working dtype: the tensor itself, or a copy that may be written to."""
        return x if x.dtype == self.dtype else self.backend.room(name, x, self.dtype).copy_(x)

    def _gradient(self, block: Block) -> Tensor:
        backend = self.backend
        g = self._wide(block.grad, "g")
        if backend.scale is not None:
            g = torch.div(g, backend.scale, out=backend.room("g", g, self.dtype))
        if self.options.maximize:
            g = torch.neg(g, out=backend.room("g", g, self.dtype))
        return g

    def _directions(self, block: Block, first: bool) -> Directions:
        """With `first`, f_t is made in place where that does not round it; else it is there, or is made beside."""
        backend, options, dtype, largest = self.backend, self.options, self.dtype, self.limits.largest
        g = self._gradient(block)
        f = self._wide(block.fim, "f")
        if first or f is not block.fim:
            f.mul_(self.beta2_t).addcmul_(g, g, value=self.rest2_t)
            if self.large:
                f.clamp_(max=largest)
        d = backend.room("d", g, dtype)
        d = torch.sqrt(f, out=d) if options.fim_rho == 0.5 else torch.pow(f, options.fim_rho, out=d)
        d.add_(self.eps_term)
        if not self.eps_term >= self.limits.tiny:
            d.masked_fill_(d == 0, math.inf)
        n, average = backend.room("n", g, dtype), None
        if backend.natural_momentum:
            torch.div(g, d, out=n)
        else:
            average = backend.room("m", g, dtype).copy_(block.momentum)
            average.mul_(backend.beta1).add_(g, alpha=1 - backend.beta1)
            torch.div(average, self.correction, out=n).div_(d).clamp_(min=-largest, max=largest)
        w = None
        if options.weight_decay != 0:
            w = self._wide(block.param, "p")
            if backend.natural_decay:
                w = torch.div(w, d, out=backend.room("w", g, dtype))
                if self.overflows:
                    w.clamp_(min=-largest, max=largest)
        return Directions(g, f, n, w, average)

    def _apply(self, block: Block, directions: Directions, n_divisor: float, w_divisor: float) -> None:
        backend, options, lr = self.backend, self.options, self.backend.lr
        g, f, n, w, average = directions
        if f is not block.fim:
            store(block.fim, f)
        if n_divisor != 1:
            n.div_(n_divisor)
        if average is None:
            m = self._wide(block.momentum, "m").mul_(backend.beta1).add_(n, alpha=1 - backend.beta1)
            if m is not block.momentum:
                store(block.momentum, m)
            update = torch.div(m, self.correction, out=n) if options.correct_momentum else m
        else:
            store(block.momentum, average)
            # NaN where g is infinite, which the bounded quotient has made a finite number.
            update = n.add_(torch.sub(g, g, out=backend.room("d", g, self.dtype)))
        if w is not None:
            if backend.natural_decay and w_divisor != 1:
                w.div_(w_divisor)
            update = torch.add(update, w, alpha=options.weight_decay, out=n)

        if options.stochastic_rounding and block.param.dtype == torch.bfloat16:
            scaled = torch.mul(update, lr, out=backend.room("d", g, self.dtype))
            values = torch.sub(block.param, scaled, out=scaled)
            block.param.copy_(stochastic_bfloat16(values, self.t, self.index, block.start))
        elif isinstance(lr, Tensor):
            block.param.sub_(torch.mul(update, lr, out=backend.room("d", g, self.dtype)))
        else:
            block.param.sub_(update, alpha=lr)


def _root(norms: Sequence[float]) -> float:
    return norms[0] if len(norms) == 1 else math.sqrt(sum(x * x for x in norms))


def _quick_sum(x: Tensor) -> float:
    total: float = torch.dot(x, x).item()
    return total


def _flat(x: Tensor, strides: tuple[int, ...]) -> Tensor:
    """Its elements in the order of those strides, which have no gaps: a view, or a copy if they lie otherwise."""
    if x.is_neg() or x.stride() != strides:
        x = torch.empty_strided(x.shape, strides, dtype=x.dtype, device="cpu").copy_(x)
    return x.view(-1) if x.is_contiguous() else x.as_strided((x.numel(),), (1,))
