"""Comparisons that are looked at several times: is one arm better than another, or are they equivalent?

A comparison is a row of paired differences between a challenger and a baseline; positive is better for the challenger.
It is looked at after `looks` pairs, e.g. (12, 20, 40). Each look asks two questions:

- superiority: is the mean difference other than 0 (two-sided), and in which direction;
- equivalence: is it between -matters and +matters (two one-sided tests, TOST; Schuirmann 1987).

More looks give chance more occasions. So the level is spent over the looks by the O'Brien-Fleming type function of Lan
and DeMets (1983): little at first, most at the last. The boundaries are computed for a normal process and applied to
Student's t tests as nominal significance levels (the significance level approach of Jennison and Turnbull 2000). The
error is small: with normal differences, 5% becomes 5.0 to 5.2% (looks at 12, 20, 40 and at 12, 20); with heavy tails it
becomes less. Skewed differences are a problem, as for every t test of few pairs.

A test's sequential p is the smallest level at which it would have crossed its boundary at some look so far (Liu and
Anderson 2008). It falls or stays from look to look. Under the null it is at most u with probability at most u, whenever
one stops and why. Families of comparisons, words and verdicts: families.py.

Diverged runs are infinitely bad: a difference of inf (the baseline diverged), -inf (the challenger) or nan (both). A
mean says nothing then, so as long as one is among the pairs looked at:

- superiority is tested by the exact signed-rank test, in which infinite differences outrank all others. Two diverged
  runs are equally bad: a tie, which that test leaves out. A zero in a t test would make the arms look alike instead;
- the arm that diverged more often is not called better, whatever its other runs did: its mean is infinitely bad;
- the arms are not equivalent. The difference of a diverged run is not smaller than anything.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.interpolate import CubicSpline
from scipy.special import ndtr, ndtri, stdtr, stdtrit
from scipy.stats import rankdata

Array = NDArray[np.float64]
Looks = tuple[int, ...]
ALPHA = 0.05  # for each of the two questions
_NODES = 96  # of the integrals; 64 give the same to 1e-11
_LEVELS = np.linspace(-6.0, 3.0, 91)  # one-sided levels of the tables, as normal quantiles: 1e-9 to 0.9987


# --- boundaries


def spending(level: ArrayLike, fraction: ArrayLike) -> Array:
    """What a one-sided test at `level` has spent at `fraction` of its pairs; the arguments broadcast.

    2 - 2 Phi(z(1 - level/2) / sqrt(fraction)): Lan and DeMets (1983), alpha*_1, the O'Brien-Fleming type.
    """
    return np.asarray(2 * ndtr(ndtri(np.asarray(level) / 2) / np.sqrt(fraction)))


def nominal_levels(looks: Sequence[int], level: float) -> tuple[float, ...]:
    """The one-sided significance level of the test at each look, so that all looks together have `level`.

    Raises:
        ValueError: see `check_looks`; `level` is not between 1e-9 and 0.99.
    """
    if not 1e-9 <= level <= 0.99:
        raise ValueError(f"level must be between 1e-9 and 0.99, got {level!r}")
    return _nominal_levels(check_looks(looks), float(level))


def check_looks(looks: Sequence[int]) -> Looks:
    """`looks` as a tuple.

    Raises:
        ValueError: they do not increase from 2 or more, or the first is below a twentieth of the last (its level could
            not be told from 0).
    """
    looks = tuple(int(n) for n in looks)
    if not looks or looks[0] < 2 or any(b <= a for a, b in itertools.pairwise(looks)):
        raise ValueError(f"looks must be numbers of pairs that increase from 2 or more, got {looks}")
    if looks[0] * 20 < looks[-1]:
        raise ValueError(f"the first look must not come before a twentieth of the last, got {looks}")
    return looks


@functools.cache
def _nominal_levels(looks: Looks, level: float) -> tuple[float, ...]:
    return tuple(float(v) for v in ndtr(_boundary(looks, np.array([level]))[0]))


def _boundary(looks: Looks, levels: Array) -> Array:
    """(A,) one-sided levels -> (A, K) normal quantiles of the nominal levels.

    The process is a Brownian motion on the information fractions. Its density among the tests not yet stopped is
    carried from look to look by Gauss-Legendre integration (Armitage, McPherson and Rowe 1969), all levels at once.
    """
    roots, weights = np.polynomial.legendre.leggauss(_NODES)
    time = np.asarray(looks) / looks[-1]
    spent = spending(levels[:, None], time)
    z = np.empty_like(spent)

    def nodes(k: int) -> tuple[Array, Array]:  # from 9 standard deviations below zero up to the boundary, (A, N)
        half = (9 - z[:, k, None]) * np.sqrt(time[k]) / 2
        return half * (roots + 1) - 9 * np.sqrt(time[k]), half * weights

    z[:, 0] = ndtri(spent[:, 0])
    x, width = nodes(0)
    mass = width * np.exp(-(x**2) / (2 * time[0])) / np.sqrt(2 * np.pi * time[0])
    for k in range(1, len(time)):
        step = np.sqrt(time[k] - time[k - 1])
        low, high = np.full(len(levels), -9.0), np.full(len(levels), 40.0)
        for _ in range(50):
            middle = (low + high) / 2
            above = (mass * ndtr((x - middle[:, None] * np.sqrt(time[k])) / step)).sum(1)
            more = above > spent[:, k] - spent[:, k - 1]
            low, high = np.where(more, middle, low), np.where(more, high, middle)
        z[:, k] = -(low + high) / 2
        y, width = nodes(k)
        kernel = np.exp(-(((y[:, :, None] - x[:, None, :]) / step) ** 2) / 2) / (step * np.sqrt(2 * np.pi))
        mass, x = width * np.einsum("aij,aj->ai", kernel, mass), y
    return z


@functools.cache
def _tables(looks: Looks) -> tuple[tuple[Array, CubicSpline], ...]:
    """Each look's nominal levels over `_LEVELS`, and the overall level as a function of them (normal quantiles)."""
    z = _boundary(looks, ndtr(_LEVELS))
    return tuple((column, CubicSpline(column, _LEVELS)) for column in z.T)


