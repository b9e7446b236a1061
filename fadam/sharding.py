"""Sharded parameters (DTensor): one step of all of them with two collectives.

Each process steps its own shards with the backend it would take for plain tensors. In between, the sums over whole
tensors are the sums over the mesh of what each process has seen: one all-reduce of the stacked sums of g^2 of all
tensors of all parameter groups, and one of those of n^2 and w^2.

Parameters may be on a slice of the mesh that others are on: fully_shard on a (data, tensor) mesh leaves what is not
tensor-parallel on its data dimension alone. Their sums travel with those of the larger mesh, each of the parallel
slices in a place of its own, so that nothing is assumed of how the slices' tensors are related. Meshes that are not
slices of one another by the names of their dimensions take collectives of their own.

All processes of the larger mesh must step the same sharded parameters: a gradient that is None on one process and not
on another would leave the others waiting.
"""

from __future__ import annotations

import functools
import math
from collections.abc import MutableMapping, Sequence
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Shard
from torch.utils.weak import WeakTensorKeyDictionary

from fadam.backend import PhasedBackend, choose_for_shards
from fadam.bookkeeping import Tensors, amp_tensors, check_steps, count_up, take_back
from fadam.options import Options

_stand_ins: MutableMapping[Tensor, list[Tensor]] = WeakTensorKeyDictionary()


class ShardedTask:
    """One step of the sharded tensors of all groups.

    Args:
        groups: DTensor parameters with elements, their gradients and states, and the options, by group. A gradient may
            be placed otherwise than its parameter; `check` redistributes it then, with a collective of its own.
        grad_scale, found_inf: as for `fadam.functional.fadam`.
    """

    def __init__(
        self, groups: Sequence[tuple[Tensors, Options]], grad_scale: Tensor | None, found_inf: Tensor | None
    ) -> None:
        self._groups, self._grad_scale, self._found_inf = groups, grad_scale, found_inf
        self._shares: list[Share] = []

    @torch.no_grad()
    def check(self) -> None:
        """
        Raises:
            ValueError: for a parameter with a Partial placement, a gradient or state that is not a DTensor on its
                mesh, and for `differentiable`.
            RuntimeError: if `fused` is true and cannot be had; with `capturable` or `found_inf`, for a step on another
                device.
        """
        for tensors, options in self._groups:
            if options.differentiable:
                raise ValueError("FAdam: differentiable=True is not available for sharded parameters (DTensor)")
            check_steps(tensors, options)
            by_mesh: dict[tuple[DeviceMesh, torch.device], list[int]] = {}
            for i, p in enumerate(tensors.params):
                assert isinstance(p, DTensor)
                if p.device_mesh.get_coordinate() is not None:  # else this process holds nothing of it
                    by_mesh.setdefault((p.device_mesh, p.device), []).append(i)
            for (mesh, device), places in by_mesh.items():
                amp = amp_tensors(device, [tensors.steps[i] for i in places], self._grad_scale, self._found_inf)
                self._shares.append(_share(mesh, tensors, places, options, amp))

    @torch.no_grad()
    def run(self) -> None:
        for share in self._shares:
            share.start()
        for mesh, together in _by_reach(self._shares):
            sums = _over_mesh(mesh, together, [share.backend.gradient_sums()[None] for share in together])
            metric_sums = [share.backend.metric_sums(x[0]) for share, x in zip(together, sums, strict=True)]
            for share, x in zip(together, _over_mesh(mesh, together, metric_sums), strict=True):
                share.backend.apply(x)
                take_back(share.tensors.steps, share.tensors.found_inf)


class Share:
    """What this process has to do for the sharded tensors of one parameter group and one mesh.

    Args:
        mesh: of the parameters.
        tensors: the local shards.
        counted: of each tensor, whether this process's sums count; of replicas, one's do.
        options: of the group.
    """

    def __init__(self, mesh: DeviceMesh, tensors: Tensors, counted: tuple[bool, ...], options: Options) -> None:
        self.mesh, self.tensors, self.counted = mesh, tensors, counted
        self._options = options
        self._implementation = choose_for_shards(tensors, options)
        self.backend: PhasedBackend

    def start(self) -> None:
        """Count the step and begin it."""
        count_up(self.tensors.steps)
        self.backend = self._implementation(self.tensors, self._options)


