"""Which implementation steps which tensors, what is refused, and with which reason."""

from __future__ import annotations

import sys
import types
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from fadam import FAdam, Options, backend
from fadam.bookkeeping import Tensors
from fadam.functional import fadam
from tests.fadam.cases import PATHS, leaves, run

ABLATIONS: list[dict[str, Any]] = [
    {"momentum_mode": "gradient"},
    {"decay_mode": "decoupled"},
    {"correct_momentum": True},
]


@pytest.fixture
def stepped(as_on_a_device: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The implementations that have been taken, in order, with one for the CPU that can be told to refuse."""
    taken: list[str] = []

    def noted(name: str, function: Any) -> Any:
        def noting(*args: Any, **kwargs: Any) -> Any:
            taken.append(name)
            return function(*args, **kwargs)

        return noting

    module = types.ModuleType("tests.fadam.made_up")
    module.refusal = lambda tensors, options: None  # type: ignore[attr-defined]
    module.Compiled = noted("compiled", backend.ForeachBackend)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setitem(backend._FUSED, "cpu", (module.__name__, "Compiled"))
    monkeypatch.setattr(backend, "ForeachBackend", noted("foreach", backend.ForeachBackend))
    monkeypatch.setattr(backend, "SingleBackend", noted("single", _NoLoop))
    for cached in (backend.fused_backend, backend._warn_once):
        cached.cache_clear()
    yield taken
    for cached in (backend.fused_backend, backend._warn_once):
        cached.cache_clear()


class _NoLoop:
    """In the place of the single-tensor loop."""

    def __init__(self, *_: Any) -> None:
        pass

    def run(self) -> None:
        pass


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
    asked: list[tuple[int, Options]] = []

    def refusal(tensors: Tensors, options: Options) -> None:
        assert len({len(list_) for list_ in (*tensors.four, tensors.steps)}) == 1
        asked.append((len(tensors.params), options))

    monkeypatch.setattr(sys.modules["tests.fadam.made_up"], "refusal", refusal)
    step(torch.ones(3), torch.ones(0), torch.ones(2, dtype=torch.complex64), fused=True, eps_mode="scaled", fim_rho=0.7)
    assert [count for count, _ in asked] == [0, 2]  # when it is built, and in the step without what is empty
    assert all(options.eps_mode == "scaled" and options.fim_rho == 0.7 for _, options in asked)


@pytest.mark.parametrize("reason", ["there is no compiler", OSError("the disk is full")])
def test_a_default_that_is_unavailable_is_another_with_one_warning(
    stepped: list[str], monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder, reason: Any
) -> None:
    refuse(monkeypatch, reason)
    for _ in range(3):
        step()
    assert stepped == ["single"] * 3
    (warning,) = recwarn
    words = str(warning.message)
    assert words.startswith("FAdam: the single-tensor loop takes the step on the CPU, several times slower than")
    assert str(reason) in words
    assert "FADAM_CACHE" in words
    step(fused=False)
    step(foreach=True)
    assert len(recwarn) == 1


def test_what_only_these_tensors_lack_is_no_warning(
    stepped: list[str], monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder
) -> None:
    monkeypatch.setattr(sys.modules["tests.fadam.made_up"], "refusal", lambda x, _: "odd" if x.params else None)
    step()
    assert stepped == ["single"]
    assert not list(recwarn)


def test_paths_tells_what_is_taken_and_why(stepped: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    values = leaves([torch.ones(3), torch.ones(0), torch.ones(2, dtype=torch.complex64), torch.ones(2, device="meta")])
    groups: list[dict[str, Any]] = [
        {"params": values[:3], "fim_dtype": "float64"},
        {"params": [values[3], *leaves([torch.ones(2)])], "capturable": True},
        {"params": leaves([torch.ones(3)]), "momentum_mode": "gradient"},
        {"params": leaves([torch.ones(3)]), "foreach": True},
        {"params": leaves([torch.ones(3)]), "fused": False},
    ]
    opt = FAdam(groups)
    published = "it does the published algorithm only"
    default = "it is not the default on other devices than the CPU; fused=True takes it where there is one"
    expected: list[dict[str, tuple[str, str]]] = [
        {"cpu": ("fused", "")},
        {"meta": ("single", default), "cpu": ("fused", "")},
        {"cpu": ("single", published)},
        {"cpu": ("foreach", "foreach=True")},
        {"cpu": ("single", "fused=False")},
    ]
    assert opt.paths() == expected
    assert not opt.state
    assert not stepped
    for p in [*values[:3], *(p for group in opt.param_groups[1:] for p in group["params"])]:
        p.grad = torch.ones_like(p)
    opt.step()
    assert opt.paths() == expected
    refuse(monkeypatch, "there is no compiler")
    with pytest.warns(UserWarning, match="there is no compiler"):
        assert opt.paths()[0] == {"cpu": ("single", "there is no compiler")}


def test_kernels_that_no_gpu_has_run_are_not_a_default(stepped: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """The meta device stands in for one that has kernels."""
    monkeypatch.setitem(backend._FUSED, "meta", backend._FUSED["cpu"])
    assert "cuda" not in backend._BY_DEFAULT
    x = torch.ones(3, device="meta")
    step(x)
    step(x, fused=True)
    assert stepped == ["single", "compiled"]


@pytest.mark.parametrize("path", PATHS)
def test_fake_tensors_are_stepped(path: str) -> None:
    """As by memory estimators; the fused step holds nothing beside the states."""
    with FakeTensorMode():
        model = nn.Linear(4, 3)
        opt = FAdam(model.parameters(), **PATHS[path])
        for _ in range(2):
            model(torch.randn(2, 4)).sum().backward()
            opt.step()
        assert all(len(opt.state[p]) == 3 for p in model.parameters())


@pytest.mark.parametrize("lr", [0.01, torch.tensor(0.01)])
def test_a_compiled_step_is_one_graph(lr: Any) -> None:
    params, others = leaves([torch.ones(50), torch.ones(3)]), leaves([torch.ones(50), torch.ones(3)])
    opt, plain = FAdam(params, lr=lr), FAdam(others, lr=lr, fused=False)
    opt._opt_called = True  # type: ignore[attr-defined]
    for one, ps in ((opt, params), (plain, others)):
        run(one, ps, lambda t: [torch.ones(50), torch.ones(3)], 1)
    with torch.no_grad():
        torch.compile(lambda: FAdam.step.__wrapped__(opt), fullgraph=True, backend="eager")()  # type: ignore[attr-defined]
    plain.step()
    torch.testing.assert_close(params, others, rtol=1e-6, atol=1e-7)


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
    backend._warn_once.cache_clear()
    try:
        with pytest.warns(UserWarning, match=r"fadam\.of_tomorrow cannot be imported"):
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


def test_shards_that_are_fake_have_phases() -> None:
    """As every implementation that may be chosen for shards; they are not written to."""
    with FakeTensorMode():
        tensors = Tensors(*([torch.ones(3)] for _ in range(4)), [torch.ones(())])
        phased = backend.choose_for_shards(tensors, Options(fused=True))(tensors, Options(fused=True))
        sums = phased.metric_sums(phased.gradient_sums())
        phased.apply(sums)
        assert (sums.shape, sums.dtype) == ((2, 1), torch.float64)


def test_lists_of_different_lengths_are_refused() -> None:
    """One gradient too many would be ignored."""
    ones = [torch.ones(2)]
    with pytest.raises(ValueError, match="must be as many, got 1, 2, 1, 1, 1"):
        fadam(ones, ones * 2, ones, ones, [torch.zeros(())], Options())
