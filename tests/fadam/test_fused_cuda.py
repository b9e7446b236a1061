"""The Triton kernels without a GPU: numbers by Triton's interpreter, machine code by its compiler for two GPUs."""

from __future__ import annotations

import itertools
import math
import re
import subprocess
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget

from fadam import Options, fadam
from fadam.bookkeeping import Tensors
from fadam.fused import cuda
from fadam.fused.cuda import CudaBackend, refusal
from tests.fadam.triton_interpreter import interpreted

DEFAULTS: dict[str, Any] = {"lr": 0.01, "weight_decay": 0.1}
OF_TENSORS = ("indices", "numels", "offsets", "grad_scale", "found_inf")  # what belongs to tensors, not to options

OPTIONS: dict[str, dict[str, Any]] = {
    "defaults": {},
    "no decay": {"weight_decay": 0},
    "clip 0.5": {"clip": 0.5},
    "no clip": {"clip": None},
    "no clip, no decay": {"clip": None, "weight_decay": 0.0},
    "scaled": {"eps_mode": "scaled", "eps": 0.1},
    "scaled, rho 0.3": {"eps_mode": "scaled", "eps": 0.1, "fim_rho": 0.3},
    "fixed": {"eps_mode": "fixed", "eps": 0.01},
    "fixed, no clip": {"eps_mode": "fixed", "clip": None},
    "rho 0.25": {"fim_rho": 0.25},
    "rho 0.7, eps large": {"fim_rho": 0.7, "eps": 0.5},
    "rho 1": {"fim_rho": 1.0},
    "eps 0": {"eps": 0.0},
    "eps2 large": {"eps": 1.0, "eps2": 3.0},
    "betas 0": {"betas": (0.0, 0.0)},
    "maximize": {"maximize": True},
}


class Group:
    """Parameters and their state, stepped by the kernels in the interpreter."""

    def __init__(
        self,
        values: Sequence[Tensor],
        momentum_dtype: torch.dtype | None = None,
        fim_dtype: torch.dtype | None = None,
        capturable: bool = False,
        **options: Any,
    ) -> None:
        self.params = [x.clone(memory_format=torch.preserve_format) for x in values]
        self.momentums = [torch.zeros_like(x, dtype=momentum_dtype) for x in values]
        self.fims = [torch.ones_like(x, dtype=fim_dtype) for x in values]
        self.steps = [torch.zeros(()) for _ in values]
        self.options = {**DEFAULTS, "capturable": capturable, **options}

    @property
    def tensors(self) -> tuple[list[Tensor], ...]:
        return self.params, self.momentums, self.fims

    def backend(self, grads: Sequence[Tensor], **options: Any) -> CudaBackend:
        for step in self.steps:
            step += 1
        grads = [g.to(p.dtype) for g, p in zip(grads, self.params, strict=True)]
        more = {name: options.pop(name) for name in OF_TENSORS if name in options}
        lists = Tensors(self.params, grads, self.momentums, self.fims, self.steps, **more)
        return CudaBackend(lists, Options(**{**self.options, **options}))

    def step(self, grads: Sequence[Tensor], **options: Any) -> None:
        with interpreted():
            self.backend(grads, **options).run()


class Oracle:
    """The same by the single-tensor loop in float64, which other tests hold against the paper."""

    def __init__(self, values: Sequence[Tensor], **options: Any) -> None:
        self.params = [x.double() for x in values]
        self.states = [torch.zeros_like(x) for x in self.params], [torch.ones_like(x) for x in self.params]
        self.steps = [torch.zeros(()) for _ in values]
        self.options = Options(foreach=False, fused=False, **{**DEFAULTS, **options})

    def step(self, grads: Sequence[Tensor]) -> None:
        grads = [g.double() for g in grads]
        fadam(self.params, grads, *self.states, self.steps, self.options)


