"""The multi-tensor implementation: the lines of Algorithm 1 on lists, with torch's own multi-tensor kernels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fadam.bookkeeping import Tensors
from fadam.metric import (
    Undo,
    bias_correction,
    count,
    dense_strides,
    fim_weights,
    norm_dtype,
    stochastic_bfloat16,
    working_dtype,
)
from fadam.options import Options

Norms = list[Tensor] | None


class ForeachBackend:
    """A backend (see `fadam.backend.Backend`) for every option and device.

    Between the phases it holds about three copies of the tensors.
    """

    def __init__(self, tensors: Tensors, options: Options) -> None:
        params, grads, momentums, fims = tensors.four
        # Kernels on lists do not write to what is negated by a note only.
        resolved = [[x.resolve_neg() for x in list_] for list_ in (params, momentums, fims)]
        before, after = [*params, *momentums, *fims], [x for list_ in resolved for x in list_]
        self._noted = [(x, y) for x, y in zip(before, after, strict=True) if x is not y]
        params, momentums, fims = resolved
        self._undo = Undo(tensors.found_inf, params, momentums, fims)
        self._size = len(params)
        numels = [p.numel() for p in params] if tensors.numels is None else tensors.numels
        offsets = [0] * self._size if tensors.offsets is None else tensors.offsets
        indices = range(self._size) if tensors.indices is None else tensors.indices
        lists: tuple[Sequence[Any], ...] = params, grads, momentums, fims, tensors.steps, numels, offsets, indices
        self._parts = [
            _Part(places, *([x[i] for i in places] for x in lists), options=options, grad_scale=tensors.grad_scale)
            for places in _alike(params, grads, momentums, fims)
        ]

    def run(self) -> None:
        for part in self._parts:
            part.apply(*part.metric(part.gradient_norms()))
        self._finish()

    def gradient_sums(self) -> Tensor:
        return self._stack([part.gradient_norms() for part in self._parts])

    def metric_sums(self, gradient_sums: Tensor) -> Tensor:
        sizes = gradient_sums.sqrt().unbind()
        norms = [part.metric([sizes[i] for i in part.index]) for part in self._parts]
        return torch.stack([self._stack([n for n, _ in norms]), self._stack([w for _, w in norms])])

    def apply(self, metric_sums: Tensor) -> None:
        ns, ws = (row.unbind() for row in metric_sums.sqrt().unbind())
        for part in self._parts:
            part.apply([ns[i] for i in part.index], [ws[i] for i in part.index])
        self._finish()

    def _finish(self) -> None:
        self._undo()
        for original, copy in self._noted:
            original.copy_(copy)

    def _stack(self, norms: list[Norms]) -> Tensor:
        """The parts' norms squared, in the order of the tensors; 0 where a part has none."""
        device = self._parts[0].params[0].device
        entries = [torch.zeros((), dtype=norm_dtype(device), device=device)] * self._size
        for part, values in zip(self._parts, norms, strict=True):
            for i, value in zip(part.index, values or (), strict=values is not None):
                entries[i] = value
        return torch.stack(entries).square()


