"""Tests over several looks, against published boundaries and tests of one look."""

from __future__ import annotations

import itertools
import math
from typing import Literal

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.weightstats import ttost_paired

from experiments.analysis.looks import (
    Array,
    check_looks,
    evidence,
    nominal_levels,
    one_sided,
    paired,
    repeated_interval,
    sequential_p,
    signed_rank,
    spending,
)

INF, NAN = math.inf, math.nan
MAIN, SWITCHES = (12, 20, 40), (12, 20)


def made_up(n: int, mean: float = 0.0, sd: float = 1.0, seed: int = 0) -> Array:
    return np.random.default_rng(seed).normal(mean, sd, n)


# --- boundaries


@pytest.mark.parametrize(
    ("looks", "z"),
    [  # two-sided 0.05, equally spaced, of the O'Brien-Fleming type: printed by ldbounds and gsDesign
        ((10,), (1.960,)),
        ((10, 20), (2.963, 1.969)),
        ((10, 20, 30), (3.710, 2.511, 1.993)),
        ((10, 20, 30, 40, 50), (4.877, 3.357, 2.680, 2.290, 2.031)),
    ],
)
def test_published_boundaries(looks: tuple[int, ...], z: tuple[float, ...]) -> None:
    assert -stats.norm.ppf(nominal_levels(looks, 0.025)) == pytest.approx(z, abs=6e-4)


def test_spending_function() -> None:
    assert spending(0.025, [1 / 3, 2 / 3, 1]) == pytest.approx([1.035e-4, 6.048e-3, 0.025], rel=1e-3)
    assert spending([0.01, 0.3], 1.0) == pytest.approx([0.01, 0.3])


@pytest.mark.parametrize("looks", [MAIN, SWITCHES, (39, 40)])
@pytest.mark.parametrize("level", [0.05 / 4, 0.3])
def test_boundaries_are_crossed_as_often_as_was_spent(looks: tuple[int, ...], level: float) -> None:
    # By another way: the multivariate normal distribution of the statistics.
    n = np.array(looks)
    normal = stats.multivariate_normal(
        cov=np.sqrt(np.minimum.outer(n, n) / np.maximum.outer(n, n)), abseps=1e-5, seed=0
    )
    assert 1 - normal.cdf(stats.norm.isf(nominal_levels(looks, level))) == pytest.approx(level, abs=5e-5)


@pytest.mark.parametrize("looks", [MAIN, SWITCHES, (39, 40), (2, 38, 40), tuple(range(4, 44, 4))])
def test_nominal_levels_rise_with_the_overall_level(looks: tuple[int, ...]) -> None:
    # Without it a sequential p would not be one number.
    levels = np.array([nominal_levels(looks, level) for level in (1e-8, 1e-4, 0.01, 0.025, 0.05, 0.3, 0.32, 0.6, 0.95)])
    assert (np.diff(levels, axis=0) > 0).all()


@pytest.mark.parametrize("looks", [(), (1, 5), (5, 5), (8, 4), (2, 60)])
def test_looks_that_are_none(looks: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="look"):
        check_looks(looks)


@pytest.mark.parametrize("level", [0.0, 1.0, NAN])
def test_levels_that_are_none(level: float) -> None:
    with pytest.raises(ValueError, match="level"):
        nominal_levels(MAIN, level)


# --- sequential p's


@pytest.mark.parametrize("looks", [MAIN, (10, 20, 30, 40, 50)])
@pytest.mark.parametrize("level", [1e-6, 0.0031, 0.0125, 0.025, 0.05, 0.4, 0.9])
def test_sequential_p_turns_the_boundary_round(looks: tuple[int, ...], level: float) -> None:
    nominal = np.array(nominal_levels(looks, level))
    for k in range(len(looks)):
        p = np.ones(len(looks))
        p[k] = nominal[k]
        assert sequential_p(p, looks) == pytest.approx([1.0] * k + [level] * (len(looks) - k), abs=1e-6, rel=1e-5)


def test_sequential_p_never_rises_and_is_p_at_a_single_look() -> None:
    p = np.random.default_rng(0).uniform(size=(50, 3))
    assert (np.diff(sequential_p(p, MAIN)) <= 0).all()
    assert sequential_p(p[:, :1], (7,)) == pytest.approx(p[:, :1], abs=1e-6)
    assert sequential_p([0.0, 0.5, 0.5], MAIN) == pytest.approx(1e-9, rel=0.1)


# --- a single look is the ordinary test


@pytest.mark.parametrize("mean", [-0.4, 0.0, 0.3, 1.0])
def test_a_single_look_is_the_paired_t_test_and_tost(mean: float) -> None:
    d = made_up(15, mean)
    found = evidence(d, (15,), 0.5)
    t = stats.ttest_1samp(d, 0)
    assert found.superior == pytest.approx([t.pvalue], abs=2e-6)
    assert found.direction == np.sign(d.mean())
    assert found.equivalent == pytest.approx([ttost_paired(d, np.zeros(15), -0.5, 0.5)[0]], abs=1e-6)
    interval = stats.t.interval(0.95, 14, d.mean(), stats.sem(d))
    assert repeated_interval(d, (15,)) == pytest.approx(interval)