def sequential_p(p: ArrayLike, looks: Sequence[int]) -> Array:
    """Sequential p's of one-sided tests after each look, exact to 1e-6.

    Args:
        p: (..., k) one-sided p's of the first k of the `looks`.

    Returns:
        (..., k), at least 1e-9. The nominal levels rise with the overall level at every look (tests check it): each p
        has one overall level. This is looked up, and the least taken over the looks so far.
    """
    p = np.asarray(p, dtype=np.float64)
    levels = np.empty_like(p)
    for k, (z, level) in enumerate(_tables(check_looks(looks))[: p.shape[-1]]):
        at = ndtri(p[..., k])
        levels[..., k] = np.where(at > z[-1], 1.0, ndtr(level(np.clip(at, z[0], z[-1]))))
    return np.minimum.accumulate(levels, axis=-1)


# --- tests


def paired(challenger: ArrayLike, baseline: ArrayLike, mode: Literal["min", "max"]) -> Array:
    """(n,) differences of values in the same order of seeds; positive where the challenger is better.

    Args:
        challenger, baseline: inf (mode "min") or -inf (mode "max") where a run diverged.

    Raises:
        ValueError: not as many values, nan, or infinitely good ones.
    """
    if mode not in ("min", "max"):
        raise ValueError(f'mode must be "min" or "max", got {mode!r}')
    sign = -1.0 if mode == "min" else 1.0
    a, b = sign * np.asarray(challenger, dtype=np.float64), sign * np.asarray(baseline, dtype=np.float64)
    if a.shape != b.shape or a.ndim != 1:
        raise ValueError(f"pairs need as many values of both, got shapes {a.shape} and {b.shape}")
    if np.isnan([a, b]).any() or np.isposinf([a, b]).any():
        raise ValueError("values must be numbers, infinitely bad for diverged runs")
    with np.errstate(invalid="ignore"):
        return a - b  # nan where both diverged


def one_sided(differences: ArrayLike, null: float = 0.0) -> tuple[Array, Array]:
    """One-sided p's, each (...), that the mean of (..., n) differences is above `null`, and that it is below.

    Student's t test. With diverged runs `signed_rank` for a `null` of 0, else 1 and 1. Differences that are all equal
    have p = 0 and 1, or 1 and 1 where they are `null`.
    """
    d = np.asarray(differences, dtype=np.float64)
    rows, n = np.atleast_2d(d), d.shape[-1]
    with np.errstate(invalid="ignore", divide="ignore"):
        t = (rows.mean(-1) - null) / (rows.std(-1, ddof=1) / np.sqrt(n))
    above, below = (np.where(np.isnan(t), 1.0, stdtr(n - 1, side * t)) for side in (-1, 1))
    for i in map(tuple, np.argwhere(~np.isfinite(rows).all(-1))):
        above[i], below[i] = signed_rank(rows[i]) if null == 0 else (1.0, 1.0)
    return above.reshape(d.shape[:-1]), below.reshape(d.shape[:-1])


