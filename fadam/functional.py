"""The functional form of FAdam: a step of lists of tensors, checked as a whole and then taken.

Everything here changes parameters, states and step counts in place and never waits for a device.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor

from fadam.backend import Backend, choose
from fadam.bookkeeping import (
    Tensors,
    amp_tensors,
    as_real,
    check_steps,
    count_up,
    is_sharded,
    resolved,
    take_back,
)
from fadam.metric import traced
from fadam.options import Options

_PLAIN = {Tensor, torch.nn.Parameter}


def fadam(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    momentums: Sequence[Tensor],
    fims: Sequence[Tensor],
    steps: Sequence[Tensor],
    options: Options,
    *,
    indices: Sequence[int] | None = None,
    grad_scale: Tensor | None = None,
    found_inf: Tensor | None = None,
) -> None:
    """Perform one step of Algorithm 1 of arXiv:2405.12807 on every tensor of `params`, in place.

    Args:
        params: parameters, real or complex, any shapes; those without elements are skipped.
        grads: their dense gradients, same shapes.
        momentums: m_{t-1}, of the parameters' shapes, any real floating dtype. A complex parameter has its
            state in the shape of ``torch.view_as_real(param)``.
        fims: f_{t-1}, likewise.
        steps: t-1, 0-d float32 tensors, one a parameter; on the host, or with `capturable` on the parameter's
            device.
        options: ``fadam.Options(lr=..., ...)``, whose names and defaults are those of :class:`fadam.FAdam`.
        indices: numbers that stand for the tensors in the random bits of `stochastic_rounding`; None is their place in
            the list.
        grad_scale: what the gradients are to be divided by first, as ``torch.amp.GradScaler`` gives it; 0-d float32.
        found_inf: where it is not 0, nothing is changed, `steps` included; 0-d float32. The steps must then be
            where it is, unless it is on the host.

    Raises:
        RuntimeError: with `capturable`, or `found_inf` on a device, if a step is not on its parameter's device;
            if `fused` is true and cannot be had, with the reason; for a gradient or state of another shape.
        ValueError: for lists of different lengths, and for sharded parameters that FAdam cannot step.
    """
    lists = [list(each) for each in (params, grads, momentums, fims, steps)]
    if len({len(each) for each in lists}) > 1:
        counts = ", ".join(map(str, map(len, lists)))
        raise ValueError(f"params, grads, momentums, fims and steps must be as many, got {counts}")
    tensors = Tensors(*lists, indices=indices)
    take([(tensors, options)], grad_scale=grad_scale, found_inf=found_inf)


class Task(Protocol):
    """Part of a step."""

    def check(self) -> None:
        """Raise what stands in the way; nothing is counted or written before all tasks of a step have been checked."""
        ...

    def run(self) -> None:
        """Count the step and take it."""
        ...


def take(
    groups: Sequence[tuple[Tensors, Options]], *, grad_scale: Tensor | None = None, found_inf: Tensor | None = None
) -> None:
    """Perform one step of all groups, or none of it where one is refused; the arguments are those of `fadam`."""
    if found_inf is not None and found_inf.is_cpu and not traced(found_inf):
        if found_inf.item() != 0:
            return
        found_inf = None
    tasks: list[Task] = []
    sharded: list[tuple[Tensors, Options]] = []
    for tensors, options in groups:
        with torch.set_grad_enabled(options.differentiable):
            plain, shards = _sorted(tensors, options)
            tasks += [PlainTask(x, options, grad_scale, found_inf) for x in plain]
        if shards is not None:
            sharded.append((shards, options))
    if sharded:
        from fadam.sharding import ShardedTask  # which brings in torch.distributed

        tasks.append(ShardedTask(sharded, grad_scale, found_inf))
    for task in tasks:
        task.check()
    for task in tasks:
        task.run()


class PlainTask:
    """One step of the plain tensors of one group on one device.

    Args:
        tensors: real ones with elements.
        options: of the group.
        grad_scale, found_inf: as for `fadam`, on any device.
    """

    def __init__(self, tensors: Tensors, options: Options, grad_scale: Tensor | None, found_inf: Tensor | None) -> None:
        self._tensors, self._options = tensors, options
        self._grad_scale, self._found_inf = grad_scale, found_inf
        self._backend: Callable[[Tensors, Options], Backend]

    def check(self) -> None:
        tensors = self._tensors
        check_steps(tensors, self._options)
        self._backend = choose(tensors, self._options)
        for p, *others in zip(*tensors.four, strict=True):
            if any(x.shape != p.shape for x in others):
                shapes = ", ".join(str(tuple(x.shape)) for x in (p, *others))
                raise RuntimeError(
                    f"FAdam: a gradient or state is not of its parameter's shape: {shapes} are those of parameter, "
                    "gradient, momentum and fim"
                )
        tensors.grad_scale, tensors.found_inf = amp_tensors(
            tensors.params[0].device, tensors.steps, self._grad_scale, self._found_inf
        )

    def run(self) -> None:
        with torch.set_grad_enabled(self._options.differentiable):
            count_up(self._tensors.steps)
            self._backend(self._tensors, self._options).run()
            take_back(self._tensors.steps, self._tensors.found_inf)


def _sorted(tensors: Tensors, options: Options) -> tuple[list[Tensors], Tensors | None]:
    """The plain tensors that have elements, as real ones, by their device; and the sharded ones, if there are any."""
    indices: Sequence[int] | None = None
    if options.stochastic_rounding:
        indices = range(len(tensors.params)) if tensors.indices is None else tensors.indices
    places = [i for i, p in enumerate(tensors.params) if p.numel() > 0]
    shards = None
    if not {type(p) for p in tensors.params} <= _PLAIN:
        picked = [i for i in places if is_sharded(tensors.params[i])]
        if picked:
            lists = [[list_[i] for i in picked] for list_ in (*tensors.four, tensors.steps)]
            shards = Tensors(*lists, indices=None if indices is None else [indices[i] for i in picked])
            places = [i for i in places if not is_sharded(tensors.params[i])]
    by_device: dict[torch.device, list[int]] = {}
    for i in places:
        by_device.setdefault(tensors.params[i].device, []).append(i)
    plain = [
        Tensors(
            [as_real(tensors.params[i]) for i in places],
            [resolved(tensors.grads[i]) for i in places],
            [tensors.momentums[i] for i in places],
            [tensors.fims[i] for i in places],
            [tensors.steps[i] for i in places],
            indices=None if indices is None else [indices[i] for i in places],
        )
        for places in by_device.values()
    ]
    return plain, shards
