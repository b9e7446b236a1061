"""State: its keys, shapes and dtypes, and that it survives every way of saving and loading exactly."""

from __future__ import annotations

import copy
import io
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from fadam import FAdam
from fadam.optimizer import initial_state
from fadam.options import DEFAULTS, RENAMED, Options
from tests.fadam.cases import PATHS, leaves, run, tensors

DTYPES = [
    pytest.param(torch.float32, {}, id="float32"),
    pytest.param(torch.bfloat16, {}, id="bfloat16"),
    pytest.param(torch.bfloat16, {"momentum_dtype": torch.float32, "fim_dtype": torch.float32}, id="wide states"),
    pytest.param(torch.float32, {"momentum_dtype": torch.bfloat16, "fim_dtype": torch.float16}, id="narrow states"),
]


def through_file(state_dict: dict[str, Any]) -> dict[str, Any]:
    buffer = io.BytesIO()
    torch.save(state_dict, buffer)
    buffer.seek(0)
    loaded: dict[str, Any] = torch.load(buffer, weights_only=True)
    return loaded


def assert_same(a: FAdam, b: FAdam) -> None:
    for group, other in zip(a.param_groups, b.param_groups, strict=True):
        assert {k: v for k, v in group.items() if k != "params"} == {k: v for k, v in other.items() if k != "params"}
        for p, q in zip(group["params"], other["params"], strict=True):
            torch.testing.assert_close(p, q, rtol=0, atol=0)
            assert list(a.state[p]) == list(b.state[q])
            for name in a.state[p]:
                torch.testing.assert_close(a.state[p][name], b.state[q][name], rtol=0, atol=0)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(("dtype", "options"), DTYPES)
def test_keys_shapes_and_dtypes(path: str, dtype: torch.dtype, options: dict[str, Any]) -> None:
    params = leaves(tensors(dtype))
    opt = FAdam(params, **options, **PATHS[path])
    run(opt, params, lambda t: tensors(seed=t), 2)
    for p in params:
        state = opt.state[p]
        assert list(state) == ["step", "momentum", "fim"]
        assert state["step"].shape == ()
        assert state["step"].dtype == torch.float32
        assert state["step"].item() == (2 if p.numel() else 0)
        assert state["momentum"].shape == state["fim"].shape == p.shape
        assert state["momentum"].stride() == state["fim"].stride() == torch.empty_like(p).stride()
        assert state["momentum"].dtype == options.get("momentum_dtype", dtype)
        assert state["fim"].dtype == options.get("fim_dtype", dtype)
        assert not any(x.requires_grad for x in state.values())


def test_complex_state_is_real() -> None:
    (p,) = params = leaves([torch.ones(3, dtype=torch.complex64)])
    opt = FAdam(params, fim_dtype=torch.float64)
    run(opt, params, lambda t: [torch.ones(3) * 1j], 1)
    assert opt.state[p]["momentum"].shape == opt.state[p]["fim"].shape == (3, 2)
    assert (opt.state[p]["momentum"].dtype, opt.state[p]["fim"].dtype) == (torch.float32, torch.float64)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(("dtype", "options"), DTYPES)
@pytest.mark.parametrize("way", ["state dict", "file", "deepcopy", "pickle"])
def test_a_resumed_run_is_the_uninterrupted_one(
    path: str, dtype: torch.dtype, options: dict[str, Any], way: str
) -> None:
    params = leaves(tensors(dtype, seed=1000))
    opt = FAdam([{"params": params[:3]}, {"params": params[3:], "lr": 0.1}], **options, **PATHS[path])
    run(opt, params, lambda t: tensors(seed=t), 4)

    if way in ("deepcopy", "pickle"):
        other = copy.deepcopy(opt) if way == "deepcopy" else pickle.loads(pickle.dumps(opt))
        others = [p for group in other.param_groups for p in group["params"]]
    else:
        others = leaves(params)
        # Built with other options: those of the state dict win.
        other = FAdam([{"params": others[:3]}, {"params": others[3:]}], lr=3.0)
        other.load_state_dict(opt.state_dict() if way == "state dict" else through_file(opt.state_dict()))
    assert_same(opt, other)

    run(opt, params, lambda t: tensors(seed=10 + t), 4)  # first, so that a shared tensor would show
    run(other, others, lambda t: tensors(seed=10 + t), 4)
    assert_same(opt, other)


