"""The statistics of the study, against numbers known from elsewhere."""

from __future__ import annotations

import itertools
import math
import statistics

import numpy as np
import pytest

from experiments.analysis.stats import (
    BETTER_ARM,
    NEITHER,
    WORSE_ARM,
    bootstrap_interval,
    decide,
    detectable_difference,
    first_reached,
    gain_of,
    holm,
    paired_gain,
    paired_ratio,
    paired_t_p,
    range_noise,
    sign_flip_p,
    t_interval,
)

INF = math.inf


def gains(*values: float):
    return gain_of(dict(enumerate(values)))


# --- sign flips


@pytest.mark.parametrize(
    ("values", "p"),
    [
        ((1.0, 2.0, 3.0, 4.0, 5.0), 2 / 32),  # the smallest that five pairs can give
        ((0.3, 0.1, 0.2), 2 / 8),
        ((-1.0, -2.0, -3.0), 2 / 8),
        ((1.0, -1.0), 1.0),
        ((0.0, 0.0, 0.0), 1.0),
        ((5.0,), 1.0),
    ],
)
def test_sign_flip_p_of_known_sets(values, p):
    assert sign_flip_p(values) == pytest.approx(p)


def test_sign_flip_p_counts_the_flips_at_least_as_extreme():
    values = [0.9, -0.2, 0.4, 0.7, -0.1, 0.3]
    means = [sum(s * v for s, v in zip(signs, values, strict=True)) for signs in itertools.product((1, -1), repeat=6)]
    above = sum(m >= sum(values) - 1e-12 for m in means)
    assert sign_flip_p(values) == pytest.approx(2 * above / 64)


def test_an_infinite_difference_outweighs_all_others():
    # Only the four flips that keep the infinite one's sign can be as extreme, and among them only one.
    assert sign_flip_p([INF, 1.0, 2.0]) == pytest.approx(2 / 8)
    assert sign_flip_p([INF, -1.0, -2.0]) == sign_flip_p([1e9, -1.0, -2.0])
    assert sign_flip_p([]) is None


# --- t test, Holm, power


def test_t_test_of_known_numbers():
    # With 2 degrees of freedom p = 1 - t / sqrt(t^2 + 2), here t = 2 sqrt(3).
    assert paired_t_p([1.0, 2.0, 3.0]) == pytest.approx(1 - math.sqrt(12 / 14))
    assert paired_t_p([1.0]) is None
    assert paired_t_p([0.0, 0.0]) == 1.0
    assert paired_t_p([0.5, 0.5]) == 0.0


def test_holm_of_a_textbook_example():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, 0.6]) == pytest.approx([1.0, 1.0])
    assert holm([]) == []


def test_a_comparison_that_could_not_be_made_still_counts_in_the_family():
    assert holm([0.01, None, None]) == [pytest.approx(0.03), None, None]


def test_detectable_difference():
    # Many pairs: the normal quantiles of 97.5% and 80%.
    assert detectable_difference(1.0, 5000) * math.sqrt(5000) == pytest.approx(1.959964 + 0.841621, rel=1e-3)
    # Five pairs: 1.68 standard deviations (any power table of the paired t test).
    assert detectable_difference(2.0, 5) == pytest.approx(2 * 1.682, abs=2e-3)
    assert detectable_difference(0.0, 5) == 0.0


def test_students_interval_covers_as_it_says_and_the_bootstraps_of_five_values_does_not():
    draws = np.random.default_rng(1).normal(size=(300, 5)).tolist()
    student = sum(low <= 0 <= high for low, high in map(t_interval, draws)) / len(draws)
    bootstrap = sum(low <= 0 <= high for low, high in map(bootstrap_interval, draws[:150])) / 150
    assert 0.92 <= student <= 0.98
    assert 0.70 <= bootstrap < 0.92


def test_range_noise_is_the_studentised_range():
    # Table of the studentised range: 5%, 3 means, 10 degrees of freedom.
    assert range_noise(2.0, 11, 3, 1) == pytest.approx(2 * 3.877, abs=2e-3)
    assert range_noise(2.0, 11, 3, 4) == pytest.approx(3.877, abs=1e-3)


# --- gains and what they decide


@pytest.mark.parametrize(("mode", "sign"), [("min", -1), ("max", 1)])
def test_positive_gain_is_better_whatever_the_direction(mode, sign):
    gain = paired_gain({1: 2.0, 2: 3.0, 3: 5.0, 9: 0.0}, {1: 1.0, 2: 1.0, 3: 2.0}, mode)
    assert gain.gains == {1: sign * 1.0, 2: sign * 2.0, 3: sign * 3.0}
    assert (gain.mean, gain.sd, gain.left_out) == (sign * 2.0, 1.0, (9,))
    low, high = gain.t_interval
    assert (low + high) / 2 == pytest.approx(gain.mean)
    assert gain.bca is None
    assert gain.detectable == pytest.approx(detectable_difference(1.0, 3))


