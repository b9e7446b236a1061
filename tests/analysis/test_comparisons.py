"""Comparisons as the runner stops by them and the pages show them: pairs, claim C4's rule, sizes, context."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from experiments.analysis.comparisons import Compared, Point, Study, grid, interval, judge_grid, pairs_of
from experiments.core.catalogue import task
from experiments.core.errors import UserError
from experiments.core.plan import Planner
from experiments.core.protocol import protocol
from experiments.core.records import Records
from tests.made_up import write


def of(study: Study, name: str, id: str) -> Compared:
    return next(c for c in study.comparisons if (c.protocol.name, c.comparison.id) == (name, id))


def test_known_answers_are_found(study: Study) -> None:
    assert of(study, "llm", "C1").verdict.word == "better"
    assert of(study, "asr", "C2").verdict.word == "equivalent"
    assert of(study, "vqvae", "C3").verdict.word == "undecided"
    # FAdam is compared with an arm that diverged everywhere.
    lost = of(study, "vqvae", "C7")
    assert lost.verdict.word == "better"
    assert lost.verdict.diverged == (0, lost.verdict.pairs, 0)


def test_gains_are_those_of_the_records(study: Study) -> None:
    c = of(study, "llm", "C1")
    assert c.family == 3  # C1, C2 and C3
    assert c.seeds == (201, 202, 203, 204)
    rows = study.table[(study.table["protocol"] == "llm") & (study.table["part"] == "eval")].set_index(["arm", "seed"])
    expected = [
        rows.loc[("adamw_clip", s), "test/bits_per_byte"] - rows.loc[("fadam", s), "test/bits_per_byte"]
        for s in c.seeds
    ]
    assert np.allclose(c.gains, expected, atol=0)
    # More is better here.
    gaussian = of(study, "vqvae_gaussian", "C9")
    assert np.array_equal(gaussian.gains, gaussian.challenger - gaussian.baseline)


def test_runs_up_to_the_look_that_decided_stay_planned(study: Study) -> None:
    """What was looked at belongs to the plan, so that it is published and counted."""
    for c in study.comparisons:
        planned = {
            run.record
            for stage in study.stages[c.protocol.name]
            if stage.name.startswith(f"{c.comparison.id}:")
            for run in stage.runs
        }
        assert len(planned) == 2 * c.verdict.pairs
        assert not any(stage.later for stage in study.stages[c.protocol.name])


def test_pairs_end_at_the_first_seed_that_is_missing(study: Study, records: Path, tmp_path: Path) -> None:
    planner = study.planners["llm"]
    arms, tuned = ("fadam", "adamw_clip"), study.tuned["llm"]
    runs = planner.evaluation("fadam", tuned["fadam"], 4, "")
    other = planner.evaluation("adamw_clip", tuned["adamw_clip"], 4, "")
    for run in (*runs[:1], *runs[2:], *other):
        write(tmp_path, run, 1.5)
    found = pairs_of(Planner(planner.protocol, Records([tmp_path]), lambda *_: False), arms, 4, tuned)
    assert [[r.seed for r in side] for side in found] == [[201], [201]]


def test_a_record_without_the_metric_is_named(study: Study, tmp_path: Path) -> None:
    planner, tuned = study.planners["llm"], study.tuned["llm"]
    for arm in ("fadam", "adamw_clip"):
        write(tmp_path, planner.evaluation(arm, tuned[arm], 1, "")[0], 1.5, metrics={"other": 1.0})
    fresh = Planner(planner.protocol, Records([tmp_path]), lambda *_: False)
    from experiments.analysis.comparisons import _values

    one, _ = pairs_of(fresh, ("fadam", "adamw_clip"), 1, tuned)
    with pytest.raises(UserError, match="has no metric"):
        _values(one, planner.protocol)


# --- claim C4

EPS, SCALES = (1e-4, 1e-8), (1e-3, 1.0)


def points(arm: str, by_point: dict[tuple[float, float], list[float]], seeds: int = 4) -> list[Point]:
    """A grid; points that are not named are the reference's result to the last bit."""
    return [
        Point(arm, "32-true", eps, scale, np.array(by_point.get((eps, scale), [0.0] * seeds)))
        for eps in EPS
        for scale in SCALES
    ]


