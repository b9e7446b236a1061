"""The catalogue: what is unknown to it is shown all the same, or refused."""

from __future__ import annotations

import math

import pytest

from experiments.core import catalogue
from experiments.core.catalogue import ARMS, TASKS, arm, check_scale, in_order, signed, task
from experiments.core.errors import ConfigError
from experiments.core.protocol import names, protocol


def test_every_declared_arm_and_metric_has_an_entry() -> None:
    for p in map(protocol, names()):
        assert {p.metric.name, p.tuning.name} <= set(task(p.task).metrics)
        assert task(p.task).metric(p.metric.name).mode == p.metric.mode
        assert {*p.bowl.arms, *(p.switches.arms if p.switches else ()), *(p.context.arms if p.context else ())} <= set(
            ARMS
        )


def test_arms_look_different() -> None:
    assert len({a.colour for a in ARMS.values()}) == len(ARMS)
    others = [f"mine_{i}" for i in range(20)]
    found = [arm(name, others) for name in others]
    assert len({a.colour for a in (*found, *ARMS.values())}) == 20 + len(ARMS)
    assert [a.label for a in found] == others


def test_an_unknown_metric_stands_at_the_end_under_its_key() -> None:
    keys = [m.key for m in task("llm").recorded(["zebra/x", "val/loss", "test/bits_per_byte", "a/b"])]
    assert keys == ["test/bits_per_byte", "val/loss", "a/b", "zebra/x"]
    unknown = task("llm").metric("a/b")
    assert (unknown.title, unknown.mode) == ("a/b", None)
    assert math.isnan(unknown.worst)


def test_unknown_scales_and_tasks_are_refused() -> None:
    assert check_scale("gpu") == "gpu"
    with pytest.raises(ConfigError, match="scale must be one of smoke, cpu, gpu, paper, got 'study'"):
        check_scale("study")
    with pytest.raises(ConfigError, match="task must be one of llm, asr, vqvae, got 'other'"):
        task("other")


@pytest.mark.parametrize(
    ("value", "signed_", "text"),
    [
        (0.12345, False, "12.35"), (0.00001, True, "+0.00"), (-0.00001, True, "+0.00"), (-0.00001, False, "0.00"),
        (math.inf, False, "∞"), (math.inf, True, "+∞"), (-math.inf, True, "-∞"), (math.nan, False, "–"),
    ],
)  # fmt: skip
def test_numbers_as_shown(value: float, signed_: bool, text: str) -> None:
    assert TASKS["asr"].metric("test-clean/wer").number(value, signed=signed_) == text


def test_small_gains_get_more_digits() -> None:
    metric = task("llm").metric("test/bits_per_byte")
    assert signed(metric, 0.02).number(0.02) == "0.0200"
    assert signed(metric, 0.00002).number(0.00002) == "0.00002"
    assert signed(metric, 1e-9).number(1e-9) == "0.000000"
    assert signed(metric, 0.0) is signed(metric, math.inf) is metric


def test_order_and_words() -> None:
    assert in_order(["zz", "fadam", "adamw_clip", "muon", "fadam"]) == ["adamw_clip", "fadam", "muon", "zz"]
    assert catalogue.where("vqvae", "gaussian") == "VQ-VAE, Gaussian likelihood"
    assert catalogue.where("toy", "odd_one") == "toy, odd one"
