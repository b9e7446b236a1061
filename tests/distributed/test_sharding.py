"""Sharded parameters, in two and in four real processes, against the same steps in one."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.distributed.tensor import DTensor, Partial, Placement, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.debug import CommDebugMode
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.nn.parallel import DistributedDataParallel

from fadam import FAdam, diagnose
from fadam.fisher import diagonal_fim
from tests.distributed.launch import Check, launch

SHAPES: list[tuple[int, ...]] = [(5, 4), (1, 6), (3,), (2, 3, 2), (4, 5), (7,)]

OPTIONS: dict[str, dict[str, Any]] = {
    "defaults": {},
    "large": {"lr": 0.05, "weight_decay": 0.5},
    "no decay": {"weight_decay": 0.0},
    "no clip": {"clip": None, "eps": 0.1},
    "clip 0.3": {"clip": 0.3, "eps": 0.3, "eps2": 0.5},
    "scaled": {"eps_mode": "scaled", "fim_rho": 0.7, "eps": 0.2},
    "fixed": {"eps_mode": "fixed", "eps": 0.2, "clip": 0.2},
    "adam's": {"eps_mode": "fixed", "momentum_mode": "gradient", "decay_mode": "decoupled", "correct_momentum": True},
    "momentum": {"momentum_mode": "gradient", "clip": 0.1, "maximize": True},
}


# Each process cuts its own copy. torch 2.6 sends the first one's round instead, and has no such option.
OWN_DATA: dict[str, Any] = (
    {"src_data_rank": None} if "src_data_rank" in inspect.signature(distribute_tensor).parameters else {}
)


def normals(seed: int, shapes: Sequence[Sequence[int]] = SHAPES, scale: float = 1.0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [scale * torch.randn(tuple(shape), generator=generator) for shape in shapes]


def placed(value: Tensor, mesh: DeviceMesh, placements: Sequence[Placement]) -> DTensor:
    return distribute_tensor(value, mesh, placements, **OWN_DATA)


def whole(x: Tensor) -> Tensor:
    x = x.detach()
    return x.full_tensor() if isinstance(x, DTensor) else x


def assert_like_one_process(
    make: Sequence[Callable[[Tensor], Tensor]], pairs: int = 1, steps: int = 4, **options: Any
) -> None:
    """The tensors, made sharded by `make`, stepped in two groups; `pairs` of collectives a step."""
    values = normals(0)
    params = [nn.Parameter(f(x.clone())) for f, x in zip(make, values, strict=True)]
    others = [nn.Parameter(x.clone()) for x in values]
    opt = FAdam([{"params": params[:2]}, {"params": params[2:], "lr": 0.02}], **options)
    plain = {k: v for k, v in options.items() if k not in ("foreach", "fused")}
    one = FAdam([{"params": others[:2]}, {"params": others[2:], "lr": 0.02}], **plain, foreach=False)
    for t in range(1, steps + 1):
        for p, q, f, g in zip(params, others, make, normals(t, scale=10.0 ** (t % 3 - 1)), strict=True):
            p.grad, q.grad = f(g), g
        with CommDebugMode() as collectives:
            opt.step()
        assert collectives.get_total_counts() == 2 * pairs, collectives.get_comm_counts()
        one.step()
    for p, q in zip(params, others, strict=True):
        torch.testing.assert_close(whole(p), q.detach(), rtol=2e-5, atol=2e-6)
        for name in ("step", "momentum", "fim"):
            torch.testing.assert_close(whole(opt.state[p][name]), one.state[q][name], rtol=2e-5, atol=2e-6)
            assert isinstance(opt.state[p][name], DTensor) == (isinstance(p, DTensor) and name != "step")


def sharded_by(mesh: DeviceMesh, *placements: Placement) -> Callable[[Tensor], Tensor]:
    return lambda x: placed(x, mesh, placements)


def plain(x: Tensor) -> Tensor:
    return x


# ---- in two processes -----------------------------------------------------------------------------------------------
def every_option(_: Path) -> None:
    """Uneven shards, an empty one, a replica and a plain tensor in one optimizer of two groups."""
    mesh = init_device_mesh("cpu", (2,))
    rows, replica = sharded_by(mesh, Shard(0)), sharded_by(mesh, Replicate())
    make = [rows, rows, plain, sharded_by(mesh, Shard(1)), replica, rows]
    for options in OPTIONS.values():
        assert_like_one_process(make, **options)


def every_implementation(_: Path) -> None:
    mesh = init_device_mesh("cpu", (2,))
    rows = sharded_by(mesh, Shard(0))
    make = [rows, rows, plain, sharded_by(mesh, Shard(2)), sharded_by(mesh, Replicate()), rows]
    for options in ({"foreach": True}, {"foreach": False}, {"fused": False}, {"fused": None}, {"fused": True}):
        assert_like_one_process(make, lr=torch.tensor(0.01), **options)
        assert_like_one_process(make, capturable=True, clip=0.3, **options)


def meshes_of_one_row_or_column(_: Path) -> None:
    for shape in ((2, 1), (1, 2)):
        mesh = init_device_mesh("cpu", shape)
        make = [
            sharded_by(mesh, Shard(0), Shard(1)), sharded_by(mesh, Shard(1), Replicate()), plain,
            sharded_by(mesh, Replicate(), Shard(0)), sharded_by(mesh, Replicate(), Replicate()),
            sharded_by(mesh, Shard(0), Shard(0)),
        ]  # fmt: skip
        assert_like_one_process(make, lr=0.03)


def meshes_of_their_own(_: Path) -> None:
    """Two collectives for each distinct mesh; none for one of a single process."""
    line, table = init_device_mesh("cpu", (2,)), init_device_mesh("cpu", (1, 2))
    single = DeviceMesh("cpu", [dist.get_rank()])
    make = [
        sharded_by(line, Shard(0)), sharded_by(table, Replicate(), Shard(1)), plain, sharded_by(single, Shard(0)),
        sharded_by(line, Shard(1)), sharded_by(line, Shard(0)),
    ]  # fmt: skip
    assert_like_one_process(make, pairs=2)


def model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 9), nn.LayerNorm(9), nn.ReLU(), nn.Linear(9, 4, bias=False), nn.Linear(4, 1))


def batches(seed: int) -> Tensor:
    return normals(seed, [(8, 6)])[0]


def train(net: nn.Module, opt: FAdam, seeds: Sequence[int], split: bool) -> None:
    for seed in seeds:
        x = batches(seed).chunk(2)[dist.get_rank()] if split else batches(seed)
        opt.zero_grad()
        net(x).square().mean().backward()
        opt.step()


def assert_same_model(net: nn.Module, one: nn.Module, **tolerance: float) -> None:
    tolerance = tolerance or {"rtol": 1e-4, "atol": 1e-5}
    for (name, p), (_, q) in zip(net.named_parameters(), one.named_parameters(), strict=True):
        torch.testing.assert_close(whole(p), whole(q), **tolerance, msg=lambda m, n=name: f"{n}: {m}")


def fully_sharded_model(_: Path) -> None:
    net, one = model(), model()
    for layer in net:
        if list(layer.parameters()):
            fully_shard(layer)
    fully_shard(net)
    opt, other = FAdam(net.parameters(), lr=0.01, eps=0.01), FAdam(one.parameters(), lr=0.01, eps=0.01, foreach=False)
    train(net, opt, range(5), split=True)
    train(one, other, range(5), split=False)
    assert_same_model(net, one)
    with CommDebugMode() as collectives:
        opt.step()
    assert collectives.get_total_counts() == 2
    other.step()
    # What an optimizer says of its next step is said of the whole tensors.
    for (name, got), expected in zip(diagnose(opt).items(), diagnose(other).values(), strict=True):
        assert got == pytest.approx(expected, rel=1e-3), name


def mixed_precision(_: Path) -> None:
    """float32 shards of a model that computes in bfloat16, and bfloat16 shards with wide states."""
    from torch.distributed.fsdp import MixedPrecisionPolicy

    net = model()
    fully_shard(net, mp_policy=MixedPrecisionPolicy(param_dtype=torch.bfloat16))
    train(net, FAdam(net.parameters(), lr=0.01), range(2), split=True)
    narrow = model().bfloat16()
    fully_shard(narrow)
    opt = FAdam(narrow.parameters(), lr=0.01, momentum_dtype=torch.float32, fim_dtype=torch.float32)
    for seed in range(2):
        narrow(batches(seed).bfloat16()).square().mean().backward()
        opt.step()
    assert {x.dtype for s in opt.state.values() for x in s.values()} == {torch.float32}
    assert all(whole(p).isfinite().all() for p in (*net.parameters(), *narrow.parameters()))


def tensor_parallel_model(_: Path) -> None:
    net, one = model(), model()
    mesh = init_device_mesh("cpu", (2,))
    parallelize_module(net, mesh, {"3": ColwiseParallel(), "4": RowwiseParallel()})
    assert {type(p) is nn.Parameter for p in net.parameters()} == {True, False}
    opt, other = FAdam(net.parameters(), lr=0.01, eps=0.01), FAdam(one.parameters(), lr=0.01, eps=0.01)
    train(net, opt, range(5), split=False)
    train(one, other, range(5), split=False)
    assert_same_model(net, one)
    with CommDebugMode() as collectives:
        opt.step()
    assert collectives.get_total_counts() == 2


def data_parallel_model(_: Path) -> None:
    net, one = DistributedDataParallel(model()), model()
    opt, other = FAdam(net.parameters(), lr=0.01, eps=0.01), FAdam(one.parameters(), lr=0.01, eps=0.01)
    train(net, opt, range(3), split=True)
    train(one, other, range(3), split=False)
    assert_same_model(net.module, one)
    with CommDebugMode() as collectives:
        opt.step()
    assert collectives.get_total_counts() == 0


def gradients_placed_otherwise(_: Path) -> None:
    """They are brought to the parameter's placement first."""
    mesh = init_device_mesh("cpu", (2,))
    value, g = normals(0, [(5, 3)])[0], normals(1, [(5, 3)])[0]
    one = nn.Parameter(value.clone())
    one.grad = g
    FAdam([one], lr=0.1).step()
    partial = DTensor.from_local(g / 2, mesh, [Partial()], run_check=False)
    for grad in (placed(g, mesh, [Replicate()]), placed(g, mesh, [Shard(1)]), partial):
        p = nn.Parameter(placed(value.clone(), mesh, [Shard(0)]))
        p.grad = grad
        FAdam([p], lr=0.1).step()
        torch.testing.assert_close(whole(p), one.detach())


