"""How many pairs a comparison with looks needs, and what it can detect: for planning a study before its runs.

Alpha here is that of one comparison. In a family of m, take alpha / m, the level of Holm's first step: the power is
reached then whatever the others of the family come to. Differences are normal with standard deviation `sd`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq  # type: ignore[import-untyped,unused-ignore]
from scipy.special import chdtri, ndtr, stdtrit  # type: ignore[import-untyped,unused-ignore]

from experiments.analysis.looks import ALPHA, Looks, check_looks, nominal_levels, one_sided

POWER = 0.9


def superiority_power(sd: float, n: int, difference: float, alpha: float = ALPHA) -> float:
    """Power of the two-sided paired t test of `n` pairs at a true `difference`."""
    # Imported here: it takes seconds, and only planning needs it.
    from statsmodels.stats.power import TTestPower  # type: ignore[import-untyped,unused-ignore]

    power = float(TTestPower().power(difference / sd, n, alpha, alternative="two-sided"))
    return 1.0 if math.isnan(power) else power  # scipy has no number where it is all but certain


def equivalence_power(sd: float, n: int, matters: float, difference: float = 0.0, alpha: float = ALPHA) -> float:
    """Power of TOST of `n` pairs to show that a true `difference` is within +-matters (Phillips 1990).

    Given the standard deviation found, the mean must fall within matters - t * sd / sqrt(n) of 0. That chance is
    averaged over the distribution of the deviation (at 4,000 quantiles, exact to 1e-4).
    """
    q = (np.arange(4000) + 0.5) / 4000
    error = sd / math.sqrt(n)
    room = matters + stdtrit(n - 1, alpha) * error * np.sqrt(chdtri(n - 1, q) / (n - 1))
    chance = ndtr((room - difference) / error) - ndtr((-room - difference) / error)
    return float(np.mean(np.where(room > 0, chance, 0.0)))


def _fewest(power_of: Callable[[int], float], power: float) -> int:
    """The fewest pairs, at least 2, of which `power_of`, which grows with them, is at least `power`."""
    high = 2
    while power_of(high) < power:
        high *= 2
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if power_of(middle) >= power else (middle, high)
    return high


def pairs_for_superiority(sd: float, matters: float, alpha: float = ALPHA, power: float = POWER) -> int:
    """Pairs of one look that show a true difference of `matters` to be other than 0 with probability `power`."""
    return _fewest(lambda n: superiority_power(sd, n, matters, alpha), power)


def pairs_for_equivalence(sd: float, matters: float, alpha: float = ALPHA, power: float = POWER) -> int:
    """Pairs of one look that show a true difference of 0 to be within +-matters with probability `power`."""
    return _fewest(lambda n: equivalence_power(sd, n, matters, 0.0, alpha), power)


def detectable(sd: float, looks: int | Sequence[int], alpha: float = ALPHA, power: float = POWER) -> float:
    """The true difference that is found with probability `power` by the last of the `looks`, or by one look of n pairs.

    Of the looks only the last one's test is counted, at its nominal level: a bound that is less than 1% too large.

    Raises:
        ValueError: see `check_looks`.
    """
    looks = check_looks([looks] if isinstance(looks, int) else looks)
    level = 2 * nominal_levels(looks, alpha / 2)[-1]
    n = looks[-1]
    high = 1.0
    while superiority_power(1.0, n, high, level) < power:
        high *= 2
    return sd * float(brentq(lambda effect: superiority_power(1.0, n, effect, level) - power, 0.0, high))


class Course(NamedTuple):
    """How often a comparison ends with each word, and the pairs it takes on average."""

    better: float
    worse: float
    equivalent: float
    undecided: float
    pairs: float


def course(
    sd: float,
    matters: float,
    looks: Sequence[int],
    difference: float,
    alpha: float = ALPHA,
    studies: int = 20_000,
    seed: int = 0,
) -> Course:
    """How a comparison with these looks goes at a true `difference`, over simulated studies with a fixed `seed`.

    It stops at the first look at which it is decided. A power of 0.9 over 20,000 studies has a standard error of 0.2%.
    Raises as `nominal_levels` does.
    """
    looks = check_looks(looks)
    draws = np.random.default_rng(seed).normal(difference, sd, (studies, looks[-1]))

    def crossed(null: float, level: float) -> list[NDArray[np.bool_]]:  # above `null`, below it: (studies, looks) each
        tests = zip(*(one_sided(draws[:, :n], null) for n in looks), strict=True)
        hits = [np.stack(p, axis=1) <= nominal_levels(looks, level) for p in tests]
        return [np.logical_or.accumulate(h, axis=1) for h in hits]

    better, worse = crossed(0.0, alpha / 2)
    equivalent = crossed(-matters, alpha)[0] & crossed(matters, alpha)[1]
    decided = better | worse | equivalent
    last = np.where(decided.any(1), decided.argmax(1), len(looks) - 1)
    row = np.arange(studies)
    same = equivalent[row, last]
    up, down = better[row, last] & ~same, worse[row, last] & ~same
    pairs = np.asarray(looks)[last]
    return Course(*(float(v.mean()) for v in (up, down & ~up, same, ~decided.any(1), pairs)))


class Plan(NamedTuple):
    """Pairs that a comparison needs.

    Attributes:
        superiority, equivalence: with a single look.
        looks: with looks, the last is the most that it takes.
        at_matters, at_zero: how it goes where the true difference is `matters`, and where it is 0.
    """

    superiority: int
    equivalence: int
    looks: Looks
    at_matters: Course
    at_zero: Course


def plan(
    sd: float,
    matters: float,
    alpha: float = ALPHA,
    power: float = POWER,
    fractions: Sequence[float] = (0.3, 0.5, 1.0),
) -> Plan:
    """The fewest pairs, looked at after these `fractions` of them, that give `power` to both questions.

    The last look is sought upwards from what a single look needs, in steps of 2%; the powers are simulated.

    Raises:
        ValueError: `sd` or `matters` is not positive; the fractions do not end with 1; see `check_looks`.
    """
    if not (sd > 0 and matters > 0) or fractions[-1] != 1:
        raise ValueError(f"sd and matters must be positive and fractions end with 1, got {sd}, {matters}, {fractions}")
    superiority = pairs_for_superiority(sd, matters, alpha, power)
    equivalence = pairs_for_equivalence(sd, matters, alpha, power)
    n = max(superiority, equivalence)
    while True:
        looks = tuple(sorted({max(2, math.ceil(f * n)) for f in fractions}))
        at_matters, at_zero = (course(sd, matters, looks, d, alpha) for d in (matters, 0.0))
        if at_matters.better >= power and at_zero.equivalent >= power:
            return Plan(superiority, equivalence, looks, at_matters, at_zero)
        n += math.ceil(n / 50)