def test_loading_casts_nothing_and_shares_nothing() -> None:
    (p,) = params = leaves([torch.ones(3, dtype=torch.bfloat16)])
    opt = FAdam(params, momentum_dtype=torch.float32, fim_dtype=torch.float64)
    run(opt, params, lambda t: [torch.full((3,), 0.1)], 3)
    saved = opt.state_dict()
    other = FAdam(others := leaves(params))
    other.load_state_dict(saved)
    for name, dtype in {"step": torch.float32, "momentum": torch.float32, "fim": torch.float64}.items():
        loaded = other.state[others[0]][name]
        torch.testing.assert_close(loaded, opt.state[p][name], rtol=0, atol=0)
        assert loaded.dtype == dtype
        assert loaded.data_ptr() != opt.state[p][name].data_ptr()


WIDE, NARROW = torch.float32, torch.bfloat16
# Of the parameter and of the option, where it was saved and where it is loaded; what comes, and whether it warns.
LOADED = [
    ((NARROW, None), (WIDE, WIDE), WIDE, False),
    ((NARROW, None), (WIDE, None), WIDE, False),
    ((NARROW, WIDE), (NARROW, None), WIDE, False),
    ((NARROW, WIDE), (NARROW, NARROW), NARROW, True),
    ((NARROW, NARROW), (WIDE, None), NARROW, False),
    ((WIDE, None), (NARROW, None), WIDE, False),
    ((WIDE, None), (WIDE, NARROW), NARROW, True),
    ((WIDE, torch.float16), (WIDE, NARROW), NARROW, True),
    ((WIDE, NARROW), (WIDE, WIDE), WIDE, False),
]


@pytest.mark.parametrize(("saved", "built", "dtype", "warns"), LOADED)
@pytest.mark.parametrize("name", ["momentum", "fim"])
def test_a_dtype_asked_for_wins_over_the_saved_one(
    name: str,
    saved: tuple[torch.dtype, torch.dtype | None],
    built: tuple[torch.dtype, torch.dtype | None],
    dtype: torch.dtype,
    warns: bool,
    recwarn: pytest.WarningsRecorder,
) -> None:
    params = leaves([torch.linspace(-1, 1, 5, dtype=saved[0])])
    opt = FAdam(params, **{f"{name}_dtype": saved[1]})
    run(opt, params, lambda t: [torch.linspace(t, 3, 5)], 3)
    others = leaves([x.detach().to(built[0]) for x in params])
    other = FAdam(others, **{f"{name}_dtype": built[1]})
    other.load_state_dict(through_file(opt.state_dict()))
    assert other.param_groups[0][f"{name}_dtype"] == (built[1] or saved[1])
    state = other.state[others[0]][name]
    torch.testing.assert_close(state, opt.state[params[0]][name].to(dtype), rtol=0, atol=0)
    assert [str(w.message) for w in recwarn] == [
        f"FAdam: the loaded {name} states are narrowed from {saved[1] or saved[0]} to {dtype}, the {name}_dtype that "
        "this optimizer was built with; build it without to keep them"
    ] * warns
    run(other, others, lambda t: [torch.ones(5)], 1)
    assert other.state[others[0]][name].dtype == dtype


