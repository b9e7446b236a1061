"""Bowls with known answers."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
import pytest
from scipy import stats  # type: ignore[import-untyped,unused-ignore]

from experiments.analysis.bowls import Array, bowl, choose, jackknife, sensitivity, width

INF = math.inf
RATES = np.array([1e-3, 2e-3, 4e-3, 8e-3, 16e-3])


def table(*means: float, spread: float = 0.0) -> Array:
    """(R, 3) values with these means, the same seeds' offsets at every rate."""
    return np.array(means)[:, None] + spread * np.array([-1.0, 0.0, 1.0])


@pytest.mark.parametrize(
    ("means", "chosen"),
    [
        ([3.0, 2.0, 1.0, 2.0, 3.0], 2),
        ([3.0, 2.5, 1.0, 2.5, 3.0], 1),  # a bowl narrower than the grid: its slope
        ([4.0, 2.5, 1.0, 2.5, 4.0], None),
        ([1.5, 1.0, 0.9, 5.0, 5.0], 1),  # the best has a cliff, its neighbour not
        ([2.0, 1.5, 1.2, INF, INF], 1),  # a diverged neighbour is a cliff
        ([0.5, 0.6, 0.7, 0.8, 0.9], 1),  # the end is not chosen
        ([INF, 1.0, INF, 1.0, INF], None),
    ],
)
def test_chosen_is_the_best_without_a_cliff(means: Sequence[float], chosen: int | None) -> None:
    assert choose(means, 1.0) == chosen


def test_a_cliff_is_a_multiple_of_what_matters() -> None:
    values = table(1.3, 1.1, 1.0, 1.2, 1.4)
    assert bowl(RATES, values, "min", matters=0.1, cliff=2.1).chosen == 2
    assert bowl(RATES, values, "min", matters=0.1, cliff=1.5).chosen is None
    assert bowl(RATES, -values, "max", matters=0.1, cliff=2.1).chosen == 2


@pytest.mark.parametrize(
    ("means", "end"),
    [((1.0, 2.0, 3.0, 4.0, 5.0), "low"), ((5.0, 4.0, 3.0, 2.0, 1.0), "high"), ((3.0, 2.0, 1.0, 2.0, 3.0), None)],
)
def test_a_best_at_an_end_says_so(means: Sequence[float], end: str | None) -> None:
    assert bowl(RATES, table(*means), "min", 0.1).end == end


def test_width_of_a_valley() -> None:
    # A quarter of a step down to the left (slope 2 a doubling), half a step to the right (slope 1).
    values = table(5.0, 3.0, 1.0, 2.0, 3.0)
    assert width(RATES, values, "min", 0.5) == pytest.approx(2**0.75)
    assert width(RATES, values, "min", 2.0) == pytest.approx(2**3)
    found = bowl(RATES, values, "min", 0.5)
    assert (found.open, found.best, found.lowest) == ((), 1.0, 2)
    assert found.width == pytest.approx(2**0.75)


def test_width_ends_at_divergence_and_at_the_grid() -> None:
    assert width(RATES, table(3.0, 2.0, 1.0, 1.1, INF), "min", 0.5) == pytest.approx(2**1.5)
    found = bowl(RATES, table(1.2, 1.1, 1.0, 1.1, 3.0), "min", 0.5)
    assert found.open == ("low",)
    assert found.width == pytest.approx(2 ** (3 + 0.4 / 1.9))


def test_sensitivity_is_the_mean_excess() -> None:
    assert sensitivity(table(3.0, 2.0, 1.0, 2.0, 3.0), "min") == pytest.approx(6 / 5)
    assert sensitivity(table(3.0, 2.0, 1.0, 2.0, 30.0), "min", worst=4.0) == pytest.approx((2 + 1 + 1 + 3) / 5)
    assert sensitivity(table(3.0, 2.0, 1.0, 2.0, INF), "min", worst=4.0) == pytest.approx(7 / 5)
    assert sensitivity(table(-3.0, -2.0, -1.0, -2.0, -INF), "max", worst=-4.0) == pytest.approx(7 / 5)
    assert sensitivity(table(3.0, 2.0, 1.0, 2.0, INF), "min") == INF
    # The cap is of runs, not of means.
    assert sensitivity([[1.0, 1.0], [1.0, INF]], "min", worst=3.0) == pytest.approx(0.5)


def test_the_interval_of_a_mean_is_students() -> None:
    values = np.array([[1.0, 2.0, 4.0]])
    assert jackknife(lambda t: float(t.mean()), values) == pytest.approx(
        stats.t.interval(0.95, 2, values.mean(), stats.sem(values[0]))
    )


def test_no_interval_of_two_seeds_or_infinite_values() -> None:
    values = table(3.0, 2.0, 1.0, 2.0, INF)
    assert jackknife(lambda t: float(t.mean()), values[:, :2]) is None
    assert bowl(RATES, values, "min", 0.1).sensitivity_interval is None
    with pytest.raises(ValueError, match="share their seeds"):
        jackknife(lambda a, b: float(a.mean() - b.mean()), values, values[:, :2])


def test_offsets_of_seeds_cancel_in_width_sensitivity_and_differences() -> None:
    values = table(3.0, 2.0, 1.0, 2.0, 3.0, spread=0.3)
    found = bowl(RATES, values, "min", 0.5)
    assert found.sensitivity_interval == pytest.approx((1.2, 1.2))
    assert found.width_interval == pytest.approx((2.0, 2.0))
    assert found.best_interval == pytest.approx(stats.t.interval(0.95, 2, 1.0, 0.3 / math.sqrt(3)))
    flat = table(1.4, 1.2, 1.0, 1.2, 1.4, spread=0.3)
    assert jackknife(lambda a, b: sensitivity(a, "min") - sensitivity(b, "min"), values, flat) == pytest.approx(
        (0.96, 0.96)
    )


def test_a_metric_that_is_to_be_high_is_the_mirror_image() -> None:
    rng = np.random.default_rng(0)
    values = table(3.0, 2.0, 1.0, 2.0, 3.0) + rng.normal(0, 0.1, (5, 3))
    low, high = bowl(RATES, values, "min", 0.5), bowl(RATES, -values, "max", 0.5)
    assert (high.width, high.sensitivity, high.chosen) == (low.width, low.sensitivity, low.chosen)
    assert low.best is not None
    assert low.best_interval is not None
    assert high.best == -low.best
    assert high.best_interval == pytest.approx((-low.best_interval[1], -low.best_interval[0]))
    assert high.means == pytest.approx(-low.means)


def test_a_bowl_that_diverged_everywhere() -> None:
    found = bowl(RATES, table(*[INF] * 5), "min", 0.1)
    assert (found.lowest, found.chosen, found.best, found.width, found.sensitivity) == (None,) * 5
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
        lambda t: sensitivity(t, "min"),
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
