"""The functional form of FAdam, the choice of an implementation for it, and the single-tensor loop.

Everything here changes `params`, `momentums`, `fims` and `steps` in place and never waits for a device.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fadam.backend import Backend, choose
from fadam.blocks import BlockLoop, fits
from fadam.foreach import ForeachBackend
from fadam.metric import (
    Undo,
    bias_correction,
    clip_divisor,
    count,
    dense_strides,
    empirical_fim,
    epsilon,
    metric,
    natural,
    stochastic_bfloat16,
    store,
    traced,
    working_dtype,
)

if TYPE_CHECKING:
    from fadam.sharding import Share

_PLAIN = {Tensor, torch.nn.Parameter}
Task = Callable[[], "Share | None"]  # counts a step; takes it, or tells what is left to do for sharded tensors


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
    fim_rho: float,
    weight_decay: float,
    eps_mode: str = "adaptive",
    momentum_mode: str = "natural",
    decay_mode: str = "natural",
    correct_momentum: bool = False,
    maximize: bool = False,
    foreach: bool | None = None,
    capturable: bool = False,
    differentiable: bool = False,
    fused: bool | None = None,
    stochastic_rounding: bool = False,
    indices: Sequence[int] | None = None,
    grad_scale: Tensor | None = None,
    found_inf: Tensor | None = None,
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
        indices: numbers that stand for the tensors in the random bits of `stochastic_rounding`; None is their place in
            the list.
        grad_scale: what the gradients are to be divided by first, as ``torch.amp.GradScaler`` gives it; 0-d float32.
        found_inf: where it is not 0, nothing is changed, `steps` included; 0-d float32. The steps must then be
            where it is, unless it is on the host.

    Raises:
        RuntimeError: with `capturable`, or `found_inf` on a device, if a step is not on its parameter's device;
            if `fused` is true and cannot be had, with the reason; for a gradient or state of another shape.
        ValueError: if two of `foreach`, `fused` and `differentiable` are true, or `stochastic_rounding` with
            `differentiable`; for sharded parameters that FAdam cannot step.
    """
    tasks = begin(
        params,
        grads,
        momentums,
        fims,
        steps,
        foreach=foreach,
        fused=fused,
        differentiable=differentiable,
        found_inf=found_inf,
        indices=indices,
        lr=lr,
        beta1=beta1,
        beta2=beta2,
        eps=eps,
        eps2=eps2,
        clip=clip,
        fim_rho=fim_rho,
        weight_decay=weight_decay,
        eps_mode=eps_mode,
        momentum_mode=momentum_mode,
        decay_mode=decay_mode,
        correct_momentum=correct_momentum,
        maximize=maximize,
        capturable=capturable,
        stochastic_rounding=stochastic_rounding,
        grad_scale=grad_scale,
    )
    take(tasks)


