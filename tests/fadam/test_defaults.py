"""What torch takes for a device or dtype that is not named must not matter to a step."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

from fadam import FAdam, Options, diagnose
from fadam.bookkeeping import Tensors
from fadam.fused import cuda
from fadam.fused.cpu import CpuBackend
from tests.fadam.cases import PATHS, leaves, run
from tests.fadam.triton_interpreter import interpreted

OPTIONS = Options(lr=0.1, betas=(0.9, 0.99), weight_decay=0.1)


@contextmanager
def float64_by_default() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


DEFAULTS: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "meta": lambda: torch.device("meta"),
    "float64": float64_by_default,
}


def values(seed: int) -> list[Tensor]:
    generator = torch.Generator("cpu").manual_seed(seed)
    normal = torch.randn(2, 6, 4, generator=generator, dtype=torch.float32, device="cpu")
    return [normal[0].bfloat16(), normal[1].t()]


@pytest.mark.parametrize("defaults", DEFAULTS)
@pytest.mark.parametrize("path", PATHS)
def test_a_step_does_not_depend_on_them(path: str, defaults: str) -> None:
    expected, params = leaves(values(0)), leaves(values(0))
    options: dict[str, Any] = {"stochastic_rounding": True, "fim_dtype": torch.float32, **PATHS[path]}
    opt = FAdam(expected, **options)
    run(opt, expected, values, 2)
    with DEFAULTS[defaults]():
        other = FAdam(params, **options)
        run(other, params, values, 2)
        other.load_state_dict(other.state_dict())
        numbers = diagnose(other)
    for p, q in zip(expected, params, strict=True):
        torch.testing.assert_close(p, q, rtol=0, atol=0)
        for name, x in opt.state[p].items():
            torch.testing.assert_close(x, other.state[q][name], rtol=0, atol=0)
    assert numbers == diagnose(opt)


@pytest.mark.parametrize("defaults", DEFAULTS)
@pytest.mark.parametrize("backend", [CpuBackend, cuda.CudaBackend])
def test_nor_do_the_phases_of_the_fused_implementations(backend: Any, defaults: str) -> None:
    def stepped() -> list[Tensor]:
        p, g = (x[1] for x in (values(0), values(1)))
        p = p.clone()
        lists = Tensors([p], [g.contiguous()], [torch.zeros_like(p)], [torch.ones_like(p)], [steps])
        fused = backend(lists, OPTIONS)
        sums = fused.gradient_sums()
        metric = fused.metric_sums(sums)
        fused.apply(metric)
        return [p, sums, metric]

    steps = torch.ones(())
    with interpreted():
        expected = stepped()
        with DEFAULTS[defaults]():
            torch.testing.assert_close(stepped(), expected, rtol=0, atol=0)


@pytest.mark.parametrize("defaults", DEFAULTS)
def test_nor_does_the_trial_of_the_kernels(defaults: str) -> None:
    with interpreted(), DEFAULTS[defaults]():
        assert cuda._trial(torch.device("cpu")) is None