def what_is_refused(_: Path) -> None:
    mesh = init_device_mesh("cpu", (2,))
    value = torch.ones(4, 2)

    def stepped(p: Tensor, grad: Any, **options: Any) -> FAdam:
        p.grad = grad.clone()
        opt = FAdam([p], **options)
        opt.step()
        return opt

    shard = placed(value, mesh, [Shard(0)])
    partial = DTensor.from_local(value, mesh, [Partial()], run_check=False)
    with pytest.raises(ValueError, match="Partial"):
        stepped(partial, partial)
    with pytest.raises(ValueError, match="on the parameter's mesh"):
        stepped(shard, placed(value, init_device_mesh("cpu", (1, 2)), [Replicate(), Shard(0)]))
    with pytest.raises(ValueError, match="differentiable=True is not available for sharded"):
        stepped(shard, shard, differentiable=True)
    with pytest.raises(ValueError, match="complex"):
        FAdam([placed(value + 0j, mesh, [Shard(0)])])
    opt = stepped(shard, shard)
    state = opt.state[shard]
    for wrong in (whole(state["fim"]), placed(value, mesh, [Replicate()])):
        state["fim"] = wrong
        with pytest.raises(ValueError, match="set_optimizer_state_dict"):
            opt.step()
    # Groups before the one that is refused are as they were.
    first = placed(value, mesh, [Shard(0)])
    first.grad = first.clone()
    opt.add_param_group({"params": [first]})
    opt.param_groups.reverse()
    with pytest.raises(ValueError, match="set_optimizer_state_dict"):
        opt.step()
    assert opt.state[first]["step"].item() == 0
    torch.testing.assert_close(whole(first), value, rtol=0, atol=0)