def test_hooks_on_loading_see_and_change_what_is_loaded() -> None:
    params = leaves([torch.ones(3)])
    opt = FAdam(params, fim_dtype=torch.float64)
    run(opt, params, lambda t: [torch.ones(3)], 1)
    other = FAdam(others := leaves(params))
    seen: list[torch.dtype] = []

    def doubled(_: torch.optim.Optimizer, state_dict: dict[str, Any]) -> dict[str, Any]:
        state_dict = copy.deepcopy(state_dict)
        state_dict["state"][0]["fim"] *= 2
        return state_dict

    def look(optimizer: torch.optim.Optimizer) -> None:
        seen.append(optimizer.state[others[0]]["fim"].dtype)

    other.register_load_state_dict_pre_hook(doubled)
    other.register_load_state_dict_post_hook(look)
    other.load_state_dict(opt.state_dict())
    assert seen == [torch.float64]
    torch.testing.assert_close(other.state[others[0]]["fim"], 2 * opt.state[params[0]]["fim"])


@pytest.mark.parametrize("missing", [k for k in DEFAULTS if k != "lr"])
def test_a_checkpoint_without_a_newer_option_loads(missing: str) -> None:
    params = leaves([torch.ones(3)])
    opt = FAdam(params)
    run(opt, params, lambda t: [torch.ones(3)], 2)
    old = opt.state_dict()
    del old["param_groups"][0][missing]
    other = FAdam(others := leaves(params), fim_rho=1.0)
    other.load_state_dict(old)
    assert other.param_groups[0][missing] == DEFAULTS[missing]
    run(opt, params, lambda t: [torch.ones(3)], 1)
    run(other, others, lambda t: [torch.ones(3)], 1)
    assert_same(opt, other)


def with_old_names(state_dict: dict[str, Any]) -> dict[str, Any]:
    for group in state_dict["param_groups"]:
        for old, name in RENAMED.items():
            group[old] = group.pop(name)
    return state_dict


def test_a_checkpoint_with_the_old_names_loads() -> None:
    params = leaves(tensors())
    switches: dict[str, Any] = {"momentum_mode": "gradient", "decay_mode": "decoupled", "fim_rho": 0.7}
    opt = FAdam(params, **switches)
    run(opt, params, lambda t: tensors(seed=t), 2)
    others = leaves(params)
    loaded = FAdam(others)
    loaded.load_state_dict(with_old_names(opt.state_dict()))
    pickled = copy.deepcopy(opt)
    with_old_names({"param_groups": pickled.param_groups})
    for old, name in RENAMED.items():
        pickled.defaults[old] = pickled.defaults.pop(name)
    pickled = pickle.loads(pickle.dumps(pickled))
    assert pickled.defaults == opt.defaults
    assert_same(opt, loaded)
    assert_same(opt, pickled)
    run(opt, params, lambda t: tensors(seed=t + 2), 2)
    run(loaded, others, lambda t: tensors(seed=t + 2), 2)
    assert_same(opt, loaded)


def test_an_old_checkpoint_whose_option_was_written_over_is_refused() -> None:
    opt = FAdam([torch.ones(3)])
    old = with_old_names(opt.state_dict())
    old["param_groups"][0]["momentum"] = 0.8
    with pytest.raises(ValueError, match=r"momentum=0\.8 is not allowed; .* where there is no momentum_mode"):
        opt.load_state_dict(old)


def test_a_state_of_another_optimizer_is_refused() -> None:
    p = torch.ones(3, requires_grad=True)
    adamw = torch.optim.AdamW([p])
    p.grad = torch.ones(3)
    adamw.step()
    opt = FAdam([p])
    with pytest.raises(ValueError, match=r"parameter 0 has \['exp_avg', 'exp_avg_sq', 'step'\]"):
        opt.load_state_dict(adamw.state_dict())
    assert not opt.state
    assert opt.param_groups[0]["fim_rho"] == 0.5


def test_a_state_with_nothing_in_it_is_refused() -> None:
    (p,) = leaves([torch.ones(3)])
    opt = FAdam([p])
    p.grad = torch.ones(3)
    opt.step()
    saved = opt.state_dict()
    saved["state"][0]["fim"] = None
    with pytest.raises(ValueError, match=r"parameter 0 has \['momentum', 'step'\], not \['fim', 'momentum', 'step'\]"):
        FAdam(leaves([p])).load_state_dict(saved)