@pytest.mark.parametrize(
    ("values", "matters", "outcome"),
    [
        ((1.0, 1.1, 0.9, 1.0, 1.05), 0.5, BETTER_ARM),
        ((-1.0, -1.1, -0.9, -1.0, -1.05), 0.5, WORSE_ARM),
        ((1.0, 1.1, 0.9, 1.0, 1.05), 2.0, NEITHER),  # certain, and too small to matter
        ((1.0, 3.0, -2.0, 1.0, 1.0), 0.1, NEITHER),  # would matter, but is not certain
        ((1.0, 1.1), 0.1, NEITHER),  # two pairs decide nothing
        ((INF, INF, INF, 0.0, 0.0), 0.5, BETTER_ARM),
        ((-INF, -INF, -INF, -INF, -INF), 0.5, WORSE_ARM),
        ((INF, INF, 0.0, 0.0, 0.0), 0.5, NEITHER),  # diverged on no more than half of the pairs
        ((-INF, -INF, -INF, 1.0, 1.0), 0.5, NEITHER),  # the others point the other way
        ((INF, -INF, 1.0, 1.0, 1.0), 0.5, NEITHER),
        ((), 0.5, NEITHER),
    ],
)
def test_what_a_gain_decides(values, matters, outcome):
    assert decide(gains(*values), matters) == outcome


def test_students_interval_decides_where_the_bootstraps_is_too_short():
    gain = gains(0.1, 1.0, 1.2, 1.4, 3.4)
    assert gain.bca[0] > 0 > gain.t_interval[0]
    assert decide(gain, 0.1) == NEITHER


def test_divergence_in_gains():
    gain = paired_gain({1: INF, 2: INF, 3: 1.0}, {1: INF, 2: 2.0, 3: 2.0}, "min")
    assert gain.gains == {1: 0.0, 2: -INF, 3: 1.0}
    assert (gain.mean, gain.sd, gain.t_interval, gain.p_t) == (-INF, None, None, None)
    both = paired_gain({1: INF, 2: 1.0}, {1: 1.0, 2: INF}, "min")
    assert both.mean is None
    assert both.p == 1.0


# --- steps to target


def test_where_a_curve_reaches_the_target():
    curve = [(100, 4.0), (200, 2.0), (300, 1.0)]
    assert first_reached(curve, 3.0, "min") == 150
    assert first_reached(curve, 1.5, "min") == 250
    assert first_reached(curve, 5.0, "min") == 100  # nothing is known from before the first evaluation
    assert first_reached(curve, 0.5, "min") == INF
    assert first_reached([(100, 1.0), (200, 3.0)], 2.0, "max") == 150
    # A value that is not finite is no place to interpolate from.
    assert first_reached([(100, math.nan), (200, 1.0)], 2.0, "min") == 200
    assert first_reached([], 2.0, "min") == INF


def test_ratio_of_runs_that_got_there():
    ratio = paired_ratio({1: 50.0, 2: 100.0, 3: 200.0}, {1: 100.0, 2: 100.0, 3: 100.0, 4: 7.0})
    assert ratio.middle == pytest.approx(1.0)
    assert (ratio.kind, ratio.interval) == ("geometric mean", None)
    five = paired_ratio(dict(enumerate((50.0, 60.0, 70.0, 80.0, 90.0))), dict.fromkeys(range(5), 100.0))
    assert five.middle == pytest.approx(statistics.geometric_mean((0.5, 0.6, 0.7, 0.8, 0.9)))
    low, high = five.interval
    assert 0.5 < low < five.middle < high < 0.9


def test_a_run_that_never_got_there_is_worse_than_any():
    arm, other = {1: INF, 2: 50.0, 3: 60.0, 4: INF, 5: 70.0}, {1: 100.0, 2: 100.0, 3: 100.0, 4: INF, 5: INF}
    ratio = paired_ratio(arm, other)
    assert ratio.ratios == {1: INF, 2: 0.5, 3: 0.6, 4: 1.0, 5: 0.0}
    assert (ratio.kind, ratio.middle, ratio.interval) == ("median", 0.6, (0.0, INF))
    assert (ratio.censored, ratio.other_censored) == ((1, 4), (4, 5))
    assert paired_ratio({1: 1.0}, {2: 1.0}).middle is None