def _share(
    mesh: DeviceMesh, tensors: Tensors, places: list[int], options: Options, amp: tuple[Tensor | None, Tensor | None]
) -> Share:
    """The local shards of the tensors at those places of the lists."""
    rows, counted = [], []
    coordinate = mesh.get_coordinate()
    assert coordinate is not None
    for i in places:
        p, grad, momentum, fim = (list_[i] for list_ in tensors.four)
        assert isinstance(p, DTensor)
        row = [_local(x) for x in (p, _placed(grad, p), _checked(momentum, p), _checked(fim, p))]
        row[1] = row[1].resolve_neg()  # an address does not tell of it
        if row[0].numel() == 0:
            row = _stand_in(momentum, row)
            counted.append(False)
        else:
            replicated = [placement.is_replicate() for placement in p.placements]
            counted.append(not any(c > 0 for c, r in zip(coordinate, replicated, strict=True) if r))
        rows.append(row)
    params, grads, momentums, fims = (list(column) for column in zip(*rows, strict=True))
    local = Tensors(
        params, grads, momentums, fims,
        steps=[tensors.steps[i] for i in places],
        indices=None if tensors.indices is None else [tensors.indices[i] for i in places],
        numels=[tensors.params[i].numel() for i in places],
        offsets=None if tensors.indices is None else [_offset(tensors.params[i]) for i in places],
        grad_scale=amp[0],
        found_inf=amp[1],
    )  # fmt: skip
    return Share(mesh, local, tuple(counted), options)


def _by_reach(shares: Sequence[Share]) -> list[tuple[DeviceMesh, list[Share]]]:
    """The shares of each largest mesh: those on it, and those on slices of it."""
    reach: list[tuple[DeviceMesh, list[Share]]] = []
    for share in sorted(shares, key=lambda share: -share.mesh.size()):
        for mesh, together in reach:
            if _slice(share.mesh, mesh) is not None:
                together.append(share)
                break
        else:
            reach.append((share.mesh, [share]))
    return reach


class Slice(NamedTuple):
    """Which of the parallel slices of a mesh this process is in."""

    number: int
    of: int


@functools.lru_cache(maxsize=64)
def _slice(mesh: DeviceMesh, large: DeviceMesh) -> Slice | None:
    """How `mesh` is cut out of `large`, if it is one of those that lie side by side along the other dimensions."""
    if mesh == large:
        return Slice(0, 1)
    names, all_names, own = mesh.mesh_dim_names, large.mesh_dim_names, large.get_coordinate()
    if not names or not all_names or own is None or mesh.device_type != large.device_type:
        return None
    across = [d for d, name in enumerate(all_names) if name not in names]
    here = large.mesh[tuple(own[d] if d in across else slice(None) for d in range(large.ndim))]
    if tuple(names) != tuple(name for name in all_names if name in names) or not torch.equal(here, mesh.mesh):
        return None
    number = 0
    for d in across:
        number = number * large.size(d) + own[d]
    return Slice(number, math.prod(large.size(d) for d in across))


def _over_mesh(mesh: DeviceMesh, shares: Sequence[Share], sums: Sequence[Tensor]) -> list[Tensor]:
    """Sums (rows, N) of the shares, each added up over its own mesh, by one collective over `mesh`."""
    if mesh.size() == 1:
        return list(sums)
    slices, own = [], []
    for share, x in zip(shares, sums, strict=True):
        part = _slice(share.mesh, mesh)
        assert part is not None
        counted = _counted(x, share.counted).to(mesh.device_type)
        stacked = counted[None]  # (slices, rows, N)
        if part.of > 1:
            stacked = counted.new_zeros(part.of, *x.shape)
            stacked[part.number] = counted
        slices.append(part)
        own.append(stacked)
    total = torch.cat([x.flatten() for x in own])
    dist.all_reduce(total, group=_spanning_group(mesh))
    added = torch.split(total, [x.numel() for x in own])
    return [
        new.view_as(stacked)[part.number].to(x.device)
        for new, stacked, part, x in zip(added, own, slices, sums, strict=True)
    ]


