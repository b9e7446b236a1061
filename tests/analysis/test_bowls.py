"""Bowls with known answers."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import numpy as np
import pytest
from scipy import stats

from experiments.analysis.bowls import Array, Bowl, bowl, bowls, jackknife, width
from experiments.analysis.comparisons import Study
from experiments.core.protocol import rate

INF = math.inf
RATES = np.array([1e-3, 2e-3, 4e-3, 8e-3, 16e-3])


def table(*means: float, spread: float = 0.0) -> Array:
    """(R, 3) values with these means, the same seeds' offsets at every rate."""
    return np.array(means)[:, None] + spread * np.array([-1.0, 0.0, 1.0])


def found(values: Array, mode: Literal["min", "max"] = "min", matters: float = 0.1) -> Bowl:
    made = bowl(RATES, values, mode, matters)
    assert made is not None
    return made


def test_width_of_a_valley() -> None:
    # A quarter of a step down to the left (slope 2 a doubling), half a step to the right (slope 1).
    values = table(5.0, 3.0, 1.0, 2.0, 3.0)
    assert width(RATES, values, "min", 0.5) == pytest.approx(2**0.75)
    assert width(RATES, values, "min", 2.0) == pytest.approx(2**3)
    made = found(values, matters=0.5)
    assert (made.open, made.best, made.lowest) == (False, 1.0, 2)
    assert made.width == pytest.approx(2**0.75)


def test_width_ends_at_divergence_and_at_the_grid() -> None:
    assert width(RATES, table(3.0, 2.0, 1.0, 1.1, INF), "min", 0.5) == pytest.approx(2**1.5)
    made = found(table(1.2, 1.1, 1.0, 1.1, 3.0), matters=0.5)
    assert made.open
    assert made.width == pytest.approx(2 ** (3 + 0.4 / 1.9))


def test_sensitivity_is_the_mean_excess() -> None:
    assert found(table(3.0, 2.0, 1.0, 2.0, 3.0)).sensitivity == pytest.approx(6 / 5)
    assert found(table(-3.0, -2.0, -1.0, -2.0, -3.0), "max").sensitivity == pytest.approx(6 / 5)
    assert found(table(3.0, 2.0, 1.0, 2.0, INF)).sensitivity == INF


def test_the_interval_of_a_mean_is_students() -> None:
    values = np.array([[1.0, 2.0, 4.0]])
    assert jackknife(lambda t: float(t.mean()), values) == pytest.approx(
        stats.t.interval(0.95, 2, values.mean(), stats.sem(values[0]))
    )


def test_intervals_end_where_no_bowl_can_be() -> None:
    values = table(3.0, 2.0, 1.0, 2.0, 3.0)
    values[3:, 0] += 9.0  # one seed falls off a cliff that the others do not see
    made = found(values)
    assert made.sensitivity_interval is not None
    assert made.sensitivity_interval[0] == 0
    assert made.sensitivity_interval[1] > made.sensitivity
    unsure = np.array([[1.0, 0.0, 2.0], [0.0, 1.0, 2.0], [1.0, 1.0, 0.0], [2.0, 0.0, 1.0], [3.0, 3.0, 3.0]])
    ends = found(unsure).width_interval
    assert ends is not None
    assert ends[0] == 1


def test_no_interval_of_two_seeds_or_infinite_values() -> None:
    values = table(3.0, 2.0, 1.0, 2.0, INF)
    assert jackknife(lambda t: float(t.mean()), values[:, :2]) is None
    assert found(values).sensitivity_interval is None
    with pytest.raises(ValueError, match="share their seeds"):
        jackknife(lambda a, b: float(a.mean() - b.mean()), values, values[:, :2])


def test_offsets_of_seeds_cancel_in_width_sensitivity_and_differences() -> None:
    values = table(3.0, 2.0, 1.0, 2.0, 3.0, spread=0.3)
    made = found(values, matters=0.5)
    assert made.sensitivity_interval == pytest.approx((1.2, 1.2))
    assert made.width_interval == pytest.approx((2.0, 2.0))
    assert made.best_interval == pytest.approx(stats.t.interval(0.95, 2, 1.0, 0.3 / math.sqrt(3)))
    flat = table(1.4, 1.2, 1.0, 1.2, 1.4, spread=0.3)
    assert jackknife(lambda a, b: float(a.mean() - b.mean()), values, flat) == pytest.approx((0.96, 0.96))