def flattened_by_fsdp1(_: Path) -> None:
    for keeps_originals in (False, True):
        net = FullyShardedDataParallel(model(), use_orig_params=keeps_originals, device_id=torch.device("cpu"))
        with pytest.raises(ValueError, match=r"flattened .*fully_shard \(FSDP2\)"):
            FAdam(net.parameters())
    net = model()
    opt = FAdam(net.parameters())
    net = FullyShardedDataParallel(net, use_orig_params=True, device_id=torch.device("cpu"))
    net(batches(0)).square().mean().backward()
    with pytest.raises(ValueError, match=r"flattened .*fully_shard \(FSDP2\)"):
        opt.step()
    assert not opt.state


def parameters_without_gradients(_: Path) -> None:
    """The same ones on every process; and a step in which none is sharded takes no collective."""
    mesh = init_device_mesh("cpu", (2,))
    params = [nn.Parameter(placed(x, mesh, [Shard(0)])) for x in normals(0)] + [nn.Parameter(torch.ones(3))]
    opt = FAdam(params)
    params[-1].grad = torch.ones(3)
    with CommDebugMode() as collectives:
        opt.step()
    assert collectives.get_total_counts() == 0
    params[3].grad = torch.ones_like(params[3])
    with CommDebugMode() as collectives:
        opt.step()
    assert collectives.get_total_counts() == 2
    assert set(opt.state) == {params[3], params[-1]}


