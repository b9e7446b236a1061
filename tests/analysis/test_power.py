"""Power and numbers of pairs, against tables, simulation and each other."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from statsmodels.stats.weightstats import ttost_paired  # type: ignore[import-untyped,unused-ignore]

from experiments.analysis.families import words
from experiments.analysis.looks import evidence, nominal_levels
from experiments.analysis.power import (
    course,
    detectable,
    equivalence_power,
    pairs_for_equivalence,
    pairs_for_superiority,
    plan,
    superiority_power,
)


@pytest.mark.parametrize(
    ("effect", "power", "pairs"), [(0.5, 0.8, 34), (0.5, 0.9, 44), (0.8, 0.8, 15), (0.2, 0.8, 199), (0.3, 0.9, 119)]
)
def test_pairs_of_a_t_test_as_in_printed_tables(effect: float, power: float, pairs: int) -> None:
    assert pairs_for_superiority(1.0, effect, power=power) == pairs
    assert pairs_for_superiority(10.0, 10 * effect, power=power) == pairs


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
    n = pairs_for_equivalence(1.0, 0.6, alpha=0.05 / 3)
    assert equivalence_power(1.0, n, 0.6, alpha=0.05 / 3) >= 0.9 > equivalence_power(1.0, n - 1, 0.6, alpha=0.05 / 3)
    assert pairs_for_superiority(1.0, 1e3) >= 2


@pytest.mark.parametrize("looks", [20, (20,), (12, 20, 40), (12, 20)])
def test_detectable_is_found_with_its_power(looks: int | tuple[int, ...]) -> None:
    difference = detectable(2.0, looks)
    looks = (looks,) if isinstance(looks, int) else looks
    # Nothing is equivalent: only superiority decides.
    found = course(2.0, 1e-9, looks, difference)
    assert found.better == pytest.approx(0.9, abs=0.007)
    assert 2 * nominal_levels(looks, 0.025)[-1] <= 0.05 + 1e-9
    assert superiority_power(2.0, looks[-1], difference) >= 0.9 - 1e-9


def test_a_course_of_a_single_look_has_the_exact_powers() -> None:
    at_zero = course(1.0, 0.8, (20,), 0.0, 0.05 / 3)
    assert at_zero.equivalent == pytest.approx(equivalence_power(1.0, 20, 0.8, alpha=0.05 / 3), abs=0.009)
    at_matters = course(1.0, 0.8, (20,), 0.8, 0.05 / 3)
    assert at_matters.better == pytest.approx(superiority_power(1.0, 20, 0.8, 0.05 / 3), abs=0.03)
    assert sum(at_zero[:4]) == pytest.approx(1)
    assert at_zero.pairs == 20


def test_a_course_is_what_the_verdicts_do() -> None:
    looks, sd, matters, difference = (12, 20, 40), 1.0, 0.5, 0.3
    d = np.random.default_rng(0).normal(difference, sd, (5_000, 1, 40))
    found = evidence(d, looks, matters)
    at = [words(found.superior[..., k], found.direction[..., k], found.equivalent[..., k])[:, 0] for k in range(3)]
    word = np.stack(at, axis=1)
    last = np.where(word == "undecided", 3, np.arange(3)).min(1).clip(max=2)
    word = word[np.arange(5_000), last]
    expected = course(sd, matters, looks, difference, studies=5_000, seed=0)
    assert [(word == w).mean() for w in ("better", "worse", "equivalent", "undecided")] == pytest.approx(expected[:4])
    assert np.array(looks)[last].mean() == pytest.approx(expected.pairs)


@pytest.mark.parametrize(("sd", "matters", "family"), [(1.0, 0.8, 1), (0.02, 0.01, 3)])
def test_a_plan_has_its_power_for_both_questions(sd: float, matters: float, family: int) -> None:
    found = plan(sd, matters, 0.05 / family)
    most = max(found.superiority, found.equivalence)
    assert most <= found.looks[-1] <= 1.1 * most + 1
    # On other simulated studies.
    again = [course(sd, matters, found.looks, d, 0.05 / family, seed=1) for d in (matters, 0.0)]
    assert again[0].better >= 0.89
    assert again[1].equivalent >= 0.89
    assert again[0].pairs < found.looks[-1]


@pytest.mark.parametrize(("sd", "matters", "fractions"), [(0.0, 1.0, (1,)), (1.0, 0.0, (1,)), (1.0, 1.0, (0.5,))])
def test_plans_that_are_none(sd: float, matters: float, fractions: Sequence[float]) -> None:
    with pytest.raises(ValueError, match="must be positive"):
        plan(sd, matters, fractions=fractions)


@pytest.mark.parametrize("pairs", [5, 8])
def test_few_pairs_detect_what_is_several_deviations_large(pairs: int) -> None:
    found = [detectable(1.0, (pairs,), 0.05 / family) for family in (1, 2, 3, 5)]
    assert 1 < found[0] < 2
    assert found == sorted(found)
    assert found[-1] < 4