BAD = [-0.30, -0.31, -0.30, -0.29]
NEAR = [0.001, -0.001, 0.0005, 0.0]
CASES = {
    "FAdam never moves, AdamW does": ({}, {(1e-4, 1.0): BAD}, "supported"),
    "FAdam moves a little": ({(1e-4, 1.0): NEAR}, {(1e-4, 1.0): BAD}, "supported"),
    "neither moves": ({}, {}, "undecided"),
    "FAdam is worse": ({(1e-4, 1e-3): BAD}, {(1e-4, 1.0): BAD}, "contradicted"),
    "FAdam is better by more than matters": ({(1e-4, 1.0): [0.2, 0.21, 0.2, 0.19]}, {(1e-4, 1.0): BAD}, "undecided"),
    "FAdam is too noisy": ({(1e-4, 1.0): [0.05, -0.05, 0.04, -0.04]}, {(1e-4, 1.0): BAD}, "undecided"),
    "AdamW diverges": ({}, {(1e-4, 1.0): [-math.inf] * 4}, "supported"),
    "AdamW diverges once": ({}, {(1e-4, 1.0): [-math.inf, 0.0, 0.0, 0.0]}, "undecided"),
    "FAdam diverges": ({(1e-4, 1.0): [-math.inf] * 4}, {(1e-4, 1.0): BAD}, "contradicted"),
    "FAdam diverges once": ({(1e-4, 1.0): [-math.inf, 0.0, 0.0, 0.0]}, {(1e-4, 1.0): BAD}, "undecided"),
    "FAdam diverges everywhere, at its reference too": (
        {(eps, scale): [math.nan] * 4 for eps in EPS for scale in SCALES}, {(1e-4, 1.0): BAD}, "undecided"
    ),
    "AdamW diverges everywhere, at its reference too": (
        {}, {(eps, scale): [math.nan] * 4 for eps in EPS for scale in SCALES}, "undecided"
    ),
    "both of a seed diverge": ({(1e-4, 1.0): [math.nan, 0.0, 0.0, 0.0]}, {(1e-4, 1.0): BAD}, "undecided"),
    "AdamW loses less than matters": ({}, {(1e-4, 1.0): [-0.004, -0.005, -0.004, -0.005]}, "undecided"),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_the_rule_of_c4(case: str) -> None:
    fadam, adamw, word = CASES[case]
    grid = [*points("fadam", fadam), *points("adamw", adamw)]
    assert judge_grid(grid, 0.01, "fadam", "adamw")[0] == word


def test_equal_results_count_once_and_the_variance_is_pooled() -> None:
    """Twelve copies of one bad result are one test; a quiet point shares the variance of a noisy one."""
    one = [Point("adamw", "32-true", 1e-4, 1.0, np.array([-0.02, -0.013]))]
    copies = [Point("adamw", "32-true", 10.0**-k, 1.0, np.array([-0.02, -0.013])) for k in range(4, 16)]
    assert judge_grid(one, 0.01, "fadam", "adamw") == judge_grid(copies, 0.01, "fadam", "adamw")
    quiet = [Point("adamw", "32-true", 1e-4, 1.0, np.array([-0.012, -0.0121]))]
    noisy = [Point("adamw", "32-true", 1e-5, 1.0, np.array([-0.03, 0.03]))]
    assert judge_grid(quiet, 0.01, "fadam", "adamw")[1]["adamw"] == (False, True)
    assert judge_grid([*quiet, *noisy], 0.01, "fadam", "adamw")[1]["adamw"] == (False, False)


def test_a_point_of_one_seed_is_not_judged_but_where_it_diverged() -> None:
    some = Point("adamw", "32-true", 1e-4, 1.0, np.array([-0.3]))
    lost = Point("adamw", "32-true", 1e-5, 1.0, np.array([-math.inf]))
    for points in ([some, lost], [lost, some]):
        assert judge_grid(points, 0.01, "fadam", "adamw")[1]["adamw"] == (False, True)
    assert judge_grid([some], 0.01, "fadam", "adamw")[1]["adamw"] == (False, False)


def test_points_are_written_out() -> None:
    metric = task("llm").metric("test/bits_per_byte")
    for gains, text in (
        ([0.0, 0.0], "same"), ([0.1, -0.05], "+0.0250"), ([-math.inf, 0.0], "diverged"),
        ([math.inf, 0.0], "reference diverged"), ([math.inf, -math.inf], "diverged"),
    ):  # fmt: skip
        assert Point("fadam", "32-true", 1e-4, 1.0, np.array(gains)).text(metric) == text


def test_the_grid_of_a_study(study: Study) -> None:
    found, verdict = study.grids["llm"]
    assert (verdict.word, verdict.done, verdict.planned) == ("supported", 40, 40)
    assert len(found) == 16
    assert verdict.within == {"adamw": False, "fadam": True}
    assert [q.eps for q in verdict.farthest["adamw"]] == [1e-4, 1e-8]
    assert verdict.farthest["adamw"][0].gains == pytest.approx(-0.3)
    assert [q.same for q in verdict.farthest["fadam"]] == [True, True]


def test_runs_that_diverged_at_the_reference_too_are_not_equal(study: Study, tmp_path: Path) -> None:
    planner = study.planners["llm"]
    for run in planner.epsilon(study.tuned["llm"], 0).runs:
        settings = dict(run.settings)
        lost = (run.arm, settings["trainer.precision"]) == ("fadam", "bf16-true")
        worse = (run.arm, settings["optimizer.eps"]) == ("adamw", 1e-4)
        write(tmp_path, run, math.inf if lost else 1.9 + run.seed * 1e-5 if worse else 1.6)
    made = grid(Planner(planner.protocol, Records([tmp_path]), lambda *_: False), study.tuned["llm"])
    assert made is not None
    lost_points = [p for p in made[0] if (p.arm, p.precision) == ("fadam", "bf16-true")]
    assert lost_points
    assert not any(p.same for p in lost_points)
    verdict = made[1]
    assert verdict.word == "undecided"
    assert (verdict.within["fadam"], verdict.beyond) == (False, {"fadam": False, "adamw": True})


# --- sizes and context


def test_the_slope_over_sizes(study: Study) -> None:
    found = study.ladder
    assert found is not None
    assert [size for size, _ in found.sizes] == [0.32, 1.12, 2.67, 7.77]
    assert found.pairs == 4
    assert found.slope is not None
    # The seeds' noise is the same at every size: what is left is the line through 0.01, 0.02, 0.03 and 0.04.
    x = np.log10([0.32, 1.12, 2.67, 7.77])
    assert found.slope[0] == pytest.approx(np.polyfit(x, [0.01, 0.02, 0.03, 0.04], 1)[0])


def test_context_is_paired_with_every_main_arm(study: Study) -> None:
    (muon,) = study.contexts
    assert (muon.arm, set(muon.gains)) == ("muon", {"adamw_clip", "fadam", "adamw"})
    assert len(muon.gains["fadam"]) == 4  # five of its own, four of the others'
    found = interval(muon.gains["adamw_clip"])
    assert found is not None
    assert found[1] > 0


@pytest.mark.parametrize("gains", [[], [1.0], [1.0, math.inf]])
def test_no_interval_without_two_finite_gains(gains: list[float]) -> None:
    assert interval(gains) is None


def test_protocols_of_a_folder(declared: Path) -> None:
    assert protocol("llm", declared).comparisons[0].looks == (4, 8)