def begin(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    momentums: Sequence[Tensor],
    fims: Sequence[Tensor],
    steps: Sequence[Tensor],
    *,
    foreach: bool | None,
    fused: bool | None,
    differentiable: bool,
    found_inf: Tensor | None,
    indices: Sequence[int] | None,
    **options: Any,
) -> list[Task]:
    """Check whether the step can be taken, and return what `take` then does, with that of other groups.

    Nothing has been counted or written before.
    """
    if options["capturable"] and any(p.device != step.device for p, step in zip(params, steps, strict=True)):
        raise RuntimeError("FAdam: with capturable=True each step tensor must be on its parameter's device")
    if foreach and differentiable:
        raise ValueError("FAdam: foreach=True has no autograd; use foreach=False with differentiable=True")
    if fused and (foreach or differentiable):
        other = "foreach" if foreach else "differentiable"
        raise ValueError(f"FAdam: fused=True and {other}=True are two implementations; choose one")
    if options["stochastic_rounding"] and differentiable:
        raise ValueError("FAdam: stochastic_rounding=True has no autograd; use it with differentiable=False")
    if found_inf is not None and found_inf.is_cpu and not traced(found_inf):
        if found_inf.item() != 0:
            return []
        found_inf = None
    lr = options["lr"]
    options["lr"] = lr.reshape(()) if isinstance(lr, Tensor) else lr

    numbers = range(len(params)) if indices is None else indices
    rounds = options["stochastic_rounding"]

    filled = [i for i, p in enumerate(params) if p.numel() > 0]
    tasks: list[Task] = []
    if not {type(p) for p in params} <= _PLAIN:
        picked = [i for i in filled if is_sharded(params[i])]
        if picked:
            from fadam.sharding import prepare

            tasks += prepare(
                *_picked(picked, params, grads, momentums, fims, steps),
                foreach=foreach,
                fused=fused,
                differentiable=differentiable,
                found_inf=found_inf,
                indices=[numbers[i] for i in picked] if rounds else None,
                **options,
            )
            filled = [i for i in filled if not is_sharded(params[i])]

    by_device: dict[torch.device, list[int]] = {}
    for i in filled:
        by_device.setdefault(params[i].device, []).append(i)
    for device, index in by_device.items():
        tensors = (
            [as_real(params[i]) for i in index],
            [_resolved(grads[i]) for i in index],
            [momentums[i] for i in index],
            [fims[i] for i in index],
        )
        counts = [steps[i] for i in index]
        backend = choose(*tensors, counts, foreach=foreach, fused=fused, differentiable=differentiable, options=options)
        for p, *others in zip(*tensors, strict=True):
            if any(x.shape != p.shape for x in others):
                shapes = ", ".join(str(tuple(x.shape)) for x in (p, *others))
                raise RuntimeError(
                    f"FAdam: a gradient or state is not of its parameter's shape: {shapes} are those of parameter, "
                    "gradient, momentum and fim"
                )
        more: dict[str, Any] = {**options, **amp_tensors(device, counts, options["grad_scale"], found_inf)}
        more["indices"] = [numbers[i] for i in index] if rounds else None
        if backend is None:
            more["differentiable"] = differentiable
        tasks.append(functools.partial(_step_plain, torch.is_grad_enabled(), backend, tensors, counts, more))
    return tasks


def take(tasks: Sequence[Task]) -> None:
    """Step the plain tensors, and then the sharded ones of all tasks together."""
    shares = []
    for task in tasks:  # no comprehension with a walrus, which breaks a compiler's graph
        share = task()
        if share is not None:
            shares.append(share)
    if shares:
        from fadam.sharding import finish

        finish(shares)


def _step_plain(
    recorded: bool,
    backend: Callable[..., Backend] | None,
    tensors: tuple[list[Tensor], list[Tensor], list[Tensor], list[Tensor]],
    steps: list[Tensor],
    options: dict[str, Any],
) -> None:
    with torch.set_grad_enabled(recorded):  # as where it was begun
        count_up(steps)
        loop = backend is None or backend is ForeachBackend  # torch's multi-tensor kernels are loops on a CPU too
        if loop and not options.get("differentiable") and fits(tensors, steps, options["capturable"]):
            _blockwise_fadam(*tensors, steps, scalars_in_float64=backend is None, **options)
        elif backend is None:
            _single_tensor_fadam(*tensors, steps, **options)
        else:
            backend(*tensors, steps, **options).run()
            if backend is not ForeachBackend:
                written(*tensors)
        take_back(steps, options["found_inf"])


def is_sharded(param: Tensor) -> bool:
    """Whether this is a DTensor; without importing torch.distributed, which takes long and may not be there."""
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(param, module.DTensor)


def local_part(x: Tensor) -> Tensor:
    """What this process holds of it."""
    return x.to_local() if is_sharded(x) else x  # type: ignore[attr-defined]


def amp_tensors(
    device: torch.device, steps: Sequence[Tensor], grad_scale: Tensor | None, found_inf: Tensor | None
) -> dict[str, Tensor | None]:
    """`grad_scale` and `found_inf` where the tensors are, the latter as 0 or 1."""
    asynchronous = device.type != "cpu"  # where the host would read a number that has not arrived
    if found_inf is not None:
        found_inf = (found_inf.to(device, non_blocking=asynchronous) != 0).to(torch.float32).reshape(())
        if any(step.device != device for step in steps):
            raise RuntimeError(
                "FAdam: with found_inf on a device each step tensor must be on its parameter's device; "
                "fused=True or capturable=True, set before the first step, put it there"
            )
    if grad_scale is not None:
        grad_scale = grad_scale.to(device, torch.float32, non_blocking=asynchronous).reshape(())
    return {"grad_scale": grad_scale, "found_inf": found_inf}


