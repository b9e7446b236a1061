from __future__ import annotations

import math

import pytest

from experiments.analysis.stats import (
    bootstrap_interval,
    paired_difference,
    prediction_interval,
    summarise,
    t_interval,
)
from experiments.analysis.tasks import Metric

INF = math.inf
WER = Metric(("wer",), "WER", "min", percent=True, digits=2)
PSNR = Metric(("psnr",), "PSNR", "max", digits=2)
# Student's t, 97.5%, 2 degrees of freedom (any printed table).
T2 = 4.302653


def test_mean_and_deviation_of_known_numbers():
    summary = summarise([1.0, 2.0, 3.0, 4.0])
    assert summary is not None
    assert (summary.n, summary.mean, summary.diverged) == (4, 2.5, 0)
    assert summary.sd == pytest.approx(math.sqrt(5 / 3))
    assert summarise([]) is None
    assert summarise([7.0]).sd is None


def test_a_diverged_run_stays_in_the_mean():
    summary = summarise([0.4, INF, 0.5])
    assert (summary.n, summary.mean, summary.sd, summary.diverged) == (3, INF, None, 1)
    assert summary.finite_mean == pytest.approx(0.45)
    assert WER.summary(summary) == "∞ (1 of 3 diverged; others 45.00 ± 7.07)"
    assert WER.summary(summarise([INF, INF])) == "∞ (2 of 2 diverged)"
    assert PSNR.summary(summarise([-INF])) == "-∞ (1 of 1 diverged)"


def test_t_interval_of_known_numbers():
    # Mean 2, deviation 1, three values.
    low, high = t_interval([1.0, 2.0, 3.0])
    assert low == pytest.approx(2 - T2 / math.sqrt(3), abs=1e-6)
    assert high == pytest.approx(2 + T2 / math.sqrt(3), abs=1e-6)
    assert t_interval([1.0]) is None


def test_prediction_interval_of_known_numbers():
    low, high = prediction_interval([1.0, 2.0, 3.0], 3)
    assert low == pytest.approx(2 - T2 * math.sqrt(2 / 3), abs=1e-6)
    assert high == pytest.approx(2 + T2 * math.sqrt(2 / 3), abs=1e-6)
    assert prediction_interval([1.0], 3) is None


@pytest.mark.parametrize(
    ("fadam", "mode", "word"),
    [
        ((0.40, 0.41, 0.42), "min", "FAdam better, taken alone"),
        ((0.44, 0.47, 0.50), "min", "FAdam worse, taken alone"),
        ((0.44, 0.47, 0.50), "max", "FAdam better, taken alone"),
        ((0.40, 0.41, 0.42), "max", "FAdam worse, taken alone"),
        ((0.40, 0.48, 0.44), "min", "no detectable difference"),
        ((0.42, 0.44, 0.46), "min", "no detectable difference"),
    ],
)
def test_the_word_follows_the_interval(fadam, mode, word):
    opponent = dict(enumerate((0.42, 0.44, 0.46)))
    assert paired_difference(dict(enumerate(fadam)), opponent, mode).word == word


def test_paired_difference_of_known_numbers():
    paired = paired_difference({1: 0.40, 2: 0.41, 3: 0.42}, {1: 0.42, 2: 0.44, 3: 0.46}, "min")
    assert paired.n == 3
    assert paired.mean == pytest.approx(-0.03)
    assert paired.sd == pytest.approx(0.01)
    half = T2 * 0.01 / math.sqrt(3)
    assert paired.interval == pytest.approx((-0.03 - half, -0.03 + half), abs=1e-7)
    assert paired.bca is None
    assert WER.difference(paired) == "-3.00 [-5.48, -0.52] (3 pairs)"


def test_only_common_seeds_are_paired_and_the_rest_is_counted():
    paired = paired_difference({1: 1.0, 2: 2.0, 3: 3.0}, {2: 1.0, 3: 2.0, 4: 9.0, 5: 9.0}, "min")
    assert (paired.n, paired.left_out, paired.mean) == (2, (1, 4, 5), 1.0)
    assert WER.difference(paired).endswith("(2 pairs; 3 unpaired left out)")
    assert paired_difference({1: 1.0}, {2: 1.0}, "min").word == "no seed in common"
    single = paired_difference({1: 1.0}, {1: 2.0}, "min")
    assert (single.mean, single.interval, single.word) == (-1.0, None, "one pair, no interval")


@pytest.mark.parametrize(("mode", "bad"), [("min", INF), ("max", -INF)])
def test_divergence_decides(mode, bad):
    good = {1: 1.0, 2: 1.0, 3: 1.0}
    worse = paired_difference({1: bad, 2: bad, 3: 1.0}, good, mode)
    assert worse.word == "FAdam worse, taken alone: it diverged on 2 of 3"
    assert (worse.mean, worse.interval) == (bad, None)
    once = paired_difference({1: 1.0, 2: bad, 3: 1.0}, good, mode)
    assert once.word == "no detectable difference: FAdam diverged on 1 of 3"
    assert (once.mean, once.interval) == (bad, None)
    better = paired_difference(good, {1: bad, 2: bad, 3: 1.0}, mode)
    assert better.word == "FAdam better, taken alone: the opponent diverged on 2 of 3"
    assert (better.mean, better.interval) == (-bad, None)
    both = paired_difference({**good, 1: bad}, {**good, 2: bad}, mode)
    assert both.word == "no verdict: FAdam diverged on 1, the opponent on 1 of 3"
    assert both.mean is None
    assert WER.difference(both) == "– (3 pairs)"


@pytest.mark.parametrize("method", ["BCa", "percentile"])
def test_bootstrap_repeats_exactly_and_covers_the_mean(method):
    values = [0.1, 0.3, 0.2, 0.5, 0.4, 0.25]
    low, high = bootstrap_interval(values, method)
    assert min(values) < low < sum(values) / 6 < high < max(values)
    assert bootstrap_interval(values, method) == (low, high)
    t_low, t_high = t_interval(values)
    assert t_low < low
    assert high < t_high


def test_bootstrap_needs_five_different_values_and_a_known_method():
    assert bootstrap_interval([1.0, 2.0, 3.0, 4.0]) is None
    assert bootstrap_interval([1.0] * 5) is None
    with pytest.raises(ValueError, match='must be "BCa" or "percentile"'):
        bootstrap_interval([1.0] * 5, "basic")


def test_from_five_pairs_on_both_intervals_are_shown():
    paired = paired_difference(dict(enumerate((1.0, 1.1, 1.2, 1.1, 1.3))), dict.fromkeys(range(5), 1.0), "min")
    assert paired.bca is not None
    assert ", BCa [" in WER.difference(paired)


def test_no_negative_zero():
    assert WER.number(-0.000001, signed=True) == "+0.00"
    assert WER.number(-0.000001) == "0.00"
    assert WER.number(0.41234) == "41.23"


def test_codebook_statistics_are_not_judged():
    usage = Metric(("val/codebook_usage",), "usage", "max", judged=False)
    paired = paired_difference({1: 2.0, 2: 2.1, 3: 2.2}, {1: 1.0, 2: 1.0, 3: 1.1}, "max")
    assert usage.verdict(paired) == "differs"
    assert PSNR.verdict(paired) == "FAdam better, taken alone"
