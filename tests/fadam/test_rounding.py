"""Stochastic rounding: its mean and its bits; and how far bfloat16 parameters and states drift with and without."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from fadam import FAdam, Options
from fadam.bookkeeping import Tensors
from fadam.foreach import ForeachBackend
from fadam.fused.cpu import CpuBackend
from fadam.fused.cuda import CudaBackend
from fadam.metric import dense_strides, stochastic_bfloat16
from tests.fadam.cases import PATHS, leaves, run
from tests.fadam.triton_interpreter import interpreted

WIDE: dict[str, Any] = {"momentum_dtype": torch.float32, "fim_dtype": torch.float32}


def test_the_two_neighbours_with_the_right_probabilities() -> None:
    """Of numbers between 1 and 1 + 1/128, and of negative ones; numbers of bfloat16 stay as they are."""
    for low, high in ((1.0, 1 + 2**-7), (-1 - 2**-7, -1.0), (2.0**-130, 2.0**-130 + 2.0**-133)):
        for share in (0.0, 0.1, 0.5, 0.9, 1.0):
            x = torch.full((200, 500), low + share * (high - low))
            rounded = stochastic_bfloat16(x, 3, 1).double()
            assert set(rounded.unique().tolist()) <= {low, high}
            up = (rounded == high).double().mean().item()
            exact = (x[0, 0].double().item() - low) / (high - low)
            assert up == pytest.approx(exact, abs=5 * (exact * (1 - exact) / x.numel()) ** 0.5)


def test_numbers_that_are_not_finite_stay() -> None:
    bits = torch.tensor([0x7F800000, -0x800000, 0x7FC00000, 0x7FFFFFFF, -1], dtype=torch.int32)
    rounded = stochastic_bfloat16(bits.view(torch.float32), 1, 0)
    assert rounded[0] == torch.inf
    assert rounded[1] == -torch.inf
    assert rounded[2:].isnan().all()


def test_bits_are_a_function_of_step_tensor_and_place() -> None:
    x = torch.full((4096,), 1 + 2**-8)

    def bits(**other: Any) -> Tensor:
        return stochastic_bfloat16(**{"x": x, "t": 5, "index": 2, "offset": 0, **other})

    torch.testing.assert_close(bits(), bits(), rtol=0, atol=0)
    torch.testing.assert_close(bits(t=torch.tensor(5.0)), bits(), rtol=0, atol=0)
    torch.testing.assert_close(bits(x=x[100:], offset=100), bits()[100:], rtol=0, atol=0)
    torch.testing.assert_close(bits(x=x.view(64, 64)), bits().view(64, 64), rtol=0, atol=0)
    for other in ({"t": 6}, {"index": 3}, {"offset": 4096}, {"offset": 2**32}, {"offset": 2**33}):
        agree = (bits() == bits(**other)).double().mean().item()
        assert agree == pytest.approx(0.5, abs=0.05), other


def layouts() -> list[Tensor]:
    """Ones: contiguous, transposed, channels last, and with gaps."""
    options: dict[str, Any] = {"dtype": torch.bfloat16}
    last = torch.ones(2, 3, 8, 9, **options).to(memory_format=torch.channels_last)
    return [
        torch.ones(3, 100, **options),
        torch.ones(40, 30, **options).t(),
        last,
        torch.ones(40, 60, **options)[:, ::2].t(),
    ]


# One step from 1 to 1 - 2^-10, which every implementation computes without an error.
EXACT: dict[str, Any] = {"lr": 2.0**-10, "eps": 0.0, "clip": None, "weight_decay": 0.0, "eps_mode": "fixed"}


def exact_steps(values: Sequence[Tensor], number: int) -> list[Tensor]:
    """Of all of them from 1, rounded by the definition, the first one being that of `number`."""
    return [
        stochastic_bfloat16(torch.full(x.shape, 1 - 2.0**-10), 1, i, strides=dense_strides(x))
        for i, x in enumerate(values, number)
    ]


@pytest.mark.parametrize("path", PATHS)
def test_every_path_draws_the_same_bits(path: str) -> None:
    """By number among all parameters of the optimizer and place in memory, whatever else has a gradient."""
    values = layouts()
    params = [torch.ones(2), *values, torch.ones(3).bfloat16(), *layouts()]
    groups = [{"params": params[:3]}, {"params": params[3:]}]
    opt = FAdam(groups, betas=(0.0, 0.999), stochastic_rounding=True, **EXACT, **WIDE, **PATHS[path])
    expected = [*exact_steps(values, 1), params[5].clone(), *exact_steps(values, 6)]
    for p in params[1:5] + params[6:]:
        p.grad = torch.full_like(p, 0.5)
    opt.step()
    torch.testing.assert_close(params[1:], expected, rtol=0, atol=0)


@pytest.mark.parametrize("backend", ["foreach", "cpu", "cuda"])
def test_backends_draw_the_same_bits_for_shards(backend: str) -> None:
    """For numbers of elements beyond 2^32 too."""
    offsets, indices = [0, 2**32 - 50, 3 * 2**32 + 7], [4, 0, 2**31]
    params = [torch.ones(100, dtype=torch.bfloat16) for _ in offsets]
    momentums, fims = [torch.zeros(100) for _ in offsets], [torch.ones(100) for _ in offsets]
    steps = [torch.ones(()) for _ in offsets]
    expected = [
        stochastic_bfloat16(torch.full((100,), 1 - 2.0**-10), 1, i, offset)
        for i, offset in zip(indices, offsets, strict=True)
    ]
    make: Any = {"foreach": ForeachBackend, "cpu": CpuBackend, "cuda": CudaBackend}[backend]
    grads = [torch.full((100,), 0.5) for _ in offsets]
    lists = Tensors(params, grads, momentums, fims, steps, offsets=offsets, indices=indices)
    with interpreted():
        make(lists, Options(betas=(0.0, 0.999), stochastic_rounding=True, **EXACT)).run()
    torch.testing.assert_close(params, expected, rtol=0, atol=0)
    assert not torch.equal(params[0], params[1])


def test_the_kernels_draw_the_same_bits_in_every_layout() -> None:
    values = layouts()
    expected = exact_steps(values, 0)
    states = [[torch.zeros_like(x, dtype=torch.float32) for x in values] for _ in range(2)]
    grads = [torch.full(x.shape, 0.5) for x in values]
    with interpreted():
        lists = Tensors(values, grads, *states, [torch.ones(()) for _ in values])
        CudaBackend(lists, Options(betas=(0.0, 0.999), stochastic_rounding=True, **EXACT)).run()
    torch.testing.assert_close(values, expected, rtol=0, atol=0)


@pytest.mark.parametrize("path", PATHS)
def test_tensors_and_steps_draw_independently(path: str) -> None:
    """Also the first tensors of two groups."""
    params = [torch.ones(4096, dtype=torch.bfloat16) for _ in range(3)]
    opt = FAdam(
        [{"params": params[:1]}, {"params": params[1:]}], stochastic_rounding=True, betas=(0.0, 0.999),
        **{**EXACT, "lr": 2.0**-9}, **WIDE, **PATHS[path],
    )  # fmt: skip
    drawn = []
    for _ in range(2):
        for p in params:
            p.fill_(1.0).grad = torch.full_like(p, 0.5)
        opt.step()
        drawn += [p < 1 for p in params]
    for one, other in itertools.combinations(drawn, 2):  # half of each are
        assert (one == other).double().mean().item() == pytest.approx(0.5, abs=0.05)


def drift(path: str, stochastic: bool, steps: int = 200, **options: Any) -> Tensor:
    """Parameters of 1 after steps of 1e-4 against a gradient that never changes; bfloat16 has 1 - 1/256 next."""
    (p,) = params = leaves([torch.ones(64, 64, dtype=torch.bfloat16)])
    opt = FAdam(params, lr=1e-4, betas=(0.9, 0.99), stochastic_rounding=stochastic, **options, **PATHS[path])
    run(opt, params, lambda t: [torch.full((64, 64), 0.1)], steps)
    return 1 - p.detach().double()


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(
    ("options", "tolerance"),
    [
        pytest.param(WIDE, 0.02, id="wide states"),
        # beta1 m + (1 - beta1) n stops short of n, by as much as 0.1 of it is half a unit in the last place.
        pytest.param({"momentum_dtype": torch.bfloat16, "fim_dtype": torch.float32}, 0.04, id="bfloat16 momentum"),
        pytest.param({"momentum_dtype": torch.bfloat16, "fim_dtype": torch.bfloat16}, 0.04, id="bfloat16 states"),
    ],
)
def test_small_steps_vanish_without_it(path: str, options: dict[str, Any], tolerance: float) -> None:
    (exact,) = params = leaves([torch.ones(1, dtype=torch.float64)])
    run(FAdam(params, lr=1e-4, betas=(0.9, 0.99)), params, lambda t: [torch.full((1,), 0.1)], 200)
    expected = 1 - exact.item()
    assert expected == pytest.approx(0.019, abs=1e-3)
    assert not drift(path, False, weight_decay=1e-3, **options).any()
    got = drift(path, True, weight_decay=1e-3, **options)
    assert got.mean().item() == pytest.approx(expected, rel=tolerance)
    # A walk: the variance of a rounding between numbers 1/256 apart is 1e-4 (1/256 - 1e-4) at most.
    assert got.std().item() == pytest.approx((200 * 1e-4 / 256) ** 0.5, rel=0.1)


@pytest.mark.parametrize("path", PATHS)
def test_small_decays_vanish_without_it(path: str) -> None:
    """lr 1e-2 and weight decay 1e-2 take away 1e-4 a step where n is 0 after the first gradient."""
    for stochastic in (False, True):
        (p,) = params = leaves([torch.ones(64, 64, dtype=torch.bfloat16)])
        opt = FAdam(
            params, lr=1e-2, betas=(0.0, 0.999), weight_decay=1e-2, eps_mode="fixed", stochastic_rounding=stochastic,
            **WIDE, **PATHS[path],
        )  # fmt: skip
        opt.state[p] = {"step": torch.ones(()), "momentum": torch.zeros(64, 64), "fim": torch.ones(64, 64)}
        run(opt, params, lambda t: [torch.zeros(64, 64)], 100)
        assert 1 - p.double().mean().item() == pytest.approx(0.01 if stochastic else 0.0, rel=0.05)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16])
def test_other_parameters_know_nothing_of_it(path: str, dtype: torch.dtype) -> None:
    params, others = leaves([torch.linspace(-1, 1, 33, dtype=dtype)]), leaves([torch.linspace(-1, 1, 33, dtype=dtype)])
    run(FAdam(params, stochastic_rounding=True, **PATHS[path]), params, lambda t: [torch.linspace(-t, 1, 33)], 5)
    run(FAdam(others, **PATHS[path]), others, lambda t: [torch.linspace(-t, 1, 33)], 5)
    torch.testing.assert_close(params, others, rtol=0, atol=0)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("lr", [0.01, torch.tensor(0.01)], ids=["float", "tensor"])
def test_a_resumed_run_draws_the_same_bits(path: str, lr: Any) -> None:
    params = leaves([torch.linspace(-1, 1, 100).bfloat16(), torch.ones(3), torch.ones(50, 2).bfloat16().t()])
    opt = FAdam(params, lr=lr, stochastic_rounding=True, **PATHS[path])

    def gradients(t: int) -> list[Tensor]:
        return [torch.sin(t * p.detach().float()) for p in params]

    run(opt, params, gradients, 3)
    others = leaves(params)
    other = FAdam(others)
    other.load_state_dict(copy.deepcopy(opt.state_dict()))
    run(opt, params, gradients, 3)
    params, others = others, params
    run(other, params, gradients, 3)
    torch.testing.assert_close(params, others, rtol=0, atol=0)
