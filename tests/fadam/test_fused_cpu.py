"""The compiled step on the CPU: against the oracle, its phases, chunks and threads, and how it is built."""

from __future__ import annotations

import atexit
import functools
import math
import multiprocessing
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from fadam.bookkeeping import Tensors
from fadam.fused import build, cpu
from fadam.fused.cpu import CpuBackend, refusal
from fadam.options import Options
from fadam.reference import State, reference_step
from tests.fadam.test_paths import OPTIONS

CHUNK = 16384  # kChunk of cpu.cpp; above four of them, threads share a tensor
RUN = 1024  # kRun32
SIZES = (1, 15, 16, 17, RUN - 1, RUN, RUN + 1, CHUNK - 1, CHUNK, CHUNK + 1, 4 * CHUNK, 4 * CHUNK + 1)
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
OF_TENSORS = ("indices", "numels", "offsets", "grad_scale", "found_inf")  # what belongs to tensors, not to options
NOTHING = Tensors([], [], [], [], [])


def normals(sizes: Sequence[int], seed: int, scale: float = 1.0, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [(scale * torch.randn(n, generator=generator, dtype=torch.float64)).to(dtype) for n in sizes]


class Model:
    """Parameters and states that a backend steps."""

    def __init__(
        self, values: Sequence[Tensor], momentum_dtype: torch.dtype | None = None, fim_dtype: torch.dtype | None = None
    ) -> None:
        self.params = [x.clone(memory_format=torch.preserve_format) for x in values]
        self.momentums = [torch.zeros_like(x, dtype=momentum_dtype) for x in values]
        self.fims = [torch.ones_like(x, dtype=fim_dtype) for x in values]
        self.t = 0

    def backend(self, grads: Sequence[Tensor], **options: Any) -> CpuBackend:
        self.t += 1
        steps = [torch.tensor(float(self.t)) for _ in self.params]
        more = {name: options.pop(name) for name in OF_TENSORS if name in options}
        tensors = Tensors(self.params, list(grads), self.momentums, self.fims, steps, **more)
        assert refusal(tensors, Options(**options)) is None
        return CpuBackend(tensors, Options(**options))

    def everything(self) -> list[Tensor]:
        return [*self.params, *self.momentums, *self.fims]


def assert_same(a: Model, b: Model, ulps: float = 0) -> None:
    for x, y in zip(a.everything(), b.everything(), strict=True):
        tolerance = ulps * torch.finfo(x.dtype).eps
        torch.testing.assert_close(x, y, rtol=tolerance, atol=tolerance / 10, equal_nan=True)


def check_against_reference(
    values: list[Tensor],
    gradients: Callable[[int], list[Tensor]],
    steps: int,
    options: dict[str, Any],
    symbols: dict[str, Any],
    rtol: float,
    atol: float,
) -> None:
    model = Model(values)
    thetas = [x.double().clone() for x in values]
    states = [State.initial(x) for x in thetas]
    for t in range(1, steps + 1):
        grads = gradients(t)
        model.backend(grads, **options).run()
        for i, g in enumerate(grads):
            thetas[i], states[i] = reference_step(thetas[i], g.double(), states[i], **symbols)
    for i, state in enumerate(states):
        torch.testing.assert_close(model.params[i].double(), thetas[i], rtol=rtol, atol=atol)
        torch.testing.assert_close(model.momentums[i].double(), state.m, rtol=rtol, atol=atol)
        # g^2 below float32's smallest number is 0 there.
        torch.testing.assert_close(model.fims[i].double(), state.f, rtol=100 * rtol, atol=1e-40 if rtol > 1e-6 else 0)


# ---- numbers ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("case", OPTIONS)
def test_options(case: str, dtype: torch.dtype) -> None:
    options, symbols = OPTIONS[case]

    def gradients(t: int) -> list[Tensor]:
        grads = normals((3, 1100), t, 10.0 ** (-5 + (7 * t) % 11), dtype)
        for g in grads:
            g[::3] = 0
        return grads

    rtol, atol = (1e-11, 1e-12) if dtype == torch.float64 else (3e-5, 3e-6)
    values = normals((3, 1100), 1000, dtype=dtype)
    check_against_reference(values, gradients, 12, options, symbols, rtol, atol)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_sizes_around_runs_and_chunks(dtype: torch.dtype) -> None:
    rtol, atol = (1e-11, 1e-12) if dtype == torch.float64 else (1e-5, 1e-6)
    check_against_reference(
        normals(SIZES, 1000, dtype=dtype), lambda t: normals(SIZES, t, 1e-3, dtype), 3,
        {"lr": 0.01, "weight_decay": 0.1}, {"eta": 0.01, "lam": 0.1}, rtol, atol,
    )  # fmt: skip


def test_an_empty_tensor_is_nothing() -> None:
    model = Model([torch.empty(0), torch.ones(2)])
    model.backend([torch.empty(0), torch.ones(2)]).run()
    assert model.params[1].isfinite().all()


@pytest.mark.parametrize("scale", [1e-17, 1e-12, 1e-6, 1.0, 1e9, 1e17])
def test_float32_from_tiny_to_huge_gradients(scale: float) -> None:
    """Runs whose squares leave float32 lie beside others in one tensor, and weights of zero beside ones."""
    sizes = (7, 3 * RUN + 5)

    def gradients(t: int) -> list[Tensor]:
        small, large = normals(sizes, t, scale, torch.float32)
        large[: RUN // 2] *= 1e-12
        large[RUN : 2 * RUN] *= 1e-15
        large[2 * RUN : 2 * RUN + 9] = 0
        return [small, large]

    values = normals(sizes, 1000, dtype=torch.float32)
    values[1][:RUN] = 0
    check_against_reference(
        values, gradients, 20, {"lr": 0.01, "weight_decay": 0.1}, {"eta": 0.01, "lam": 0.1}, 2e-5, 3e-6
    )


def test_scaled_and_fixed_epsilon() -> None:
    for scale in (1e-3, 10.0):
        (theta,), (g,) = normals((5000,), 1), normals((5000,), 2, scale)
        for eps_mode, eps in (("fixed", 0.5), ("scaled", 0.5 * min(1.0, math.sqrt(g.square().mean().item())))):
            model = Model([theta])
            model.backend([g], eps=0.5, eps_mode=eps_mode).run()
            expected, _ = reference_step(theta, g, State.initial(theta), eps=eps, eps2=math.inf)
            torch.testing.assert_close(model.params[0], expected, rtol=1e-12, atol=1e-14)


def sampled(n: int) -> list[slice]:
    """Where `probably_large` of cpu.cpp looks."""
    return [slice(first, first + 64) for first in ((n - 64) // 15 * k for k in range(16))]


@pytest.mark.parametrize("misled", ["to grant it", "to doubt it"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("size", [CHUNK + 1, 5 * CHUNK + 3])
def test_a_wrong_guess_of_epsilon_costs_no_digit(misled: str, dtype: torch.dtype, size: int) -> None:
    """eps_t = eps is taken for granted by a sample; here the sample is unlike the tensor."""
    (g,) = normals((size,), 3, 1e-7 if misled == "to grant it" else 1e-3, dtype)
    for place in sampled(size):
        g[place] = 1.5e-5 if misled == "to grant it" else 0
    rms = g.double().square().mean().sqrt().item()
    assert (0.01 * rms < 1e-7) == (misled == "to grant it")
    values = normals((size,), 1, dtype=dtype)
    rtol, atol = (1e-11, 1e-12) if dtype == torch.float64 else (1e-5, 1e-6)
    check_against_reference(values, lambda t: [g * t], 2, {"eps": 1e-7}, {"eps": 1e-7}, rtol, atol)
    whole, phased = Model(values), Model(values)
    whole.backend([g], eps=1e-7).run()
    in_phases(phased.backend([g], eps=1e-7))
    assert_same(whole, phased, ulps=4)


@pytest.mark.parametrize("param", DTYPES)
@pytest.mark.parametrize("state", DTYPES)
@pytest.mark.parametrize("grad", DTYPES)
def test_mixed_dtypes(param: torch.dtype, grad: torch.dtype, state: torch.dtype) -> None:
    """One step from known states: computed in float32 or wider, each result rounded once."""
    (theta,), (g,), (m,) = (normals((2 * RUN + 5,), seed) for seed in (1, 2, 3))
    f = m.square() + 0.1
    model = Model([theta.to(param)], state, state)
    model.t = 3
    model.momentums[0].copy_(m)
    model.fims[0].copy_(f)
    before = State(model.momentums[0].double().clone(), model.fims[0].double().clone(), 3)
    model.backend([g.to(grad)]).run()
    theta, after = reference_step(theta.to(param).double().clone(), g.to(grad).double(), before)
    working = torch.float64 if torch.float64 in (param, grad, state) else torch.float32
    for x, y in ((model.params[0], theta), (model.momentums[0], after.m), (model.fims[0], after.f)):
        # One unit in the last place where float32 and float64 round to different neighbours.
        rtol = max(torch.finfo(x.dtype).eps, 8 * torch.finfo(working).eps)
        torch.testing.assert_close(x.double(), y, rtol=rtol, atol=1e-7 if working == torch.float32 else 1e-12)
        if x.element_size() == 2:
            assert (x.double() != y.to(x.dtype).double()).float().mean() < 0.01


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_every_number_of_two_bytes_is_read_and_written_as_it_is(dtype: torch.dtype) -> None:
    every = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype)
    every = every[~every.isnan()]
    model = Model([every])
    model.backend([torch.ones_like(every)], lr=0.0, weight_decay=0.0).run()
    assert torch.equal(model.params[0].view(torch.int16), every.view(torch.int16))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_rounding_to_two_bytes_is_torchs(dtype: torch.dtype) -> None:
    """theta = 0 and g = 0: the new parameter is -beta1 m, rounded."""
    generator = torch.Generator().manual_seed(0)
    m = torch.randint(-(2**31), 2**31, (50_000,), generator=generator).to(torch.int32).view(torch.float32)
    m = m[m.isfinite()]
    m = torch.cat([m, torch.randn(50_000, generator=generator) * 10.0 ** torch.linspace(-9, 6, 50_000)])
    model = Model([torch.zeros_like(m, dtype=dtype)], torch.float32, torch.float32)
    model.momentums[0].copy_(m)
    model.backend([torch.zeros_like(m)], lr=1.0, weight_decay=0.0).run()
    torch.testing.assert_close(model.params[0], (-(m * 0.9)).to(dtype), rtol=0, atol=0)


def test_states_too_large_for_their_dtype_stay_finite() -> None:
    model = Model([torch.zeros(3)], fim_dtype=torch.float16)
    model.backend([torch.tensor([1e3, 1.0, 1e-3])]).run()
    assert model.fims[0].tolist() == [65504.0, 1.0, torch.tensor(1e-6, dtype=torch.float16).item()]


def test_maximize_and_grad_scale() -> None:
    (theta,), (g,) = normals((3000,), 1, dtype=torch.float32), normals((3000,), 2, dtype=torch.float32)
    plain, other = Model([theta]), Model([theta])
    plain.backend([-g]).run()
    other.backend([g * 1024], maximize=True, grad_scale=torch.tensor(1024.0)).run()
    assert_same(plain, other)


def test_found_inf_leaves_everything_as_it_is() -> None:
    values = normals((5,), 1, dtype=torch.float32)
    model, untouched = Model(values), Model(values)
    model.backend([torch.full((5,), math.inf)], found_inf=torch.tensor(1.0)).run()
    in_phases(model.backend([torch.full((5,), math.inf)], found_inf=torch.tensor(1.0)))
    assert_same(model, untouched)
    model.backend([torch.ones(5)], found_inf=torch.tensor(0.0)).run()
    assert not torch.equal(model.params[0], untouched.params[0])


# ---- phases, chunks, threads, strides --------------------------------------------------------------------------------


def in_phases(backend: CpuBackend) -> None:
    backend.apply(backend.metric_sums(backend.gradient_sums()))


@pytest.mark.parametrize("case", ["defaults", "no decay", "no clip", "rho 0.7", "eps 0", "eps2 large"])
def test_phases_are_the_run(case: str) -> None:
    options = OPTIONS[case][0]
    values = normals(SIZES, 1, dtype=torch.float32)
    whole, phased = Model(values), Model(values)
    for t in range(1, 3):
        grads = normals(SIZES, t, 1e-5, torch.float32)
        whole.backend(grads, **options).run()
        in_phases(phased.backend(grads, **options))
    assert_same(whole, phased, ulps=4)  # the two add up g^2 in different loops


def test_nothing_changes_before_apply_and_the_sums_are_sums() -> None:
    values, grads = normals((5, 4 * CHUNK + 7), 1), normals((5, 4 * CHUNK + 7), 2)
    model, untouched = Model(values), Model(values)
    backend = model.backend(grads)
    gradient_sums = backend.gradient_sums()
    metric_sums = backend.metric_sums(gradient_sums)
    assert_same(model, untouched)
    torch.testing.assert_close(gradient_sums, torch.stack([g.square().sum() for g in grads]))
    ds = [g.abs() + 1e-8 for g in grads]
    sums = [torch.stack([(x / d).square().sum() for x, d in zip(xs, ds, strict=True)]) for xs in (grads, values)]
    torch.testing.assert_close(metric_sums, torch.stack(sums))


def test_shards_with_their_sums_added_up_are_the_whole() -> None:
    (theta,), (g,) = normals((3 * CHUNK,), 1), normals((3 * CHUNK,), 2, 1e-7)
    cut = CHUNK + 100
    whole, shards = Model([theta]), [Model([theta[:cut]]), Model([theta[cut:]])]
    whole.backend([g]).run()
    backends = [shard.backend([x], numels=[g.numel()]) for shard, x in zip(shards, (g[:cut], g[cut:]), strict=True)]
    gradient_sums = sum(b.gradient_sums() for b in backends)
    metric_sums = sum(b.metric_sums(gradient_sums) for b in backends)
    for b in backends:
        b.apply(metric_sums)
    for x, *parts in zip(whole.everything(), *(shard.everything() for shard in shards), strict=True):
        torch.testing.assert_close(torch.cat(parts), x, rtol=1e-12, atol=0)


@pytest.fixture
def threads() -> Iterator[Callable[[int], None]]:
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("scale", [1e-2, 1e-7])
def test_the_same_bits_from_run_to_run_and_for_any_number_of_threads(
    dtype: torch.dtype, scale: float, threads: Callable[[int], None]
) -> None:
    sizes = (3, 9 * CHUNK + 5, CHUNK + 1)
    values = normals(sizes, 1, dtype=dtype)
    models = []
    for count in (1, 1, 2, 3):
        threads(count)
        models.append(Model(values))
        for t in range(1, 3):
            models[-1].backend(normals(sizes, t, scale, dtype), stochastic_rounding=dtype == torch.bfloat16).run()
    for model in models[1:]:
        assert_same(models[0], model)


def test_torchs_openmp_runtime_is_the_only_one() -> None:
    maps = Path("/proc/self/maps")
    if not maps.exists() or not torch.backends.openmp.is_available():
        return

    def runtimes() -> set[str]:
        return {line.split()[-1] for line in maps.read_text().splitlines() if "omp" in line.split()[-1]}

    before = runtimes()
    Model([torch.ones(8 * CHUNK)]).backend([torch.ones(8 * CHUNK)]).run()
    assert runtimes() == before
    assert cpu._runtime().parallel


@pytest.mark.parametrize("layout", ["transposed", "channels last", "gaps", "expanded gradient", "other gradient"])
def test_strides(layout: str) -> None:
    """Whatever lies in memory otherwise than row by row gives the numbers of what does not."""
    generator = torch.Generator().manual_seed(0)
    theta, g = (torch.randn(4, 6, 5, 3, generator=generator) for _ in range(2))
    if layout == "transposed":
        x, dx = (y.transpose(0, 1).contiguous().transpose(0, 1) for y in (theta, g))
    elif layout == "channels last":
        x, dx = (y.contiguous(memory_format=torch.channels_last) for y in (theta, g))
    elif layout == "gaps":
        x, dx = torch.zeros(4, 6, 5, 6)[..., ::2].copy_(theta), g
    elif layout == "expanded gradient":
        g = g[:, :, :1, :1].expand(4, 6, 5, 3)
        x, dx = theta.contiguous(memory_format=torch.channels_last), g
    else:
        x, dx = theta, g.contiguous(memory_format=torch.channels_last)
    plain, other = Model([theta, theta]), Model([theta, theta])
    other.params[1] = x
    other.momentums[1], other.fims[1] = torch.zeros_like(x), torch.ones_like(x)
    for _ in range(2):
        plain.backend([g.contiguous(), g.contiguous()]).run()
        other.backend([g.contiguous(), dx]).run()
    assert other.params[1] is x
    for a, b in zip(plain.everything(), other.everything(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)


def test_a_negated_view_is_read_as_it_looks() -> None:
    g = torch.complex(torch.ones(3), torch.ones(3)).conj().imag
    assert g.is_neg()
    plain, other = Model([torch.zeros(3)]), Model([torch.zeros(3)])
    plain.backend([torch.full((3,), -1.0)]).run()
    other.backend([g]).run()
    assert_same(plain, other)


def test_it_works_in_place_with_three_numbers_a_tensor_besides() -> None:
    model, grads = Model(normals((CHUNK, 5 * CHUNK), 1)), normals((CHUNK, 5 * CHUNK), 2)
    backend = model.backend(grads)
    backend.run()
    *lists, _ = backend._lists
    for used, given in zip(lists, (model.params, grads, model.momentums, model.fims), strict=True):
        assert all(x is y for x, y in zip(used, given, strict=True))
    assert backend._copies == []
    assert backend._sums.numel() == 3 * len(grads)


# ---- stochastic rounding ---------------------------------------------------------------------------------------------


def drift(seeded: Callable[[CpuBackend], None] = CpuBackend.run, *, t: int = 1, **options: Any) -> Tensor:
    """bfloat16 ones after a step by -0.0004, a tenth of what lies between 1 and its neighbour below."""
    model = Model([torch.ones(40_000, dtype=torch.bfloat16)], torch.float32, torch.float32)
    model.t = t - 1
    model.momentums[0].fill_(1.0)
    seeded(
        model.backend(
            [torch.zeros_like(model.params[0])], lr=4e-4, betas=(0.999999, 0.999), weight_decay=0.0, **options
        )
    )
    return model.params[0]


def test_stochastic_rounding_is_right_on_average() -> None:
    rounded = drift(stochastic_rounding=True)
    below = 1 - 2.0**-8
    assert set(rounded.tolist()) == {below, 1.0}
    share = (rounded == below).double().mean().item()
    assert abs(share - 4e-4 * 256) < 4 * math.sqrt(0.1 * 0.9 / 40_000)
    assert (drift() == 1).all()  # rounded to the nearest, nothing ever happens


def test_stochastic_rounding_draws_anew_by_step_and_tensor_but_the_same_for_the_same() -> None:
    first = drift(stochastic_rounding=True)
    assert torch.equal(first, drift(stochastic_rounding=True))
    assert torch.equal(first, drift(in_phases, stochastic_rounding=True))
    for other in (drift(stochastic_rounding=True, t=2), drift(stochastic_rounding=True, offsets=[40_000])):
        both = ((first != 1) & (other != 1)).double().mean().item()
        assert both < 0.015  # independent draws of one in ten agree in one of a hundred
    twins = Model([torch.ones(9000, dtype=torch.bfloat16)] * 2, torch.float32, torch.float32)
    for m in twins.momentums:
        m.fill_(1.0)
    twins.backend([torch.zeros(9000)] * 2, lr=4e-4, betas=(0.999999, 0.999), stochastic_rounding=True).run()
    assert not torch.equal(*twins.params)


def test_stochastic_rounding_of_shards_is_that_of_the_whole() -> None:
    whole = drift(stochastic_rounding=True)
    shard = Model([torch.ones(30_000, dtype=torch.bfloat16)], torch.float32, torch.float32)
    shard.momentums[0].fill_(1.0)
    grads = [torch.zeros(30_000)]
    options = {"lr": 4e-4, "betas": (0.999999, 0.999), "weight_decay": 0.0, "stochastic_rounding": True}
    shard.backend(grads, **options, numels=[40_000], offsets=[10_000]).run()
    assert torch.equal(shard.params[0], whole[10_000:])


def test_stochastic_rounding_leaves_what_it_need_not_round() -> None:
    every = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(torch.bfloat16)
    model = Model([every])
    model.backend([torch.ones_like(every)], lr=0.0, weight_decay=0.0, stochastic_rounding=True).run()
    torch.testing.assert_close(model.params[0], every, rtol=0, atol=0, equal_nan=True)


# ---- refusals and building -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changed", "options", "reason"),
    [
        (torch.ones(2), {"momentum_mode": "gradient"}, "it has momentum_mode='natural' only"),
        (torch.ones(2), {"decay_mode": "decoupled"}, "it has decay_mode='natural' only"),
        (torch.ones(2), {"correct_momentum": True}, "it has correct_momentum=False only"),
        (torch.ones(2), {"differentiable": True}, "autograd does not see into it"),
        (torch.ones(2, device="meta"), {}, "not all tensors are on the CPU"),
        (torch.ones(2, dtype=torch.complex64), {}, "it knows no torch.complex64"),
        (torch.ones(2).to_sparse(), {}, "not all tensors are strided"),
    ],
)
def test_refusals(changed: Tensor, options: dict[str, Any], reason: str) -> None:
    for place in range(4):
        lists = [[torch.ones(2), changed if k == place else torch.ones(2)] for k in range(4)]
        assert refusal(Tensors(*lists, [torch.ones(())]), Options(**options)) == reason


def test_refusal_of_shapes_and_steps() -> None:
    for place in range(4):
        for other in ((2, 3), (6,), (3, 2, 1)):
            lists = [[torch.ones(other if k == place else (3, 2))] for k in range(4)]
            tensors = Tensors(*lists, [torch.ones(())])
            assert refusal(tensors, Options()) == "a gradient or state is not of its parameter's shape"
    lists = [[torch.ones(2)] for _ in range(4)]
    for step in (torch.tensor(1), torch.ones((), dtype=torch.float64), torch.ones((), device="meta")):
        assert refusal(Tensors(*lists, [step]), Options()) == "not all steps are float32 on the CPU"


@pytest.fixture
def building(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """An empty cache folder, and nothing loaded."""
    monkeypatch.setenv("FADAM_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("CXX", raising=False)
    cpu._load.cache_clear()
    yield tmp_path
    cpu._load.cache_clear()


def compiler(folder: Path, script: str) -> str:
    """A compiler by the name of `broken`, which sees its arguments and the file to write as $out."""
    path = folder / "broken"
    path.write_text(f'#!/bin/sh\n[ "$1" = --version ] && echo 1.0 && exit\nfor out; do :; done\n{script}\n')
    path.chmod(0o700)
    return str(path)


def test_without_a_compiler_it_says_so(building: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(building))
    expected = "there is no C++ compiler to build it with (c++, g++ or clang++ is not on the PATH)"
    assert refusal(NOTHING, Options()) == expected
    with pytest.raises(cpu.BuildError, match="no C\\+\\+ compiler"):
        CpuBackend(NOTHING, Options())
    cpu._load.cache_clear()
    monkeypatch.setenv("CXX", "nonesuch -O2")
    assert refusal(NOTHING, Options()) == (
        "there is no C++ compiler to build it with (nonesuch -O2 is not on the PATH)"
    )


def counted(folder: Path) -> str:
    """A compiler that copies the real library and notes that it was called."""
    return compiler(folder, f'echo once >> {folder}/calls; cp {made()} "$out"')


@functools.cache
def made() -> Path:
    folder = Path(tempfile.mkdtemp())
    atexit.register(shutil.rmtree, folder)
    build._compile(build._compiler(), cpu._SOURCE, folder / "made.so")
    return folder / "made.so"


def calls(folder: Path) -> int:
    return len((folder / "calls").read_text().splitlines())


def kept(folder: Path) -> Path:
    (path,) = (folder / "cache").iterdir()
    return path


def again() -> str | None:
    cpu._load.cache_clear()
    return refusal(NOTHING, Options())


def test_it_is_built_once_and_then_needs_no_compiler(building: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", counted(building))
    assert again() is again() is None
    assert calls(building) == 1
    assert kept(building).stat().st_mode & 0o777 == 0o755
    monkeypatch.delenv("CXX")
    monkeypatch.setenv("PATH", str(building))
    assert again() is None


def replace(path: Path, content: bytes) -> None:
    """Put another file there: this process has the old one mapped, and would die of its missing pages when it ends."""
    other = path.parent.parent / "other"
    other.write_bytes(content)
    other.chmod(path.stat().st_mode)
    other.replace(path)


def truncated(path: Path) -> str:
    replace(path, path.read_bytes()[:50_000])
    return "is damaged: its 50000 bytes have not the hash in its name"


def emptied(path: Path) -> str:
    replace(path, b"")
    return "is damaged: its 0 bytes"


def opened_to_others(path: Path) -> str:
    path.chmod(0o777)
    return "is not used: others can write it (mode 777)"


def linked(path: Path) -> str:
    path.rename(path.parent.parent / "elsewhere.so")
    path.symlink_to(path.parent.parent / "elsewhere.so")
    return "cannot be read"


def of_another(path: Path) -> str:
    if os.geteuid() != 0:
        pytest.skip("only root can give a file away")
    os.chown(path, 12345, 12345)
    return "is not used: it belongs to another user (12345)"


@pytest.mark.parametrize("spoil", [truncated, emptied, opened_to_others, linked, of_another])
def test_a_library_that_was_spoilt_is_built_anew(
    building: Path, monkeypatch: pytest.MonkeyPatch, spoil: Callable[[Path], str]
) -> None:
    monkeypatch.setenv("CXX", counted(building))
    assert again() is None
    reason = spoil(kept(building))
    with pytest.warns(UserWarning, match=re.escape(f"compiled code was not loaded: {kept(building)} {reason}")):
        assert again() is None
    assert again() is None
    assert calls(building) == 2
    reason = spoil(kept(building))
    monkeypatch.setenv("CXX", "nonesuch")
    with pytest.warns(UserWarning, match="was not loaded"):
        refused = again()
    assert refused is not None
    assert refused.startswith("there is no C++ compiler to build it with (nonesuch is not on the PATH); ")
    assert reason in refused


@pytest.mark.parametrize("what", ["folder of others", "folder of another", "no folder", "no home"])
def test_where_nothing_can_be_kept_it_is_built_for_the_process(
    building: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    monkeypatch.setenv("CXX", counted(building))
    assert again() is None
    if what == "folder of others":
        (building / "cache").chmod(0o777)
        reason = "others can write it (mode 777)"
    elif what == "folder of another":
        reason = of_another(building / "cache").removeprefix("is not used: ")
    elif what == "no folder":
        (building / "file").touch()
        monkeypatch.setenv("FADAM_CACHE", str(building / "file" / "cache"))
        reason = "it cannot be made (Not a directory)"
    else:
        monkeypatch.delenv("FADAM_CACHE")
        monkeypatch.delenv("XDG_CACHE_HOME", raising=False)

        def home() -> Path:
            raise RuntimeError("Could not determine home directory.")

        monkeypatch.setattr(Path, "home", home)
        reason = "there is no home folder"
    before = sorted((building / "cache").iterdir())
    with pytest.warns(UserWarning, match=re.escape(reason) + ".*FADAM_CACHE can name another"):
        assert again() is None
    assert sorted((building / "cache").iterdir()) == before
    assert calls(building) == 2
    for _ in range(3):
        assert refusal(NOTHING, Options()) is None
    assert calls(building) == 2


def test_where_no_folder_can_be_written_it_says_what_would_help(
    building: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (building / "file").touch()
    monkeypatch.setenv("CXX", counted(building))
    monkeypatch.setenv("FADAM_CACHE", str(building / "file" / "cache"))
    monkeypatch.setattr(tempfile, "tempdir", str(building / "file"))
    assert re.match(f".*neither in {building}/file/cache: .*FADAM_CACHE", again() or "")


def test_a_compiler_that_fails_is_quoted(building: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = compiler(building, "echo 'no room' >&2; exit 1")
    monkeypatch.setenv("CXX", path)
    assert refusal(NOTHING, Options()) == f"{path} does not compile it: no room"
    assert list((building / "cache").iterdir()) == []


def test_a_compiler_that_does_not_know_the_processor_compiles_for_any(
    building: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = f'echo "$@" >> {building}/arguments; [ "$1" = -march=native ] && exit 1; echo > "$out"'
    monkeypatch.setenv("CXX", compiler(building, script))
    reason = refusal(NOTHING, Options())
    assert reason is not None
    assert reason.startswith("the compiled library does not load (")
    assert list((building / "cache").iterdir()) == []
    first, second = (building / "arguments").read_text().splitlines()
    assert first.replace("-march=native ", "") == second
    assert "-O3" in second


def build_one() -> None:
    assert again() is None


def test_two_processes_that_build_at_once_both_find_it_whole(building: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = f'head -c 5000 {made()} > "$out"; sleep 0.3; cat {made()} > "$out"; sleep 0.3'
    monkeypatch.setenv("CXX", compiler(building, script))
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=build_one) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    assert kept(building).read_bytes() == made().read_bytes()
