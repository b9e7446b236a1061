"""bfloat16 weights where the CPU has no bfloat16 product: what is computed, and that a run is its own evaluation."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from omegaconf import DictConfig, OmegaConf
from torch.nn import functional as F

from experiments import evaluate as ev
from experiments.core import precision, run
from experiments.core.optim import muon
from experiments.core.precision import RoundedBfloat16, RoundedProducts, precision_of, set_float32_products


@pytest.fixture(autouse=True)
def products() -> Iterator[None]:
    """What a test sets of torch's products is set back."""
    matrices, convolutions = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    yield
    torch.set_float32_matmul_precision(matrices)
    torch.backends.cudnn.allow_tf32 = convolutions


def test_products_are_those_of_float32_rounded() -> None:
    torch.manual_seed(0)
    x, w, b = (torch.randn(*shape, dtype=torch.bfloat16, requires_grad=True) for shape in ((5, 64), (3, 64), (3,)))
    up = torch.randn(5, 3, dtype=torch.bfloat16)
    with RoundedProducts():
        y = F.linear(x, w, bias=b)
        z = x @ w.t()
    y.backward(up)
    assert torch.equal(y, (x.float() @ w.float().t() + b.float()).bfloat16())
    assert torch.equal(z, (x.float() @ w.float().t()).bfloat16())
    assert x.grad is not None
    assert w.grad is not None
    assert torch.equal(x.grad, (up.float() @ w.float()).bfloat16())
    assert torch.equal(w.grad, (up.float().t() @ x.float()).bfloat16())
    # torch's own differ by the order of the sums alone.
    assert torch.allclose(y, F.linear(x, w, b), rtol=2**-7, atol=1e-5)


def test_a_product_goes_where_it_is_asked_to() -> None:
    """`out` was left as it was."""
    torch.manual_seed(0)
    x, out = torch.randn(4, 6, dtype=torch.bfloat16), torch.zeros(4, 4, dtype=torch.bfloat16)
    with RoundedProducts():
        assert torch.mm(x, x.mT, out=out) is out
    assert torch.equal(out, (x.float() @ x.float().mT).bfloat16())


def test_muon_takes_the_same_step_with_either_product(monkeypatch: pytest.MonkeyPatch) -> None:
    stepped = []
    for native in (True, False):
        monkeypatch.setattr(precision, "has_bfloat16", lambda native=native: native)
        torch.manual_seed(0)
        p = torch.nn.Parameter(torch.randn(24, 16))
        optimizer = muon([{"params": [p]}], (), lr=0.1)
        start = p.detach().clone()
        assert optimizer.step(lambda p=p: (p**2).sum().backward()) is None
        stepped.append(p.detach() - start)
    assert stepped[0].abs().max() > 0.01
    assert torch.allclose(*stepped, rtol=2**-5, atol=2**-9)


def test_attention_and_convolution_too() -> None:
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 2, 4, 8, 16, dtype=torch.bfloat16).unbind()
    kernel = torch.randn(4, 4, 3, 3, dtype=torch.bfloat16)
    with RoundedProducts():
        seen = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        image = F.conv2d(q, kernel, padding=1)
    wide = F.scaled_dot_product_attention(q.float(), k.float(), v.float(), is_causal=True)
    assert torch.equal(seen, wide.bfloat16())
    assert torch.equal(image, F.conv2d(q.float(), kernel.float(), padding=1).bfloat16())


def test_other_tensors_and_functions_are_let_be() -> None:
    x = torch.randn(4, 4)
    with RoundedProducts():
        assert (x @ x).dtype == torch.float32
        assert torch.equal(x.bfloat16() + 1, x.bfloat16() + 1)
        assert (x.double() @ x.double()).dtype == torch.float64


@pytest.mark.parametrize(
    ("words", "native", "rounded"),
    [
        ({"precision": "bf16-true", "accelerator": "cpu"}, False, True),
        ({"precision": "bf16-true", "accelerator": "cpu"}, True, False),
        ({"precision": "bf16-true", "accelerator": "cuda"}, False, False),
        ({"precision": "32-true", "accelerator": "cpu"}, False, False),
    ],
)
def test_lightnings_own_is_taken_where_it_is_as_fast(
    monkeypatch: pytest.MonkeyPatch, words: dict[str, str], native: bool, rounded: bool
) -> None:
    monkeypatch.setattr(precision, "has_bfloat16", lambda: native)
    found = precision_of(DictConfig(words))
    assert [type(plugin) for plugin in found["plugins"]] == [RoundedBfloat16] * rounded
    assert found["precision"] == (None if rounded else words["precision"])


@pytest.mark.parametrize(("words", "matrices", "tf32"), [("32-true", "highest", False), ("bf16-mixed", "high", True)])
def test_a_run_in_float32_multiplies_in_float32(words: str, matrices: str, tf32: bool) -> None:
    set_float32_products(DictConfig({"precision": words}))
    assert torch.get_float32_matmul_precision() == matrices
    assert torch.backends.cudnn.allow_tf32 is tf32


@pytest.mark.parametrize("native", [False, True])
def test_a_run_in_bfloat16_evaluates_to_its_record(
    compose_config, monkeypatch: pytest.MonkeyPatch, native: bool
) -> None:
    monkeypatch.setattr(precision, "has_bfloat16", lambda: native)
    cfg = compose_config("experiment=toy", "optimizer=fadam", "trainer.precision=bf16-true", "logger=none")
    record = run.execute(cfg)
    folder = Path(cfg.paths.run_dir)
    assert record["config"]["trainer"]["precision"] == "bf16-true"
    assert OmegaConf.load(folder / "config.yaml").trainer.precision == "bf16-true"
    weights = torch.load(folder / "last.ckpt", weights_only=True)["state_dict"]
    assert {w.dtype for w in weights.values()} == {torch.bfloat16}
    assert ev.evaluate(folder, allow=["tests"])["test/loss"] == record["metrics"]["test/loss"]


@pytest.mark.parametrize(("words", "matrices"), [("32-true", "highest"), ("bf16-mixed", "high")])
def test_an_evaluation_multiplies_as_its_run_did(compose_config, words: str, matrices: str) -> None:
    cfg = compose_config("experiment=toy", "optimizer=fadam", f"trainer.precision={words}", "logger=none")
    run.execute(cfg)
    for before in ("high", "highest"):
        torch.set_float32_matmul_precision(before)
        ev.evaluate(Path(cfg.paths.run_dir), allow=["tests"])
        assert torch.get_float32_matmul_precision() == matrices