def normal(*shapes: tuple[int, ...], seed: int = 0, scale: float = 1.0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [scale * torch.randn(shape, generator=generator) for shape in shapes]


def close(group: Group, oracle: Oracle, rtol: float = 1e-5, atol: float = 2e-6) -> None:
    for p, theta in zip(group.params, oracle.params, strict=True):
        torch.testing.assert_close(p.double(), theta, rtol=rtol, atol=atol)


def copies(group: Group) -> list[Tensor]:
    return [x.clone() for tensors in group.tensors for x in tensors]


def equal(some: Sequence[Tensor], others: Sequence[Tensor]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(some, others, strict=True))


SHAPES = (), (5, 7), (1100,)


@pytest.mark.parametrize("case", OPTIONS)
def test_every_option(case: str) -> None:
    """Gradients from tiny, where eps_t < eps, to large, together and one after another, with zeros among them."""
    values = normal(*SHAPES, seed=100)
    group, oracle = Group(values, **OPTIONS[case]), Oracle(values, **OPTIONS[case])
    for t, scale in enumerate((1e-7, 1.0, 1e-9, 100.0)):
        grads = normal(*SHAPES, seed=t, scale=scale)
        grads[1] *= 1e-8
        grads[2][::3] = 0
        group.step(grads)
        oracle.step(grads)
    close(group, oracle)


@pytest.mark.parametrize("scale", [1e-17, 1e17])
@pytest.mark.parametrize("rho", [0.5, 0.4])
def test_small_and_large_gradients(scale: float, rho: float) -> None:
    values = normal(*SHAPES, seed=100)
    group, oracle = Group(values, fim_rho=rho), Oracle(values, fim_rho=rho)
    for t in range(4):
        grads = normal(*SHAPES, seed=t, scale=scale)
        group.step(grads)
        oracle.step(grads)
    close(group, oracle)


BORDERS = (1,), (7,), (9,), (1023,), (1025,), (2048,), (2049,), (4103,)


@pytest.mark.parametrize(("chunk", "shift"), [(2048, 0), (4096, 0), (4096, 1)])
def test_sizes_around_blocks_and_chunks(chunk: int, shift: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also as views that begin one element off, which leaves no 16-byte access; nothing outside is touched."""
    monkeypatch.setattr(cuda, "_CHUNKS", (chunk, chunk))
    values = normal(*BORDERS, seed=100)
    group, oracle = Group(values), Oracle(values)
    whole: list[Tensor] = []
    for tensors in group.tensors:
        for i, x in enumerate(tensors):
            room = torch.full((x.numel() + 9,), math.pi)
            whole.append(room)
            tensors[i] = room[shift : shift + x.numel()].copy_(x)
    for t in range(2):
        grads = normal(*BORDERS, seed=t, scale=10.0 ** (-9 * t))
        group.step(grads)
        oracle.step(grads)
    close(group, oracle)
    for room, (size,) in zip(whole, 3 * BORDERS, strict=True):
        assert (room[:shift] == math.pi).all()
        assert (room[shift + size :] == math.pi).all()


def test_strides() -> None:
    dense = normal((2, 3, 4, 5))[0].to(memory_format=torch.channels_last)
    transposed, sliced = normal((6, 4))[0].t(), normal((4, 6))[0][:, ::2]
    values = [dense, transposed, sliced]
    group, oracle = Group(values), Oracle(values)
    group.params[2] = torch.zeros(4, 6)[:, ::2].copy_(sliced)  # with gaps, as the clone is not
    for t in range(2):
        grads = normal((2, 3, 4, 5), (4, 6), (4, 3), seed=t)
        grads[0] = grads[0].to(memory_format=torch.channels_last) if t else grads[0]
        grads[2] = grads[2][:1].expand(4, 3)
        group.step(grads)
        oracle.step(grads)
    close(group, oracle)
    assert group.params[0].is_contiguous(memory_format=torch.channels_last)
    assert group.params[2].stride() == (6, 2)


def test_what_is_negated_by_a_note_only() -> None:
    (value,) = normal((300,), seed=100)
    group, other = Group([value]), Group([value])
    group.params[0] = torch._neg_view(-value)
    for t in range(2):
        grads = normal((300,), seed=t)
        group.step([torch._neg_view(-grads[0])])
        other.step(grads)
    assert group.params[0].is_neg()
    torch.testing.assert_close(group.params[0].resolve_neg(), other.params[0], rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_parameters_are_rounded_once_a_step(dtype: torch.dtype) -> None:
    values = [x.to(dtype) for x in normal((3001,), seed=100)]
    group, oracle = Group(values, torch.float32, torch.float32), Oracle(values)
    for t in range(4):
        grads = [g.to(dtype) for g in normal((3001,), seed=t)]
        group.step(grads)
        oracle.step(grads)
        oracle.params = [theta.to(dtype).double() for theta in oracle.params]
    # float32 and float64 round to neighbours now and then, and never further apart than that.
    assert (group.params[0].double() != oracle.params[0]).double().mean() < 0.01
    close(group, oracle, rtol=torch.finfo(dtype).eps, atol=1e-3)


def test_states_of_low_precision() -> None:
    """Computed in float32 from the stored states, and rounded when they are stored."""
    group, oracle = Group(normal((200,), seed=100), torch.bfloat16, torch.float16), Oracle(normal((200,), seed=100))
    for t in range(3):
        for state, exact in zip((group.momentums, group.fims), oracle.states, strict=True):
            exact[0].copy_(state[0])
        oracle.params[0].copy_(group.params[0])
        grads = normal((200,), seed=t)
        group.step(grads)
        oracle.step(grads)
        close(group, oracle, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(group.momentums[0], oracle.states[0][0].to(torch.bfloat16), rtol=0.008, atol=1e-9)
        torch.testing.assert_close(group.fims[0], oracle.states[1][0].to(torch.float16), rtol=0.001, atol=1e-7)


def test_states_stay_finite_in_float16() -> None:
    group = Group([torch.ones(3)], torch.float16, torch.float16, clip=None, eps=0.0, fim_rho=1.0)
    group.step([torch.tensor([1e-6, 1e4, 1.0])])
    assert group.momentums[0].tolist() == [
        torch.finfo(torch.float16).max,
        pytest.approx(1e-5, rel=0.02),
        pytest.approx(0.1, rel=1e-3),
    ]
    assert group.fims[0].tolist() == [0.0, torch.finfo(torch.float16).max, 1.0]


def test_mixed_dtypes_in_one_group() -> None:
    values = [x.to(dtype) for x, dtype in zip(normal(*3 * [(40,)]), cuda._TYPES, strict=True)]
    together, alone = Group(values), [Group([x]) for x in values]
    for t in range(2):
        grads = normal(*3 * [(40,)], seed=t)
        together.step(grads)
        for group, g in zip(alone, grads, strict=True):
            group.step([g])
    assert equal(copies(together), [x for k in range(3) for group in alone for x in group.tensors[k]])


def test_a_gradient_may_have_another_dtype() -> None:
    group, other = Group(normal((30,), (31,))), Group(normal((30,), (31,)))
    grads = [g.bfloat16() for g in normal((30,), (31,), seed=1)]
    group.step([g.float() for g in grads])
    for step in other.steps:
        step += 1
    with interpreted():
        lists = Tensors(other.params, grads, other.momentums, other.fims, other.steps)
        CudaBackend(lists, Options(**other.options)).run()
    assert equal(copies(group), copies(other))


def test_two_runs_agree_to_the_bit() -> None:
    groups = [Group(normal((5000,), (3, 3), seed=100)) for _ in range(2)]
    for group in groups:
        for t in range(2):
            group.step(normal((5000,), (3, 3), seed=t))
    assert equal(copies(groups[0]), copies(groups[1]))


@pytest.mark.parametrize("case", ["defaults", "no decay", "no clip", "scaled", "fixed", "rho 0.7, eps large"])
def test_the_phases_are_the_whole_step(case: str) -> None:
    """One number may differ by rounding: eps^(2 rho) is taken where eps_t is found to be eps, in both."""
    shapes = (3000,), (4, 4)
    values = normal(*shapes, seed=100)
    at_once, apart = Group(values, **OPTIONS[case]), Group(values, **OPTIONS[case])
    for t, scale in enumerate((1.0, 1e-9)):
        grads = normal(*shapes, seed=t, scale=scale)
        at_once.step(grads)
        with interpreted():
            backend = apart.backend(grads)
            sums = backend.gradient_sums()
            metric = backend.metric_sums(sums)
            backend.apply(metric)
        if case != "fixed":
            torch.testing.assert_close(sums, torch.stack([g.double().square().sum() for g in grads]))
        assert (sums.shape, metric.shape, sums.dtype, metric.dtype) == ((2,), (2, 2), torch.float64, torch.float64)
    assert equal(copies(at_once), copies(apart))


def test_shards_whose_sums_are_added_up_are_the_whole_tensor() -> None:
    values = [x.bfloat16() for x in normal((500,), (2100,), seed=100)]
    whole = Group(values, torch.float32, torch.float32, stochastic_rounding=True)
    cuts = [slice(0, 300), slice(300, None)]
    shards = [Group([x[cut] for x in values], torch.float32, torch.float32, stochastic_rounding=True) for cut in cuts]
    for t in range(2):
        grads = [g.bfloat16() for g in normal((500,), (2100,), seed=t)]
        whole.step(grads)
        with interpreted():
            backends = [
                shard.backend([g[cut] for g in grads], numels=[500, 2100], offsets=2 * [cut.start])
                for shard, cut in zip(shards, cuts, strict=True)
            ]
            sums = sum(backend.gradient_sums() for backend in backends)
            metric = sum(backend.metric_sums(sums) for backend in backends)
            for backend in backends:
                backend.apply(metric)
    for i, p in enumerate(whole.params):
        assert torch.equal(torch.cat([shard.params[i] for shard in shards]), p)


LAUNCHES = {
    "defaults": {"metric_kernel": 2, "sum_kernel": 2, "apply_kernel": 1},
    "scaled": {"gradient_kernel": 1, "metric_kernel": 1, "sum_kernel": 2, "apply_kernel": 1},
    "fixed": {"metric_kernel": 1, "sum_kernel": 1, "apply_kernel": 1},
    "no clip": {"gradient_kernel": 1, "sum_kernel": 1, "apply_kernel": 1},
    "fixed, no clip": {"apply_kernel": 1},
}


@pytest.mark.parametrize("case", LAUNCHES)
@pytest.mark.parametrize("shapes", [[()], 150 * [(3, 3)] + [(20000, 40)]], ids=["one", "many"])
def test_the_number_of_launches_does_not_depend_on_the_tensors(
    case: str, shapes: list[tuple[int, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    launched: Counter[str] = Counter()
    monkeypatch.setattr(CudaBackend, "_launch", lambda self, kernel, *_, **__: launched.update([kernel.__name__]))
    Group(normal(*shapes), **OPTIONS[case]).backend(normal(*shapes)).run()
    assert launched == LAUNCHES[case]

    launched.clear()
    group = Group(normal(*shapes), **OPTIONS[case], capturable=True)
    group.backend(normal(*shapes)).run()  # this one also compiles address_kernel, for a capture to come
    launched.clear()
    group.backend(normal(*shapes)).run()
    assert launched == {"fim_weights_kernel": 1, **LAUNCHES[case]}


def test_found_inf_stops_every_write() -> None:
    group = Group(normal(*SHAPES))
    group.step(normal(*SHAPES, seed=1))
    before = copies(group)
    group.step([torch.full(shape, math.inf) for shape in SHAPES], found_inf=torch.ones(()))
    assert equal(copies(group), before)


def test_unscaling_of_gradients() -> None:
    group, other = Group(normal(*SHAPES)), Group(normal(*SHAPES))
    grads = normal(*SHAPES, seed=1)
    group.step(grads)
    amp = {"grad_scale": torch.tensor(1024.0), "found_inf": torch.zeros(())}
    other.step([1024 * g for g in grads], **amp)
    assert equal(copies(group), copies(other))


@pytest.mark.parametrize("lr", [0.01, torch.tensor(0.01, dtype=torch.float64)])
def test_steps_on_the_device_and_steps_that_differ(lr: float | Tensor) -> None:
    values = normal(*SHAPES, seed=100)
    host, device, oracle = Group(values, lr=lr), Group(values, lr=lr, capturable=True), Oracle(values, lr=0.01)
    for group in (host, device, oracle):
        group.steps[1] += 3
    for t in range(3):
        grads = normal(*SHAPES, seed=t)
        for group in (host, device, oracle):
            group.step(grads)
    close(host, oracle)
    close(device, oracle)


@pytest.mark.parametrize("beta2", [0.0, 0.9, 0.999999])
def test_decay_of_the_fim_from_steps_on_the_device(beta2: float) -> None:
    """In the first step f_0 must be forgotten altogether, and later ones must keep the digits of 1 - beta2^t."""
    values = [torch.zeros(2)]
    group, oracle = Group(values, betas=(0.9, beta2), capturable=True), Oracle(values, betas=(0.9, beta2))
    group.fims[0].fill_(1e30)
    for t in range(3):
        grads = normal((2,), seed=t)
        group.step(grads)
        oracle.step(grads)
        torch.testing.assert_close(group.fims[0].double(), oracle.states[1][0], rtol=1e-6, atol=0)


def test_stochastic_rounding_keeps_the_mean() -> None:
    """lr m is 0.3 of the distance between two bfloat16 numbers, so that rounding to nearest never moves."""
    size, distance = 20000, 2.0**-7
    options = {"betas": (0.0, 0.999), "lr": 0.3 * distance, "clip": None, "weight_decay": 0.0}
    group = Group([torch.ones(size, dtype=torch.bfloat16)], torch.float32, torch.float32, **options)
    ones = [-torch.ones(size)]
    group.step(ones)
    assert (group.params[0] == 1).all()
    group.step(ones, stochastic_rounding=True)
    moved = (group.params[0].float() - 1) / distance
    assert set(moved.tolist()) == {0.0, 1.0}
    assert abs(moved.mean() - 0.3) < 4 * math.sqrt(0.3 * 0.7 / size)
    # Neighbours, halves and the next step draw independently of one another.
    first = moved.bool()
    assert abs((first[1:] & first[:-1]).double().mean() - 0.09) < 4 * math.sqrt(0.09 * 0.91 / size)
    assert abs((first[size // 2 :] & first[: size // 2]).double().mean() - 0.09) < 4 * math.sqrt(0.18 * 0.91 / size)
    group.params[0].fill_(1)
    group.step(ones, stochastic_rounding=True)
    second = group.params[0] > 1
    assert abs((first & second).double().mean() - 0.09) < 4 * math.sqrt(0.09 * 0.91 / size)


def test_stochastic_rounding_is_a_function_of_the_step_and_the_place() -> None:
    groups = [Group(2 * [torch.ones(300, dtype=torch.bfloat16)], stochastic_rounding=True) for _ in range(2)]
    for group in groups:
        group.step(2 * normal((300,), seed=1))
    assert equal(copies(groups[0]), copies(groups[1]))
    assert not torch.equal(*groups[0].params)


def test_stochastic_rounding_leaves_other_dtypes_and_infinities_alone() -> None:
    values = normal((50,))
    plain, group = Group(values), Group(values, stochastic_rounding=True)
    for each in (plain, group):
        each.step(normal((50,), seed=1))
    assert equal(copies(plain), copies(group))
    wide = Group([torch.tensor([math.inf, math.nan, 1.0]).bfloat16()], clip=None, stochastic_rounding=True)
    wide.step([torch.ones(3)])
    assert wide.params[0].isfinite().tolist() == [False, False, True]


EXTREMES = [0.0, 1e-45, 1e-40, 1e-30, 1e-22, 1e-19, 1.0, 1e15, 1e19, 1e25, 3.4e38]


@pytest.mark.parametrize(
    ("eps_mode", "rho", "dtype", "eps"),
    [
        ("adaptive", 0.5, torch.float32, 1e-8),
        ("adaptive", 0.5, torch.float32, 0.0),
        ("adaptive", 0.2, torch.float32, 0.0),
        ("adaptive", 1.0, torch.float32, 1e-30),
        ("scaled", 0.5, torch.float32, 1e-8),
        ("fixed", 0.2, torch.float32, 1e-30),
        ("adaptive", 0.5, torch.bfloat16, 1e-30),
        ("adaptive", 0.5, torch.float16, 0.0),
    ],
)
def test_finite_gradients_never_give_nan(eps_mode: str, rho: float, dtype: torch.dtype, eps: float) -> None:
    """Orders of magnitude in tensors of their own, all in one tensor, and one after another in time."""
    row = torch.tensor([min(x, torch.finfo(dtype).max) for x in EXTREMES], dtype=dtype)
    mixed = torch.stack([row, -row.roll(3), row.flip(0)])
    values = [*torch.ones(len(EXTREMES), 3, dtype=dtype)[::3], torch.ones_like(mixed), mixed]
    group = Group(values, betas=(0.99, 0.5), eps=eps, fim_rho=rho, eps_mode=eps_mode)
    sizes = row
    for t in range(3):
        group.step([*sizes[::3, None].expand(-1, 3), mixed.roll(t, 1), -mixed])
        sizes = sizes.roll(4) if t % 2 else 0 * sizes
        for tensors in (group.momentums, group.fims, group.params[:-1]):
            assert torch.cat([x.flatten() for x in tensors]).isfinite().all()
        assert not group.params[-1].isnan().any()  # this one starts at the largest number there is


def test_gradients_of_zero_move_nothing() -> None:
    group = Group(normal(*SHAPES))
    group.step([torch.zeros(shape) for shape in SHAPES])
    assert equal(group.params, normal(*SHAPES))


def test_tiny_gradients_with_a_large_weight_keep_the_clipped_decay() -> None:
    """theta / d overflows float32 here; the clipped decay still points at 0 with an RMS of 1."""
    group = Group([torch.tensor([1.0, -1.0])], lr=1.0, betas=(0.0, 0.999), weight_decay=0.5)
    group.step([torch.full((2,), 1e-38)])
    torch.testing.assert_close(group.params[0], torch.tensor([-0.5, -1.5]))


@pytest.mark.parametrize("bad", [math.inf, -math.inf, math.nan])
@pytest.mark.parametrize("clip", [1.0, None])
def test_a_gradient_that_is_not_finite_is_not_hidden(bad: float, clip: float | None) -> None:
    group = Group([torch.ones(3), torch.ones(3)], clip=clip)
    group.step([torch.tensor([1.0, bad, 1.0]), torch.ones(3)])
    assert not group.params[0][1].isfinite()
    assert group.params[1].isfinite().all()


@pytest.fixture
def plans(monkeypatch: pytest.MonkeyPatch) -> Any:
    """An empty cache of plans, and none kept for captured graphs."""
    kept: Any = type(cuda._plans)()
    monkeypatch.setattr(cuda, "_plans", kept)
    monkeypatch.setattr(cuda, "_captured_plans", [])
    return kept


def test_tables_are_made_once_and_follow_the_gradients(plans: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[Any] = []
    send = cuda._to_device
    monkeypatch.setattr(cuda, "_to_device", lambda *args: sent.append(args) or send(*args))
    values, kept = normal(*SHAPES), []
    group, oracle = Group(values), Oracle(values)
    for t, copied in enumerate((3, 1, 0)):
        if t < 2:
            grads = normal(*SHAPES, seed=t)
            kept.append(grads)  # so that the next ones lie elsewhere
        sent.clear()
        group.step(grads)
        oracle.step(grads)
        assert len(sent) == copied
    close(group, oracle)
    assert [len(kept) for kept in plans.values()] == [1]


def test_tables_are_kept_for_any_number_of_groups_as_long_as_these_live(
    plans: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Any] = []
    plan = cuda._Plan
    monkeypatch.setattr(cuda, "_Plan", lambda *args: made.append(args) or plan(*args))
    monkeypatch.setattr(CudaBackend, "_launch", lambda *_, **__: None)
    groups = [Group(normal((3,))) for _ in range(100)]
    for _ in range(3):
        for group in groups:
            group.backend(normal((3,))).run()
    assert len(made) == len(plans) == 100
    del group, groups[10:]
    assert len(plans) == 10


def test_tables_of_addresses_that_change_are_bounded(plans: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda, "_KEPT", 2)
    monkeypatch.setattr(CudaBackend, "_launch", lambda *_, **__: None)
    group, before = Group(normal((3,))), []
    for _ in range(4):
        before.append(group.params)
        group.params = normal((3,))
        group.backend(normal((3,))).run()
    assert [len(kept) for kept in plans.values()] == [2]


def test_a_capture_copies_nothing_from_the_host(plans: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda, "_ADDRESSES", 2)
    shapes = 3 * [(3,)]
    values = normal(*shapes)
    group, oracle = Group(values, capturable=True), Oracle(values)
    grads = normal(*shapes, seed=0)
    group.step(grads)
    oracle.step(grads)
    ((plan,),) = (kept.values() for kept in plans.values())
    monkeypatch.setattr(cuda, "_is_capturing", lambda device: True)
    monkeypatch.setattr(cuda, "_to_device", lambda *_: pytest.fail("a copy from the host"))
    for t in (1, 2):
        grads = normal(*shapes, seed=t)
        group.step(grads)
        oracle.step(grads)
    close(group, oracle)
    assert cuda._captured_plans == 2 * [plan]
    with pytest.raises(RuntimeError, match="take one outside the graph"):
        Group(values, capturable=True).step(grads)


def test_a_capture_with_a_gradient_laid_out_otherwise(plans: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its copy lies elsewhere in every step, the tables do not."""
    values = [normal((2, 3, 4, 5))[0].to(memory_format=torch.channels_last), normal((6, 4))[0].t()]
    group, oracle = Group(values, capturable=True), Oracle(values)
    kept = []  # so that no copy takes the place of another
    for t in range(3):
        grads = normal((2, 3, 4, 5), (4, 6), seed=t)
        with interpreted():
            backend = group.backend(grads)
            backend.run()
        oracle.step(grads)
        kept.append(backend)
        monkeypatch.setattr(cuda, "_is_capturing", lambda device: True)
    close(group, oracle)
    assert [len(plans) for plans in plans.values()] == [1]


@pytest.fixture
def accepting(monkeypatch: pytest.MonkeyPatch) -> None:
    """A CUDA device that there is not, on which a trial has come out well."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    monkeypatch.setattr(cuda, "_trial", lambda device: None)
    monkeypatch.setattr(cuda, "_trials", {})


class Absent(Tensor):
    """A tensor on a device that there is not, to be looked at only."""

    @classmethod
    def __torch_dispatch__(cls, *args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError


def on(device: str, x: Tensor) -> list[Any]:
    """A tensor like `x` on another device."""
    make = Tensor._make_wrapper_subclass  # type: ignore[attr-defined]
    return [make(Absent, x.shape, strides=x.stride(), dtype=x.dtype, device=torch.device(device))]


def test_a_capture_refuses_what_would_be_copied(accepting: None) -> None:
    dense = normal((2, 3, 4, 5))[0].to(memory_format=torch.channels_last)
    gaps = normal((2, 3, 4, 10))[0][..., ::2]
    for p, m, g, refused in (
        (dense, dense, dense.contiguous(), False),
        (dense, dense.contiguous(), dense, True),
        (dense.contiguous(), dense, dense, True),
        (gaps, gaps.contiguous(), gaps, True),
    ):
        lists = [on("cuda:0", x) for x in (p, g, m, m, torch.ones(()))]
        reason = str(refusal(Tensors(*lists), Options(capturable=True)))
        assert ("states that lie in memory as they do" in reason) == refused
        assert refusal(Tensors(*lists), Options()) is None


def test_refusals(accepting: None, monkeypatch: pytest.MonkeyPatch) -> None:
    published, nothing = Options(), Tensors([], [], [], [], [])
    for name, value in (("momentum_mode", "gradient"), ("decay_mode", "decoupled"), ("correct_momentum", True)):
        assert f"has {name}=" in str(refusal(nothing, Options(**{name: value})))
    assert refusal(nothing, Options(differentiable=True)) == "it has no autograd"

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert refusal(nothing, published) == "there is no CUDA device"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    assert "8.0 or later, not 7.5" in str(refusal(nothing, published))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    assert refusal(nothing, published) is None
    x = [torch.ones(2)]
    assert refusal(Tensors(x, x, x, x, x), published) == "there are cpu tensors among CUDA ones"
    with interpreted():  # which is for tests alone
        assert refusal(Tensors(x, x, x, x, x), published) is not None
    monkeypatch.setattr(triton, "__version__", "3.2.0")
    assert refusal(nothing, published) == "it needs Triton 3.3 or later, not 3.2.0"


def test_refusals_of_tensors(accepting: None) -> None:
    x, published = torch.ones(2), Options()
    single, double, large = on("cuda:0", x), on("cuda:0", x.double()), on("cuda:0", torch.ones(3))
    for place, elsewhere in itertools.product(range(1, 4), (on("cpu", x), on("cuda:1", x), on("meta", x))):
        lists = [elsewhere if k == place else single for k in range(4)]
        assert (
            refusal(Tensors(*lists, single), published)
            == "not all gradients and states are on the device of the parameters"
        )
    for steps in (on("cuda:1", x), on("meta", x), on("cpu", x) + on("cuda:0", x)):
        lists = [single * len(steps)] * 4
        reason = "not all steps are on the host or all on the device of the parameters"
        assert refusal(Tensors(*lists, steps), published) == reason
    assert refusal(Tensors(single, single, single, single, on("cpu", x)), published) is None
    for place in range(4):
        lists = [large if k == place else single for k in range(4)]
        assert refusal(Tensors(*lists, single), published) == "a gradient or state is not of its parameter's shape"
    assert refusal(Tensors(single, single, single, single, double), published) == "not all steps are float32"
    assert refusal(Tensors(single, single, single, on("cuda:0", x.bfloat16()), single), published) is None
    assert "no torch.float64 tensors" in str(refusal(Tensors(single, single, double, single, single), published))


@pytest.mark.parametrize("result", [None, "a trial failed"])
def test_what_came_of_a_trial_is_remembered_in_a_capture(
    accepting: None, result: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[torch.device] = []
    monkeypatch.setattr(cuda, "_trial", lambda device: tried.append(device) or result)
    for capturing, device, reason in (
        (True, "cuda:0", "no step before the capture has tried it on cuda:0"),
        (False, "cuda:0", result),
        (True, "cuda:0", result),
        (False, "cuda:0", result),
        (True, "cuda:1", "no step before the capture has tried it on cuda:1"),
    ):
        monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda capturing=capturing: capturing)
        assert refusal(Tensors(*5 * [on(device, torch.ones(2))]), Options()) == reason
    assert tried == [torch.device("cuda:0")]


def test_a_trial_comes_before_the_first_step(monkeypatch: pytest.MonkeyPatch) -> None:
    trial, device = cuda._trial, torch.device("cpu")
    assert "a trial on cpu failed: " in trial(device)  # there is no driver for the real kernels here
    with interpreted():
        assert trial(device) is None
        monkeypatch.setattr(CudaBackend, "_apply", lambda *_: None)
        assert trial(device) == "a trial on cpu came out different from the multi-tensor loop"


class Target:
    """As much of a Triton driver as compiling needs."""

    def __init__(self, capability: int) -> None:
        self.capability = capability

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.capability, 32)

    def get_current_device(self) -> int:
        return self.capability  # compiled kernels are kept by device

    def get_current_stream(self, device: int) -> int:
        return 0


Compile = Callable[..., dict[str, Any]]


@pytest.fixture
def compiled(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> Compile:
    """Compile what a step would launch, with the arguments it would launch it with, for a GPU that is not there."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    known: dict[str, Any] = {}

    def launch(self: CudaBackend, kernel: Any, grid: tuple[int, ...], *args: Any, **options: Any) -> None:
        name = kernel.__name__ + "".join(f" {x}" for x in ("GUESS", "REDO") if options.get(x))
        known[name] = kernel.warmup(*args, grid=grid, **options)

    def compile(capability: int, group: Group, **options: Any) -> dict[str, Any]:
        known.clear()
        monkeypatch.setattr(triton.runtime.driver, "_active", Target(capability))
        monkeypatch.setattr(CudaBackend, "_launch", launch)
        group.backend(normal(*(p.shape for p in group.params)), **options).run()
        return dict(known)

    return compile


def accesses(kernel: Any) -> Counter[str]:
    """Loads and stores in global memory, by width."""
    return Counter(
        re.findall(r"((?:ld|st)\.global(?:\.v\d)?\.b\d+)", kernel.asm["ptx"].replace(".L1::evict_normal", ""))
    )


def spilled(kernel: Any, path: Any) -> int:
    """Bytes of the stack a thread needs, which is where registers are spilled to."""
    path.write_bytes(kernel.asm["cubin"])
    tool = triton.knobs.nvidia.cuobjdump.path
    usage = subprocess.run([tool, "-res-usage", str(path)], capture_output=True, text=True, check=True)
    (stack,) = re.findall(r"STACK:(\d+)", usage.stdout + usage.stderr)
    return int(stack)


@pytest.mark.parametrize("capability", [80, 90])
def test_the_compiler_takes_the_published_step(capability: int, compiled: Compile, tmp_path: Any) -> None:
    """With 16-byte accesses: three loads for the sums, four loads and three stores for the update; no spilling."""
    kernels = compiled(capability, Group(normal((5000,))))
    metric, apply = kernels["metric_kernel GUESS"], kernels["apply_kernel"]
    assert accesses(metric)["ld.global.v4.b32"] == 3
    assert accesses(apply)["ld.global.v4.b32"] == 4
    assert accesses(apply)["st.global.v4.b32"] == 3
    assert {"sum_kernel GUESS", "metric_kernel REDO", "sum_kernel REDO"} <= kernels.keys()
    for kernel in kernels.values():
        assert spilled(kernel, tmp_path / "kernel.cubin") == 0


@pytest.mark.parametrize("case", ["bfloat16", "scaled", "no clip"])
def test_the_compiler_takes_the_options(case: str, compiled: Compile, tmp_path: Any) -> None:
    amp = {"grad_scale": torch.ones(()), "found_inf": torch.ones(())}
    if case == "bfloat16":
        group = Group([torch.ones(5000, dtype=torch.bfloat16)], capturable=True, fim_rho=0.3, lr=torch.tensor(0.1))
        kernels = compiled(90, group, stochastic_rounding=True, maximize=True, **amp)
        assert accesses(kernels["apply_kernel"])["st.global.v4.b32"] == 3
        assert {"fim_weights_kernel", "address_kernel", "metric_kernel REDO"} <= kernels.keys()
    elif case == "scaled":
        group = Group(
            normal((5000,), (3,)), torch.bfloat16, torch.float16, eps_mode="scaled", fim_rho=1.0, weight_decay=0
        )
        group.steps[0] += 1
        kernels = compiled(90, group, **amp)
        assert accesses(kernels["gradient_kernel"])["ld.global.v4.b32"] == 2
    else:
        kernels = compiled(90, Group(normal((5000,)), eps_mode="fixed", clip=None))
        assert kernels.keys() == {"apply_kernel"}
    for kernel in kernels.values():
        assert spilled(kernel, tmp_path / "kernel.cubin") == 0