def stochastic_rounding(_: Path) -> None:
    """Replicas draw the same bits, shards other ones, and the mean is kept; by every implementation."""
    mesh = init_device_mesh("cpu", (2,))
    for options in ({"foreach": True}, {"fused": True}):
        value = torch.ones(64, 64, dtype=torch.bfloat16)
        shard, replica = placed(value, mesh, [Shard(0)]), placed(value, mesh, [Replicate()])
        narrow, empty = (
            placed(value, mesh, [Shard(1)]),
            placed(torch.ones(1, 3, dtype=torch.bfloat16), mesh, [Shard(0)]),
        )
        params = [empty, shard, replica, narrow]
        opt = FAdam(
            params, lr=1e-4, weight_decay=0.0, betas=(0.0, 0.9), stochastic_rounding=True,
            momentum_dtype=torch.float32, fim_dtype=torch.float32, **options,
        )  # fmt: skip
        for _ in range(10):
            for p in params:
                p.grad = torch.full_like(p, 0.1)
            opt.step()
        other = replica.to_local().clone()
        dist.broadcast(other, 0)
        torch.testing.assert_close(replica.to_local(), other, rtol=0, atol=0)
        for p in params[1:]:
            # 10 steps of 1e-4 under 1, where bfloat16 numbers are 1/256 apart: rounded to nearest, nothing moves.
            assert whole(p).float().mean().item() == pytest.approx(1 - 1e-3, abs=3e-4)
        for p, axis in ((shard, 0), (narrow, 1)):
            one, two = whole(p).chunk(2, axis)
            assert (one != two).any()


def a_scaler_skips_what_overflowed(_: Path) -> None:
    mesh = init_device_mesh("cpu", (2,))
    one = nn.Parameter(torch.ones(5, 2))
    p, q = nn.Parameter(placed(torch.ones(5, 2), mesh, [Shard(0)])), nn.Parameter(torch.ones(3))
    opt, plain_one = FAdam([p, q], fused=True), FAdam([one])
    for scale, overflow in ((8.0, 0.0), (8.0, 1.0), (2.0, 0.0)):
        p.grad, q.grad = torch.full_like(p, 0.5 * scale), torch.ones(3)
        opt.grad_scale, opt.found_inf = torch.tensor(scale), torch.tensor(overflow)
        opt.step()
        if not overflow:
            one.grad = torch.full_like(one, 0.5)
            plain_one.step()
    torch.testing.assert_close(whole(p), one.detach())
    assert opt.state[p]["step"].item() == opt.state[q]["step"].item() == 2


