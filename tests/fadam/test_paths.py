"""Every path against the oracle: shapes, dtypes, strides, options, many steps, gradients from tiny to huge."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from fadam import FAdam, Options, fadam
from fadam.bookkeeping import Tensors
from fadam.foreach import ForeachBackend
from fadam.reference import State, reference_step
from tests.fadam.cases import PATHS, leaves, run, run_reference, tensors

# In FAdam's words and in the paper's.
OPTIONS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "defaults": ({}, {}),
    "decay": ({"lr": 0.03, "weight_decay": 0.5}, {"eta": 0.03, "lam": 0.5}),
    "no decay": ({"weight_decay": 0.0}, {"lam": 0.0}),
    "clip 0.5": ({"clip": 0.5}, {"c": 0.5}),
    "clip 2": ({"clip": 2.0}, {"c": 2.0}),
    "no clip": ({"clip": None}, {"c": math.inf}),
    "rho 0.25": ({"fim_rho": 0.25}, {"rho": 0.25}),
    "rho 0.7": ({"fim_rho": 0.7}, {"rho": 0.7}),
    "rho 1": ({"fim_rho": 1.0}, {"rho": 1.0}),
    "eps large": ({"eps": 0.5}, {"eps": 0.5}),
    "eps large, rho 1": ({"eps": 0.5, "fim_rho": 1.0}, {"eps": 0.5, "rho": 1.0}),
    "eps 0": ({"eps": 0.0}, {"eps": 0.0}),
    "eps2 large": ({"eps": 1.0, "eps2": 3.0}, {"eps": 1.0, "eps2": 3.0}),
    "betas": ({"betas": (0.5, 0.9)}, {"beta1": 0.5, "beta2": 0.9}),
    "beta1 0": ({"betas": (0.0, 0.999)}, {"beta1": 0.0}),
    "beta2 0": ({"betas": (0.9, 0.0)}, {"beta2": 0.0}),
    "betas 0": ({"betas": (0.0, 0.0)}, {"beta1": 0.0, "beta2": 0.0}),
}


def changing(t: int) -> list[Tensor]:
    """Gradients whose scale wanders over ten orders of magnitude, with zeros among them."""
    grads = [g.clone() for g in tensors(seed=t, scale=10.0 ** (-5 + (7 * t) % 11))]
    for g in grads:
        if g.dim() > 0:
            g[::3] = 0
    return grads


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("case", OPTIONS)
def test_float64(path: str, case: str) -> None:
    options, symbols = OPTIONS[case]
    values = tensors(seed=1000)
    params = leaves(values)
    run(FAdam(params, **options, **PATHS[path]), params, changing, 40)
    for p, theta in zip(params, run_reference(values, changing, 40, **symbols), strict=True):
        torch.testing.assert_close(p.detach(), theta, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("scale", [1e-17, 1e-9, 1.0, 1e9, 1e17])
@pytest.mark.parametrize("rho", [0.5, 0.4])
def test_float32_small_and_large_gradients(path: str, scale: float, rho: float) -> None:
    values = tensors(torch.float32, seed=1000)
    params = leaves(values)

    def gradients(t: int) -> Sequence[Tensor]:
        return tensors(torch.float32, seed=t, scale=scale)

    run(FAdam(params, lr=0.01, weight_decay=0.1, fim_rho=rho, **PATHS[path]), params, gradients, 60)
    expected = run_reference(values, gradients, 60, eta=0.01, lam=0.1, rho=rho)
    for p, theta in zip(params, expected, strict=True):
        torch.testing.assert_close(p.detach().double(), theta, rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_parameters_are_rounded_once_a_step(path: str, dtype: torch.dtype) -> None:
    values = tensors(dtype, seed=1000)
    params = leaves(values)
    options = {"momentum_dtype": torch.float32, "fim_dtype": torch.float32}
    run(FAdam(params, lr=0.01, weight_decay=0.1, **options, **PATHS[path]), params, changing_small, 50)
    expected = run_reference(values, changing_small, 50, dtype, eta=0.01, lam=0.1)
    different = sum((p.detach().double() != theta).sum().item() for p, theta in zip(params, expected, strict=True))
    # float32 and float64 round to neighbours now and then, and never further apart than that.
    assert different <= 0.1 * sum(p.numel() for p in params)
    for p, theta in zip(params, expected, strict=True):
        torch.testing.assert_close(p.detach().double(), theta, rtol=3 * torch.finfo(dtype).eps, atol=1e-3)


def changing_small(t: int) -> Sequence[Tensor]:
    return tensors(seed=t, scale=10.0 ** (-(t % 4)))


@pytest.mark.parametrize("path", PATHS)
def test_states_of_low_precision(path: str) -> None:
    """One step from known states: computed in float32, rounded when stored."""
    params = leaves([torch.linspace(-1, 1, 9)])
    opt = FAdam(params, momentum_dtype=torch.bfloat16, fim_dtype=torch.float16, **PATHS[path])
    run(opt, params, lambda t: [torch.linspace(-3, 2, 9)], 3)
    before = {k: v.double() for k, v in opt.state[params[0]].items()}
    theta, g = params[0].detach().double(), torch.linspace(1, 2, 9)
    run(opt, params, lambda t: [g], 1)
    theta, state = reference_step(theta, g.double(), State(before["momentum"], before["fim"], 3))
    torch.testing.assert_close(params[0].detach(), theta.float(), rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(opt.state[params[0]]["momentum"], state.m.float().bfloat16(), rtol=0, atol=0)
    torch.testing.assert_close(opt.state[params[0]]["fim"], state.f.float().half(), rtol=0, atol=0)


@pytest.mark.parametrize("path", PATHS)
def test_complex_parameters_are_their_real_views(path: str) -> None:
    values = tensors(torch.complex128, seed=1000)
    values = [x + 1j * y for x, y in zip(values, tensors(seed=7), strict=True)]
    params, views = leaves(values), leaves([torch.view_as_real(x) for x in values])
    run(FAdam(params, **PATHS[path]), params, lambda t: [x * (1 - 2j) + t for x in tensors(seed=t)], 20)
    gradients = lambda t: [torch.view_as_real(x * (1 - 2j) + t) for x in tensors(seed=t)]  # noqa: E731
    run(FAdam(views, foreach=False), views, gradients, 20)
    for p, view in zip(params, views, strict=True):
        torch.testing.assert_close(torch.view_as_real(p.detach()), view.detach(), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("path", PATHS)
def test_mixed_dtypes_in_one_group(path: str) -> None:
    values = [torch.linspace(-1, 1, 6).to(dtype) for dtype in (torch.float32, torch.float64, torch.bfloat16)]
    together, alone = leaves(values), leaves(values)
    gradients = lambda t: [torch.linspace(-t, 2, 6, dtype=torch.float64)] * 3  # noqa: E731
    run(FAdam(together, **PATHS[path]), together, gradients, 5)
    for p, q in zip(together, alone, strict=True):
        run(FAdam([q], foreach=False), [q], lambda t: gradients(t)[:1], 5)
        torch.testing.assert_close(p, q)


@pytest.mark.parametrize("path", PATHS)
def test_gradients_of_zero_move_nothing_and_then_are_forgotten(path: str) -> None:
    values = tensors(torch.float32, seed=1000)
    params = leaves(values)
    opt = FAdam(params, weight_decay=0.1, **PATHS[path])
    run(opt, params, lambda t: [torch.zeros_like(p) for p in params], 3)
    for p, value in zip(params, values, strict=True):
        torch.testing.assert_close(p.detach(), value, rtol=0, atol=0)
    expected = run_reference(values, lambda t: [x * (t > 3) for x in tensors(seed=t)], 6, lam=0.1)
    run(opt, params, lambda t: tensors(seed=t + 3), 3)
    for p, theta in zip(params, expected, strict=True):
        torch.testing.assert_close(p.detach().double(), theta, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("path", PATHS)
def test_untouched_rows_take_the_clip_budget_of_the_decay(path: str) -> None:
    """As published: where only eps_t is in d, w is enormous, and the touched rows hardly decay."""
    (p,) = params = leaves([torch.ones(4, 2, dtype=torch.float64)])
    g = torch.zeros(4, 2, dtype=torch.float64)
    g[0] = 1.0
    run(FAdam(params, lr=1.0, betas=(0.0, 0.9), weight_decay=0.1, **PATHS[path]), params, lambda t: [g], 1)
    untouched = math.sqrt(4 / 3)  # three rows of four share an RMS of 1
    expected = torch.tensor([[-1.0 + 1.0] * 2] + [[1 - 0.1 * untouched] * 2] * 3, dtype=torch.float64)
    n = min(1.0, math.sqrt(4))  # g / d = 1 in one row of four: RMS 0.5, not clipped
    expected[0] = 1 - n
    torch.testing.assert_close(p.detach(), expected, rtol=0, atol=1e-7)


EXTREMES = [0.0, 1e-45, 1e-40, 1e-30, 1e-22, 1e-19, 1.0, 1e15, 1e19, 1e25, 3.4e38]


@pytest.mark.parametrize("path", ["single", "foreach", "fused"])
@pytest.mark.parametrize("momentum", ["natural", "gradient"])
@pytest.mark.parametrize("eps_mode", ["adaptive", "scaled", "fixed"])
@pytest.mark.parametrize("rho", [0.2, 0.5, 1.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_finite_gradients_never_give_nan(
    path: str, momentum: str, eps_mode: str, rho: float, dtype: torch.dtype
) -> None:
    """Each order of magnitude in a tensor of its own, all in one tensor, and one after another in time."""
    row = torch.tensor([min(x, torch.finfo(dtype).max) for x in EXTREMES], dtype=dtype)
    mixed = torch.stack([row, -row.roll(3), row.flip(0)])
    for eps, correct in ((1e-8, False), (1e-30, True), (0.0, False)):
        params = leaves([*torch.ones(len(EXTREMES), 3, dtype=dtype), torch.ones_like(mixed), mixed])
        opt = FAdam(
            params, betas=(0.99, 0.5), eps=eps, fim_rho=rho, eps_mode=eps_mode, momentum_mode=momentum,
            correct_momentum=correct, weight_decay=0.1, **PATHS[path],
        )  # fmt: skip
        sizes = row
        for t in range(6):
            run(opt, params, lambda _, t=t, s=sizes: [*s[:, None].expand(-1, 3), mixed.roll(t, 1), -mixed], 1)
            sizes = sizes.roll(4) if t % 2 else 0 * sizes
            for name in ("momentum", "fim"):
                assert torch.cat([opt.state[p][name].flatten() for p in params]).isfinite().all()
            assert torch.cat([p.flatten() for p in params[:-1]]).isfinite().all()
            assert not params[-1].isnan().any()  # this one starts at the largest number there is


@pytest.mark.parametrize("path", PATHS)
def test_tiny_gradients_with_a_large_weight_keep_the_clipped_decay(path: str) -> None:
    """theta / d overflows float32 here; the clipped decay still points at 0 with an RMS of 1."""
    (p,) = params = leaves([torch.tensor([1.0, -1.0])])
    opt = FAdam(params, lr=1.0, betas=(0.0, 0.999), weight_decay=0.5, **PATHS[path])
    run(opt, params, lambda t: [torch.full((2,), 1e-38)], 1)
    # n: f is 0 in float32, so d = eps_t = 1e-40 and n = 100, clipped to 1; w is clipped to (1, -1).
    torch.testing.assert_close(p.detach(), torch.tensor([-0.5, -1.5]))


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("bad", [math.inf, -math.inf, math.nan])
@pytest.mark.parametrize("momentum", ["natural", "gradient"])
@pytest.mark.parametrize("clip", [1.0, None])
def test_a_gradient_that_is_not_finite_is_not_hidden(path: str, bad: float, momentum: str, clip: float | None) -> None:
    (p,) = params = leaves([torch.ones(3)])
    run(
        FAdam(params, momentum_mode=momentum, clip=clip, **PATHS[path]),
        params,
        lambda t: [torch.tensor([1.0, bad, 1.0])],
        1,
    )
    assert not p[1].isfinite()


@pytest.mark.parametrize("path", PATHS)
def test_clip_divides_by_the_larger_of_one_and_the_ratio(path: str) -> None:
    """With c = 0.5, a tensor whose n has an RMS under 0.5 is left alone."""
    (p,) = params = leaves([torch.zeros(4, dtype=torch.float64)])
    g = torch.tensor([1.0, 0.0, 0.0, 0.0], dtype=torch.float64)  # n = (1, 0, 0, 0), RMS 0.5
    opt = FAdam(params, lr=1.0, betas=(0.0, 0.9), eps=0.0, clip=0.5, **PATHS[path])
    run(opt, params, lambda t: [g], 1)
    torch.testing.assert_close(p.detach(), -g)


@pytest.mark.parametrize("path", PATHS)
def test_functional_form_is_the_class(path: str) -> None:
    values = tensors(torch.float32, seed=1000)
    params, others = leaves(values), [x.clone() for x in values]
    run(FAdam(params, **PATHS[path]), params, lambda t: tensors(seed=t), 5)
    states = [torch.zeros_like(x) for x in others], [torch.ones_like(x) for x in others]
    counts = [torch.zeros(()) for _ in others]
    for t in range(1, 6):
        fadam(others, tensors(torch.float32, seed=t), *states, counts, Options(**PATHS[path]))
    for p, q in zip(params, others, strict=True):
        torch.testing.assert_close(p.detach(), q, rtol=0, atol=0)
    assert [int(step) for step in counts] == [5 * (x.numel() > 0) for x in others]


@pytest.mark.parametrize("path", PATHS)
def test_gradients_that_are_negated_or_conjugated_by_a_note_only(path: str) -> None:
    """As autograd gives them for imaginary parts."""
    values = [torch.ones(3), torch.ones(3, dtype=torch.complex64)]
    real, complex_ = torch.tensor([1.0, -2.0, 3.0]), torch.tensor([1 + 2j, -1j, 3.0])
    params, others = leaves(values), leaves(values)
    opt, other = FAdam(params, **PATHS[path]), FAdam(others, **PATHS[path])
    noted = [torch.complex(real, -real).conj().imag, complex_.conj().resolve_conj().conj()]
    assert noted[0].is_neg()
    assert noted[1].is_conj()
    run(opt, params, lambda t: noted, 1)
    run(other, others, lambda t: [real, complex_], 1)
    torch.testing.assert_close(params, others, rtol=0, atol=0)


def test_implementations_get_no_gradient_that_is_negated_by_a_note_only(
    as_on_a_device: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    noted: list[bool] = []

    def seen(self: ForeachBackend, lists: Tensors, _: Options) -> None:
        noted.extend(g.is_neg() for g in lists.grads)

    monkeypatch.setattr(ForeachBackend, "__init__", seen)
    monkeypatch.setattr(ForeachBackend, "run", lambda self: None)
    params = leaves([torch.ones(3)])
    run(FAdam(params, foreach=True), params, lambda t: [torch._neg_view(torch.ones(3))], 1)
    assert noted == [False]


@pytest.mark.parametrize("path", PATHS)
def test_parameters_and_states_that_are_negated_by_a_note_only(path: str) -> None:
    values = [torch.linspace(-1, 1, 6), torch.ones(2, 3)]
    noted = [torch._neg_view(-x).requires_grad_() for x in values]
    plain = leaves(values)
    opt, other = FAdam(noted, **PATHS[path]), FAdam(plain, **PATHS[path])
    for one, params in ((opt, noted), (other, plain)):
        run(one, params, lambda t: [torch.ones_like(x) / t for x in values], 2)
    opt.state[noted[0]]["momentum"] = torch._neg_view(-opt.state[noted[0]]["momentum"])
    for one, params in ((opt, noted), (other, plain)):
        run(one, params, lambda t: [torch.ones_like(x) * t for x in values], 2)
    for p, q in zip(noted, plain, strict=True):
        assert p.is_neg()
        torch.testing.assert_close(p.detach().resolve_neg(), q.detach(), rtol=0, atol=0)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("count", [torch.tensor(3), torch.tensor(3.0, dtype=torch.float64), 3])
def test_a_step_count_of_another_kind_goes_on(path: str, count: Any) -> None:
    params, others = leaves(tensors()), leaves(tensors())
    opt, other = FAdam(params, **PATHS[path]), FAdam(others, **PATHS[path])
    for one, ps in ((opt, params), (other, others)):
        run(one, ps, lambda t: tensors(seed=t), 3)
    for p in params:
        opt.state[p]["step"] = count.clone() if isinstance(count, Tensor) else count
    for one, ps in ((opt, params), (other, others)):
        run(one, ps, lambda t: tensors(seed=t + 3), 2)
    torch.testing.assert_close([x.detach() for x in params], [x.detach() for x in others], rtol=0, atol=0)
    assert all(opt.state[p]["step"].dtype == torch.float32 for p in params)


@pytest.mark.parametrize("path", PATHS)
def test_numbers_of_numpy_are_numbers(path: str) -> None:
    options: dict[str, Any] = {"lr": 0.5, "eps": 0.25, "clip": 0.5, "weight_decay": 0.125, "maximize": True}
    params, others = leaves(tensors(torch.float32)), leaves(tensors(torch.float32))
    opt, other = FAdam(params, **PATHS[path]), FAdam(others, **options, **PATHS[path])
    kinds = {"lr": np.float32, "eps": np.float64, "clip": np.array, "weight_decay": np.float16, "maximize": np.bool_}
    opt.param_groups[0].update({name: kind(options[name]) for name, kind in kinds.items()})
    opt.param_groups[0]["betas"] = (np.float64(0.9), np.float64(0.999))
    for one, ps in ((opt, params), (other, others)):
        run(one, ps, lambda t: tensors(torch.float32, seed=t), 3)
    torch.testing.assert_close(params, others, rtol=0, atol=0)
    saved = opt.state_dict()["param_groups"][0]
    assert all(type(saved[name]) is type(options[name]) for name in kinds)
    assert [type(beta) for beta in saved["betas"]] == [float, float]
