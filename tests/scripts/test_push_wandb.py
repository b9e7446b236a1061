"""Pushing records to W&B: what is told of each, offline, and what is said when it cannot be reached."""

from __future__ import annotations

from pathlib import Path

import pytest

from experiments.core.records import Records
from scripts import push_wandb
from tests.made_up import content, put


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    for arm in ("adamw_clip", "fadam"):
        put(tmp_path / "runs", content("llm", arm, 1, {"val/loss": 1.5}))
    return tmp_path / "runs"


@pytest.fixture(autouse=True)
def no_account(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    for name in ("HOME", "NETRC", "WANDB_CONFIG_DIR"):
        monkeypatch.setenv(name, str(tmp_path / "home"))


def test_runs_are_grouped_by_study_and_arm_and_pushed_once(runs: Path) -> None:
    one, other = Records([runs]).all()
    told = push_wandb.settings(one, "fadam")
    assert (told["group"], told["job_type"], told["name"]) == ("llm-cpu", "adamw_clip", "adamw_clip-main-s1")
    assert told["id"] == push_wandb.settings(one, "fadam")["id"] != push_wandb.settings(other, "fadam")["id"]
    assert told["config"]["optimizer"] == one.config["optimizer"]


def test_a_record_becomes_a_run_with_its_curve_and_metrics(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = Records([runs]).all()[0]
    logged: list[int] = []
    import wandb

    init = wandb.init

    def watched(**words: object) -> wandb.Run:
        run = init(**words)
        log = run.log
        monkeypatch.setattr(run, "log", lambda values, step: (logged.append(step), log(values, step=step)))
        return run

    monkeypatch.setattr(wandb, "init", watched)
    push_wandb.push(record, "fadam", tmp_path, mode="offline")
    assert logged == [entry["step"] for entry in record.history]
    folders = push_wandb.offline_runs(tmp_path)
    assert [folder.name.split("-")[-1] for folder in folders] == [push_wandb.identity(record)]
    next(folders[0].glob("*.wandb")).with_suffix(".wandb.synced").touch()
    assert push_wandb.offline_runs(tmp_path) == []


def test_without_an_account_nothing_is_pushed(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert push_wandb.main(["--runs", str(runs), "--dry-run"]) == 0
    assert "llm-cpu, fadam: 1 records" in capsys.readouterr().out
    assert push_wandb.main(["--runs", str(runs)]) == 2
    assert "no API key" in capsys.readouterr().err
    assert push_wandb.main(["--runs", str(runs / "none")]) == 2
    assert "no run records" in capsys.readouterr().err
