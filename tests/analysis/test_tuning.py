"""The bowls of a study, from its tuning runs."""

from __future__ import annotations

import numpy as np
import pytest

from experiments.analysis.comparisons import Study
from experiments.analysis.tuning import bowls, tuning_sentence
from experiments.core.protocol import rate


def test_bowls_hold_the_tuning_runs_at_the_first_weight_decay(study: Study) -> None:
    p = study.planners["llm"].protocol
    found = bowls(study.table, p)
    assert list(found) == ["adamw_clip", "fadam", "adamw"]
    fadam = found["fadam"]
    assert fadam.rates.tolist() == [rate(step) for step in range(-15, -10)]
    assert fadam.values.shape == (5, 3)
    assert fadam.found.rates[fadam.found.lowest or 0] == 0.0025
    # 0.05 * ln(r)^2 = 0.01 at a factor of 1.56 on either side; straight lines between rates make it a little narrower.
    assert fadam.found.width == pytest.approx(1.56**2, rel=0.05)


def test_rates_without_all_their_seeds_wait(study: Study) -> None:
    p = study.planners["llm"].protocol
    table = study.table
    gone = (table["lr"] == rate(-15)) & (table["seed"] == 302) & (table["arm"] == "fadam") & (table["part"] == "tune")
    found = bowls(table[~gone], p)
    assert len(found["fadam"].rates) == 4
    few = table[(table["lr"] >= rate(-12)) | (table["part"] != "tune")]
    assert bowls(few, p) == {}
    assert "wait to be run" in tuning_sentence({}, p)


@pytest.mark.parametrize(
    ("bend", "word"), [(0.05, "Neither is shown"), (0.005, "FAdam is easier"), (0.6, "FAdam is harder")]
)
def test_the_wider_bowl_is_easier_to_tune(study: Study, bend: float, word: str) -> None:
    p = study.planners["llm"].protocol
    table = study.table.copy()
    mine = (table["arm"] == "fadam") & (table["part"] == "tune") & (table["protocol"] == "llm")
    away = np.log(table.loc[mine, "lr"].astype(float) / 0.0025) ** 2
    table.loc[mine, p.tuning.name] += (bend - 0.05) * away
    said = tuning_sentence(bowls(table, p), p)
    assert said.startswith(word)
    assert "within 0.01 bits per byte of its best over a factor of" in said
