"""Means, spreads and paired differences over seeds. A diverged run is infinitely bad and stays in.

Values are infinite where a run diverged: `inf` where lower is better, `-inf` where higher is better.
"""

from __future__ import annotations

import functools
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from experiments.analysis.records import Mode

# Of one comparison by itself, not corrected for others having been made.
BETTER, WORSE, NONE = "FAdam better, taken alone", "FAdam worse, taken alone", "no detectable difference"
BOOTSTRAP_FROM = 5
_RESAMPLES = 9999


@dataclass(frozen=True)
class Summary:
    """Mean and standard deviation (ddof=1) of `n` runs. With diverged runs the mean is infinite, the deviation None,
    and `finite_mean`, `finite_sd` describe the others."""

    n: int
    mean: float
    sd: float | None
    diverged: int
    finite_mean: float | None
    finite_sd: float | None


def summarise(values: Sequence[float]) -> Summary | None:
    """Summary of one value a seed; None for no values."""
    if not values:
        return None
    finite = [v for v in values if math.isfinite(v)]
    finite_mean = statistics.fmean(finite) if finite else None
    finite_sd = statistics.stdev(finite) if len(finite) > 1 else None
    diverged = len(values) - len(finite)
    if diverged:
        worst = next(v for v in values if not math.isfinite(v))
        return Summary(len(values), worst, None, diverged, finite_mean, finite_sd)
    assert finite_mean is not None
    return Summary(len(values), finite_mean, finite_sd, 0, finite_mean, finite_sd)


def t_quantile(n: int, confidence: float = 0.95) -> float:
    """Two-sided quantile of Student's t with n - 1 degrees of freedom."""
    from scipy.stats import t  # type: ignore[import-untyped,unused-ignore]

    return float(t.ppf(0.5 + confidence / 2, n - 1))


def t_interval(values: Sequence[float], confidence: float = 0.95) -> tuple[float, float] | None:
    """Confidence interval of the mean of finite `values`; None for fewer than two."""
    if len(values) < 2:
        return None
    mean = statistics.fmean(values)
    half = t_quantile(len(values), confidence) * statistics.stdev(values) / math.sqrt(len(values))
    return mean - half, mean + half


def bootstrap_interval(
    values: Sequence[float], method: str = "BCa", confidence: float = 0.95, seed: int = 0
) -> tuple[float, float] | None:
    """Bootstrap interval of the mean of finite `values`, `method` "BCa" or "percentile"; None for fewer than five
    values (too few to resample), or where all are equal or nearly so.

    Raises:
        ValueError: another method.
    """
    if method not in ("BCa", "percentile"):
        raise ValueError(f'method must be "BCa" or "percentile", got {method!r}')
    if len(values) < BOOTSTRAP_FROM or len(set(values)) == 1:
        return None
    import numpy as np
    from scipy.stats import bootstrap  # type: ignore[import-untyped,unused-ignore]

    interval = bootstrap(
        (np.asarray(values),),
        np.mean,
        n_resamples=_RESAMPLES,
        confidence_level=confidence,
        method=method,
        rng=np.random.default_rng(seed),
    ).confidence_interval
    low, high = float(interval.low), float(interval.high)
    return (low, high) if math.isfinite(low) and math.isfinite(high) else None


def prediction_interval(values: Sequence[float], n_new: int, confidence: float = 0.95) -> tuple[float, float] | None:
    """Where the mean of `n_new` further runs is expected, given finite `values`: mean ± t · sd · sqrt(1/n + 1/n_new).

    None for fewer than two values.
    """
    if len(values) < 2 or n_new < 1:
        return None
    mean = statistics.fmean(values)
    half = t_quantile(len(values), confidence) * statistics.stdev(values)
    half *= math.sqrt(1 / len(values) + 1 / n_new)
    return mean - half, mean + half


@dataclass(frozen=True)
class Paired:
    """FAdam minus an opponent, seed by seed.

    Attributes:
        n: seeds that both have. left_out: seeds that only one of the two has.
        mean, sd, interval: of the differences; with diverged runs there is no interval and `mean` is infinite or,
            where both diverged, None. bca: bootstrap interval from five pairs on.
        differences: seed -> difference, for pairs of two finite values.
        diverged, opponent_diverged: seeds of the pairs on which each one diverged.
        word: "FAdam better, taken alone", "FAdam worse, taken alone", "no detectable difference", or why there is none.
    """

    n: int
    left_out: tuple[int, ...]
    mean: float | None
    sd: float | None
    interval: tuple[float, float] | None
    bca: tuple[float, float] | None
    differences: Mapping[int, float]
    diverged: tuple[int, ...]
    opponent_diverged: tuple[int, ...]
    word: str


