"""Bowls: how a tuning metric depends on the learning rate. Where its best lies, how wide it is, how sensitive to it.

A table holds one value a learning rate and tuning seed, (R, S), over the same seeds at every rate: `inf` (mode "min")
or `-inf` (mode "max") where the run diverged. The mean of a rate at which a run diverged is infinitely bad. Which rate
is taken for the runs that follow is another question: `taken`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy.special import stdtrit

from experiments.core.plan import choose_rate, decay_kind
from experiments.core.protocol import Protocol, step_of

Array = NDArray[np.float64]
Mode = Literal["min", "max"]
FEWEST_SEEDS = 3  # for an interval: with two, Student's quantile is 12.7


@dataclass(frozen=True)
class Bowl:
    """The bowl of one arm. Intervals are `jackknife`'s, cut where no bowl can be: widths end at 1, sensitivities at 0.

    Attributes:
        rates, values: (R,) learning rates, and the table.
        lowest: index of the best mean, which all else refers to.
        best, best_interval: the best mean.
        width, width_interval: factor between the learning rates around it at which the mean is worse by `matters`.
        open: whether this range reaches an end of the grid: the width is at least what is said.
        sensitivity, sensitivity_interval: mean over the rates of the excess over the best mean (Wortsman et al. 2023,
            arXiv:2309.14322, section 2), in the metric's unit; infinite where a run diverged.
    """

    rates: Array
    values: Array
    lowest: int
    best: float
    best_interval: tuple[float, float] | None
    width: float
    width_interval: tuple[float, float] | None
    open: bool
    sensitivity: float
    sensitivity_interval: tuple[float, float] | None


def bowl(rates: ArrayLike, values: ArrayLike, mode: Mode, matters: float) -> Bowl | None:
    """The bowl of a table; None where at every rate some run diverged.

    Args:
        rates: (R,) learning rates, rising, at least 3.
        values: (R, S).
        matters: the smallest difference that matters, in the metric's unit.

    Raises:
        ValueError: rates that do not rise or are not positive, a table of another shape, nan, infinitely good values;
            `matters` not positive.
    """
    rates, losses = _check(rates, values, mode)
    if not matters > 0:
        raise ValueError(f"matters must be positive, got {matters!r}")
    means = losses.mean(1)
    if not np.isfinite(means).any():
        return None
    sign = 1.0 if mode == "min" else -1.0
    lowest = int(np.argmin(means))
    low, high = _range(rates, means, matters)
    best_interval = jackknife(lambda t: float(t.mean(1).min()), losses)
    excess = jackknife(_sensitivity, losses)
    log_width = jackknife(lambda t: float(np.log(np.divide(*_range(rates, t.mean(1), matters)[::-1]))), losses)
    return Bowl(
        rates=rates,
        values=sign * losses,
        lowest=lowest,
        best=sign * float(means[lowest]),
        best_interval=best_interval and (min(sign * v for v in best_interval), max(sign * v for v in best_interval)),
        width=high / low,
        width_interval=log_width and (max(1.0, float(np.exp(log_width[0]))), float(np.exp(log_width[1]))),
        open=bool(low == rates[0] or high == rates[-1]),
        sensitivity=_sensitivity(losses),
        sensitivity_interval=excess and (max(0.0, excess[0]), excess[1]),
    )


def bowls(table: pd.DataFrame, p: Protocol) -> dict[str, Bowl]:
    """The bowls of a study's main arms over the learning rates whose tuning seeds all have records.

    An arm is left out if it has fewer than three such rates, or diverged at all of them.
    """
    rows = table[(table["protocol"] == p.name) & (table["part"] == "tune")]
    seeds = list(p.bowl.seeds)
    found = {}
    for name in p.bowl.arms:
        start = p.bowl.start[decay_kind(name)]
        mine = rows[(rows["arm"] == name) & np.isclose(rows["weight_decay"].astype(float), start, rtol=1e-9)]
        if mine.empty:
            continue
        by_rate = mine.pivot(index="lr", columns="seed", values=p.tuning.name).reindex(columns=seeds).dropna()
        if len(by_rate) >= 3:
            made = bowl(by_rate.index.astype(float), by_rate.astype(float), p.tuning.mode, p.matters)
            if made is not None:
                found[name] = made
    return found


def taken(b: Bowl, p: Protocol) -> int:
    """Index of the rate that is taken for the runs that follow: that of the best mean, unless a cliff is near."""
    by_step = {step_of(learning_rate): list(values) for learning_rate, values in zip(b.rates, b.values, strict=True)}
    chosen, _ = choose_rate(by_step, p.tuning.mode, p.bowl.cliff * p.matters)
    return b.lowest if chosen is None else list(by_step).index(chosen)


def width(rates: ArrayLike, values: ArrayLike, mode: Mode, matters: float) -> float:
    """The factor between the two learning rates, around the best mean, at which the mean is worse by `matters`.

    Between two rates the mean is linear in the logarithm of the rate. The range ends at the last rate before one at
    which a run diverged, and at an end of the grid. Raises as `bowl`.
    """
    rates, losses = _check(rates, values, mode)
    means = losses.mean(1)
    if not np.isfinite(means).any():
        raise ValueError("runs diverged at every learning rate: there is no width")
    low, high = _range(rates, means, matters)
    return high / low


def jackknife(statistic: Callable[..., float], *tables: ArrayLike) -> tuple[float, float] | None:
    """Student's 95% interval of a statistic of (R, S) tables over the seeds that they share, leaving out one by one.

    statistic ± t(S - 1) * sqrt((S - 1) / S * sum of squares of the S values about their mean) (Tukey 1958). A bootstrap
    of three seeds has ten different samples to draw: on simulated bowls its 95% intervals held the truth in 70% of the
    cases, of five seeds in 83%; these in 94 to 96%. Several tables give the interval of a difference between arms.

    Returns:
        None for fewer than `FEWEST_SEEDS` seeds, or where a value is not finite.

    Raises:
        ValueError: tables of different numbers of seeds.
    """
    arrays = [np.asarray(t, dtype=np.float64) for t in tables]
    seeds = arrays[0].shape[1]
    if any(a.shape[1] != seeds for a in arrays):
        raise ValueError(f"tables must share their seeds, got shapes {[a.shape for a in arrays]}")
    if seeds < FEWEST_SEEDS:
        return None
    whole = statistic(*arrays)
    without = np.array([statistic(*(np.delete(a, i, axis=1) for a in arrays)) for i in range(seeds)])
    if not np.isfinite([whole, *without]).all():
        return None
    error = float(np.sqrt((seeds - 1) / seeds * np.sum((without - without.mean()) ** 2)))
    half = float(stdtrit(seeds - 1, 0.975)) * error
    return whole - half, whole + half


def _check(rates: ArrayLike, values: ArrayLike, mode: Mode) -> tuple[Array, Array]:
    """Rates, and the values turned so that lower is better."""
    if mode not in ("min", "max"):
        raise ValueError(f'mode must be "min" or "max", got {mode!r}')
    r = np.asarray(rates, dtype=np.float64)
    losses = np.asarray(values, dtype=np.float64) * (1.0 if mode == "min" else -1.0)
    if r.ndim != 1 or len(r) < 3 or r[0] <= 0 or (np.diff(r) <= 0).any():
        raise ValueError(f"rates must be positive and rise, at least three, got {r.tolist()}")
    if losses.ndim != 2 or losses.size == 0 or losses.shape[0] != len(r):
        raise ValueError(f"values must be a table of {len(r)} learning rates and seeds, got shape {losses.shape}")
    if np.isnan(losses).any() or np.isneginf(losses).any():
        raise ValueError("values must be numbers, infinitely bad for diverged runs")
    return r, losses


def _range(rates: Array, means: Array, matters: float) -> tuple[float, float]:
    """The learning rates around the lowest of the means within which the mean is at most the lowest + matters."""
    lowest = int(np.argmin(means))
    limit, logs = means[lowest] + matters, np.log(rates)

    def walk(step: int) -> float:
        i = lowest
        while 0 <= i + step < len(means) and means[i + step] <= limit:
            i += step
        after = i + step
        if not 0 <= after < len(means) or not np.isfinite(means[after]):
            return float(rates[i])
        share = (limit - means[i]) / (means[after] - means[i])
        return float(np.exp(logs[i] + share * (logs[after] - logs[i])))

    return walk(-1), walk(1)


def _sensitivity(losses: Array) -> float:
    means = losses.mean(1)
    return float(means.mean() - means.min()) if np.isfinite(means).all() else np.inf
