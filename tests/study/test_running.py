"""Settling hyperparameters, widening, status and the launcher, on made-up records."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from experiments import study as launcher
from experiments.analysis import status as st
from experiments.analysis.plan import Planned, multiruns, planned
from experiments.analysis.records import AnalysisError, MixedRecordsError, load_records
from experiments.analysis.tuning import current, settle
from experiments.core import study

FINGERPRINT = "sha256:" + "a" * 64
RATES = [0.001 * 1.7**i for i in range(-4, 12)]


def content(run: Planned, value: float, rate: float = 0.01, **changes: Any) -> dict[str, Any]:
    """The record of a planned run."""
    optimizer = {"_target_": f"some.{run.arm}", "lr": rate, "weight_decay": 0.01}
    return {
        "schema": 1,
        "task": run.task,
        "scale": "study",
        "arm": run.arm,
        "variant": run.variant,
        "trial": run.trial,
        "purpose": run.purpose,
        "experiment_name": run.experiment,
        "seed": run.seed,
        "optimizer": optimizer,
        "data": {"name": "made up", "fingerprint": FINGERPRINT},
        "config_hash": "0123456789ab",
        "config": {"optimizer": optimizer, "trainer": {"max_steps": 10}},
        "steps": 10,
        "metrics": {"test/bits_per_byte": value},
        "history": [],
        "diverged": False,
        "objective": {"metric": "val/bits_per_byte", "mode": "min", "value": value},
        "searched": {"optimizer.lr": rate, "optimizer.weight_decay": 0.01},
        "wall_time_s": 60.0,
        "finished": "2026-11-01T10:00:00",
        **changes,
    }


def write(root: Path, run: Planned, *args: Any, **changes: Any) -> None:
    path = root / run.record
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content(run, *args, **changes)))


def rate(run: Planned) -> float:
    return RATES[int(run.trial.removeprefix("tune-p")) + 4]


def tuning(tmp_path: Path) -> list[Planned]:
    return [one for one in planned("llm", ["who"], tuned=tmp_path / "tuned") if one.purpose == "tune"]


def write_tuning(root: Path, tmp_path: Path, best: dict[str, int]) -> list[Planned]:
    """Tuning records whose value is the distance from the arm's best point."""
    runs = tuning(tmp_path)
    for one in runs:
        write(root, one, 1.0 + abs(int(one.trial.removeprefix("tune-p")) - best.get(one.arm, 4)), rate(one))
    return runs


def test_settling_writes_each_arms_best_point(runs: Path, tmp_path: Path) -> None:
    planned_runs = write_tuning(runs, tmp_path, {"fadam": 5})
    settled = settle(planned_runs, load_records(runs), tmp_path / "tuned")
    assert settled.widen == ()
    assert set(settled.choices) == {"adamw", "adamw_clip", "adamw_update_clip", "fadam"}
    text = (tmp_path / "tuned" / "llm_study-fadam.yaml").read_text()
    assert text.startswith("# @package _global_")
    assert yaml.safe_load(text) == {"optimizer": {"lr": RATES[9], "weight_decay": 0.01}}


def test_a_best_point_at_an_end_widens_the_space_for_every_arm(runs: Path, tmp_path: Path) -> None:
    settled = settle(write_tuning(runs, tmp_path, {"adamw": 7}), load_records(runs), tmp_path / "tuned")
    assert settled.choices == {}
    assert "AdamW: the best learning rate" in settled.widen[0]
    assert "largest of 8 tried" in settled.widen[0]
    assert not list((tmp_path / "tuned").glob("*.yaml"))
    widened = (tmp_path / "tuned" / "widened" / "llm_study-main.yaml").read_text()
    assert "largest of 8 tried" in widened
    assert len(tuning(tmp_path)) == 40
    # Found inside the wider space, it is settled; at its end again, the space is widened once more, and then no more.
    assert settle(write_tuning(runs, tmp_path, {"adamw": 7}), load_records(runs), tmp_path / "tuned").choices
    settle(write_tuning(runs, tmp_path, {"adamw": 9}), load_records(runs), tmp_path / "tuned")
    assert len(tuning(tmp_path)) == 48
    with pytest.raises(AnalysisError, match="widened by 4 points and still at an end"):
        settle(write_tuning(runs, tmp_path, {"adamw": 11}), load_records(runs), tmp_path / "tuned")


def test_an_arm_that_diverged_everywhere_goes_on_with_its_lowest_rate(runs: Path, tmp_path: Path) -> None:
    planned_runs = write_tuning(runs, tmp_path, {})
    lost = [one for one in planned_runs if one.arm == "adamw"]
    for one in lost:
        write(runs, one, math.nan, rate(one), diverged=True)
    # Twice the space is widened below, as far as it may be; the arm diverges there as well.
    for n in (10, 12):
        settled = settle(planned_runs, load_records(runs), tmp_path / "tuned")
        assert "AdamW: diverged at all of" in settled.widen[0]
        planned_runs = write_tuning(runs, tmp_path, {})
        lost = [one for one in planned_runs if one.arm == "adamw"]
        assert len(lost) == n
        for one in lost:
            write(runs, one, math.nan, rate(one), diverged=True)
    settled = settle(planned_runs, load_records(runs), tmp_path / "tuned")
    assert settled.widen == ()
    assert settled.choices["adamw"].lost
    assert not settled.choices["fadam"].lost
    text = (tmp_path / "tuned" / "llm_study-adamw.yaml").read_text()
    assert text.count(": diverged  ") == len(lost) == 12
    assert "Every trial diverged" in text
    assert yaml.safe_load(text)["optimizer"]["lr"] == min(map(rate, lost))


