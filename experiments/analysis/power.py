"""How many pairs a comparison with looks needs, and what it can detect.

Alpha here is that of one comparison. In a family of m, take alpha / m, the level of Holm's first step: the power is
reached then whatever the others of the family come to. Differences are normal with standard deviation `sd`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from scipy.optimize import brentq
from scipy.special import chdtri, ndtr, stdtrit

from experiments.analysis.looks import ALPHA, check_looks, nominal_levels

POWER = 0.9


def superiority_power(sd: float, n: int, difference: float, alpha: float = ALPHA) -> float:
    """Power of the two-sided paired t test of `n` pairs at a true `difference`."""
    # Imported here: it takes seconds, and the study's runner needs none of it.
    from statsmodels.stats.power import TTestPower

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


def fewest(power_of: Callable[[int], float], power: float) -> int:
    """The fewest pairs, at least 2, at which `power_of`, which grows with them, is at least `power`."""
    high = 2
    while power_of(high) < power:
        high *= 2
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if power_of(middle) >= power else (middle, high)
    return high


def pairs_to_decide(
    sd: float, difference: float, matters: float, looks: Sequence[int], after: int, alpha: float = ALPHA
) -> int:
    """Pairs of which one of the two questions is answered with probability 0.9, if `difference` is the true one.

    That is the first of the `looks` beyond `after` pairs at which it is, each test at its nominal level; where none is,
    the pairs of one look of its own, more than those of the last.

    Raises:
        ValueError: see `check_looks`.
    """

    def chance(n: int, two_sided: float, one_sided: float) -> float:
        equal = equivalence_power(sd, n, matters, difference, one_sided)
        return max(equal, superiority_power(sd, n, difference, two_sided))

    levels = zip(looks, nominal_levels(looks, alpha / 2), nominal_levels(looks, alpha), strict=True)
    for n, half, level in levels:
        if n > after and chance(n, 2 * half, level) >= POWER:
            return n
    return max(looks[-1] + 1, fewest(lambda n: chance(n, alpha, alpha), POWER))


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
