"""What surrounds a step, whichever implementation takes it: lists of tensors, counts, a scaler's numbers, shards."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass

import torch
from torch import Tensor

from fadam.metric import traced
from fadam.options import Options


@dataclass(eq=False)
class Tensors:
    """N tensors that one step updates together, with what belongs to each.

    Attributes:
        params: N parameters.
        grads: their dense gradients, same shapes.
        momentums: m_{t-1}, same shapes, any real floating dtype; `fims` f_{t-1} likewise.
        steps: 0-d float32 tensors: t - 1 before a task has counted them up, t for an implementation.
        indices: numbers that stand for the tensors in the random bits of the stochastic rounding; None is their place
            in the list.
        numels: elements of the logical tensors, which RMS values are over, where those given are shards of them; None
            if they are whole.
        offsets: number of a shard's first element in its logical tensor, for the random bits; None is 0.
        grad_scale: what the gradients are to be divided by first, one element; None is 1.
        found_inf: where it is not 0, nothing is to be changed, one element; None is 0.
    """

    params: list[Tensor]
    grads: list[Tensor]
    momentums: list[Tensor]
    fims: list[Tensor]
    steps: list[Tensor]
    _: KW_ONLY
    indices: Sequence[int] | None = None
    numels: Sequence[int] | None = None
    offsets: Sequence[int] | None = None
    grad_scale: Tensor | None = None
    found_inf: Tensor | None = None

    @property
    def four(self) -> tuple[list[Tensor], list[Tensor], list[Tensor], list[Tensor]]:
        """Parameters, gradients, momentums and FIMs."""
        return self.params, self.grads, self.momentums, self.fims


def check_steps(tensors: Tensors, options: Options) -> None:
    """
    Raises:
        RuntimeError: with `capturable`, if a step is not on its parameter's device.
    """
    if options.capturable and any(p.device != t.device for p, t in zip(tensors.params, tensors.steps, strict=True)):
        raise RuntimeError("FAdam: with capturable=True each step tensor must be on its parameter's device")


def amp_tensors(
    device: torch.device, steps: list[Tensor], grad_scale: Tensor | None, found_inf: Tensor | None
) -> tuple[Tensor | None, Tensor | None]:
    """`grad_scale` and `found_inf` where the tensors are, the latter as 0 or 1.

    Raises:
        RuntimeError: if a step, which may have to be taken back, is not where `found_inf` then is.
    """
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
    return grad_scale, found_inf


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


def written(*lists: Sequence[Tensor]) -> None:
    """Tell autograd what a fused implementation has written behind its back, so that a stale graph is an error."""
    for tensors in lists:
        try:
            torch.autograd.graph.increment_version(tensors)
        except (RuntimeError, TypeError):  # torch 2.6 may know neither lists nor inference tensors: no version there
            for x in tensors:
                if not x.is_inference():
                    torch.autograd.graph.increment_version(x)


def as_real(x: Tensor) -> Tensor:
    """A complex tensor (*) as its real view (*, 2); any other one as it is."""
    return torch.view_as_real(x) if x.is_complex() else x


def resolved(grad: Tensor) -> Tensor:
    """As a real tensor, without a conjugation or negation that is only noted on it: an address tells neither."""
    return (torch.view_as_real(grad.resolve_conj()) if grad.is_complex() else grad).resolve_neg()


def is_sharded(x: Tensor) -> bool:
    """Whether this is a DTensor; without importing torch.distributed, which takes long and may not be there."""
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(x, module.DTensor)


def local_part(x: Tensor) -> Tensor:
    """What this process holds of it."""
    return x.to_local() if is_sharded(x) else x  # type: ignore[attr-defined]


def gathered(x: Tensor) -> Tensor:
    """The logical tensor, brought together from all processes where it is sharded."""
    return x.full_tensor() if is_sharded(x) else x  # type: ignore[attr-defined]