def paired_difference(fadam: Mapping[int, float], opponent: Mapping[int, float], mode: Mode) -> Paired:
    """Differences `fadam - opponent` over the seeds they share, with a 95% t interval and the verdict in words.

    Args:
        fadam, opponent: seed -> value, infinite where the run diverged.
        mode: "min" where lower is better, "max" where higher is.
    """
    seeds = sorted(fadam.keys() & opponent.keys())
    left_out = tuple(sorted(fadam.keys() ^ opponent.keys()))
    diverged = tuple(s for s in seeds if not math.isfinite(fadam[s]))
    opponent_diverged = tuple(s for s in seeds if not math.isfinite(opponent[s]))
    differences = {s: fadam[s] - opponent[s] for s in seeds if s not in {*diverged, *opponent_diverged}}
    values = list(differences.values())
    mean: float | None = None
    sd: float | None = None
    interval: tuple[float, float] | None = None
    bca: tuple[float, float] | None = None
    if not seeds:
        word = "no seed in common"
    elif diverged and opponent_diverged:
        word = (
            f"no verdict: FAdam diverged on {len(diverged)}, the opponent on {len(opponent_diverged)} of {len(seeds)}"
        )
    elif diverged or opponent_diverged:
        bad = math.inf if mode == "min" else -math.inf
        mean = bad if diverged else -bad
        who, count = ("it", len(diverged)) if diverged else ("the opponent", len(opponent_diverged))
        lost = lost_by([*values, *[mean] * count])
        word = (WORSE if diverged else BETTER) if lost else NONE
        word += f": {who if lost or not diverged else 'FAdam'} diverged on {count} of {len(seeds)}"
    else:
        mean = statistics.fmean(values)
        interval = t_interval(values)
        if interval is None:
            word = "one pair, no interval"
        else:
            sd = statistics.stdev(values)
            bca = bootstrap_interval(values)
            verdict = BETTER if (mean < 0) == (mode == "min") else WORSE
            word = NONE if interval[0] <= 0 <= interval[1] else verdict
    return Paired(len(seeds), left_out, mean, sd, interval, bca, differences, diverged, opponent_diverged, word)


# What a comparison of two arms comes to.
BETTER_ARM, WORSE_ARM, NEITHER = "better", "worse", "no detectable difference"
LEVEL = 0.05  # of a p after Holm's correction
# Fewer pairs than this decide nothing.
LEAST_PAIRS = 3


@dataclass(frozen=True)
class Gain:
    """How much better one arm is than another, seed by seed, in the units of the metric: positive is better.

    Attributes:
        gains: seed -> gain over the seeds that both have; `inf` where only the other one diverged, `-inf` where only
            this one did, 0 where both did. left_out: seeds that only one of the two has.
        mean: infinite where a gain is, None for no pair or for infinite gains of both signs.
        sd: standard deviation (ddof=1) of the gains, None for one pair or infinite gains.
        t_interval, bca: 95% intervals of the mean, Student's and the bootstrap's (bias-corrected and accelerated, from
            five pairs on). Five values are few to resample: the bootstrap's interval is too short then, so that a
            decision needs Student's as well.
        p: of the sign-flip permutation test of the mean, two-sided, all 2^n flips: at least 2 / 2^n, 1/16 for 5 pairs.
        p_t: of the paired t test.
        detectable: the smallest true difference that a two-sided t test at 5% would find in 80% of such comparisons,
            given `sd` and as many pairs, if no other comparison were made.
    """

    gains: Mapping[int, float]
    left_out: tuple[int, ...]
    mean: float | None
    sd: float | None
    t_interval: tuple[float, float] | None
    bca: tuple[float, float] | None
    p: float | None
    p_t: float | None
    detectable: float | None

    @property
    def n(self) -> int:
        return len(self.gains)

    @property
    def finite(self) -> bool:
        return all(map(math.isfinite, self.gains.values()))


def paired_gain(arm: Mapping[int, float], other: Mapping[int, float], mode: Mode) -> Gain:
    """The gain of `arm` over `other`, each seed -> value, infinite where the run diverged."""
    sign = -1.0 if mode == "min" else 1.0

    def gain(a: float, b: float) -> float:
        return 0.0 if a == b else sign * (a - b)  # two diverged runs are equally bad

    seeds = sorted(arm.keys() & other.keys())
    return gain_of({s: gain(arm[s], other[s]) for s in seeds}, tuple(sorted(arm.keys() ^ other.keys())))