def test_a_metric_that_is_to_be_high_is_the_mirror_image() -> None:
    rng = np.random.default_rng(0)
    values = table(3.0, 2.0, 1.0, 2.0, 3.0) + rng.normal(0, 0.1, (5, 3))
    low, high = found(values, "min", 0.5), found(-values, "max", 0.5)
    assert (high.width, high.sensitivity, high.lowest) == (low.width, low.sensitivity, low.lowest)
    assert low.best_interval is not None
    assert high.best == -low.best
    assert high.best_interval == pytest.approx((-low.best_interval[1], -low.best_interval[0]))
    assert high.values == pytest.approx(-low.values)


def test_a_bowl_that_diverged_everywhere() -> None:
    assert bowl(RATES, table(*[INF] * 5), "min", 0.1) is None
    with pytest.raises(ValueError, match="diverged at every"):
        width(RATES, table(*[INF] * 5), "min", 0.1)


def test_jackknife_intervals_of_three_seeds_hold_the_truth() -> None:
    # A parabola whose lowest point lies between two rates; offsets of seeds and noise of runs. 95% of 400, less 3
    # standard errors; a bootstrap over the seeds comes to about 70%.
    rng = np.random.default_rng(0)
    rates = 1.6 ** np.arange(9)
    true: Array = np.array([[0.02 * (i - 3.7) ** 2] for i in range(9)])
    statistics: list[Callable[[Array], float]] = [
        lambda t: math.log(width(rates, t, "min", 0.05)),
        lambda t: float(t.mean(1).mean() - t.mean(1).min()),  # its sensitivity
    ]
    held = np.zeros(2)
    for _ in range(400):
        values = true + rng.normal(0, 0.02, 3) + rng.normal(0, 0.01, (9, 3))
        for i, statistic in enumerate(statistics):
            interval = jackknife(statistic, values)
            assert interval is not None
            held[i] += interval[0] <= statistic(true) <= interval[1]
    assert (held / 400 >= 0.95 - 3 * math.sqrt(0.95 * 0.05 / 400)).all()


@pytest.mark.parametrize(
    ("rates", "values", "mode"),
    [
        (RATES[::-1], table(1, 2, 3, 4, 5), "min"),
        (RATES[:2], table(1, 2), "min"),
        (RATES, table(1, 2, 3), "min"),
        (RATES, table(1, 2, math.nan, 4, 5), "min"),
        (RATES, table(1, 2, -INF, 4, 5), "min"),
        (RATES, table(1, 2, INF, 4, 5), "max"),
        (RATES, np.ones(5), "min"),
        (RATES, table(1, 2, 3, 4, 5), "lowest"),
    ],
)
def test_tables_that_are_none(rates: Array, values: Array, mode: Literal["min", "max"]) -> None:
    with pytest.raises(ValueError, match=r"rates|values|mode"):
        bowl(rates, values, mode, 0.1)
    with pytest.raises(ValueError, match="matters"):
        bowl(RATES, table(1, 2, 3, 4, 5), "min", 0.0)


# --- the bowls of a study, from its tuning runs


def test_bowls_hold_the_tuning_runs_at_the_first_weight_decay(study: Study) -> None:
    p = study.planners["llm"].protocol
    found = bowls(study.table, p)
    assert list(found) == ["adamw_clip", "fadam", "adamw"]
    fadam = found["fadam"]
    assert fadam.rates.tolist() == [rate(step) for step in range(-15, -10)]
    assert fadam.values.shape == (5, 3)
    assert fadam.rates[fadam.lowest] == 0.0025
    # 0.05 * ln(r)^2 = 0.01 at a factor of 1.56 on either side; straight lines between rates make it a little narrower.
    assert fadam.width == pytest.approx(1.56**2, rel=0.05)


def test_rates_without_all_their_seeds_wait(study: Study) -> None:
    p = study.planners["llm"].protocol
    table = study.table
    gone = (table["lr"] == rate(-15)) & (table["seed"] == 302) & (table["arm"] == "fadam") & (table["part"] == "tune")
    found = bowls(table[~gone], p)
    assert len(found["fadam"].rates) == 4
    few = table[(table["lr"] >= rate(-12)) | (table["part"] != "tune")]
    assert bowls(few, p) == {}
