"""Power and numbers of pairs, against tables, simulation and each other."""

from __future__ import annotations

import numpy as np
import pytest
from statsmodels.stats.weightstats import ttost_paired

from experiments.analysis.looks import evidence, nominal_levels
from experiments.analysis.power import (
    detectable,
    equivalence_power,
    fewest,
    pairs_to_decide,
    superiority_power,
)


@pytest.mark.parametrize(
    ("effect", "power", "pairs"), [(0.5, 0.8, 34), (0.5, 0.9, 44), (0.8, 0.8, 15), (0.2, 0.8, 199), (0.3, 0.9, 119)]
)
def test_pairs_of_a_t_test_as_in_printed_tables(effect: float, power: float, pairs: int) -> None:
    for sd in (1.0, 10.0):
        assert fewest(lambda n, sd=sd: superiority_power(sd, n, sd * effect), power) == pairs


@pytest.mark.parametrize(("n", "matters", "difference"), [(12, 1.0, 0.0), (20, 0.6, 0.2), (6, 1.0, 0.0)])
def test_power_of_tost_is_how_often_it_finds(n: int, matters: float, difference: float) -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(difference, 1.0, (n, 20_000))  # statsmodels tests columns
    found = ttost_paired(x, np.zeros_like(x), -matters, matters)[0] <= 0.05
    assert equivalence_power(1.0, n, matters, difference) == pytest.approx(found.mean(), abs=0.011)


def test_power_of_tost_at_the_margin_is_its_level() -> None:
    assert equivalence_power(0.1, 30, 1.0, 1.0) == pytest.approx(0.05, abs=1e-4)
    assert equivalence_power(0.1, 30, 1.0, 1.0, alpha=0.01) == pytest.approx(0.01, abs=1e-4)


def test_fewest_pairs() -> None:
    n = fewest(lambda n: equivalence_power(1.0, n, 0.6, alpha=0.05 / 3), 0.9)
    assert equivalence_power(1.0, n, 0.6, alpha=0.05 / 3) >= 0.9 > equivalence_power(1.0, n - 1, 0.6, alpha=0.05 / 3)
    assert fewest(lambda _: 1.0, 0.9) == 2


@pytest.mark.parametrize(("difference", "after", "pairs"), [(0.0006, 12, 20), (0.0006, 0, 20), (0.02, 0, 12)])
def test_pairs_to_decide_are_those_of_a_look(difference: float, after: int, pairs: int) -> None:
    looks, level = (12, 20, 40), 0.05 / 3
    n = pairs_to_decide(0.0052, difference, 0.01, looks, after, level)
    assert n == pairs
    rng = np.random.default_rng(0)
    found = evidence(rng.normal(difference, 0.0052, (4_000, n)), looks, 0.01)
    decided = np.minimum(found.superior, found.equivalent) <= level
    assert decided[:, -1].mean() >= 0.9
    if n > looks[0]:
        assert decided[:, 0].mean() < 0.9


def test_pairs_to_decide_beyond_the_last_look() -> None:
    assert pairs_to_decide(1.0, 0.1, 10.0, (12, 20), 20) == 21
    n = pairs_to_decide(0.05, 0.02, 0.03, (12, 20), 20)
    assert n > 21
    chance = [max(equivalence_power(0.05, k, 0.03, 0.02), superiority_power(0.05, k, 0.02)) for k in (n - 1, n)]
    assert chance[0] < 0.9 <= chance[1]


@pytest.mark.parametrize("looks", [20, (20,), (12, 20, 40), (12, 20)])
def test_detectable_is_found_with_its_power(looks: int | tuple[int, ...]) -> None:
    difference = detectable(2.0, looks)
    looks = (looks,) if isinstance(looks, int) else looks
    found = evidence(np.random.default_rng(0).normal(difference, 2.0, (20_000, looks[-1])), looks, 1e-9)
    assert (found.superior[:, -1] <= 0.05).mean() == pytest.approx(0.9, abs=0.007)
    assert 2 * nominal_levels(looks, 0.025)[-1] <= 0.05 + 1e-9
    assert superiority_power(2.0, looks[-1], difference) >= 0.9 - 1e-9


@pytest.mark.parametrize("pairs", [5, 8])
def test_few_pairs_detect_what_is_several_deviations_large(pairs: int) -> None:
    found = [detectable(1.0, (pairs,), 0.05 / family) for family in (1, 2, 3, 5)]
    assert 1 < found[0] < 2
    assert found == sorted(found)
    assert found[-1] < 4