def test_settling_refuses_what_is_not_the_planned_set(runs: Path, tmp_path: Path) -> None:
    planned_runs = write_tuning(runs, tmp_path, {})
    (runs / planned_runs[3].record).unlink()
    with pytest.raises(AnalysisError, match=r"tune-p3-s100\.json is missing"):
        settle(planned_runs, load_records(runs), tmp_path / "tuned")
    write(runs, planned_runs[3], 3.0, rate(planned_runs[3]), data={"name": "x", "fingerprint": "sha256:b"})
    with pytest.raises(MixedRecordsError, match="two data sets"):
        settle(planned_runs, load_records(runs), tmp_path / "tuned")
    write(runs, planned_runs[3], 3.0, rate(planned_runs[3]), experiment_name="llm_cpu")
    with pytest.raises(AnalysisError, match="is not the planned run of llm_study"):
        settle(planned_runs, load_records(runs), tmp_path / "tuned")


def test_a_record_of_other_hyperparameters_is_not_current(runs: Path, tmp_path: Path) -> None:
    settle(write_tuning(runs, tmp_path, {}), load_records(runs), tmp_path / "tuned")
    run = next(one for one in planned("llm", ["who"]) if one.purpose == "eval")
    for value, expected in ((RATES[8], True), (0.5, False)):
        write(runs, run, 1.0, value)
        record = next(r for r in load_records(runs) if r.relative == run.record)
        assert current(run, record, tmp_path / "tuned") is expected


def test_status_counts_every_planned_run_once(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    all_runs = planned("llm", ["who"])
    for one in all_runs[:5]:
        write(runs, one, 1.0)
    working, idle = ((runs / one.record).with_suffix("") for one in all_runs[5:7])
    for folder in (working, idle):
        folder.mkdir(parents=True)
        (folder / "metrics.csv").write_text("step\n")
    os.utime(idle / "metrics.csv", (0, 0))
    part = st.status("llm", runs, load_records(runs), ["who"])[0]
    assert {name: len(found) for name, found in part.states.items()} == {
        "done": 5, "running": 1, "failed": 1, "missing": 45,
    }  # fmt: skip
    assert part.minutes == 47.0
    assert part.words() == "llm, tier who, main: 5 done, 1 running, 1 failed, 45 missing of 52"
    assert st.main(["llm", "--tier", "who", "--runs", str(runs), "--jobs", "2", "--list", "failed"]) == 0
    shown = capsys.readouterr().out
    assert "about 24 min left with 2 at a time" in shown
    assert f"failed: {all_runs[6].record}" in shown
    assert st.main(["pictures", "--runs", str(runs)]) == 2


class Hydra:
    """Stands for the subprocess: makes the records of the multirun, but for the runs that are to fail."""

    def __init__(self, runs: Path, fail: dict[str, int]) -> None:
        self.runs, self.fail, self.lines = runs, fail, []

    def __call__(self, line: list[str], check: bool) -> SimpleNamespace:
        assert line[:4] == [sys.executable, "-m", "experiments.train", "-m"]
        self.lines.append(line)
        words = [word for word in line[4:] if not word.startswith(("paths.", "hydra."))]
        group = next(g for g in multiruns(planned("llm", ["who"])) if set(g.words) <= set(words))
        for one in group.runs:
            if self.fail.get(one.trial, 0) > 0:
                self.fail[one.trial] -= 1
                continue
            index = int(one.trial.removeprefix("tune-p")) if one.purpose == "tune" else 4
            write(self.runs, one, 1.0 + abs(index - 4), RATES[index + 4])
        return SimpleNamespace(returncode=0)


@pytest.fixture
def no_tuned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The launcher's choices go into a folder of the test's own."""
    folder = tmp_path / "chosen"
    monkeypatch.setattr(launcher, "settle", lambda runs, records: settle(runs, records, folder))
    monkeypatch.setattr(launcher, "current", lambda run, record: current(run, record, folder))
    monkeypatch.setattr(launcher, "study", SimpleNamespace(tuned=lambda *words: study.tuned(*words, folder=folder)))
    return folder


def test_a_tier_is_tuned_settled_and_evaluated(
    runs: Path, no_tuned: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    hydra = Hydra(runs, {"tune-p2": 4})  # all four arms fail at this point once
    monkeypatch.setattr(subprocess, "run", hydra)
    assert launcher.main(["llm", "--runs", str(runs), "--jobs", "3", "trainer.max_steps=10"]) == 0
    assert ["tune=study" in line for line in hydra.lines] == [True, True, False]  # a second attempt, then evaluation
    assert all({"hydra.launcher.n_jobs=3", "trainer.max_steps=10"} <= set(line) for line in hydra.lines)
    assert len(load_records(runs)) == 52
    assert "fadam: optimizer.lr=" in capsys.readouterr().out
    hydra.lines.clear()
    assert launcher.main(["llm", "--runs", str(runs)]) == 0
    assert hydra.lines == []  # nothing is made twice


def test_what_fails_twice_is_reported_and_stops_nothing_else(
    runs: Path, no_tuned: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(subprocess, "run", Hydra(runs, {"tune-p2": 99}))
    status = launcher.main(["llm", "--runs", str(runs), "--jobs", "0"])
    shown = capsys.readouterr()
    assert status == 2  # without its tuning an arm cannot be evaluated
    assert "llm_study-adamw.yaml is missing" in shown.err
    assert shown.err.count("failed: llm/study/") == 4
