"""Each correction of the paper is one switch; with all of them turned back FAdam is AdamW."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch

from fadam import FAdam
from tests.fadam.cases import PATHS, leaves, run, tensors

TURNED_BACK: dict[str, Any] = {
    "eps_mode": "fixed",
    "momentum_mode": "gradient",
    "decay_mode": "decoupled",
    "correct_momentum": True,
    "clip": None,
}


OTHER: dict[str, Any] = {"lr": 0.02, "betas": (0.95, 0.9), "eps": 1e-3, "weight_decay": 0.3}
FLOAT64, FLOAT32 = {"rtol": 1e-10, "atol": 1e-11}, {"rtol": 1e-4, "atol": 2e-5}


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(
    ("dtype", "tolerance", "options"),
    [
        pytest.param(torch.float64, FLOAT64, {}, id="defaults"),
        pytest.param(torch.float64, FLOAT64, OTHER, id="other"),
        pytest.param(torch.float32, FLOAT32, OTHER, id="other, float32"),
        pytest.param(torch.float64, FLOAT64, {"betas": (0.0, 0.99), "weight_decay": 0.0}, id="beta1 0"),
        pytest.param(torch.float64, FLOAT64, {"betas": (0.9, 0.0), "eps": 1e-2}, id="beta2 0"),
        pytest.param(torch.float64, FLOAT64, {"maximize": True}, id="maximize"),
    ],
)
def test_all_turned_back_is_adamw(
    path: str, dtype: torch.dtype, tolerance: dict[str, float], options: dict[str, Any]
) -> None:
    values = tensors(dtype, seed=1000)
    ours, theirs = leaves(values), leaves(values)
    opt = FAdam(ours, **{"weight_decay": 0.01, **options}, **TURNED_BACK, **PATHS[path])
    adamw = torch.optim.AdamW(theirs, **{"weight_decay": 0.01, **options}, foreach=False)
    for t in range(1, 251):
        gradients = tensors(dtype, seed=t, scale=10.0 ** (-(t % 5)))
        for p, q, g in zip(ours, theirs, gradients, strict=True):
            p.grad = q.grad = g + 0.1 * p.detach()
        opt.step()
        adamw.step()
        if t in (1, 2, 250):
            for p, q in zip(ours, theirs, strict=True):
                torch.testing.assert_close(p, q, **tolerance)


def in_plain_python(theta: list[float], gradients: list[list[float]], **options: Any) -> list[float]:
    """The step in floats, one entry after another, with every switch; written apart from the torch code."""
    lr, beta1, beta2, eps, eps2, lam, rho = 0.1, 0.6, 0.8, options["eps"], 0.3, 0.2, 0.5
    clip = options["clip"] or math.inf
    size = range(len(theta))

    def rms(x: list[float]) -> float:
        return math.sqrt(sum(v * v for v in x) / len(x))

    def clipped(x: list[float]) -> list[float]:
        k = max(1.0, rms(x) / clip)
        return [v / k for v in x]

    average, second = [0.0] * len(theta), [0.0] * len(theta)
    for t, g in enumerate(gradients, 1):
        second = [beta2 * second[i] + (1 - beta2) * g[i] ** 2 for i in size]
        e = {"adaptive": min(eps, eps2 * rms(g)), "scaled": eps * min(1.0, rms(g)), "fixed": eps}[options["eps_mode"]]
        d = [(second[i] / (1 - beta2**t)) ** rho + e ** (2 * rho) for i in size]
        incoming = g if options["momentum_mode"] == "gradient" else clipped([g[i] / d[i] for i in size])
        average = [beta1 * average[i] + (1 - beta1) * incoming[i] for i in size]
        step = [v / (1 - beta1**t) for v in average] if options["correct_momentum"] else average
        if options["momentum_mode"] == "gradient":
            step = clipped([step[i] / d[i] for i in size])
        if options["decay_mode"] == "decoupled":
            theta = [(1 - lr * lam) * v for v in theta]
            theta = [theta[i] - lr * step[i] for i in size]
        else:
            w = clipped([theta[i] / d[i] for i in size])
            theta = [theta[i] - lr * step[i] - lr * lam * w[i] for i in size]
    return theta


# RMS(g) is between 0.1 and 3, so that with these eps each branch of min(...) is taken.
GRADIENTS = [[0.3, -0.1, 0.2], [-4.0, 2.0, 3.0], [0.01, 0.2, -0.02], [1.0, 1.0, -1.0], [0.0, -0.5, 0.1]]
ROAD = list(
    itertools.product(
        ("adaptive", "scaled", "fixed"),
        ("natural", "gradient"),
        ("natural", "decoupled"),
        (False, True),
        (0.4, 0.2, None),
    )
)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("eps", [0.15, 1e-8])
def test_every_combination_against_plain_python(path: str, eps: float) -> None:
    start = [1.0, -2.0, 0.5]
    for eps_mode, momentum, decay, correct_momentum, clip in ROAD:
        options: dict[str, Any] = {
            "eps": eps,
            "eps_mode": eps_mode,
            "momentum_mode": momentum,
            "decay_mode": decay,
            "correct_momentum": correct_momentum,
            "clip": clip,
        }
        (p,) = params = leaves([torch.tensor(start, dtype=torch.float64)])
        opt = FAdam(params, lr=0.1, betas=(0.6, 0.8), eps2=0.3, weight_decay=0.2, **options, **PATHS[path])
        run(opt, params, lambda t: [torch.tensor(GRADIENTS[t - 1], dtype=torch.float64)], len(GRADIENTS))
        assert p.tolist() == pytest.approx(in_plain_python(start, GRADIENTS, **options), rel=1e-12, abs=1e-13), options


def test_every_switch_changes_the_result() -> None:
    """Otherwise an ablation would compare a thing with itself."""
    results = []
    for eps_mode, momentum, decay, correct_momentum, clip in ROAD:
        options = {
            "eps_mode": eps_mode,
            "momentum_mode": momentum,
            "decay_mode": decay,
            "correct_momentum": correct_momentum,
        }
        results.append(tuple(in_plain_python([1.0, -2.0, 0.5], GRADIENTS, eps=0.15, clip=clip, **options)))
    assert len(set(results)) == len(ROAD)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("options", [{}, TURNED_BACK], ids=["paper", "adamw"])
def test_maximize_is_the_step_on_the_negative_gradient(path: str, options: dict[str, Any]) -> None:
    values = tensors(seed=1000)
    up, down = leaves(values), leaves(values)
    run(FAdam(up, maximize=True, **options, **PATHS[path]), up, lambda t: tensors(seed=t), 10)
    run(FAdam(down, **options, **PATHS[path]), down, lambda t: [-g for g in tensors(seed=t)], 10)
    for p, q in zip(up, down, strict=True):
        torch.testing.assert_close(p, q, rtol=0, atol=0)