def gain_of(gains: Mapping[int, float], left_out: tuple[int, ...] = ()) -> Gain:
    """The statistics of gains that were taken seed by seed."""
    values = list(gains.values())
    infinite = {v for v in values if not math.isfinite(v)}
    if not values or len(infinite) == 2:
        return Gain(dict(gains), left_out, None, None, None, None, sign_flip_p(values), None, None)
    if infinite:
        return Gain(dict(gains), left_out, infinite.pop(), None, None, None, sign_flip_p(values), None, None)
    sd = statistics.stdev(values) if len(values) > 1 else None
    return Gain(
        gains=dict(gains),
        left_out=left_out,
        mean=statistics.fmean(values),
        sd=sd,
        t_interval=t_interval(values),
        bca=bootstrap_interval(values),
        p=sign_flip_p(values),
        p_t=paired_t_p(values),
        detectable=None if sd is None else detectable_difference(sd, len(values)),
    )


def decide(gain: Gain, matters: float) -> str:
    """Whether one arm is better, worse, or neither.

    Better or worse needs all of: at least `LEAST_PAIRS` pairs; Student's interval, and the bootstrap's where there is
    one, on one side of zero; a mean of at least `matters`, the smallest difference that would matter. With five pairs
    the permutation test cannot go below p = 1/16, let alone after Holm's correction, whatever the differences are: it
    is reported beside, and decides nothing. Divergence on one side alone decides where `lost_by` says so.
    """
    if gain.n < LEAST_PAIRS or gain.mean is None or abs(gain.mean) < matters:
        return NEITHER
    side = math.copysign(1.0, gain.mean)
    if gain.finite:
        intervals = [i for i in (gain.t_interval, gain.bca) if i is not None]
        if any(side * low <= 0 or side * high <= 0 for low, high in intervals):
            return NEITHER
    elif not lost_by(list(gain.gains.values())):
        return NEITHER
    return BETTER_ARM if side > 0 else WORSE_ARM


def lost_by(differences: Sequence[float]) -> bool:
    """Whether infinite differences, all of one sign, decide a comparison: more than half of the pairs, and the mean of
    the finite ones does not point the other way. A single diverged run may be chance."""
    infinite = [d for d in differences if not math.isfinite(d)]
    finite = [d for d in differences if math.isfinite(d)]
    if 2 * len(infinite) <= len(differences):
        return False
    return not finite or statistics.fmean(finite) * math.copysign(1.0, infinite[0]) >= 0


def sign_flip_p(values: Sequence[float]) -> float | None:
    """Two-sided p of the mean of paired differences under random signs, all 2^n of them; None for no values.

    An infinite difference outweighs all finite ones together, and infinite ones count alike.
    """
    if not values:
        return None
    import numpy as np
    from scipy.stats import permutation_test  # type: ignore[import-untyped,unused-ignore]

    heavy = 1e3 * (1.0 + sum(abs(v) for v in values if math.isfinite(v)))
    finite = np.array([v if math.isfinite(v) else math.copysign(heavy, v) for v in values])
    if len(finite) == 1 or not finite.any():
        return 1.0
    test = permutation_test((finite,), np.mean, permutation_type="samples", n_resamples=np.inf, vectorized=True)
    return float(min(1.0, test.pvalue))


def paired_t_p(values: Sequence[float]) -> float | None:
    """Two-sided p of the one-sample t test of finite differences; None for fewer than two."""
    if len(values) < 2:
        return None
    mean, sd = statistics.fmean(values), statistics.stdev(values)
    if sd == 0:
        return 0.0 if mean else 1.0
    from scipy.stats import t  # type: ignore[import-untyped,unused-ignore]

    return float(2 * t.sf(abs(mean) / sd * math.sqrt(len(values)), len(values) - 1))


def holm(values: Sequence[float | None]) -> list[float | None]:
    """Holm's step-down correction. A comparison that could not be made is None; it still counts in the family."""
    order = sorted((v, i) for i, v in enumerate(values) if v is not None)
    corrected: list[float | None] = [None] * len(values)
    least = 0.0
    for rank, (value, i) in enumerate(order):
        least = max(least, min(1.0, (len(values) - rank) * value))
        corrected[i] = least
    return corrected