def a_scaler_of_shards(_: Path) -> None:
    """What overflows in the shard of one process is skipped by all."""
    mesh = init_device_mesh("cpu", (2,))
    for fused in (True, False):
        one, p = nn.Parameter(torch.ones(5, 2)), nn.Parameter(placed(torch.ones(5, 2), mesh, [Shard(0)]))
        opt, plain_one = FAdam([p], fused=fused), FAdam([one])
        scaler = torch.amp.GradScaler("cpu", init_scale=8.0, growth_interval=100)
        for factor in (1.0, torch.inf, 2.0):
            scale = scaler.scale(torch.ones(())).item()
            g = torch.full((5, 2), 0.5)
            g[4, 1] *= factor
            p.grad = placed(scale * g, mesh, [Shard(0)])
            scaler.step(opt)
            scaler.update()
            if factor < torch.inf:
                one.grad = g
                plain_one.step()
        assert scaler.get_scale() == 4.0
        assert opt.state[p]["step"].item() == 2
        torch.testing.assert_close(whole(p), one.detach())


def resumed_exactly(_: Path) -> None:
    """Through a state dict and through a deep copy, the shards in place."""
    net = model()
    fully_shard(net)
    opt = FAdam(net.parameters(), lr=0.01, momentum_dtype=torch.bfloat16, fim_dtype=torch.float64)
    train(net, opt, range(3), split=True)
    again = model()
    fully_shard(again)
    with torch.no_grad():
        for p, q in zip(again.parameters(), net.parameters(), strict=True):
            p.copy_(q)
    loaded = FAdam(again.parameters(), lr=1.0)
    loaded.load_state_dict(copy.deepcopy(opt.state_dict()))
    for state in loaded.state.values():
        assert [state[k].dtype for k in ("momentum", "fim")] == [torch.bfloat16, torch.float64]
        assert isinstance(state["fim"], DTensor)
    train(net, opt, range(3, 6), split=True)
    train(again, loaded, range(3, 6), split=True)
    assert_same_model(net, again, rtol=0, atol=0)


def checkpoint_over_two_one_and_two_processes(folder: Path) -> None:
    """torch.distributed.checkpoint, with states of other dtypes than the parameters'."""
    dtypes = {"momentum_dtype": torch.bfloat16, "fim_dtype": torch.float64}

    def build(shard: bool, **options: Any) -> tuple[nn.Module, FAdam]:
        net = model()
        if shard:
            fully_shard(net)
        return net, FAdam(net.parameters(), **options)

    def save(name: str, net: nn.Module, opt: FAdam, alone: bool) -> None:
        state = {"model": get_model_state_dict(net), "optimizer": get_optimizer_state_dict(net, opt)}
        dcp.save(state, checkpoint_id=folder / name, no_dist=alone)

    def load(name: str, net: nn.Module, opt: FAdam, alone: bool) -> None:
        state = {"model": get_model_state_dict(net), "optimizer": get_optimizer_state_dict(net, opt)}
        dcp.load(state, checkpoint_id=folder / name, no_dist=alone)
        set_model_state_dict(net, state["model"])
        set_optimizer_state_dict(net, opt, state["optimizer"])

    def assert_dtypes(opt: FAdam) -> None:
        for state in opt.state.values():
            assert [state[k].dtype for k in ("step", "momentum", "fim")] == [
                torch.float32, torch.bfloat16, torch.float64
            ]  # fmt: skip

    two, opt_two = build(True, lr=0.01, eps=0.01, **dtypes)
    train(two, opt_two, range(3), split=True)
    save("of-two", two, opt_two, alone=False)
    if dist.get_rank() == 0:
        one, opt_one = build(False, **dtypes)
        load("of-two", one, opt_one, alone=True)
        assert_dtypes(opt_one)
        assert opt_one.param_groups[0]["lr"] == 0.01
        assert {state["step"].item() for state in opt_one.state.values()} == {3}
        train(one, opt_one, range(3, 5), split=False)
        save("of-one", one, opt_one, alone=True)
    dist.barrier()
    train(two, opt_two, range(3, 5), split=True)
    again, opt_again = build(True, **dtypes)
    load("of-one", again, opt_again, alone=False)
    assert_dtypes(opt_again)
    assert {state["step"].item() for state in opt_again.state.values()} == {5}
    assert_same_model(two, again, rtol=1e-3, atol=1e-4)
    train(again, opt_again, range(5, 7), split=True)
    train(two, opt_two, range(5, 7), split=True)
    assert_same_model(two, again, rtol=1e-3, atol=1e-4)


