"""What `experiments.study` says of the studies: counts, times and width."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from experiments.core.plan import Planner, Stage, plan_all, wanted
from experiments.core.protocol import Protocol, names, protocol
from experiments.core.records import Records, RecordWarning
from experiments.study import __main__ as command
from experiments.study.status import counts, said, time_left, total
from tests.made_up import content, put, write

WIDEST = 80


def stages(results: Records, *protocols: Protocol) -> list[Stage]:
    return plan_all([Planner(p, results, lambda *_: False) for p in protocols])


def test_a_run_that_comparisons_share_counts_once(tmp_path: Path) -> None:
    """C5, C6 and C8 share FAdam's runs with C2."""
    p, results = protocol("asr"), Records([tmp_path])
    later = {stage.name.partition(":")[0]: count.later for stage, count in counts(stages(results, p), results)}
    assert later["C2"] == 2 * 40
    assert later["C5"] == later["C6"] == 20
    assert later["C8"] == 0  # FAdam's and fadam_decoupled_decay's are C2's and C7's
    assert later["C7"] == 2 * 20


def test_runs_that_are_planned_are_not_to_come_as_well(tmp_path: Path) -> None:
    """At the first look 12 pairs are planned; the other comparisons want the same of FAdam."""
    p = replace(protocol("asr"), switches=None, epsilon=None, comparisons=protocol("asr").comparisons[:1])
    twice = replace(p, comparisons=(*p.comparisons, replace(p.comparisons[0], id="again", looks=(20,))))
    results = Records([tmp_path])
    while due := [run for run in wanted(stages(results, twice), results) if run.purpose == "tune"]:
        for run in due:
            write(tmp_path, run, abs(dict(run.settings)["optimizer.lr"] - 0.004))
            results.forget(run)
    found = {stage.name.partition(":")[0]: count for stage, count in counts(stages(results, twice), results)}
    assert (found["C2"].due, found["C2"].later) == (24, 56 - 16)
    assert (found["again"].due, found["again"].later) == (16, 0)


def test_times_are_of_the_stage_then_the_study_then_the_experiment(tmp_path: Path) -> None:
    here, published, p = tmp_path / "runs", tmp_path / "published", protocol("asr")
    results = Records([here, published])
    rows = counts(stages(results, p), results, published)
    assert all(count.minutes is None for _, count in rows if count.missing)
    assert time_left(rows, 2) == "how long they take is not known yet"

    pilot = put(published, content("asr", "fadam", 1, {}, trial="pilot", wall_time_s=120.0))
    (pilot.parent / "broken-s1.json").write_text("{")
    results = Records([here, published])
    with pytest.warns(RecordWarning, match="broken-s1.json: left out"):
        rows = counts(stages(results, p), results, published)
    whole = total([count for _, count in rows])
    assert (whole.published, whole.here, whole.minutes) == (0, 0, 2.0 * whole.missing)

    first, second = list(wanted(stages(results, p), results))[:2]
    write(published, first, 0.3)
    write(here, second, 0.3)
    results = Records([here, published])
    rows = counts(stages(results, p), results, published)
    again = total([count for _, count in rows])
    assert (again.published, again.here, again.missing) == (1, 1, whole.missing - 2)
    assert again.minutes == pytest.approx(again.missing)  # of a minute each
    assert time_left(rows, 60).startswith(f"at most about {round(again.missing / 60)} min with 60 at a time")

    write(published, second, 0.3)  # as `publish` copies it
    rows = counts(stages(results, p), results, published)
    assert [getattr(total([count for _, count in rows]), name) for name in ("published", "here")] == [2, 0]


def test_a_study_with_a_model_of_its_own_has_no_time_of_others(tmp_path: Path) -> None:
    put(tmp_path, content("llm", "fadam", 1, {}, trial="pilot"))
    results = Records([tmp_path])
    rows = counts(stages(results, protocol("llm"), protocol("llm_size_8m")), results)
    assert {stage.protocol for stage, count in rows if count.missing and count.minutes is None} == {"llm_size_8m"}
    assert time_left(rows, 2).endswith(", and what llm_size_8m take")


@pytest.mark.parametrize("details", [False, True])
@pytest.mark.parametrize("width", [80, 200])
def test_tables_fit_80_columns_and_cut_no_name(tmp_path: Path, width: int, details: bool) -> None:
    results = Records([tmp_path])
    found = stages(results, *(protocol(name) for name in names()))
    text = said(found, results, 2, width, tmp_path / "published", details)
    assert max(map(len, text.splitlines())) <= WIDEST
    assert "…" not in text
    wanted_names = {stage.name.replace(" against ", ", ") for stage in found} if details else set(names())
    assert all(any(line.strip().startswith(name) for line in text.splitlines()) for name in wanted_names)


def test_a_reader_that_has_enough_ends_the_plan_quietly(tmp_path: Path, monkeypatch, capfd) -> None:
    read, written = os.pipe()
    os.close(read)
    with os.fdopen(written, "w") as pipe:
        monkeypatch.setattr("sys.stdout", pipe)
        status = command.main(["plan", "llm", "--runs", str(tmp_path), "--published", str(tmp_path)])
    assert status == 0
    assert capfd.readouterr().err == ""
