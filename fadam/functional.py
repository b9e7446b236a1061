"""The functional form of FAdam and its two loops, single-tensor and multi-tensor, which have one signature.

All three change `params`, `momentums`, `fims` and `steps` in place and never wait for a device.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fadam.metric import (
    Scalar,
    bias_correction,
    clip_divisor,
    empirical_fim,
    epsilon,
    fim_weights,
    metric,
    natural,
    norm_dtype,
    store,
    working_dtype,
)

# Where torch's multi-tensor kernels are real ones; elsewhere they are a loop over tensors and gain nothing.
_FOREACH_DEVICES = ("cuda", "xpu")


def fadam(
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
    rho: float,
    weight_decay: float,
    eps_mode: str = "adaptive",
    momentum: str = "natural",
    decay: str = "natural",
    correct_momentum: bool = False,
    maximize: bool = False,
    foreach: bool | None = None,
    capturable: bool = False,
    differentiable: bool = False,
) -> None:
    """Perform one step of Algorithm 1 of arXiv:2405.12807 on every tensor of `params`, in place.

    The options are those of :class:`fadam.FAdam`, which validates them; this function does not.

    Args:
        params: parameters, real or complex, any shapes; those without elements are skipped.
        grads: their dense gradients, same shapes.
        momentums: m_{t-1}, of the parameters' shapes, any real floating dtype. A complex parameter has its
            state in the shape of ``torch.view_as_real(param)``.
        fims: f_{t-1}, likewise.
        steps: t-1, 0-d float32 tensors, one a parameter; on the host, or with `capturable` on the parameter's
            device.

    Raises:
        RuntimeError: with `capturable`, if a step is not on its parameter's device.
        ValueError: if `foreach` and `differentiable` are both true.
    """
    if capturable and any(p.device != step.device for p, step in zip(params, steps, strict=True)):
        raise RuntimeError("FAdam: with capturable=True each step tensor must be on its parameter's device")
    if foreach and differentiable:
        raise ValueError("FAdam: foreach=True has no autograd; use foreach=False with differentiable=True")
    if foreach is None:
        foreach = not differentiable and all(
            type(p) in (Tensor, torch.nn.Parameter) and p.device.type in _FOREACH_DEVICES for p in params
        )

    filled = [i for i, p in enumerate(params) if p.numel() > 0]
    step_all = _multi_tensor_fadam if foreach else _single_tensor_fadam
    step_all(
        [_as_real(params[i]) for i in filled],
        [_as_real(grads[i].resolve_conj()) for i in filled],
        [momentums[i] for i in filled],
        [fims[i] for i in filled],
        [steps[i] for i in filled],
        lr=lr.reshape(()) if isinstance(lr, Tensor) else lr,
        beta1=beta1,
        beta2=beta2,
        eps=eps,
        eps2=eps2,
        clip=clip,
        rho=rho,
        weight_decay=weight_decay,
        eps_mode=eps_mode,
        momentum=momentum,
        decay=decay,
        correct_momentum=correct_momentum,
        maximize=maximize,
        capturable=capturable,
        differentiable=differentiable,
    )


def _as_real(x: Tensor) -> Tensor:
    return torch.view_as_real(x) if x.is_complex() else x


def _count(step: Tensor, capturable: bool) -> Scalar:
    """t as a host number, so that its powers cost no kernels; as a tensor where a graph is to be replayed."""
    if capturable or torch.compiler.is_compiling():
        return step.to(norm_dtype(step.device))
    return step.item()


def _single_tensor_fadam(
    params: list[Tensor],
    grads: list[Tensor],
    momentums: list[Tensor],
    fims: list[Tensor],
    steps: list[Tensor],
    *,
    lr: float | Tensor,
    beta1: float,
    beta2: float,
    eps: float,
    eps2: float,
    clip: float | None,
    rho: float,
    weight_decay: float,
    eps_mode: str,
    momentum: str,
    decay: str,
    correct_momentum: bool,
    maximize: bool,
    capturable: bool,
    differentiable: bool,
) -> None:
    for param, grad, momentum_state, fim_state, step in zip(params, grads, momentums, fims, steps, strict=True):
        step += 1
        t = _count(step, capturable)
        dtype = working_dtype(param, grad, momentum_state, fim_state)
        theta = param.to(dtype)
        if differentiable:
            theta = theta.clone()  # autograd keeps it, and the parameter is about to change
        g = grad.to(dtype)
        if maximize:
            g = -g

        f = empirical_fim(fim_state.to(dtype), g, beta2, t)
        store(fim_state, f)
        d = metric(f, epsilon(g, eps, eps2, eps_mode), rho, differentiable)

        m = momentum_state.to(dtype) * beta1
        if momentum == "natural":
            n = g / d
            if clip is not None:
                n = n / clip_divisor(n, clip)
            m = m.add(n, alpha=1 - beta1)
            store(momentum_state, m)
            update = m / bias_correction(beta1, t) if correct_momentum else m
        else:
            m = m.add(g, alpha=1 - beta1)
            store(momentum_state, m)
            update = natural(m / bias_correction(beta1, t) if correct_momentum else m, d)
            if clip is not None:
                update = update / clip_divisor(update, clip)
            update = update + (g - g)  # NaN where g is infinite, which `natural` has made a finite number

        if weight_decay != 0:
            w = theta
            if decay == "natural":
                w = natural(theta, d)
                if clip is not None:
                    w = w / clip_divisor(w, clip)
            update = update.add(w, alpha=weight_decay)

        # In place with the promoted dtype: a bfloat16 parameter is rounded once, after the subtraction.
        if isinstance(lr, Tensor):
            param.sub_(update * lr)
        else:
            param.sub_(update, alpha=lr)


def _multi_tensor_fadam(
    params: list[Tensor],
    grads: list[Tensor],
    momentums: list[Tensor],
    fims: list[Tensor],
    steps: list[Tensor],
    *,
    lr: float | Tensor,
    beta1: float,
    beta2: float,
    eps: float,
    eps2: float,
    clip: float | None,
    rho: float,
    weight_decay: float,
    eps_mode: str,
    momentum: str,
    decay: str,
    correct_momentum: bool,
    maximize: bool,
    capturable: bool,
    differentiable: bool,
) -> None:
    assert not differentiable  # fadam() has refused it

    for index in _groups(params, grads, momentums, fims):
        thetas = [params[i] for i in index]
        momentum_states, fim_states = [momentums[i] for i in index], [fims[i] for i in index]
        counts = [steps[i] for i in index]
        device = thetas[0].device
        dtype = working_dtype(thetas[0], grads[index[0]], momentum_states[0], fim_states[0])
        limit = torch.finfo(dtype).max

        torch._foreach_add_(counts, 1)
        ts = [_count(step, capturable) for step in counts]

        gs = _cast([grads[i] for i in index], dtype)
        if maximize:
            gs = list(torch._foreach_neg(gs))

        # f_t; in place where the state is in the working dtype.
        fs = _cast(fim_states, dtype)
        weights = [fim_weights(beta2, t) for t in ts]
        decays: list[Any] = [weight for weight, _ in weights]  # host numbers or 0-d tensors, as the steps
        torch._foreach_mul_(fs, decays)
        _addcmul_(fs, gs, gs, [gain for _, gain in weights])
        torch._foreach_clamp_max_(fs, limit)
        _store(fim_states, fs)

        # d_t; infinite where it would be 0, so that nothing moves there.
        ds = list(torch._foreach_sqrt(fs) if rho == 0.5 else torch._foreach_pow(fs, rho))
        if eps_mode == "fixed":
            torch._foreach_add_(ds, eps ** (2 * rho))
        else:
            terms = _rms(gs)
            if eps_mode == "adaptive":
                torch._foreach_mul_(terms, eps2)
                torch._foreach_clamp_max_(terms, eps)
            else:
                torch._foreach_clamp_max_(terms, 1.0)
                torch._foreach_mul_(terms, eps)
            torch._foreach_add_(ds, list(torch._foreach_pow(terms, 2 * rho)))
        for d in ds:
            d.masked_fill_(d == 0, math.inf)

        # m_t and the part of the update that comes from the gradient.
        ms = _cast(momentum_states, dtype)
        torch._foreach_mul_(ms, beta1)
        corrections: list[Any] = [bias_correction(beta1, t) for t in ts] if correct_momentum else []
        if momentum == "natural":
            ns = list(torch._foreach_div(gs, ds))
            _clip_(ns, clip)
            torch._foreach_add_(ms, ns, alpha=1 - beta1)
            del ns
            _store(momentum_states, ms)
            updates = list(torch._foreach_div(ms, corrections)) if correct_momentum else ms
        else:
            torch._foreach_add_(ms, gs, alpha=1 - beta1)
            _store(momentum_states, ms)
            updates = list(torch._foreach_div(ms, corrections)) if correct_momentum else ms
            updates = _natural(updates, ds, limit)
            _clip_(updates, clip)
            torch._foreach_add_(updates, torch._foreach_sub(gs, gs))

        if weight_decay != 0:
            ws = _cast(thetas, dtype)
            if decay == "natural":
                ws = _natural(ws, ds, limit)
                _clip_(ws, clip)
            updates = list(torch._foreach_add(updates, ws, alpha=weight_decay))

        if isinstance(lr, Tensor):
            rate = lr.to(device=device, dtype=dtype, non_blocking=True)
            torch._foreach_sub_(thetas, list(torch._foreach_mul(updates, rate)))
        else:
            torch._foreach_add_(thetas, updates, alpha=-lr)  # inductor drops the alpha of _foreach_sub_


def _groups(*lists: list[Tensor]) -> list[list[int]]:
    """Indices of the tensors that share a device and all dtypes, as the multi-tensor kernels want them."""
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


def _rms(tensors: list[Tensor]) -> list[Tensor]:
    """Root mean square of each whole tensor, 0-d tensors."""
    dtype = torch.promote_types(tensors[0].dtype, norm_dtype(tensors[0].device))
    norms = list(torch._foreach_norm(tensors, 2, dtype=dtype))
    torch._foreach_div_(norms, [math.sqrt(x.numel()) for x in tensors])
    return norms


def _addcmul_(targets: list[Tensor], a: list[Tensor], b: list[Tensor], values: list[Any]) -> None:
    if isinstance(values[0], Tensor):
        torch._foreach_addcmul_(targets, torch._foreach_mul(a, values), b)
    else:
        torch._foreach_addcmul_(targets, a, b, values)


def _natural(xs: list[Tensor], ds: list[Tensor], limit: float) -> list[Tensor]:
    """x / d, kept finite as in `natural`: new tensors."""
    xs = list(torch._foreach_div(xs, ds))
    torch._foreach_clamp_max_(xs, limit)
    torch._foreach_clamp_min_(xs, -limit)
    return xs


def _clip_(xs: list[Tensor], clip: float | None) -> None:
    """x / max(1, RMS(x) / clip), in place."""
    if clip is not None:
        divisors = _rms(xs)
        torch._foreach_div_(divisors, clip)
        torch._foreach_clamp_min_(divisors, 1.0)
        torch._foreach_div_(xs, divisors)
