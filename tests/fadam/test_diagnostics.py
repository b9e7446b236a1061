"""diagnose: its numbers against the definition, and that it changes nothing."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch

from fadam import FAdam, diagnose
from tests.fadam.cases import PATHS, leaves, run, tensors

KEYS = {
    "update_rms", "update_rms_max", "update_rms_clipped", "clipped_update", "clipped_decay", "eps_min", "eps_median",
    "eps_max", "eps_adapted", "eps_dominated", "fim_q01", "fim_q50", "fim_q99",
}  # fmt: skip


def test_by_hand() -> None:
    """Step 1: f = g^2. eps = 0.5, eps2 = 0.25, rho = 0.5, clip = 0.5."""
    small, large = leaves([torch.full((2,), 10.0), torch.full((2,), 1.0)])
    opt = FAdam([small, large], eps=0.5, eps2=0.25, clip=0.5, weight_decay=0.1)
    small.grad, large.grad = torch.tensor([1.0, -1.0]), torch.tensor([0.0, 4.0 * math.sqrt(2)])
    # RMS(g) = 1 and 4: eps_t = 0.25 and 0.5 (where 1 is more). n = (0.8, -0.8); (0, 0.9188), RMS 0.6497.
    second = 4 * math.sqrt(2) / (4 * math.sqrt(2) + 0.5) / math.sqrt(2)
    got = diagnose(opt)
    assert set(got) == KEYS
    assert all(type(x) is float for x in got.values())
    expected = {
        "update_rms": math.sqrt((0.8**2 + second**2) / 2),
        "update_rms_max": 0.8,
        "update_rms_clipped": 0.5,
        "clipped_update": 1.0,
        "clipped_decay": 1.0,  # w = (8, 8); (2, ...)
        "eps_min": 0.25,
        "eps_median": 0.375,
        "eps_max": 0.5,
        "eps_adapted": 0.5,
        "eps_dominated": 0.25,  # the entry with f = 0
        "fim_q50": 1.0,
    }
    for name, value in expected.items():
        assert got[name] == pytest.approx(value, rel=1e-6), name
    assert 0 <= got["fim_q01"] < got["fim_q50"] < got["fim_q99"] <= 32.0001


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(
    "switches",
    [
        {},
        {"momentum_mode": "gradient", "correct_momentum": True, "eps_mode": "fixed"},
        {"clip": None, "eps_mode": "scaled", "decay_mode": "decoupled"},
        {"fim_dtype": torch.bfloat16, "maximize": True},
    ],
)
def test_it_describes_the_next_step_and_changes_nothing(path: str, switches: dict[str, Any]) -> None:
    params = leaves(tensors(torch.float32, seed=1000))
    opt = FAdam(params, lr=0.1, weight_decay=0.0, betas=(0.0, 0.99), **switches, **PATHS[path])
    for p in params:
        p.grad = torch.ones_like(p)
    diagnose(opt)
    assert not opt.state  # not even initialised
    run(opt, params, lambda t: tensors(seed=t), 3)
    for p, g in zip(params, tensors(torch.float32, seed=9, scale=30.0), strict=True):
        p.grad = g
    before = copy.deepcopy((params, [p.grad for p in params], opt.state_dict()))
    got = diagnose(opt)
    assert set(got) == KEYS
    assert all(math.isfinite(x) for x in got.values())
    after = (params, [p.grad for p in params], opt.state_dict())
    torch.testing.assert_close(after[2]["state"], before[2]["state"], rtol=0, atol=0)
    torch.testing.assert_close(after[:2], before[:2], rtol=0, atol=0)

    # Without decay and momentum, the step is lr times the clipped n.
    opt.step()
    moved = torch.cat([((p - q) / 0.1).detach().flatten() for p, q in zip(params, before[0], strict=True)])
    assert got["update_rms_clipped"] == pytest.approx(moved.square().mean().sqrt().item(), rel=1e-4)


def test_without_gradients_there_is_nothing_to_say() -> None:
    p = torch.ones(3, requires_grad=True)
    empty = torch.ones(0, requires_grad=True)
    empty.grad = torch.ones(0)
    assert diagnose(FAdam([p, empty])) == {}


def test_complex_and_low_precision_parameters_in_groups_of_their_own() -> None:
    params = leaves([torch.ones(3, dtype=torch.complex64), torch.ones(100, dtype=torch.bfloat16)])
    opt = FAdam([{"params": [params[0]], "eps": 1e-3}, {"params": [params[1]]}])
    params[0].grad, params[1].grad = torch.full_like(params[0], 1j), torch.ones_like(params[1])
    got = diagnose(opt)
    assert got["eps_min"] == pytest.approx(1e-8)
    assert got["eps_max"] == pytest.approx(1e-3)
    assert got["eps_dominated"] == pytest.approx(3 / 106)  # the real parts of the gradient are 0


def test_quantiles_come_from_a_bounded_sample() -> None:
    (p,) = leaves([torch.ones(300_000)])
    opt = FAdam([p])
    p.grad = torch.linspace(0, 1, 300_000)
    got = diagnose(opt)
    for name, q in (("fim_q01", 0.01), ("fim_q50", 0.5), ("fim_q99", 0.99)):
        assert got[name] == pytest.approx(q**2, rel=1e-2)


def test_gradients_of_zero_are_described_too() -> None:
    (p,) = leaves([torch.ones(3)])
    p.grad = torch.zeros(3)
    got = diagnose(FAdam([p]))
    assert got["update_rms"] == got["eps_max"] == got["eps_dominated"] == got["clipped_decay"] == 0.0
    assert got["eps_adapted"] == 1.0


def test_the_sample_of_the_quantiles_visits_every_column_alike() -> None:
    (p,) = leaves([torch.ones(4096, 256)])
    p.grad = torch.ones(4096, 256)
    p.grad[:, 0] = 1e-6
    got = diagnose(FAdam([p], clip=None))
    assert got["fim_q50"] == got["fim_q99"] == pytest.approx(1.0)
    p.grad[:, :8] = 1e-6
    got = diagnose(FAdam([p], clip=None))
    assert got["fim_q01"] == pytest.approx(1e-12)


def test_what_others_keep_in_the_state_is_let_be() -> None:
    (p,) = leaves([torch.ones(3)])
    opt = FAdam([p])
    p.grad = torch.ones(3)
    plain = diagnose(opt)
    opt.state[p]["theirs"] = 1
    assert diagnose(opt) == plain