def test_a_parameter_without_state_yet_loads() -> None:
    params = leaves([torch.ones(3), torch.ones(2)])
    opt = FAdam(params)
    params[0].grad = torch.ones(3)
    opt.step()
    other = FAdam(others := leaves(params))
    other.load_state_dict(through_file(opt.state_dict()))
    assert list(other.state) == others[:1]


def test_checkpoint_file_holds_plain_things_only(tmp_path: Path) -> None:
    params = leaves([torch.ones(3)])
    opt = FAdam(params, lr=torch.tensor(0.1), fim_dtype=torch.float64)
    run(opt, params, lambda t: [torch.ones(3)], 1)
    torch.save(opt.state_dict(), tmp_path / "opt.pt")
    loaded = torch.load(tmp_path / "opt.pt", weights_only=True)
    assert loaded["param_groups"][0]["fim_dtype"] == "float64"
    assert loaded["param_groups"][0]["momentum_dtype"] is None
    assert isinstance(loaded["state"][0]["momentum"], Tensor)
    other = FAdam(leaves(params))
    for fim_dtype in ("float64", torch.float64):  # the latter is how older files have it
        loaded["param_groups"][0]["fim_dtype"] = fim_dtype
        other.load_state_dict(loaded)
        assert other.param_groups[0]["fim_dtype"] == torch.float64
        assert opt.param_groups[0]["fim_dtype"] == torch.float64


@pytest.mark.parametrize("name", ["momentum", "fim"])
def test_a_state_of_another_shape_is_refused(name: str) -> None:
    """And leaves the optimizer as it was."""
    small, large = leaves([torch.ones(10)]), leaves([torch.ones(4, 3), torch.ones(4000)])
    opt = FAdam(small)
    run(opt, small, lambda t: [torch.ones(10)], 1)
    entry = opt.state_dict()["state"][0]
    fitting = {"step": torch.ones(()), "momentum": torch.zeros(4000), "fim": torch.ones(4000)}
    for params in (large, [("weight", large[0]), ("bias", large[1])]):
        other = FAdam(params)
        saved = other.state_dict()
        saved["state"] = {1: {**fitting, name: entry[name]}}
        words = rf"parameter {'bias' if params is not large else 1} .* {name} has the shape \(10,\), not \(4000,\)"
        with pytest.raises(ValueError, match=words):
            other.load_state_dict(saved)
        assert not other.state
    with pytest.raises(ValueError, match=r"\(3,\), not \(3, 2\), for a parameter of shape \(3,\)"):
        FAdam(leaves([torch.ones(3, dtype=torch.complex64)])).load_state_dict(
            {**FAdam(small).state_dict(), "state": {0: {"step": 1, "momentum": torch.ones(3), "fim": torch.ones(3)}}}
        )


@pytest.mark.parametrize("step", [5, torch.tensor(5), torch.tensor([5.0], dtype=torch.float64), torch.tensor(5.0)])
def test_a_step_count_is_loaded_as_one_float32(step: Any) -> None:
    params = leaves([torch.ones(3)])
    opt = FAdam(params)
    run(opt, params, lambda t: [torch.ones(3)], 1)
    saved = opt.state_dict()
    saved["state"][0]["step"] = step
    opt.load_state_dict(saved)
    loaded = opt.state[params[0]]["step"]
    assert (loaded.item(), loaded.dtype, loaded.shape) == (5.0, torch.float32, ())
    run(opt, params, lambda t: [torch.ones(3)], 1)
    assert opt.state[params[0]]["step"].item() == 6
    saved["state"][0]["step"] = torch.ones(2)
    with pytest.raises(ValueError, match=r"the step of parameter 0 has the shape \(2,\)"):
        opt.load_state_dict(saved)