def full_state_dict(_: Path) -> None:
    """Gathered to whole tensors and handed out again."""
    net = model()
    fully_shard(net)
    opt = FAdam(net.parameters(), lr=0.01, fim_dtype=torch.float64)
    train(net, opt, range(3), split=True)
    options = StateDictOptions(full_state_dict=True)
    state = get_optimizer_state_dict(net, opt, options=options)
    again = model()
    fully_shard(again)
    with torch.no_grad():
        for p, q in zip(again.parameters(), net.parameters(), strict=True):
            p.copy_(q)
    loaded = FAdam(again.parameters(), fim_dtype=torch.float64)
    set_optimizer_state_dict(again, loaded, state, options=options)
    train(net, opt, range(3, 5), split=True)
    train(again, loaded, range(3, 5), split=True)
    assert_same_model(net, again, rtol=0, atol=0)


def fisher_information(_: Path) -> None:
    """Gathered, it is that of one process; kept sharded, it is placed as the parameter is."""
    mesh = init_device_mesh("cpu", (2,))
    values, grads = normals(1), normals(2)
    params = [nn.Parameter(placed(v, mesh, [Shard(0)])) for v in values]
    opt = FAdam([(str(i), p) for i, p in enumerate(params)], lr=0.1)
    for p, g in zip(params, grads, strict=True):
        p.grad = placed(g, mesh, [Shard(0)])
    opt.step()
    gathered, kept = diagonal_fim(opt, batch_size=3), diagonal_fim(opt, batch_size=3, gather=False)
    for i, g in enumerate(grads):
        assert not isinstance(gathered[str(i)], DTensor)
        torch.testing.assert_close(gathered[str(i)], 3 * g.square())
        shard = kept[str(i)]
        assert isinstance(shard, DTensor)
        assert shard.placements == (Shard(0),)
        torch.testing.assert_close(whole(shard), 3 * g.square())


TWO: list[Check] = [
    every_option,
    every_implementation,
    meshes_of_one_row_or_column,
    meshes_of_their_own,
    fully_sharded_model,
    mixed_precision,
    tensor_parallel_model,
    data_parallel_model,
    gradients_placed_otherwise,
    what_is_refused,
    flattened_by_fsdp1,
    parameters_without_gradients,
    stochastic_rounding,
    a_scaler_skips_what_overflowed,
    a_scaler_of_shards,
    resumed_exactly,
    checkpoint_over_two_one_and_two_processes,
    full_state_dict,
    fisher_information,
]


# ---- in four processes ----------------------------------------------------------------------------------------------
def a_table_of_processes(_: Path) -> None:
    mesh = init_device_mesh("cpu", (2, 2))  # without names
    make = [
        sharded_by(mesh, Shard(0), Shard(1)), sharded_by(mesh, Replicate(), Shard(0)), plain,
        sharded_by(mesh, Shard(1), Replicate()), sharded_by(mesh, Shard(0), Shard(0)),
        sharded_by(mesh, Replicate(), Replicate()),
    ]  # fmt: skip
    assert_like_one_process(make, lr=0.03)
    assert_like_one_process(make, lr=0.03, fused=True, clip=0.3)


def hybrid_sharded_model(_: Path) -> None:
    net, one = model(), model()
    fully_shard(net, mesh=init_device_mesh("cpu", (2, 2), mesh_dim_names=("replicate", "shard")))
    opt, other = FAdam(net.parameters(), lr=0.01, eps=0.01), FAdam(one.parameters(), lr=0.01, eps=0.01)
    for seed in range(3):
        train_on_a_quarter(net, opt, seed)
        train(one, other, [seed], split=False)
    assert_same_model(net, one)
    with CommDebugMode() as collectives:
        opt.step()
    assert collectives.get_total_counts() == 2


def train_on_a_quarter(net: nn.Module, opt: FAdam, seed: int) -> None:
    opt.zero_grad()
    net(batches(seed).chunk(4)[dist.get_rank()]).square().mean().backward()
    opt.step()


