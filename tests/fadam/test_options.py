"""Options: what is refused, with which words, and what is kept of them."""

from __future__ import annotations

import inspect
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from fadam import FAdam, Options
from fadam.options import DEFAULTS, RENAMED
from tests.fadam.cases import PATHS, leaves, run, tensors

REFUSED: list[tuple[str, Any, str]] = [
    ("lr", -1e-3, "finite number >= 0"),
    ("lr", math.nan, "finite number >= 0"),
    ("lr", math.inf, "finite number >= 0"),
    ("lr", "1e-3", "finite number >= 0"),
    ("lr", None, "finite number >= 0"),
    ("lr", True, "finite number >= 0"),
    ("lr", torch.ones(2), "one-element"),
    ("lr", torch.tensor(-0.1), "finite number >= 0"),
    ("lr", torch.tensor([math.nan]), "finite number >= 0"),
    ("lr", torch.ones((), dtype=torch.int64), "one-element"),
    ("betas", (0.9, 1.0), "two numbers in [0, 1)"),
    ("betas", (-0.1, 0.999), "two numbers in [0, 1)"),
    ("betas", (0.9, math.nan), "two numbers in [0, 1)"),
    ("betas", (0.9,), "two numbers in [0, 1)"),
    ("betas", (0.9, 0.99, 0.999), "two numbers in [0, 1)"),
    ("betas", 0.9, "two numbers in [0, 1)"),
    ("eps", -1e-8, "finite number >= 0"),
    ("eps", math.inf, "finite number >= 0"),
    ("eps", None, "finite number >= 0"),
    ("eps2", -0.01, "finite number >= 0"),
    ("eps2", math.nan, "finite number >= 0"),
    ("clip", 0.0, "finite number > 0, or None"),
    ("clip", -1.0, "finite number > 0, or None"),
    ("clip", math.inf, "finite number > 0, or None"),
    ("clip", False, "finite number > 0, or None"),
    ("fim_rho", 0.0, "(0, 1]"),
    ("fim_rho", 1.01, "(0, 1]"),
    ("weight_decay", -0.1, "finite number >= 0"),
    ("eps_mode", "adaptative", "'adaptive', 'scaled', 'fixed'"),
    ("eps_mode", None, "'adaptive', 'scaled', 'fixed'"),
    ("momentum_mode", 0.9, "'natural', 'gradient'"),
    ("decay_mode", "coupled", "'natural', 'decoupled'"),
    ("correct_momentum", 1, "True or False"),
    ("maximize", None, "True or False"),
    ("capturable", "yes", "True or False"),
    ("differentiable", 0, "True or False"),
    ("foreach", "auto", "True, False or None"),
    ("fused", 1, "True, False or None"),
    ("stochastic_rounding", None, "True or False"),
    ("momentum_dtype", "bfloat", "torch.bfloat16"),
    ("momentum_dtype", "int8", "torch.bfloat16"),
    ("fim_dtype", torch.int8, "torch.bfloat16"),
    ("fim_dtype", torch.complex64, "torch.bfloat16"),
]


def ids(value: Any) -> str:
    return str(value)


@pytest.mark.parametrize(("name", "value", "allowed"), REFUSED, ids=ids)
def test_refused(name: str, value: Any, allowed: str) -> None:
    for build in (
        lambda: FAdam([torch.zeros(2)], **{name: value}),
        lambda: FAdam([{"params": [torch.zeros(2)], name: value}]),
        lambda: Options(**{name: value}),
    ):
        with pytest.raises(ValueError, match="FAdam: ") as refusal:
            build()
        words = str(refusal.value)
        assert f"{name}={value!r}" in words
        assert allowed in words


def test_a_refused_group_is_not_added() -> None:
    opt = FAdam([torch.zeros(2)])
    with pytest.raises(ValueError, match="fim_rho=2"):
        opt.add_param_group({"params": [torch.zeros(2)], "fim_rho": 2})
    assert len(opt.param_groups) == 1


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("foreach", "differentiable"),
        ("fused", "differentiable"),
        ("stochastic_rounding", "differentiable"),
        ("fused", "foreach"),
    ],
)
def test_options_that_exclude_each_other(one: str, other: str) -> None:
    for build in (Options, lambda **both: FAdam([torch.zeros(2)], **both)):
        with pytest.raises(ValueError, match=f"{one}=True is not allowed; .* with {other}=True"):
            build(**{one: True, other: True})


def test_unknown_options_are_refused() -> None:
    with pytest.raises(TypeError, match="beta2"):
        FAdam([torch.zeros(2)], beta2=0.9)


@pytest.mark.parametrize(("old", "name"), RENAMED.items())
def test_an_old_name_is_refused_with_its_name_of_today(old: str, name: str) -> None:
    with pytest.raises(TypeError, match=f"no option {old}; its name is {name}"):
        FAdam([torch.zeros(2)], **{old: DEFAULTS[name]})


@pytest.mark.parametrize(
    ("old", "value", "name"), [("momentum", "gradient", "momentum_mode"), ("decay", "decoupled", "decay_mode")]
)
def test_an_old_name_in_a_group_is_refused(old: str, value: str, name: str) -> None:
    with pytest.raises(ValueError, match=f"{old}='{value}' in a parameter group sets nothing; its name is {name}"):
        FAdam([{"params": [torch.zeros(2)], old: value}])