def _counted(sums: Tensor, counted: tuple[bool, ...]) -> Tensor:
    if all(counted):
        return sums
    if not any(counted):
        return torch.zeros_like(sums)
    return torch.where(_mask(counted, sums.device), sums, 0)


@functools.lru_cache(maxsize=64)
def _mask(flags: tuple[bool, ...], device: torch.device) -> Tensor:
    """Kept, because bringing it to a device makes the host wait."""
    return torch.tensor(flags, device=device)


def _spanning_group(mesh: DeviceMesh) -> dist.ProcessGroup:
    """The processes of the whole mesh."""
    if mesh.ndim == 1:
        return mesh.get_group()
    world = dist.group.WORLD
    assert world is not None  # or there were no mesh
    if mesh.size() == world.size():
        return world
    return _new_group(tuple(mesh.mesh.flatten().tolist()), world)


@functools.lru_cache(maxsize=64)
def _new_group(ranks: tuple[int, ...], world: dist.ProcessGroup) -> dist.ProcessGroup:
    """A group that only its members need to make, kept as long as `world`, the process group it is part of."""
    group = dist.new_group(list(ranks), use_local_synchronization=True)
    assert isinstance(group, dist.ProcessGroup)  # for a member
    return group


def _stand_in(state: Tensor, row: list[Tensor]) -> list[Tensor]:
    """One element that counts for nothing, stepped instead of an empty shard so that every process has the same list.

    It is kept as long as the state, because a captured graph goes on writing to it.
    """
    kept = _stand_ins.get(state)
    if kept is None or [(x.dtype, x.device) for x in kept] != [(x.dtype, x.device) for x in row]:
        kept = _stand_ins[state] = [x.new_ones(1) for x in row]
    return kept


def _local(x: Tensor) -> Tensor:
    assert isinstance(x, DTensor)
    local = x.to_local()
    if hasattr(local, "wait"):  # an AsyncCollectiveTensor, whose collective may be under way
        local = local.wait()
    return local


def _placed(grad: Tensor, param: DTensor) -> Tensor:
    """The gradient, placed as its parameter is."""
    for placement in param.placements:
        if placement.is_partial():
            raise ValueError(
                f"FAdam: a parameter with placements {tuple(param.placements)} cannot be stepped: a Partial tensor is "
                "a sum that has not been taken; redistribute it to Shard or Replicate"
            )
    if not isinstance(grad, DTensor) or grad.device_mesh != param.device_mesh:
        raise ValueError("FAdam: the gradient of a sharded parameter must be a DTensor on the parameter's mesh")
    if grad.placements != param.placements:
        return grad.redistribute(placements=param.placements)
    return grad


def _checked(state: Tensor, param: DTensor) -> Tensor:
    if not isinstance(state, DTensor) or state.device_mesh != param.device_mesh or state.placements != param.placements:
        raise ValueError(
            "FAdam: the state of a sharded parameter must be a DTensor placed as the parameter is; load it with "
            "torch.distributed.checkpoint.state_dict.set_optimizer_state_dict"
        )
    return state


def _offset(param: Tensor) -> int:
    """A number of the local shard's first element such that no two shards have a number in common, but replicas
    all. Sharded along the first axis only, it is the element's place in the logical tensor."""
    assert isinstance(param, DTensor)
    mesh, coordinate = param.device_mesh, param.device_mesh.get_coordinate()
    assert coordinate is not None
    sharded = [d for d, placement in enumerate(param.placements) if not placement.is_replicate()]
    if not sharded:
        return 0
    if len(sharded) == 1 and param.placements[sharded[0]] == Shard(0):
        rows = math.ceil(param.shape[0] / mesh.size(sharded[0]))
        return min(rows * coordinate[sharded[0]], param.shape[0]) * math.prod(param.shape[1:])
    number = 0
    for d in sharded:
        number = number * mesh.size(d) + coordinate[d]
    return number * param.numel()
