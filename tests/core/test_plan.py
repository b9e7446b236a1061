"""Whole studies on made-up results: what is planned, chosen, stopped, and what never mixes."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from pathlib import Path

import pytest

from experiments.analysis.comparisons import decider
from experiments.core.errors import ConfigError
from experiments.core.plan import Planner, choose_rate, decay_kind, plan_all, wanted
from experiments.core.protocol import names, protocol, rate
from experiments.core.records import MixedRecordsError, Records
from tests.made_up import bowl_value, complete, main_part, write


@pytest.mark.parametrize("name", names())
def test_declared_studies_are_whole(name: str) -> None:
    p = protocol(name)
    rates = [rate(step) for step in range(p.bowl.first, p.bowl.last + 1)]
    assert len(rates) >= 5
    assert all(1.5 < b / a < 1.7 for a, b in itertools.pairwise(rates))
    seeds = {*p.bowl.seeds, *(p.switches.seeds if p.switches else ()), *(p.context.seeds if p.context else ())}
    assert not seeds & set(p.evaluation)
    # The first study's seeds and the pilot's are never used again.
    assert not (seeds | set(p.evaluation)) & {1, 2, 3, *range(11, 16), 100, *range(1001, 2000)}


def test_a_study_runs_to_its_end_and_stops_early(tmp_path: Path) -> None:
    p = protocol("llm")
    made = complete(tmp_path, [p], bowl_value(rate(-13)))
    assert len({run.record for run in made}) == len(made)
    evaluated = [run for run in made if run.arm == "fadam" and run.trial == "main"]
    # Equal arms, far less noise than what matters: the first look decides.
    assert sorted(run.seed for run in evaluated) == list(p.evaluation[:12])
    assert {dict(run.settings)["optimizer.lr"] for run in evaluated} == {rate(-13)}
    epsilon = [run for run in made if run.stage == "epsilon"]
    assert len(epsilon) == 4 * 3 * 2 * (2 + 4)


def test_noise_takes_all_looks(tmp_path: Path) -> None:
    p = main_part("llm")
    made = complete(tmp_path, [p], bowl_value(rate(-13), sd=0.2))
    assert {run.seed for run in made if run.trial == "main"} == set(p.evaluation)


def test_a_grid_grows_for_all_arms_where_one_lies_at_its_end(tmp_path: Path) -> None:
    p = main_part("asr")
    low, high = bowl_value(rate(p.bowl.first)), bowl_value(rate(-12))
    made = complete(tmp_path, [p], lambda run: (low if run.arm == "fadam" else high)(run))
    for arm in p.bowl.arms:
        tried = {dict(run.settings)["optimizer.lr"] for run in made if run.arm == arm and run.stage == "rates"}
        assert tried == {rate(step) for step in range(p.bowl.first - 2, p.bowl.last + 1)}


def test_context_optimizers_do_not_wait_for_one_another(tmp_path: Path) -> None:
    context = protocol("llm").context
    assert context is not None
    both = replace(main_part("llm"), context=replace(context, arms=("muon", "soap")))
    alone = replace(both, context=replace(context, arms=("muon",)))
    beyond, within = bowl_value(rate(context.last + 1)), bowl_value(rate(-13))
    made = complete(tmp_path, [alone], beyond)
    then = complete(tmp_path, [both], within)
    assert {run.arm for run in then} == {"soap"}
    for arm, runs, last in (("muon", made, context.last + 2), ("soap", then, context.last)):
        tried = {dict(run.settings)["optimizer.lr"] for run in runs if run.arm == arm and run.purpose == "tune"}
        assert tried == {rate(step) for step in range(context.first, last + 1)}
        assert [run.seed for run in runs if run.arm == arm and run.trial == "main"] == list(both.evaluation[:5])


def test_an_arm_that_always_diverges_stops_nothing(tmp_path: Path) -> None:
    p = replace(protocol("asr"), epsilon=None)
    good = bowl_value(rate(-12))
    made = complete(tmp_path, [p], lambda run: math.inf if run.arm == "fadam_global_clip" else good(run))
    assert any(run.arm == "fadam_global_clip" and run.trial == "main" for run in made)


def test_settings_chosen_anew_make_runs_stale(tmp_path: Path) -> None:
    p = main_part("asr")
    made = complete(tmp_path, [p], bowl_value(rate(-12)))
    moved = bowl_value(rate(-10))
    for run in made:
        if run.purpose == "tune":
            write(tmp_path, run, moved(run))
    results = Records([tmp_path])
    planner = Planner(p, results, decider([p], results))
    due = [run for run in wanted(plan_all([planner]), results) if run.trial == "main"]
    assert due == [] or {dict(run.settings)["optimizer.lr"] for run in due} == {rate(-10)}
    assert list(wanted(plan_all([planner]), results))


def test_two_data_sets_are_not_mixed(tmp_path: Path) -> None:
    p = main_part("asr")
    results = Records([tmp_path])
    first, second = list(wanted(plan_all([Planner(p, results, lambda *_: False)]), results))[:2]
    write(tmp_path, first, 1.0)
    write(tmp_path, second, 1.0, "sha256:2")
    results = Records([tmp_path])
    with pytest.raises(MixedRecordsError, match="other data than"):
        plan_all([Planner(p, results, lambda *_: False)])


def test_published_records_need_not_be_made_again(tmp_path: Path) -> None:
    p = main_part("asr")
    complete(tmp_path / "results", [p], bowl_value(rate(-12)))
    results = Records([tmp_path / "runs", tmp_path / "results"])
    assert not list(wanted(plan_all([Planner(p, results, decider([p], results))]), results))


@pytest.mark.parametrize(
    ("values", "step", "end"),
    [
        ({0: [2.0], 1: [1.0], 2: [2.0]}, 1, ""),
        ({0: [1.0], 1: [2.0], 2: [3.0]}, 1, "low"),
        ({0: [3.0], 1: [2.0], 2: [1.0]}, 1, "high"),
        # 2 is best, and beside a cliff: 1 is chosen.
        ({0: [2.0], 1: [1.6], 2: [1.5], 3: [9.0], 4: [9.5]}, 1, ""),
        ({0: [2.0], 1: [1.6], 2: [1.5], 3: [math.inf], 4: [math.inf]}, 1, ""),
        ({0: [math.inf], 1: [math.inf], 2: [math.inf]}, None, "low"),
        ({0: [math.inf], 1: [1.0], 2: [math.inf]}, 1, ""),
        # 1 is best, and beside a cliff: 2 has none, but lies beyond it.
        ({0: [2.0], 1: [1.0], 2: [3.0], 3: [3.5], 4: [4.0]}, 1, ""),
    ],
)
def test_choosing_a_rate(values: dict[int, list[float]], step: int | None, end: str) -> None:
    assert choose_rate(values, "min", cliff=1.5) == (step, end)
    turned = {k: [-v for v in found] for k, found in values.items()}
    assert choose_rate(turned, "max", cliff=1.5) == (step, end)


def test_kinds_of_decay_are_those_of_the_configs() -> None:
    assert decay_kind("fadam") == decay_kind("fadam_gradient_momentum") == "natural"
    assert decay_kind("fadam_global_clip") == decay_kind("adamw_clip") == "decoupled"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("matter: 1", "has no matter"),
        ("matters: 0", "matters must be above 0, got 0"),
        ("matters: many", "matters must be of type float"),
        ("metric: {name: a, mode: least}", "mode must be one of min, max, got 'least'"),
        ("evaluation: [301, 302]", "none of the evaluation's"),
        ("evaluation: {first: 201, count: 3}", "looks of C2 must rise"),
        (
            "comparisons: [{id: a, claim: '', family: a, challenger: lion, baseline: fadam, looks: [2]}]",
            "compares 'lion'",
        ),
    ],
)
def test_what_is_wrong_in_a_protocol_is_named(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "asr.yaml").write_text(Path("configs/study/asr.yaml").read_text())
    (tmp_path / "mine.yaml").write_text(f"base: asr\n{text}\n")
    with pytest.raises(ConfigError, match=message):
        protocol("mine", tmp_path)