@pytest.mark.parametrize("fused", [None, True])
@pytest.mark.parametrize("name", ["momentum", "fim"])
def test_a_step_writes_nothing_beyond_a_state_that_is_too_small(name: str, fused: bool | None) -> None:
    (p,) = params = leaves([torch.ones(100)])
    opt = FAdam(params, fused=fused)
    room = torch.full((100,), 7.0)
    state = {"step": torch.ones(()), "momentum": torch.zeros(100), "fim": torch.ones(100)}
    opt.state[p] = {**state, name: room[:10]}
    with pytest.raises(RuntimeError, match="its parameter's shape"):
        run(opt, params, lambda t: [torch.ones(100)], 1)
    assert (room[10:] == 7).all()


@pytest.mark.parametrize(
    ("options", "there"), [({}, "cpu"), ({"capturable": True}, "meta"), ({"fused": True}, "meta"), ({"lr": 1.0}, "cpu")]
)
def test_a_step_count_is_loaded_to_where_a_new_one_would_be(options: dict[str, Any], there: str) -> None:
    """Wherever it was saved; the meta device stands in for another one than the host."""
    p = torch.empty(3, device="meta", requires_grad=True)
    opt = FAdam([p], **options)
    entry = {"step": torch.tensor(4.0), "momentum": torch.zeros(3), "fim": torch.ones(3)}
    opt.load_state_dict({**opt.state_dict(), "state": {0: entry}})
    assert opt.state[p]["step"].device.type == there
    assert initial_state(p, Options(**options))["step"].device.type == there
    assert opt.state[p]["fim"].device.type == "meta"
    q = torch.ones(3, requires_grad=True)
    other = FAdam([q], **options)
    with torch.device("meta"):
        other.load_state_dict({**other.state_dict(), "state": {0: {**entry, "step": 4}}})
    assert (other.state[q]["step"].item(), other.state[q]["step"].device.type) == (4.0, "cpu")


@pytest.mark.parametrize("path", PATHS)
def test_a_state_of_the_shape_before_a_transposition_is_refused(path: str) -> None:
    """It has as many elements, so that addresses alone would pair them wrongly."""
    (p,) = params = leaves([torch.ones(2, 3)])
    opt = FAdam(params, **PATHS[path])
    run(opt, params, lambda t: [torch.arange(6.0).view(2, 3)], 1)
    p.grad = None
    p.data = p.data.t().contiguous()
    before = [p.detach().clone(), *(x.clone() for x in opt.state[p].values())]
    with pytest.raises(RuntimeError, match="its parameter's shape"):
        run(opt, params, lambda t: [torch.ones(3, 2)], 1)
    torch.testing.assert_close([p.detach(), *opt.state[p].values()], before, rtol=0, atol=0)


@pytest.mark.parametrize("entry", [torch.tensor([7]), 3, {"decay": 0.9}], ids=str)
def test_entries_that_belong_to_no_parameter_are_kept(entry: Any) -> None:
    params = leaves([torch.ones(3)])
    opt = FAdam(params)
    run(opt, params, lambda t: [torch.ones(3)], 1)
    opt.state["k"] = entry  # type: ignore[index]
    other = FAdam(leaves(params))
    other.load_state_dict(through_file(opt.state_dict()))
    assert other.state["k"] == entry  # type: ignore[index]
    assert len(other.state) == 2
    run(other, other.param_groups[0]["params"], lambda t: [torch.ones(3)], 1)


def test_a_hook_on_saving_may_return_anything() -> None:
    opt = FAdam([torch.ones(3)], fim_dtype=torch.float32)
    seen: list[Any] = []
    handle = opt.register_state_dict_post_hook(
        lambda _, d: seen.append(d["param_groups"][0]["fim_dtype"]) or {"mine": d}
    )
    assert list(opt.state_dict()) == ["mine"]
    handle.remove()
    assert seen == ["float32"]
    assert list(opt.state_dict()) == ["state", "param_groups"]
