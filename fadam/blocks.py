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

from fadam.metric import bias_correction, dense_strides, fake, fim_weights, stochastic_bfloat16, store, working_dtype

_BLOCK = 131072  # elements, so that its arrays stay in a cache; with fewer, the calls cost more than is saved
_PLAIN = (Tensor, torch.nn.Parameter)
_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
_MARGIN = 1.05  # a root of a sum of 131,072 squares in float32 is off by far less
_LARGE = 1e30  # a sum of squares below it has not overflown; what vanished among them does not matter


def fits(tensors: Sequence[Sequence[Tensor]], steps: Sequence[Tensor], capturable: bool) -> bool:
    """Whether a `BlockLoop` can step these tensors; a graph cannot hold its host numbers."""
    if capturable or torch.compiler.is_compiling() or not steps[0].is_cpu or fake(steps[0]):
        return False
    return all(
        type(x) in _PLAIN and x.is_cpu and x.layout == torch.strided and x.dtype in _DTYPES
        for list_ in tensors
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


class BlockLoop:
    """One step of some tensors, called with one after the other. The options are those of `fadam.functional.fadam`."""

    def __init__(
        self,
        *,
        lr: float | Tensor,
        beta1: float,
        beta2: float,
        eps: float,
        eps2: float,
        clip: float | None,
        fim_rho: float,
        weight_decay: float,
        eps_mode: str,
        momentum_mode: str,
        decay_mode: str,
        correct_momentum: bool,
        maximize: bool,
        stochastic_rounding: bool,
        grad_scale: Tensor | None,
    ) -> None:
        self.lr, self.beta1, self.beta2, self.eps, self.eps2, self.clip = lr, beta1, beta2, eps, eps2, clip
        self.rho, self.weight_decay, self.eps_mode = fim_rho, weight_decay, eps_mode
        self.natural_momentum, self.natural_decay = momentum_mode == "natural", decay_mode == "natural"
        self.correct_momentum, self.stochastic_rounding = correct_momentum, stochastic_rounding
        self.maximize = maximize
        self.scale = None if grad_scale is None else float(grad_scale)
        self._rooms: dict[tuple[str, torch.dtype, int], Tensor] = {}
        self._weights: dict[float, tuple[float, float]] = {}

    def __call__(self, param: Tensor, grad: Tensor, momentum: Tensor, fim: Tensor, step: Tensor, index: int) -> None:
        """Write f_t, m_t and theta_t of one tensor; `step` is t, `index` its number for the random bits."""
        strides = dense_strides(param)
        p, g, m, f = (_flat(x, strides) for x in (param, grad, momentum, fim))
        _OneTensor(self, p, g, m, f, step.item(), index).update()
        for x, y in ((param, p), (momentum, m), (fim, f)):
            if x.data_ptr() != y.data_ptr():
                x.copy_(y.as_strided(x.shape, strides))

    def room(self, name: str, like: Tensor, dtype: torch.dtype) -> Tensor:
        """Scratch memory of that name as long as `like`, which is never two blocks' at once."""
        size = like.shape[0]
        view = self._rooms.get((name, dtype, size))
        if view is None and size > _BLOCK:
            view = torch.empty(size, dtype=dtype, device="cpu")  # not kept: the next tensor is of another size
        elif view is None:
            whole = self._rooms.get((name, dtype, _BLOCK))
            if whole is None:
                whole = self._rooms[name, dtype, _BLOCK] = torch.empty(_BLOCK, dtype=dtype, device="cpu")
            view = self._rooms[name, dtype, size] = whole[:size]
        return view

    def weights(self, t: float) -> tuple[float, float]:
        """beta2_t and 1 - beta2_t."""
        known = self._weights.get(t)
        if known is None:
            decay, gain = fim_weights(self.beta2, t)
            known = self._weights[t] = float(decay), float(gain)
        return known


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
        self, loop: BlockLoop, param: Tensor, grad: Tensor, momentum: Tensor, fim: Tensor, t: float, index: int
    ) -> None:
        self.loop, self.t, self.index, self.size = loop, t, index, param.shape[0]
        self.dtype = torch.float32
        if not param.dtype == grad.dtype == momentum.dtype == fim.dtype == torch.float32:
            self.dtype = working_dtype(param, grad, momentum, fim)
        self.limits = _limits(self.dtype)
        self.decay, self.gain = loop.weights(t)
        self.correction = bias_correction(loop.beta1, t) if loop.correct_momentum else 1.0
        self.overflows = loop.clip is None  # whether theta / d may, or has in another block
        if self.size <= _BLOCK or self.dtype == torch.float64:  # whose last digits show the order of a sum
            self.blocks = [Block(0, param, grad, momentum, fim)]
        else:
            parts = (torch.split(x, _BLOCK) for x in (param, grad, momentum, fim))
            self.blocks = [Block(_BLOCK * i, *four) for i, four in enumerate(zip(*parts, strict=True))]

    def update(self) -> None:
        loop = self.loop
        self._epsilon()
        n_divisor = w_divisor = 1.0
        kept = None
        if loop.clip is not None and len(self.blocks) == 1:
            kept = self._directions(self.blocks[0], first=True)
            if not self._surely_below(kept.n, loop.clip):
                n_divisor = self._divisor([self._norm(kept.n)])
            w_divisor = self._divisor([self._decay_norm(kept.w)])
        elif loop.clip is not None:
            n_norms, w_norms = [], []
            for block in self.blocks:
                directions = self._directions(block, first=True)
                n_norms.append(self._norm(directions.n))
                w_norms.append(self._decay_norm(directions.w))
            n_divisor, w_divisor = self._divisor(n_norms), self._divisor(w_norms)
        for block in self.blocks:
            self._apply(block, kept or self._directions(block, first=loop.clip is None), n_divisor, w_divisor)

    def _epsilon(self) -> None:
        """eps_t^(2 rho), and whether the square of a gradient may overflow."""
        loop = self.loop
        self.large = True
        eps_t = loop.eps
        if loop.eps_mode != "fixed":
            factor, most = (loop.eps2, loop.eps) if loop.eps_mode == "adaptive" else (1.0, 1.0)
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
                if loop.eps_mode == "scaled":
                    eps_t *= loop.eps
        self.term = eps_t ** (2 * loop.rho)

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
        wide = self.loop.room("sum", x, torch.float64).copy_(x)
        return math.sqrt(torch.dot(wide, wide).item())

    def _decay_norm(self, w: Tensor | None) -> float:
        """That of w_t, which is bounded first where theta / d has overflowed; 0 where the decay is not clipped."""
        if w is None or not self.loop.natural_decay:
            return 0.0
        norm = self._norm(w)
        if not math.isfinite(norm):
            self.overflows = True
            norm = self._norm(w.clamp_(min=-self.limits.largest, max=self.limits.largest))
        return norm

    def _divisor(self, norms: Sequence[float]) -> float:
        """max(1, RMS / clip), NaN for a NaN."""
        assert self.loop.clip is not None
        ratio = _root(norms) / math.sqrt(self.size) / self.loop.clip
        return 1.0 if ratio < 1 else ratio

    def _wide(self, x: Tensor, name: str) -> Tensor:
        """In the working dtype: the tensor itself, or a copy that may be written to."""
        return x if x.dtype == self.dtype else self.loop.room(name, x, self.dtype).copy_(x)

    def _gradient(self, block: Block) -> Tensor:
        loop = self.loop
        g = self._wide(block.grad, "g")
        if loop.scale is not None:
            g = torch.div(g, loop.scale, out=loop.room("g", g, self.dtype))
        if loop.maximize:
            g = torch.neg(g, out=loop.room("g", g, self.dtype))
        return g

    def _directions(self, block: Block, first: bool) -> Directions:
        """With `first`, f_t is made in place where that does not round it; else it is there, or is made beside."""
        loop, dtype, largest = self.loop, self.dtype, self.limits.largest
        g = self._gradient(block)
        f = self._wide(block.fim, "f")
        if first or f is not block.fim:
            f.mul_(self.decay).addcmul_(g, g, value=self.gain)
            if self.large:
                f.clamp_(max=largest)
        d = loop.room("d", g, dtype)
        d = torch.sqrt(f, out=d) if loop.rho == 0.5 else torch.pow(f, loop.rho, out=d)
        d.add_(self.term)
        if not self.term >= self.limits.tiny:
            d.masked_fill_(d == 0, math.inf)
        n, average = loop.room("n", g, dtype), None
        if loop.natural_momentum:
            torch.div(g, d, out=n)
        else:
            average = loop.room("m", g, dtype).copy_(block.momentum).mul_(loop.beta1).add_(g, alpha=1 - loop.beta1)
            torch.div(average, self.correction, out=n).div_(d).clamp_(min=-largest, max=largest)
        w = None
        if loop.weight_decay != 0:
            w = self._wide(block.param, "p")
            if loop.natural_decay:
                w = torch.div(w, d, out=loop.room("w", g, dtype))
                if self.overflows:
                    w.clamp_(min=-largest, max=largest)
        return Directions(g, f, n, w, average)

    def _apply(self, block: Block, directions: Directions, n_divisor: float, w_divisor: float) -> None:
        loop = self.loop
        g, f, n, w, average = directions
        if f is not block.fim:
            store(block.fim, f)
        if n_divisor != 1:
            n.div_(n_divisor)
        if average is None:
            m = self._wide(block.momentum, "m").mul_(loop.beta1).add_(n, alpha=1 - loop.beta1)
            if m is not block.momentum:
                store(block.momentum, m)
            update = torch.div(m, self.correction, out=n) if loop.correct_momentum else m
        else:
            store(block.momentum, average)
            # NaN where g is infinite, which the bounded quotient has made a finite number.
            update = n.add_(torch.sub(g, g, out=loop.room("d", g, self.dtype)))
        if w is not None:
            if loop.natural_decay and w_divisor != 1:
                w.div_(w_divisor)
            update = torch.add(update, w, alpha=loop.weight_decay, out=n)

        if loop.stochastic_rounding and block.param.dtype == torch.bfloat16:
            scaled = torch.mul(update, loop.lr, out=loop.room("d", g, self.dtype))
            values = torch.sub(block.param, scaled, out=scaled)
            block.param.copy_(stochastic_bfloat16(values, self.t, self.index, block.start))
        elif isinstance(loop.lr, Tensor):
            block.param.sub_(torch.mul(update, loop.lr, out=loop.room("d", g, self.dtype)))
        else:
            block.param.sub_(update, alpha=loop.lr)


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