def detectable_difference(sd: float, n: int, power: float = 0.8, level: float = 0.05) -> float:
    """The smallest mean difference of `n` pairs that a two-sided t test at `level` finds with probability `power`."""
    return sd * _detectable_factor(n, power, level)


@functools.cache
def _detectable_factor(n: int, power: float, level: float) -> float:
    from scipy.optimize import brentq  # type: ignore[import-untyped,unused-ignore]
    from scipy.stats import nct  # type: ignore[import-untyped,unused-ignore]

    limit = t_quantile(n, 1 - level)
    # The chance of a significant result on the wrong side is left out; it is below 1e-4 here.
    return float(brentq(lambda x: nct.sf(limit, n - 1, x) - power, 0.0, 100.0)) / math.sqrt(n)


def first_reached(points: Sequence[tuple[float, float]], target: float, mode: Mode) -> float:
    """Where a curve of (place, value) first reaches `target`, linearly between its points; `inf` if it never does.

    A curve that starts beyond the target has reached it at its first point: nothing is known from before.
    """
    sign = 1.0 if mode == "min" else -1.0
    before: tuple[float, float] | None = None
    for place, value in points:
        if math.isfinite(value) and sign * value <= sign * target:
            if before is None or not math.isfinite(before[1]):
                return place
            return before[0] + (place - before[0]) * (target - before[1]) / (value - before[1])
        before = (place, value)
    return math.inf


@dataclass(frozen=True)
class Ratio:
    """Cost of one arm over the cost of another, seed by seed; below 1 is cheaper.

    Attributes:
        ratios: seed -> ratio; `inf` where only the first never got there, 0 where only the other did not, 1 where
            neither did.
        middle: geometric mean where all ratios are of two runs that got there, else the median; None for no pair.
        interval: 95% percentile bootstrap of `middle`, over all resamples where they can be counted out.
        censored, other_censored: seeds on which each one never got there.
    """

    ratios: Mapping[int, float]
    middle: float | None
    interval: tuple[float, float] | None
    censored: tuple[int, ...]
    other_censored: tuple[int, ...]

    @property
    def kind(self) -> str:
        return "median" if self.censored or self.other_censored else "geometric mean"


def paired_ratio(arm: Mapping[int, float], other: Mapping[int, float], seed: int = 0) -> Ratio:
    """The ratio of two costs, each seed -> cost, `inf` where the run never got there."""
    seeds = sorted(arm.keys() & other.keys())
    censored = tuple(s for s in seeds if math.isinf(arm[s]))
    other_censored = tuple(s for s in seeds if math.isinf(other[s]))
    ratios = {s: 1.0 if s in censored and s in other_censored else arm[s] / other[s] for s in seeds}
    if not ratios:
        return Ratio({}, None, None, (), ())
    import numpy as np

    values = np.sort(np.array(list(ratios.values())))
    n = len(values)
    if censored or other_censored:
        middle = float(np.quantile(values, 0.5, method="inverted_cdf"))
    else:
        middle = math.exp(float(np.log(values).mean()))
    if n < BOOTSTRAP_FROM:
        return Ratio(ratios, middle, None, censored, other_censored)
    if n <= 6:
        draws = values[np.stack(np.meshgrid(*[np.arange(n)] * n), axis=-1).reshape(-1, n)]
    else:
        draws = np.random.default_rng(seed).choice(values, size=(_RESAMPLES, n))
    # "inverted_cdf" takes one of the values, so that an infinite one is never averaged.
    if censored or other_censored:
        middles = np.quantile(draws, 0.5, axis=1, method="inverted_cdf")
    else:
        middles = np.exp(np.log(draws).mean(axis=1))
    low, high = np.quantile(middles, (0.025, 0.975), method="inverted_cdf")
    return Ratio(ratios, middle, (float(low), float(high)), censored, other_censored)


def range_noise(sd: float, n: int, points: int, runs: int, level: float = 0.05) -> float:
    """How far apart the means of `runs` runs at `points` settings lie by chance alone, in all but `level` of cases.

    Args:
        sd, n: standard deviation of runs that differ in their seeds only, and how many they were.
    """
    return _range_quantile(points, n - 1, level) * sd / math.sqrt(runs)


@functools.cache
def _range_quantile(points: int, freedom: int, level: float) -> float:
    from scipy.stats import studentized_range  # type: ignore[import-untyped,unused-ignore]

    return float(studentized_range.ppf(1 - level, points, freedom))
