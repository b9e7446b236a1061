"""Means, spreads and paired differences over seeds. A diverged run is infinitely bad and stays in.

Values are infinite where a run diverged: `inf` where lower is better, `-inf` where higher is better.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from experiments.analysis.records import Mode

BETTER, WORSE, NONE = "FAdam better", "FAdam worse", "no detectable difference"
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
    values (too few to resample) or where all are equal.

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
    return float(interval.low), float(interval.high)


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
        word: "FAdam better", "FAdam worse", "no detectable difference", or why there is no verdict.
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
        word = f"{WORSE if diverged else BETTER}: {who} diverged on {count} of {len(seeds)}"
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
