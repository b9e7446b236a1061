"""The rule of claim C10."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest

from experiments.theory.identity import judge
from tests.conftest import ROOT
from tests.theory import made_up

LIMITS = {"rounding": 1e-5, "batch": 16, "beta2": 0.999, "correlation": 0.9, "ratio": 2.0}
# f_t without the factor is as large as the empirical Fisher information.
AGREES: dict[str, Any] = {"rank": 0.95, "ratio": 15.0}


@pytest.fixture(scope="module")
def published() -> dict[str, Any]:
    found: dict[str, Any] = json.loads((ROOT / "results" / "theory" / "fisher.json").read_text())
    return found


@pytest.fixture
def small(published: dict[str, Any]) -> dict[str, Any]:
    """A small network where both pattern and size agree."""
    found = copy.deepcopy(published)
    for case in found["cases"]:
        case["moment_empirical"] |= {"ratio": 1.1, "correlation": 0.95 + case["step"] / 1e6}
    return found


def test_it_holds_if_both_measurements_agree(small: dict[str, Any]) -> None:
    found = judge(LIMITS, small, made_up.tasks(**AGREES))
    assert (found.word, found.remark) == ("supported", "")
    assert "A small network, batches of 16: the correlation" in found.sentence
    assert "is 0.95 to 0.95, the median ratio 1.1 to 1.1, or 18 to 18 times 1 / batch." in found.sentence
    assert (
        "The tasks' own models, 2 seeds, after 100 steps with the same batches: the rank correlation with it and the "
        "ratio of the sums are speech 0.95 and 1 to 1.1, or 16 to 17.6 times 1 / batch; language 0.95 and "
    ) in found.sentence


def test_either_measurement_contradicts_it(small: dict[str, Any], published: dict[str, Any]) -> None:
    found = judge(LIMITS, published, made_up.tasks(**AGREES))
    assert (found.word, found.remark) == ("contradicted", ": the pattern agrees, the size does not")
    found = judge(LIMITS, small, made_up.tasks(rank=0.5, ratio=15.0))
    assert (found.word, found.remark) == ("contradicted", ": the pattern does not, the size agrees")
    found = judge(LIMITS, small, made_up.tasks(rank=0.95, ratio=0.0))
    assert (found.word, found.remark) == ("contradicted", ": the pattern agrees, the size does not")
    found = judge(LIMITS, published, made_up.tasks(rank=0.5))
    assert (found.word, found.remark) == ("contradicted", ": neither the pattern nor the size agrees")
    found = judge(LIMITS, small | {"rounding": 0.1}, made_up.tasks(**AGREES))
    assert found.word == "contradicted"


def test_seeds_that_differ_leave_it_undecided(small: dict[str, Any]) -> None:
    tasks = made_up.tasks(**AGREES)
    for row in tasks["rows"]:
        if row["task"] == "llm" and row["seed"] == 2:
            row["free"][1]["empirical"] = {"rank": 0.8, "ratio": 16.0}
    found = judge(LIMITS, small, tasks)
    assert (found.word, found.remark) == ("undecided", ": the pattern does with some seeds, the size agrees")


def test_it_waits_for_both(small: dict[str, Any]) -> None:
    assert judge(LIMITS, None, made_up.tasks()).word == ""
    assert judge(LIMITS, small, None).word == ""
    few = made_up.tasks()
    few["rows"] = [row for row in few["rows"] if row["task"] != "asr"]
    found = judge(LIMITS, small, few)
    assert (found.word, found.sentence) == ("", "Not every task has been measured with batches of 16.")
    assert judge(LIMITS | {"batch": 3}, small, few).sentence == (
        "There are no cases of the small network with batches of 3."
    )
