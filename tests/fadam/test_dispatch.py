"""Which implementation steps which tensors, what is refused, and with which reason."""

from __future__ import annotations

import sys
import types
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fadam import FAdam, backend, fadam
from tests.fadam.cases import leaves, run

ABLATIONS: list[dict[str, Any]] = [
    {"momentum_mode": "gradient"},
    {"decay_mode": "decoupled"},
    {"correct_momentum": True},
]


@pytest.fixture
def stepped(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The implementations that have been taken, in order, with one for the CPU that can be told to refuse."""
    taken: list[str] = []

    def noted(name: str, function: Any) -> Any:
        def noting(*args: Any, **kwargs: Any) -> Any:
            taken.append(name)
            return function(*args, **kwargs)

        return noting

    module = types.ModuleType("tests.fadam.made_up")
    module.refusal = lambda params, grads, momentums, fims, steps, options: None  # type: ignore[attr-defined]
    module.Compiled = noted("compiled", backend.ForeachBackend)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setitem(backend._FUSED, "cpu", (module.__name__, "Compiled"))
    monkeypatch.setattr(backend, "ForeachBackend", noted("foreach", backend.ForeachBackend))
    monkeypatch.setattr("fadam.functional._single_tensor_fadam", noted("single", _no_loop))
    backend.fused_backend.cache_clear()
    yield taken
    backend.fused_backend.cache_clear()


def _no_loop(*args: Any, **kwargs: Any) -> None:
    """In the place of the single-tensor loop."""


def refuse(monkeypatch: pytest.MonkeyPatch, reason: str | Exception) -> None:
    def refusal(*args: Any) -> str:
        if isinstance(reason, Exception):
            raise reason
        return reason

    monkeypatch.setattr(sys.modules["tests.fadam.made_up"], "refusal", refusal)


def step(*values: Tensor, **options: Any) -> None:
    params = leaves(values or [torch.ones(3)])
    run(FAdam(params, **options), params, lambda t: [torch.ones_like(p) for p in params], 1)


@pytest.mark.parametrize(
    ("options", "path"),
    [
        ({}, "compiled"),
        ({"fused": True}, "compiled"),
        ({"fused": True, "foreach": False}, "compiled"),
        ({"capturable": True}, "compiled"),
        ({"fused": False}, "single"),
        ({"foreach": False}, "single"),
        ({"foreach": True}, "foreach"),
        ({"fused": False, "foreach": True}, "foreach"),
        ({"differentiable": True}, "single"),
        *(({**switch, **fused}, "single") for switch in ABLATIONS for fused in ({}, {"fused": True})),
        *(({**switch, "foreach": True}, "foreach") for switch in ABLATIONS),
    ],
)
def test_choice(stepped: list[str], options: dict[str, Any], path: str) -> None:
    with torch.no_grad():
        params = [torch.ones(3)]
        run(FAdam(params, **options), params, lambda t: [torch.ones(3)], 1)
    assert stepped == [path]


def test_what_the_fused_implementation_is_asked(stepped: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[int, Mapping[str, Any]]] = []

    def refusal(*lists: Any) -> None:
        assert len({len(tensors) for tensors in lists[:5]}) == 1
        asked.append((len(lists[0]), dict(lists[5])))

    monkeypatch.setattr(sys.modules["tests.fadam.made_up"], "refusal", refusal)
    step(torch.ones(3), torch.ones(0), torch.ones(2, dtype=torch.complex64), fused=True, eps_mode="scaled", fim_rho=0.7)
    assert [count for count, _ in asked] == [0, 2]  # when it is built, and in the step without what is empty
    assert all(options["eps_mode"] == "scaled" and options["fim_rho"] == 0.7 for _, options in asked)


@pytest.mark.parametrize("reason", ["there is no compiler", OSError("the disk is full")])
def test_a_default_that_is_unavailable_is_quietly_another(
    stepped: list[str], monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder, reason: Any
) -> None:
    refuse(monkeypatch, reason)
    step()
    assert stepped == ["single"]
    assert not list(recwarn)


@pytest.mark.parametrize("reason", ["there is no compiler", OSError("the disk is full")])
def test_an_unavailable_implementation_that_was_asked_for_is_an_error(
    stepped: list[str], monkeypatch: pytest.MonkeyPatch, reason: Any
) -> None:
    refuse(monkeypatch, reason)
    with pytest.raises(RuntimeError, match=f"fused=True is not available: .*{reason}"):
        FAdam([torch.ones(3)], fused=True)
    opt = FAdam([torch.ones(3)])
    with pytest.raises(RuntimeError, match=f"fused=True is not available: .*{reason}"):
        opt.add_param_group({"params": [torch.ones(2)], "fused": True})
    assert len(opt.param_groups) == 1
    FAdam([torch.ones(3)], fused=True, momentum_mode="gradient")  # which does without


def test_one_that_cannot_be_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(backend._FUSED, "cpu", ("fadam.of_tomorrow", "Backend"))
    backend.fused_backend.cache_clear()
    try:
        step()
        with pytest.raises(RuntimeError, match=r"fadam\.of_tomorrow cannot be imported: No module"):
            FAdam([torch.ones(3)], fused=True)
    finally:
        backend.fused_backend.cache_clear()


def test_other_devices_and_tensors_that_are_not_plain_ones() -> None:
    p = torch.empty(3, device="meta", requires_grad=True)
    opt = FAdam([p], fused=True)  # it may get a device yet
    p.grad = torch.empty_like(p)
    with pytest.raises(RuntimeError, match="not available: there is none for meta tensors, only for cpu and cuda"):
        opt.step()

    class Marked(Tensor):
        pass

    q = torch.ones(3).as_subclass(Marked)
    q.grad = torch.ones(3)
    FAdam([q]).step()
    with pytest.raises(RuntimeError, match="plain tensors"):
        FAdam([q], fused=True).step()


@pytest.mark.parametrize("other", ["foreach", "differentiable"])
def test_two_implementations_at_once_are_refused(other: str) -> None:
    with pytest.raises(ValueError, match=other):
        FAdam([torch.ones(3)], fused=True, **{other: True})
    lists: Sequence[list[Tensor]] = [[torch.ones(3)] for _ in range(4)]
    with pytest.raises(ValueError, match=f"fused=True and {other}=True"):
        fadam(
            *lists, [torch.zeros(())], lr=1e-3, beta1=0.9, beta2=0.999, eps=1e-8, eps2=0.01, clip=1.0, fim_rho=0.5,
            weight_decay=0.0, fused=True, **{other: True},
        )  # fmt: skip


def test_autograd_learns_of_what_was_written() -> None:
    """A graph made before the step is stale after it, whoever wrote the parameter."""
    for options in ({"fused": None}, {"foreach": False}, {"foreach": True}):
        p = nn.Parameter(torch.ones(3))
        loss = (p * p).sum()
        p.grad = torch.ones(3)
        FAdam([p], **options).step()
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            loss.backward()


def test_inference_tensors_are_stepped() -> None:
    with torch.inference_mode():
        p = torch.ones(3)
        p.grad = torch.ones(3)
        FAdam([p], lr=0.1).step()
        assert (p < 1).all()


def test_what_stands_in_for_an_empty_shard_stays_where_it_is() -> None:
    """As long as the state does: a captured graph has its address."""
    from fadam import sharding

    state, row = torch.zeros(0, 3), [torch.zeros(0, 3) for _ in range(4)]
    kept = sharding._stand_in(state, row)
    assert all(x.tolist() == [1.0] for x in kept)
    assert all(x is y for x, y in zip(sharding._stand_in(state, row), kept, strict=True))
    assert sharding._stand_in(torch.zeros(0, 3), row)[0] is not kept[0]
    assert sharding._stand_in(state, [row[0].double(), *row[1:]])[0].dtype == torch.float64
    count = len(sharding._stand_ins)
    del state
    assert len(sharding._stand_ins) == count - 1