def count_up(steps: list[Tensor]) -> None:
    """t, in place."""
    if steps[0].is_cpu and not traced(steps[0]):
        # Else the number is made a tensor for each of them.
        torch._foreach_add_(steps, torch.ones((), dtype=torch.float32, device="cpu"), alpha=1.0)
    else:
        torch._foreach_add_(steps, 1)


def take_back(steps: list[Tensor], found_inf: Tensor | None) -> None:
    """Count the step back that was not taken."""
    if found_inf is not None:
        torch._foreach_sub_(steps, [found_inf] * len(steps))


def written(params: Sequence[Tensor], grads: Sequence[Tensor], *states: Sequence[Tensor]) -> None:
    """Tell autograd what a fused implementation has written behind its back, so that a stale graph is an error."""
    for tensors in (params, *states):
        try:
            torch.autograd.graph.increment_version(tensors)
        except (
            RuntimeError,
            TypeError,
        ):  # torch 2.6 may know neither lists nor inference tensors, which have no version
            for x in tensors:
                if not x.is_inference():
                    torch.autograd.graph.increment_version(x)


def _picked(index: Sequence[int], *lists: Sequence[Tensor]) -> list[list[Tensor]]:
    return [[tensors[i] for i in index] for tensors in lists]


def _resolved(grad: Tensor) -> Tensor:
    """As a real tensor, without a conjugation or negation that is only noted on it: an address tells neither."""
    return (torch.view_as_real(grad.resolve_conj()) if grad.is_complex() else grad).resolve_neg()


def as_real(x: Tensor) -> Tensor:
    return torch.view_as_real(x) if x.is_complex() else x


def _blockwise_fadam(
    params: list[Tensor],
    grads: list[Tensor],
    momentums: list[Tensor],
    fims: list[Tensor],
    steps: list[Tensor],
    *,
    indices: Sequence[int] | None,
    scalars_in_float64: bool,
    **options: Any,
) -> None:
    rest = dict(options)
    for seen in ("capturable", "differentiable", "found_inf"):  # by `fits` and `begin`
        options.pop(seen, None)
    one = BlockLoop(**options)
    for i, tensors in enumerate(zip(params, grads, momentums, fims, steps, strict=True)):
        index = i if indices is None else indices[i]
        if scalars_in_float64 and tensors[0].dim() == 0:  # as that loop has them, whose RMS values are float64 scalars
            rest.setdefault("differentiable", False)
            _single_tensor_fadam(*([x] for x in tensors), indices=[index], **rest)
        else:
            one(*tensors, index)


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
    fim_rho: float,
    weight_decay: float,
    eps_mode: str,
    momentum_mode: str,
    decay_mode: str,
    correct_momentum: bool,
    maximize: bool,
    capturable: bool,
    differentiable: bool,
    stochastic_rounding: bool,
    indices: Sequence[int] | None,
    grad_scale: Tensor | None,
    found_inf: Tensor | None,
) -> None:
    undo = Undo(found_inf, params, momentums, fims)
    lists = params, grads, momentums, fims, steps
    for i, (param, grad, momentum_state, fim_state, step) in enumerate(zip(*lists, strict=True)):
        t = count(step, capturable)
        dtype = working_dtype(param, grad, momentum_state, fim_state)
        theta = param.to(dtype)
        if differentiable:
            theta = theta.clone()  # autograd keeps it, and the parameter is about to change
        g = grad.to(dtype)
        if grad_scale is not None:
            g = g / grad_scale
        if maximize:
            g = -g

        f = empirical_fim(fim_state.to(dtype), g, beta2, t)
        store(fim_state, f)
        d = metric(f, epsilon(g, eps, eps2, eps_mode), fim_rho, differentiable)

        m = momentum_state.to(dtype) * beta1
        if momentum_mode == "natural":
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
            if decay_mode == "natural":
                w = natural(theta, d)
                if clip is not None:
                    w = w / clip_divisor(w, clip)
            update = update.add(w, alpha=weight_decay)

        if stochastic_rounding and param.dtype == torch.bfloat16:
            assert indices is not None
            param.copy_(stochastic_bfloat16(theta - update * lr, t, indices[i], strides=dense_strides(param)))
        # In place with the promoted dtype: a bfloat16 parameter is rounded once, after the subtraction.
        elif isinstance(lr, Tensor):
            param.sub_(update * lr)
        else:
            param.sub_(update, alpha=lr)
    undo()