def signed_rank(differences: Array) -> tuple[float, float]:
    """Exact one-sided p's of Wilcoxon's signed-rank test of (n,) differences, infinite ones too: above 0, below 0.

    All 2^n signs of the ranks are counted, so that it is exact with ties, which infinite differences are (scipy's is
    not). Zeros and nan, where both diverged, are left out. The arm that diverged more often is not better: p = 1.
    """
    d = differences[(differences != 0) & ~np.isnan(differences)]
    ranks = np.rint(2 * rankdata(np.abs(d))).astype(int)  # twice the rank: a whole number with ties, too
    chance = np.zeros(ranks.sum() + 1)  # of each sum of the positive ones' ranks
    chance[0] = 1.0
    for rank in ranks:
        chance[rank:], chance[:rank] = (chance[rank:] + chance[:-rank]) / 2, chance[:rank] / 2
    at = int(ranks[d > 0].sum())
    more = np.sign(np.isposinf(d).sum() - np.isneginf(d).sum())  # of which sign there are more infinite ones
    above, below = min(1.0, float(chance[at:].sum())), min(1.0, float(chance[: at + 1].sum()))
    return (1.0 if more < 0 else above), (1.0 if more > 0 else below)


def repeated_interval(differences: ArrayLike, looks: Sequence[int], alpha: float = ALPHA) -> tuple[float, float]:
    """Repeated confidence interval of the mean of (n,) finite differences, n one of the `looks`.

    Two-sided at 1 - alpha over all looks together (Jennison and Turnbull 1989): true also at the look at which a
    comparison stopped. At 2 alpha it lies within +-matters where TOST at alpha finds equivalence at this look.

    Raises:
        ValueError: n is not one of the looks.
    """
    d, looks = np.asarray(differences, dtype=np.float64), check_looks(looks)
    if len(d) not in looks:
        raise ValueError(f"an interval needs as many pairs as one of the looks {looks}, got {len(d)}")
    level = nominal_levels(looks, alpha / 2)[looks.index(len(d))]
    half = float(-stdtrit(len(d) - 1, level) * d.std(ddof=1) / np.sqrt(len(d)))
    return float(d.mean()) - half, float(d.mean()) + half


class Evidence(NamedTuple):
    """After each look taken, (..., k): the sequential p of superiority (two-sided: twice the smaller one-sided p), its
    direction (1 better, -1 worse), and the sequential p of equivalence (the larger of the two one-sided ones)."""

    superior: Array
    direction: Array
    equivalent: Array


def evidence(differences: ArrayLike, looks: Sequence[int], matters: float) -> Evidence:
    """Evidence of (..., n) paired differences at those `looks` that have their pairs; pairs beyond a look wait.

    With a single look these are the p's of the paired t test and of TOST. A later divergence takes back what it
    contradicts (the module's last two points); nothing else does.

    Raises:
        ValueError: see `check_looks`; `matters` is not positive.
    """
    if not matters > 0:
        raise ValueError(f"matters must be positive, got {matters!r}")
    d, looks = np.asarray(differences, dtype=np.float64), check_looks(looks)
    taken = [d[..., :n] for n in looks if n <= d.shape[-1]]
    if not taken:
        none = np.empty((*d.shape[:-1], 0))
        return Evidence(none, none, none)

    zero, low, high = (
        [sequential_p(np.stack(p, axis=-1), looks) for p in zip(*(one_sided(d, null) for d in taken), strict=True)]
        for null in (0.0, -matters, matters)
    )
    diverged = np.stack([~np.isfinite(d).all(-1) for d in taken], axis=-1)
    more = np.stack([np.sum(np.isposinf(d) * 1 - np.isneginf(d), axis=-1) for d in taken], axis=-1)
    better, worse = np.where(more < 0, 1.0, zero[0]), np.where(more > 0, 1.0, zero[1])
    equivalent = np.maximum(low[0], high[1])
    return Evidence(
        np.minimum(1.0, 2 * np.minimum(better, worse)),
        np.where(better <= worse, 1.0, -1.0),
        np.where(diverged, 1.0, equivalent),
    )
