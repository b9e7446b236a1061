"""The oracle: the identities of the algorithm, and numbers worked out by hand."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from fadam import FAdam
from fadam.reference import State, reference_step, rms
from tests.fadam.cases import PATHS, leaves, run


def normals(t: int, shape: tuple[int, ...] = (4, 3), scale: float = 1.0) -> Tensor:
    return scale * torch.randn(shape, generator=torch.Generator().manual_seed(t), dtype=torch.float64)


@pytest.mark.parametrize("beta2", [0.0, 0.5, 0.9, 0.999])
@pytest.mark.parametrize("f0", [0.0, 1.0, 1e6])
def test_fim_is_adams_corrected_second_moment(beta2: float, f0: float) -> None:
    theta = normals(0)
    state = State(m=torch.zeros_like(theta), f=torch.full_like(theta, f0))
    v = torch.zeros_like(theta)
    for t in range(1, 60):
        g = normals(t)
        theta, state = reference_step(theta, g, state, beta2=beta2)
        v = beta2 * v + (1 - beta2) * g**2
        torch.testing.assert_close(state.f, v / (1 - beta2**t), rtol=1e-10, atol=0)


@pytest.mark.parametrize("path", PATHS)
def test_fim_of_the_class_is_adams_corrected_second_moment(path: str) -> None:
    theta = normals(0)
    (p,) = leaves([theta])
    opt = FAdam([p], **PATHS[path])
    run(opt, [p], lambda t: [normals(t)], 1)
    opt.state[p]["fim"].fill_(1e6)
    opt.state[p]["step"].zero_()  # whatever f_0 is
    v = torch.zeros_like(theta)
    for t in range(1, 60):
        run(opt, [p], lambda _, t=t: [normals(t)], 1)
        v = 0.999 * v + 0.001 * normals(t) ** 2
        torch.testing.assert_close(opt.state[p]["fim"], v / (1 - 0.999**t), rtol=1e-10, atol=0)


def test_without_momentum_clip_decay_and_epsilon_a_step_is_adams() -> None:
    theta = normals(0)
    (p,) = leaves([theta])
    adam = torch.optim.Adam([p], lr=0.01, betas=(0.0, 0.99), eps=0.0)
    state = State.initial(theta)
    for t in range(1, 100):
        theta, state = reference_step(
            theta, normals(t), state, eta=0.01, beta1=0.0, beta2=0.99, eps=0.0, c=math.inf, lam=0.0
        )
        p.grad = normals(t)
        adam.step()
        torch.testing.assert_close(theta, p.detach(), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e12])
def test_first_step_is_the_sign(scale: float) -> None:
    g = normals(1, scale=scale)
    _, state = reference_step(normals(0), g, State.initial(g), beta1=0.0, eps=0.0)
    torch.testing.assert_close(state.m, g.sign(), rtol=1e-12, atol=0)
    assert math.isclose(rms(state.m).item(), 1.0, rel_tol=1e-12)


@pytest.mark.parametrize(
    ("scale", "options"),
    [
        pytest.param(1e-7, {"eps": 1e-3}, id="adaptive epsilon in force"),
        pytest.param(1.0, {"eps": 1e-300}, id="epsilon negligible"),
    ],
)
@pytest.mark.parametrize("k", [1e-3, 0.5, 7.0])
def test_scaling_the_gradients_changes_nothing(scale: float, options: dict[str, Any], k: float) -> None:
    plain = scaled = normals(0)
    state, other = State.initial(plain), State.initial(plain)
    for t in range(1, 30):
        plain, state = reference_step(plain, normals(t, scale=scale), state, lam=0.0, **options)
        scaled, other = reference_step(scaled, k * normals(t, scale=scale), other, lam=0.0, **options)
        torch.testing.assert_close(state.m, other.m, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("path", PATHS)
def test_scaling_the_gradients_changes_nothing_in_the_class(path: str) -> None:
    small, large = leaves([normals(0)] * 2)
    opt = FAdam([small, large], eps=1e-3, weight_decay=0.0, **PATHS[path])
    run(opt, [small, large], lambda t: [normals(t, scale=1e-9), normals(t, scale=1e-6)], 50)
    torch.testing.assert_close(small, large, rtol=1e-9, atol=1e-12)


def test_two_steps_by_hand() -> None:
    """theta = (3, 4), beta1 = 0.5, beta2 = 0.75, eps = 1, eps2 = 0.5, c = 0.5, lambda = 0.1, rho = 0.5, eta = 1."""
    options = {"eta": 1.0, "beta1": 0.5, "beta2": 0.75, "eps": 1.0, "eps2": 0.5, "c": 0.5, "lam": 0.1}
    theta = torch.tensor([3.0, 4.0], dtype=torch.float64)

    # t = 1, g = (1, 1): f = 1, RMS(g) = 1, eps_1 = 0.5, d = 1.5, n = 2/3 clipped to 0.5, m = 0.25.
    # w = (2, 8/3), RMS = sqrt((4 + 64/9) / 2), clipped to an RMS of 0.5: (3, 4) 0.5 / sqrt(12.5).
    theta, state = reference_step(theta, torch.ones_like(theta), State.initial(theta), **options)
    first = [x - 0.25 - 0.1 * x * 0.5 / math.sqrt(12.5) for x in (3.0, 4.0)]
    assert theta.tolist() == pytest.approx(first, rel=1e-14)

    # t = 2, g = (0, 2): beta2_2 = 0.75 0.25 / 0.4375 = 3/7, f = (3/7, 3/7 + 16/7), RMS(g) = sqrt(2), eps_2 = sqrt(2)/2.
    theta, state = reference_step(theta, torch.tensor([0.0, 2.0], dtype=torch.float64), state, **options)
    d = [math.sqrt(3 / 7) + math.sqrt(0.5), math.sqrt(19 / 7) + math.sqrt(0.5)]
    n = min(2 / d[1], 0.5 * math.sqrt(2))  # RMS of (0, n) is n / sqrt(2), clipped at 0.5
    assert n < 2 / d[1]
    m = [0.125, 0.125 + 0.5 * n]
    w = [first[0] / d[0], first[1] / d[1]]
    k = 0.5 / math.sqrt((w[0] ** 2 + w[1] ** 2) / 2)
    assert k < 1
    assert state.f.tolist() == pytest.approx([3 / 7, 19 / 7], rel=1e-14)
    assert theta.tolist() == pytest.approx([first[i] - m[i] - 0.1 * k * w[i] for i in (0, 1)], rel=1e-14)


def test_where_the_metric_is_zero_nothing_moves() -> None:
    theta, state = reference_step(
        normals(0), torch.zeros(4, 3, dtype=torch.float64), State.initial(normals(0)), lam=0.1
    )
    torch.testing.assert_close(theta, normals(0), rtol=0, atol=0)
    assert not state.m.any()