class _Part:
    """Tensors whose dtypes agree, as the multi-tensor kernels want them. Sums are kept as norms, their roots."""

    def __init__(
        self,
        index: list[int],
        params: list[Tensor],
        grads: list[Tensor],
        momentums: list[Tensor],
        fims: list[Tensor],
        steps: list[Tensor],
        numels: list[int],
        offsets: list[int],
        indices: list[int],
        *,
        options: Options,
        grad_scale: Tensor | None,
    ) -> None:
        self.index, self.params, self.momentums, self.fims = index, params, momentums, fims
        self.offsets, self.indices, self.options = offsets, indices, options
        self.natural_momentum = options.momentum_mode == "natural"
        self.natural_decay = options.decay_mode == "natural"
        self.stochastic = options.stochastic_rounding and params[0].dtype == torch.bfloat16
        self.roots = [math.sqrt(numel) for numel in numels]
        self.dtype = working_dtype(params[0], grads[0], momentums[0], fims[0])
        self.ts = [count(step, options.capturable) for step in steps]
        self.corrections: list[Any] = []
        if options.correct_momentum:
            self.corrections = [bias_correction(options.beta1, t) for t in self.ts]

        gs = _cast(grads, self.dtype)
        if grad_scale is not None:
            gs = list(torch._foreach_div(gs, grad_scale.to(self.dtype)))
        if options.maximize:
            gs = list(torch._foreach_neg(gs))
        self.gs = gs

    def gradient_norms(self) -> Norms:
        return None if self.options.eps_mode == "fixed" else _norms(self.gs)

    def metric(self, gradient_norms: Norms) -> tuple[Norms, Norms]:
        """Write f_t and return the norms of n_t and w_t before the clip, or None where they are not needed."""
        options, rho = self.options, self.options.fim_rho
        limit = torch.finfo(self.dtype).max

        # f_t; in place where the state is in the working dtype.
        fs = _cast(self.fims, self.dtype)
        weights = [fim_weights(options.beta2, t) for t in self.ts]
        beta2_ts: list[Any] = [beta2_t for beta2_t, _ in weights]  # host numbers or 0-d tensors, as the steps
        torch._foreach_mul_(fs, beta2_ts)
        _addcmul_(fs, self.gs, self.gs, [rest2_t for _, rest2_t in weights])
        torch._foreach_clamp_max_(fs, limit)
        _store(self.fims, fs)

        # d_t; infinite where it would be 0, so that nothing moves there.
        ds = list(torch._foreach_sqrt(fs) if rho == 0.5 else torch._foreach_pow(fs, rho))
        del fs
        if options.eps_mode == "fixed":
            torch._foreach_add_(ds, options.eps ** (2 * rho))
        else:
            assert gradient_norms is not None
            terms = self._rms(gradient_norms)
            if options.eps_mode == "adaptive":
                torch._foreach_mul_(terms, options.eps2)
                torch._foreach_clamp_max_(terms, options.eps)
            else:
                torch._foreach_clamp_max_(terms, 1.0)
                torch._foreach_mul_(terms, options.eps)
            torch._foreach_add_(ds, list(torch._foreach_pow(terms, 2 * rho)))
        for d in ds:
            d.masked_fill_(d == 0, math.inf)

        if self.natural_momentum:
            self.ns = list(torch._foreach_div(self.gs, ds))
        else:
            ms = self._averaged(self.gs)
            self.ns = _natural(list(torch._foreach_div(ms, self.corrections)) if self.corrections else ms, ds, limit)
        if options.weight_decay != 0:
            self.ws = _cast(self.params, self.dtype)
            if self.natural_decay:
                self.ws = _natural(self.ws, ds, limit)
        if options.clip is None:
            return None, None
        clips_decay = options.weight_decay != 0 and self.natural_decay
        return _norms(self.ns), _norms(self.ws) if clips_decay else None

    def apply(self, n_norms: Norms, w_norms: Norms) -> None:
        """Write m_t and theta_t."""
        weight_decay, lr = self.options.weight_decay, self.options.rate
        self._clip_(self.ns, n_norms)
        if self.natural_momentum:
            updates = self._averaged(self.ns)
            del self.ns
            if self.corrections:
                updates = list(torch._foreach_div(updates, self.corrections))
        else:
            updates = self.ns
            # NaN where g is infinite, which `_natural` has made a finite number.
            torch._foreach_add_(updates, torch._foreach_sub(self.gs, self.gs))
        del self.gs

        if weight_decay != 0:
            if self.natural_decay:
                self._clip_(self.ws, w_norms)
            updates = list(torch._foreach_add(updates, self.ws, alpha=weight_decay))
            del self.ws

        thetas = _cast(self.params, self.dtype) if self.stochastic else self.params
        if isinstance(lr, Tensor):
            device = thetas[0].device
            rate = lr.to(device=device, dtype=self.dtype, non_blocking=device.type != "cpu")
            updates = list(torch._foreach_mul(updates, rate))
            step = -1.0
        else:
            step = -lr
        if self.stochastic:
            values = torch._foreach_add(thetas, updates, alpha=step)
            places = zip(self.ts, self.indices, self.offsets, strict=True)
            for param, value, place in zip(self.params, values, places, strict=True):
                param.copy_(stochastic_bfloat16(value, *place, strides=dense_strides(param)))
        else:
            torch._foreach_add_(thetas, updates, alpha=step)  # inductor drops the alpha of _foreach_sub_

    def _averaged(self, xs: list[Tensor]) -> list[Tensor]:
        """Write beta1 m_{t-1} + (1 - beta1) x into the momentum and return it in the working dtype, not to be
        changed."""
        ms = _cast(self.momentums, self.dtype)
        torch._foreach_mul_(ms, self.options.beta1)
        torch._foreach_add_(ms, xs, alpha=1 - self.options.beta1)
        _store(self.momentums, ms)
        return ms

    def _rms(self, norms: list[Tensor]) -> list[Tensor]:
        """Norms into RMS values, in place."""
        torch._foreach_div_(norms, self.roots)
        return norms

    def _clip_(self, xs: list[Tensor], norms: Norms) -> None:
        """x / max(1, RMS(x) / clip), in place."""
        if self.options.clip is not None:
            assert norms is not None
            divisors = self._rms(norms)
            torch._foreach_div_(divisors, self.options.clip)
            torch._foreach_clamp_min_(divisors, 1.0)
            torch._foreach_div_(xs, divisors)


def _alike(*lists: Sequence[Tensor]) -> list[list[int]]:
    """Indices of the tensors that share a device and all dtypes."""
    groups: dict[tuple[Any, ...], list[int]] = {}
    for i, tensors in enumerate(zip(*lists, strict=True)):
        groups.setdefault((tensors[0].device, *(x.dtype for x in tensors)), []).append(i)
    return list(groups.values())


def _cast(tensors: list[Tensor], dtype: torch.dtype) -> list[Tensor]:
    return [x.to(dtype) for x in tensors]


def _store(targets: list[Tensor], values: list[Tensor]) -> None:
    if targets[0].dtype != values[0].dtype:  # else the values are the targets, changed in place
        limit = torch.finfo(targets[0].dtype).max
        values = list(torch._foreach_clamp_min(torch._foreach_clamp_max(values, limit), -limit))
        torch._foreach_copy_(targets, values)


def _norms(tensors: list[Tensor]) -> list[Tensor]:
    """Root of the sum of squares of each tensor, 0-d tensors."""
    dtype = torch.promote_types(tensors[0].dtype, norm_dtype(tensors[0].device))
    return list(torch._foreach_norm(tensors, 2, dtype=dtype))


def _addcmul_(targets: list[Tensor], a: list[Tensor], b: list[Tensor], values: list[Any]) -> None:
    if isinstance(values[0], Tensor):
        torch._foreach_addcmul_(targets, torch._foreach_mul(a, values), b)
    else:
        torch._foreach_addcmul_(targets, a, b, values)


def _natural(xs: list[Tensor], ds: list[Tensor], limit: float) -> list[Tensor]:
    """x / d, kept finite as in `fadam.metric.natural`: new tensors."""
    xs = list(torch._foreach_div(xs, ds))
    torch._foreach_clamp_max_(xs, limit)
    torch._foreach_clamp_min_(xs, -limit)
    return xs