def fully_sharded_and_tensor_parallel_model(_: Path) -> None:
    """fully_shard over what is tensor-parallel: strided shards on the whole mesh, the rest on its data dimension."""
    net, one = model(), model()
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("data", "tensor"))
    parallelize_module(net, mesh["tensor"], {"3": ColwiseParallel(), "4": RowwiseParallel()})
    fully_shard(net, mesh=mesh["data"])
    opt, other = FAdam(net.parameters(), lr=0.01, eps=0.01), FAdam(one.parameters(), lr=0.01, eps=0.01)
    for seed in range(3):
        opt.zero_grad()
        net(batches(seed).chunk(2)[mesh["data"].get_local_rank()]).square().mean().backward()
        opt.step()
        train(one, other, [seed], split=False)
    assert_same_model(net, one)
    with CommDebugMode() as collectives:
        opt.step()
    assert collectives.get_total_counts() == 2


def slices_of_a_mesh(_: Path) -> None:
    """Their sums travel with those of the whole mesh, but are their own: the slices hold other tensors each."""
    table = init_device_mesh("cpu", (2, 2), mesh_dim_names=("data", "tensor"))
    data, tensor = table["data"], table["tensor"]
    places: list[tuple[DeviceMesh, list[Placement], int]] = [
        (data, [Shard(0)], 1 + tensor.get_local_rank()),
        (table, [Shard(0), Shard(1)], 0),
        (tensor, [Shard(0)], 3 + data.get_local_rank()),
        (data, [Replicate()], 1 + tensor.get_local_rank()),
        (table, [Replicate(), Shard(0)], 0),
        (tensor, [Shard(0)], 3 + data.get_local_rank()),
    ]
    seeded = [normals(seed)[i] for i, (_, _, seed) in enumerate(places)]
    one = [nn.Parameter(x.clone()) for x in seeded]
    params = [nn.Parameter(placed(x, mesh, how)) for x, (mesh, how, _) in zip(seeded, places, strict=True)]
    opt = FAdam([{"params": params[:4]}, {"params": params[4:], "lr": 0.02}], lr=0.01)
    other = FAdam([{"params": one[:4]}, {"params": one[4:], "lr": 0.02}], lr=0.01)
    for t in range(1, 5):
        for i, (p, q, (mesh, how, seed)) in enumerate(zip(params, one, places, strict=True)):
            q.grad = normals(10 * t + seed, scale=10.0 ** (seed - 2))[i]
            p.grad = placed(q.grad, mesh, how)
        with CommDebugMode() as collectives:
            opt.step()
        assert collectives.get_total_counts() == 2, collectives.get_comm_counts()
        other.step()
    for p, q in zip(params, one, strict=True):
        torch.testing.assert_close(whole(p), q.detach(), rtol=2e-5, atol=2e-6)


def a_table_that_is_a_part_of_the_world(_: Path) -> None:
    """Two halves that step models of their own, as stages of a pipeline do: neither waits for the other."""
    half = 2 * (dist.get_rank() // 2)
    meshes = [DeviceMesh("cpu", [[first], [first + 1]]) for first in (0, 2)]
    mesh = meshes[half // 2]
    make = [sharded_by(mesh, Shard(0), Replicate())] * 2 + [plain] + [sharded_by(mesh, Shard(0), Shard(0))] * 3
    assert_like_one_process(make, steps=2 + half)


FOUR: list[Check] = [
    a_table_of_processes,
    hybrid_sharded_model,
    fully_sharded_and_tensor_parallel_model,
    slices_of_a_mesh,
    a_table_that_is_a_part_of_the_world,
]


@pytest.fixture(scope="module")
def failed_in_two(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return launch(TWO, 2, tmp_path_factory.mktemp("two"))


@pytest.fixture(scope="module")
def failed_in_four(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return launch(FOUR, 4, tmp_path_factory.mktemp("four"))


@pytest.mark.parametrize("check", [check.__name__ for check in TWO])
def test_in_two_processes(failed_in_two: dict[str, str], check: str) -> None:
    assert check not in failed_in_two, failed_in_two[check]


@pytest.mark.parametrize("check", [check.__name__ for check in FOUR])
def test_in_four_processes(failed_in_four: dict[str, str], check: str) -> None:
    assert check not in failed_in_four, failed_in_four[check]