@pytest.mark.parametrize(
    ("value", "null", "p"), [(0.0, 0.0, (1, 1)), (0.3, 0.0, (0, 1)), (-0.3, 0.0, (1, 0)), (0.0, -0.1, (0, 1))]
)
def test_differences_that_are_all_equal(value: float, null: float, p: tuple[float, float]) -> None:
    assert tuple(map(float, one_sided([value] * 6, null))) == p


def test_pairs_beyond_a_look_wait() -> None:
    d = made_up(19, 0.4)
    assert evidence(d, MAIN, 0.5).superior == pytest.approx(evidence(d[:12], MAIN, 0.5).superior)
    assert evidence(d[:11], MAIN, 0.5).superior.shape == (0,)


def test_the_interval_agrees_with_the_tests() -> None:
    # An end of the interval is the null that is only just rejected at this look.
    d, looks = made_up(20, 0.5), MAIN
    for null, side, end in ((0.0, 0, 0), (1.0, 1, 1)):
        level = 2 * float(sequential_p([1.0, float(one_sided(d, null)[side])], looks)[1])
        assert repeated_interval(d, looks, level)[end] == pytest.approx(null, abs=1e-5)
    with pytest.raises(ValueError, match="as many pairs"):
        repeated_interval(d[:13], looks)


def test_matters_is_positive() -> None:
    with pytest.raises(ValueError, match="matters"):
        evidence(made_up(12), MAIN, 0.0)


# --- diverged runs


def test_differences_are_positive_where_the_challenger_is_better() -> None:
    assert paired([1.0, 3.0, INF, 2.0, INF], [2.0, 1.0, 1.0, INF, INF], "min") == pytest.approx(
        [1.0, -2.0, -INF, INF, NAN], nan_ok=True
    )
    assert paired([3.0, -INF], [1.0, -2.0], "max") == pytest.approx([2.0, -INF])


@pytest.mark.parametrize(
    ("a", "b", "mode"),
    [
        ([1.0], [1.0, 2.0], "min"),
        ([NAN], [1.0], "min"),
        ([-INF], [1.0], "min"),
        ([1.0], [INF], "max"),
        ([1.0], [1.0], ""),
    ],
)
def test_pairs_that_are_none(a: list[float], b: list[float], mode: Literal["min", "max"]) -> None:
    with pytest.raises(ValueError, match=r"pairs|values|mode"):
        paired(a, b, mode)


def test_signed_rank_is_scipys_exact_test_without_ties() -> None:
    d = made_up(12, 0.3)
    expected = [stats.wilcoxon(d, alternative=side, method="exact").pvalue for side in ("greater", "less")]
    assert signed_rank(d) == pytest.approx(expected)


def test_signed_rank_counts_all_signs() -> None:
    # Ranks 1, 2, 3.5, 3.5, 5.5, 5.5: of 64 signs those whose positive ranks sum to at least what was seen.
    d = np.array([0.1, -0.2, 0.3, 0.3, INF, INF, 0.0, NAN])
    ranks = [1, 2, 3.5, 3.5, 5.5, 5.5]
    sums = [sum(r for r, s in zip(ranks, signs, strict=True) if s) for signs in itertools.product((0, 1), repeat=6)]
    assert signed_rank(d) == pytest.approx((np.mean(np.array(sums) >= 19), 1.0))


def test_a_diverged_run_weighs_most() -> None:
    d = np.full(12, 0.1) + np.arange(12) / 100
    above, below = signed_rank(np.append(d[:11], INF))
    assert above == pytest.approx(2**-12)
    assert below == 1.0
    # The same with the sign of the last turned: not better, and by the ranks not worse either.
    above, below = signed_rank(np.append(d[:11], -INF))
    assert above == 1.0
    assert 0.9 < below < 1
    assert signed_rank(np.full(12, -INF)) == pytest.approx((1.0, 2**-12))
    assert signed_rank(np.full(12, NAN)) == (1.0, 1.0)


def test_what_diverged_is_not_equivalent() -> None:
    d = made_up(20, 0.0, 0.01)
    assert evidence(d, SWITCHES, 1.0).equivalent[-1] < 1e-6
    for bad in (INF, -INF, NAN):
        late = np.append(d[:19], bad)
        equivalent = evidence(late, SWITCHES, 1.0).equivalent
        assert equivalent[0] < 1e-6  # before
        assert equivalent[1] == 1.0


def test_both_diverged_is_a_tie() -> None:
    d = np.append(np.full(10, 0.5) + made_up(10, 0, 0.01), [NAN, NAN])
    # Ten of ten; the two ties do not draw the mean to zero.
    assert evidence(d, (12,), 0.1).superior == pytest.approx([2 * 2**-10], rel=1e-3)