FOREIGN: dict[str, Any] = {"momentum": 0.9, "rho": 0.05, "decay": 0.1, "adaptive": True}


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("when", ["before", "after"])
def test_what_others_write_into_groups_changes_nothing(path: str, when: str) -> None:
    """Warm-ups of the momentum set `momentum`, SGD's; wrappers as SAM build their optimizer over groups with `rho`."""
    params, others = leaves(tensors()), leaves(tensors())
    opt, other = FAdam(params, **PATHS[path]), FAdam(others, **PATHS[path])
    if when == "before":
        other = FAdam([{"params": others, **FOREIGN}], **PATHS[path])
    for t in range(3):
        other.param_groups[0].update({k: v * t for k, v in FOREIGN.items()})
        run(opt, params, lambda _, t=t: tensors(seed=t), 1)
        run(other, others, lambda _, t=t: tensors(seed=t), 1)
        fresh = FAdam(others, **PATHS[path])
        fresh.load_state_dict(other.state_dict())
        assert fresh.param_groups[0].items() >= {k: v * t for k, v in FOREIGN.items()}.items()
        other = fresh
    torch.testing.assert_close(params, others, rtol=0, atol=0)


@pytest.mark.parametrize(("name", "value", "allowed"), REFUSED, ids=ids)
def test_refused_in_a_step_and_when_loading(name: str, value: Any, allowed: str) -> None:
    def opt() -> FAdam:
        params = leaves([torch.ones(2), torch.ones(3)])
        one = FAdam([{"params": [p]} for p in params])
        run(one, params, lambda t: [torch.ones_like(p) for p in params], 1)
        return one

    one = opt()
    before = [p.detach().clone() for group in one.param_groups for p in group["params"]]
    one.param_groups[1][name] = value
    if not isinstance(value, Tensor) or value.numel() > 1 or not value.is_floating_point():  # a number on a device
        with pytest.raises(ValueError, match="FAdam: ") as refusal:
            one.step()
        assert f"{name}={value!r}" in str(refusal.value)
        assert allowed in str(refusal.value)
    torch.testing.assert_close([p.detach() for group in one.param_groups for p in group["params"]], before)

    state_dict, other = opt().state_dict(), opt()
    state_dict["param_groups"][1][name] = value
    expected = other.state_dict()
    with pytest.raises(ValueError, match="FAdam: ") as refusal:
        other.load_state_dict(state_dict)
    assert f"{name}={value!r}" in str(refusal.value)
    assert str(other.state_dict()) == str(expected)


def test_options_are_looked_at_again_when_they_change_only(monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[int] = []
    params = leaves([torch.ones(2)])
    opt = FAdam(params)
    check = Options.__post_init__
    monkeypatch.setattr(Options, "__post_init__", lambda self: looked.append(1) or check(self))
    for t in range(4):
        opt.param_groups[0]["lr"] = 0.1 * t
        run(opt, params, lambda _: [torch.ones(2)], 1)
    assert len(looked) == 1
    opt.param_groups[0]["betas"] = [0.5, 0.9]
    run(opt, params, lambda _: [torch.ones(2)], 1)
    opt.param_groups[0]["betas"][0] = 1.0  # the same list
    with pytest.raises(ValueError, match=r"betas=\[1\.0, 0\.9\]"):
        opt.step()


def test_edges_are_allowed() -> None:
    FAdam([torch.zeros(2)], lr=0, betas=(0, 0), eps=0, eps2=0, clip=None, fim_rho=1, weight_decay=0)
    FAdam([torch.zeros(2)], lr=torch.tensor([0.1]))


def test_defaults_are_the_papers_and_one_list() -> None:
    signature = inspect.signature(FAdam.__init__).parameters
    defaults = {k: p.default for k, p in signature.items() if k not in ("self", "params", "unknown")}
    assert defaults == DEFAULTS
    assert FAdam([torch.zeros(2)]).defaults == DEFAULTS
    papers = {"betas": (0.9, 0.999), "eps": 1e-8, "eps2": 0.01, "clip": 1.0, "weight_decay": 1e-3, "fim_rho": 0.5}
    assert {k: defaults[k] for k in papers} == papers


def test_numbers_of_other_kinds_become_floats() -> None:
    """So that a state dict loads with weights_only=True whatever a config handed over."""
    opt = FAdam([{"params": [torch.zeros(2)], "eps": np.float32(0.5)}], lr=np.float64(0.1), betas=[0, np.float64(0.5)])
    (group,) = opt.param_groups
    assert [type(group[k]) for k in ("lr", "eps")] == [float, float]
    assert group["betas"] == (0.0, 0.5)
    assert [type(b) for b in group["betas"]] == [float, float]


@pytest.mark.parametrize("name", ["momentum_dtype", "fim_dtype"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_dtypes_by_name(name: str, dtype: torch.dtype) -> None:
    """As a config has them."""
    opt = FAdam([{"params": [torch.zeros(2)], name: str(dtype).removeprefix("torch.")}], **{name: "float32"})
    assert opt.param_groups[0][name] is dtype
    opt.add_param_group({"params": [torch.zeros(2)]})
    assert opt.param_groups[1][name] is opt.defaults[name] is torch.float32
