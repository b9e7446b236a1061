"""A step among its neighbours: schedulers, closures, scalers, autograd, groups, and no waiting for a device."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import lr_scheduler
from torch.utils._python_dispatch import TorchDispatchMode

from fadam import FAdam, Options, fadam
from tests.fadam.cases import PATHS, TORCH_PATHS, leaves, run, tensors

SWITCHES: list[dict[str, Any]] = [
    {},
    {"eps_mode": "scaled", "correct_momentum": True, "fim_rho": 0.7},
    {
        "eps_mode": "fixed",
        "momentum_mode": "gradient",
        "decay_mode": "decoupled",
        "correct_momentum": True,
        "clip": None,
    },
    {"momentum_mode": "gradient", "maximize": True, "momentum_dtype": torch.float32, "fim_dtype": torch.bfloat16},
]


class NoWaiting(TorchDispatchMode):
    """Refuses whatever would bring a number from a tensor to the host, but for the step counts, which live there."""

    def __init__(self, counts: list[Tensor]) -> None:
        super().__init__()
        self.counts = {x.data_ptr() for x in counts}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if name in ("_local_scalar_dense", "is_nonzero", "nonzero", "item", "equal", "allclose", "masked_select"):
            assert args[0].data_ptr() in self.counts, f"{name} waits for the device"
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("path", TORCH_PATHS)
@pytest.mark.parametrize("lr", [0.1, torch.tensor(0.1)], ids=["float", "tensor"])
@pytest.mark.parametrize("switches", SWITCHES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_no_value_comes_to_the_host(
    as_on_a_device: None, path: str, lr: Any, switches: dict[str, Any], dtype: torch.dtype
) -> None:
    params = leaves(tensors(dtype))
    opt = FAdam(params, lr=lr, **switches, **PATHS[path])
    run(opt, params, lambda t: tensors(seed=t), 1)
    counts = [] if "capturable" in PATHS[path] else [opt.state[p]["step"] for p in params]
    with NoWaiting(counts):
        opt.step()
    with pytest.raises(AssertionError, match="waits"), NoWaiting(counts):
        params[3].sum().item()  # the net has no hole


@pytest.mark.parametrize("path", TORCH_PATHS)
@pytest.mark.parametrize("lr", [0.1, torch.tensor(0.1)], ids=["float", "tensor"])
@pytest.mark.parametrize("switches", SWITCHES)
def test_steps_where_there_are_no_values(path: str, lr: Any, switches: dict[str, Any]) -> None:
    """On the meta device any look at a value is an error; the learning rate stays on the host."""
    p = torch.empty(3, 4, device="meta", requires_grad=True)
    opt = FAdam([p], lr=lr, **switches, **PATHS[path])
    for _ in range(2):
        p.grad = torch.empty_like(p)
        opt.step()
    assert opt.state[p]["step"].device.type == ("meta" if "capturable" in PATHS[path] else "cpu")
    assert opt.state[p]["fim"].device.type == "meta"


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("shape", [(), (1,)])
@pytest.mark.parametrize("switches", SWITCHES)
def test_learning_rate_as_a_tensor(path: str, shape: tuple[int, ...], switches: dict[str, Any]) -> None:
    values = tensors(torch.float32, seed=1000)
    params, others = leaves(values), leaves(values)
    lr = torch.full(shape, 0.01)
    opt = FAdam(params, lr=lr, **switches, **PATHS[path])
    run(opt, params, lambda t: tensors(seed=t), 3)
    lr.fill_(0.1)  # without building anything anew
    run(opt, params, lambda t: tensors(seed=t), 3)
    plain = FAdam(others, lr=0.01, **switches, **PATHS[path])
    run(plain, others, lambda t: tensors(seed=t), 3)
    plain.param_groups[0]["lr"] = 0.1
    run(plain, others, lambda t: tensors(seed=t), 3)
    for p, q in zip(params, others, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-6)


SCHEDULERS: dict[str, Callable[[FAdam], Any]] = {
    "LambdaLR": lambda o: lr_scheduler.LambdaLR(o, lambda t: 0.9**t),
    "MultiplicativeLR": lambda o: lr_scheduler.MultiplicativeLR(o, lambda t: 0.9),
    "StepLR": lambda o: lr_scheduler.StepLR(o, 2),
    "MultiStepLR": lambda o: lr_scheduler.MultiStepLR(o, [2, 4]),
    "ConstantLR": lambda o: lr_scheduler.ConstantLR(o, 0.5, 3),
    "LinearLR": lambda o: lr_scheduler.LinearLR(o, 0.1, total_iters=5),
    "ExponentialLR": lambda o: lr_scheduler.ExponentialLR(o, 0.9),
    "PolynomialLR": lambda o: lr_scheduler.PolynomialLR(o, 6),
    "CosineAnnealingLR": lambda o: lr_scheduler.CosineAnnealingLR(o, 6),
    "CosineAnnealingWarmRestarts": lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 3),
    "CyclicLR": lambda o: lr_scheduler.CyclicLR(o, 1e-3, 1e-2, 2),  # these two move beta1 as well
    "OneCycleLR": lambda o: lr_scheduler.OneCycleLR(o, 1e-2, total_steps=10),
    "ReduceLROnPlateau": lambda o: lr_scheduler.ReduceLROnPlateau(o, patience=0),
    "SequentialLR": lambda o: lr_scheduler.SequentialLR(
        o, [lr_scheduler.LinearLR(o, 0.1), lr_scheduler.ExponentialLR(o, 0.9)], [3]
    ),
    "ChainedScheduler": lambda o: lr_scheduler.ChainedScheduler([lr_scheduler.ExponentialLR(o, 0.9)]),
}


@pytest.mark.parametrize("path", ["single", "foreach", "fused"])
@pytest.mark.parametrize("name", SCHEDULERS)
def test_schedulers(path: str, name: str) -> None:
    """The step follows whatever the scheduler has put into the group."""
    values = tensors(seed=1000)
    params, others = leaves(values), leaves(values)
    opt = FAdam(params, lr=0.01, **PATHS[path])
    plain = FAdam(others, lr=0.01, foreach=False)
    scheduler = SCHEDULERS[name](opt)
    rates = []
    for t in range(8):
        rates.append(opt.param_groups[0]["lr"])
        plain.param_groups[0].update({k: opt.param_groups[0][k] for k in ("lr", "betas")})
        run(opt, params, lambda _, t=t: tensors(seed=t), 1)
        run(plain, others, lambda _, t=t: tensors(seed=t), 1)
        scheduler.step(*([1.0] if name == "ReduceLROnPlateau" else []))
    assert len(set(rates)) > 1
    assert opt.param_groups[0]["momentum_mode"] == "natural"
    for p, q in zip(params, others, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("path", PATHS)
def test_closure(path: str) -> None:
    p = torch.tensor([1.0, 2.0], requires_grad=True)
    opt = FAdam([p], **PATHS[path])
    calls = []

    def closure() -> Any:
        calls.append(torch.is_grad_enabled())
        opt.zero_grad()
        loss = p.square().sum()
        loss.backward()
        return loss

    with torch.no_grad():
        loss = opt.step(closure)
    assert loss is not None
    assert loss.item() == 5.0
    assert calls == [True]
    assert (p < torch.tensor([1.0, 2.0])).all()
    assert opt.step() is None


@pytest.mark.parametrize("path", PATHS)
def test_a_group_added_later(path: str) -> None:
    values = tensors(seed=1000)
    params, others = leaves(values), leaves(values)
    opt = FAdam(params[:4], lr=0.1, **PATHS[path])
    run(opt, params[:4], lambda t: tensors(seed=t)[:4], 3)
    opt.add_param_group({"params": params[4:], "clip": 0.5, "weight_decay": 0.3})
    assert opt.param_groups[1]["lr"] == 0.1
    run(opt, params, lambda t: tensors(seed=t + 3), 3)
    run(FAdam(others[:4], lr=0.1), others[:4], lambda t: tensors(seed=t)[:4], 6)
    late = FAdam(others[4:], lr=0.1, clip=0.5, weight_decay=0.3)
    run(late, others[4:], lambda t: tensors(seed=t + 3)[4:], 3)
    for p, q in zip(params, others, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("path", PATHS)
def test_parameters_without_a_gradient_are_left_alone(path: str) -> None:
    params = leaves([torch.ones(3), torch.ones(3)])
    opt = FAdam(params, **PATHS[path])
    opt.step()  # none at all
    assert not opt.state
    params[1].grad = torch.ones(3)
    opt.step()
    assert list(opt.state) == params[1:]
    torch.testing.assert_close(params[0].detach(), torch.ones(3), rtol=0, atol=0)


def test_tied_weights_are_stepped_once() -> None:
    model = nn.Sequential(nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False))
    model[1].weight = model[0].weight
    opt = FAdam(model.named_parameters())
    assert len(opt.param_groups[0]["params"]) == 1
    model(torch.ones(2, 3)).sum().backward()
    opt.step()
    assert opt.state[model[0].weight]["step"].item() == 1


@pytest.mark.parametrize("path", PATHS)
def test_a_sparse_gradient_is_refused_before_anything_moves(path: str) -> None:
    dense, embedding = torch.ones(3, requires_grad=True), nn.Embedding(4, 2, sparse=True)
    opt = FAdam([{"params": [dense]}, {"params": embedding.parameters()}], **PATHS[path])
    dense.grad = torch.ones(3)
    embedding(torch.tensor([1])).sum().backward()
    with pytest.raises(RuntimeError, match="sparse"):
        opt.step()
    torch.testing.assert_close(dense.detach(), torch.ones(3), rtol=0, atol=0)
    assert not opt.state


def test_a_parameter_flattened_since_is_refused_before_anything_moves() -> None:
    """By FSDP1, which marks it so."""
    params = leaves([torch.ones(3), torch.ones(3)])
    opt = FAdam(params)
    params[1]._fsdp_flattened = True  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match="FullyShardedDataParallel has flattened"):
        run(opt, params, lambda t: [torch.ones(3)] * 2, 1)
    torch.testing.assert_close(params[0].detach(), torch.ones(3), rtol=0, atol=0)


@pytest.mark.parametrize("path", ["single", "foreach", "fused"])
@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"capturable": True}, "each step tensor must be on its parameter's device"),
        ({"foreach": None, "fused": True}, "fused=True is not available: a gradient or state is not of"),
    ],
)
def test_a_group_that_is_refused_leaves_the_others_as_they_were(
    path: str, options: dict[str, Any], reason: str
) -> None:
    params = leaves([torch.ones(3), torch.ones(3)])
    opt = FAdam([{"params": params[:1]}, {"params": params[1:]}], **PATHS[path])
    run(opt, params, lambda t: [torch.ones(3)] * 2, 1)
    opt.param_groups[1].update(options)
    refused = opt.state[params[1]]
    if "capturable" in options:
        refused["step"] = torch.ones((), device="meta")
    refused["fim"] = torch.ones(2)
    before = [x.detach().clone() for x in (params[0], *opt.state[params[0]].values())]
    with pytest.raises(RuntimeError, match=reason):
        opt.step()
    for x, y in zip((params[0], *opt.state[params[0]].values()), before, strict=True):
        torch.testing.assert_close(x.detach(), y, rtol=0, atol=0)


def test_a_step_count_on_the_wrong_device_is_refused() -> None:
    with pytest.raises(RuntimeError, match="capturable=True"):
        fadam(
            [torch.empty(2, device="meta")], [torch.empty(2, device="meta")], [torch.empty(2, device="meta")],
            [torch.empty(2, device="meta")], [torch.zeros(())], Options(capturable=True),
        )  # fmt: skip


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({}, "needs capturable=True"),
        ({"capturable": True, "lr": torch.tensor(0.1)}, "lr, a tensor on the host"),
        ({"capturable": True, "lr": torch.tensor(0.1, device="meta")}, None),
        ({"capturable": True, "lr": 0.1}, None),
    ],
)
def test_what_a_capture_needs(options: dict[str, Any], reason: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """The meta device stands in for one that captures."""
    p = torch.empty(3, device="meta")
    p.grad = torch.empty_like(p)
    opt = FAdam([{"params": [torch.ones(2)], "capturable": True, "lr": 0.1}, {"params": [p], **options}])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    if reason is None:
        opt.step()
    else:
        with pytest.raises(RuntimeError, match=reason):
            opt.step()
    assert bool(opt.state) == (reason is None)


@pytest.mark.parametrize("path", ["single", "foreach", "fused"])
def test_gradient_scaler_skips_a_step_that_overflowed(path: str) -> None:
    p, q = leaves([torch.ones(3)] * 2)
    opt, plain = FAdam([p], **PATHS[path]), FAdam([q], **PATHS[path])
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=100)
    for factor in (1.0, math.inf, 2.0):
        opt.zero_grad()
        scaler.scale((factor * p).sum()).backward()
        scaler.step(opt)
        scaler.update()
        if math.isfinite(factor):
            plain.zero_grad()
            (factor * q).sum().backward()
            plain.step()
    assert scaler.get_scale() == 512.0
    assert opt.state[p]["step"].item() == 2
    torch.testing.assert_close(p, q)


@pytest.mark.parametrize("switches", SWITCHES)
def test_autograd_through_steps(switches: dict[str, Any]) -> None:
    """d theta_2 / d (theta_0, lr) by autograd and by finite differences, with a gradient that depends on theta."""
    switches = {k: v for k, v in switches.items() if not k.endswith("dtype")}

    def two_steps(start: Tensor, lr: Tensor) -> Tensor:
        p = start.clone()
        opt = FAdam([p], lr=lr, eps=1e-2, weight_decay=0.1, differentiable=True, **switches)
        for _ in range(2):
            q = p.clone()  # the step changes p, which the powers keep
            p.grad = q**3 - 2 * q
            opt.step()
        return p

    start = torch.tensor([0.3, -0.7, 1.9], dtype=torch.float64, requires_grad=True)
    lr = torch.tensor(0.05, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(two_steps, (start, lr))


def test_autograd_through_a_step_with_gradients_of_zero() -> None:
    start = torch.tensor([0.0, 1.0], requires_grad=True)
    p = start.clone()
    p.grad = start**3  # zero, and of slope zero, in the first entry
    FAdam([p], lr=0.1, differentiable=True).step()
    p.sum().backward()
    assert start.grad is not None
    assert start.grad.isfinite().all()


def test_without_differentiable_nothing_is_recorded() -> None:
    p = torch.ones(3, requires_grad=True)
    p.grad = (p * 2).clone()
    opt = FAdam([p])
    opt.step()
    assert p.is_leaf
    assert p.grad_fn is None
    assert opt.state[p]["momentum"].grad_fn is None


@pytest.mark.parametrize("path", ["single", "foreach", "fused"])
def test_compiled_step(path: str) -> None:
    """Traced once, without a host number for t in the graph: steps 2, 3, ... are the same graph."""
    values = [torch.linspace(-1, 1, 6), torch.linspace(1, 2, 4).reshape(2, 2)]
    params, others = leaves(values), leaves(values)
    opt, plain = FAdam(params, lr=torch.tensor(0.01), **PATHS[path]), FAdam(others, lr=0.01)
    graphs: list[Any] = []

    def counting(graph: Any, inputs: Any) -> Any:
        graphs.append(graph)
        return graph

    step = torch.compile(opt.step, backend=counting)
    for t in range(1, 7):
        for p, q in zip(params, others, strict=True):
            p.grad = q.grad = torch.full_like(p, 1.0 / t)
        step()
        plain.step()
        if t == 3:
            traced = len(graphs)
    assert len(graphs) == traced > 0
    for p, q in zip(params, others, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-6)
