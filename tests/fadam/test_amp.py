"""Gradient scaling: what a scaler hands to `step` through `grad_scale` and `found_inf`."""

from __future__ import annotations

import math
from typing import Any, cast

import pytest
import torch
from torch import Tensor

from fadam import FAdam
from fadam.blocks import BlockBackend, SingleBlockBackend
from fadam.bookkeeping import Tensors, amp_tensors
from fadam.optimizer import initial_state
from fadam.options import Options
from tests.fadam.cases import PATHS, TORCH_PATHS, leaves, run, tensors

FUSED: list[dict[str, Any]] = [{}, {"momentum_mode": "gradient"}, {"decay_mode": "decoupled"}]


def given(opt: FAdam, grad_scale: float | None, found_inf: float) -> None:
    """As torch.amp.GradScaler does it."""
    opt.grad_scale = None if grad_scale is None else torch.tensor(grad_scale)  # type: ignore[attr-defined]
    opt.found_inf = torch.tensor(found_inf)  # type: ignore[attr-defined]


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_step_on_scaled_gradients_is_the_step(path: str, dtype: torch.dtype) -> None:
    values = tensors(dtype, seed=1000)
    params, others = leaves(values), leaves(values)
    opt, plain = FAdam(params, **PATHS[path]), FAdam(others, **PATHS[path])
    given(opt, 1024.0, 0.0)
    run(opt, params, lambda t: [1024 * g for g in tensors(dtype, seed=t)], 3)
    run(plain, others, lambda t: tensors(dtype, seed=t), 3)
    torch.testing.assert_close(params, others, rtol=0, atol=0)
    given(opt, None, 0.0)  # after scaler.unscale_
    run(opt, params, lambda t: tensors(dtype, seed=t), 1)
    run(plain, others, lambda t: tensors(dtype, seed=t), 1)
    torch.testing.assert_close(params, others, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("path", "known"), [*((path, True) for path in PATHS), *((path, False) for path in TORCH_PATHS)]
)
def test_nothing_changes_where_something_overflowed(path: str, known: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The number is read where the host has it; it is not looked at otherwise, as in a traced graph."""
    if not known:
        monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    values = tensors(torch.float32, seed=1000)
    params, others = leaves(values), leaves(values)
    opt, plain = FAdam(params, **PATHS[path]), FAdam(others, **PATHS[path])
    for t, found in enumerate([0.0, 1.0, 0.0, 2.0, 0.0]):
        given(opt, 8.0, found)
        grads = tensors(torch.float32, seed=t)
        run(opt, params, lambda _, g=grads, f=found: [8 * x * (math.inf if f else 1.0) for x in g], 1)
        if not found:
            run(plain, others, lambda _, g=grads: g, 1)
    torch.testing.assert_close(params, others, rtol=1e-6, atol=1e-7)
    for p, q in zip(params, others, strict=True):
        for name in ("step", "momentum", "fim"):
            torch.testing.assert_close(opt.state[p][name], plain.state[q][name], rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("switches", FUSED)
@pytest.mark.parametrize("unscale_first", [False, True])
def test_a_scaler_leaves_it_to_the_step(switches: dict[str, Any], unscale_first: bool) -> None:
    p, q = leaves([torch.ones(3)] * 2)
    opt, plain = FAdam([p], fused=True, **switches), FAdam([q], **switches)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=100)
    for factor in (1.0, math.inf, 2.0):
        opt.zero_grad()
        scaler.scale((factor * p).sum()).backward()
        scaled: Tensor = p.grad.clone()  # type: ignore[union-attr]
        if unscale_first:
            scaler.unscale_(opt)
        scaler.step(opt)
        if not unscale_first:
            torch.testing.assert_close(p.grad, scaled, rtol=0, atol=0)  # no pass over the gradients of its own
        scaler.update()
        assert not hasattr(opt, "found_inf")
        if math.isfinite(factor):
            plain.zero_grad()
            (factor * q).sum().backward()
            plain.step()
    assert scaler.get_scale() == 512.0
    assert opt.state[p]["step"].item() == 2
    torch.testing.assert_close(p, q)


def test_only_where_every_group_is_fused() -> None:
    opt = FAdam([torch.ones(3)], fused=True)
    assert opt._step_supports_amp_scaling
    opt.add_param_group({"params": [torch.ones(2)], "fused": None})
    assert not opt._step_supports_amp_scaling
    assert not FAdam([torch.ones(3)])._step_supports_amp_scaling


def test_the_step_count_is_where_the_overflow_is_known() -> None:
    p = torch.empty(3, device="meta")
    for options, device in (({"fused": True}, "meta"), ({"capturable": True}, "meta"), ({}, "cpu")):
        assert initial_state(p, Options(**options))["step"].device.type == device
    opt = FAdam([p])
    p.grad = torch.empty_like(p)
    opt.found_inf = torch.empty((), device="meta")  # type: ignore[attr-defined]
    with pytest.raises(RuntimeError, match="fused=True or capturable=True"):
        opt.step()


class Elsewhere:
    """A number on another device, which notes how it was fetched."""

    def __init__(self) -> None:
        self.asynchronous: list[bool] = []

    def to(self, device: torch.device, *_: Any, non_blocking: bool = False) -> Tensor:
        self.asynchronous.append(non_blocking)
        return torch.ones((), device=device)


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_numbers_from_a_device_have_arrived_before_the_host_reads_them(device: str) -> None:
    scale, found = Elsewhere(), Elsewhere()
    amp_tensors(torch.device(device), [torch.ones((), device=device)], cast(Any, scale), cast(Any, found))
    assert scale.asynchronous == found.asynchronous == [device != "cpu"]


def test_a_learning_rate_from_a_device_has_arrived_too(as_on_a_device: None) -> None:
    asynchronous: list[bool] = []

    class Rate(Tensor):
        def to(self, *_: Any, non_blocking: bool = False, **__: Any) -> Tensor:
            asynchronous.append(non_blocking)
            return torch.tensor(0.1)

    params = leaves([torch.ones(3)])
    opt = FAdam(params, lr=torch.tensor(0.1), foreach=True)
    opt.param_groups[0]["lr"] = opt.param_groups[0]["lr"].as_subclass(Rate)
    run(opt, params, lambda t: [torch.ones(3)], 1)
    assert asynchronous == [False]


def test_a_scaler_that_saw_no_gradient_changes_nothing() -> None:
    """One of two optimizers, whose parameters took no part: found_inf is the number 0 then."""
    p, q = leaves([torch.ones(3)] * 2)
    opt, other = FAdam([p], fused=True), FAdam([q], fused=True)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    scaler.scale(p.sum()).backward()
    for one in (opt, other):
        scaler.step(one)
    scaler.update()
    assert (p < 1).all()
    torch.testing.assert_close(q.detach(), torch.ones(3), rtol=0, atol=0)
    assert not other.state


@pytest.mark.parametrize("backend", [BlockBackend, SingleBlockBackend])
def test_an_overflow_that_another_device_found_stops_the_blocks(backend: Any) -> None:
    """Of parameters on the CPU beside others on a GPU: the number has come to the host then."""
    four = [torch.ones(3), torch.full((3,), math.inf), torch.zeros(3), torch.ones(3)]
    before = [x.clone() for x in four]
    tensors = Tensors(*([x] for x in four), [torch.ones(())], found_inf=torch.ones(()))
    backend(tensors, Options()).run()
    torch.testing.assert_close(four, before, rtol=0, atol=0)
