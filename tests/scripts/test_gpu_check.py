"""The check for machines with a GPU, in its dry form: everything that runs in its process, on the CPU."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from scripts import gpu_check
from scripts.gpu_check import CHECKS, SMALL_DATA, Check, Failed, Left, main, perform, training

CPU = torch.device("cpu")


def test_dry(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    out = tmp_path / "gpu.md"
    assert main(["--dry", "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    rows = {
        line.split(" | ")[0].removeprefix("| "): line.split(" | ")[1] for line in printed.splitlines() if "**" in line
    }
    assert list(rows) == [check.title for check in CHECKS]
    for check in CHECKS:
        assert rows[check.title] in ({"**passed**"} if check.make else {"**shown**", "**left out**"})
    assert printed.splitlines()[-1].startswith("Dry, on the CPU: ")
    assert " passed" in printed.splitlines()[-1]
    assert not out.exists()


def wrong(device: torch.device, dry: bool) -> str:
    raise Failed("2 apart, 1 is allowed")


def broken(device: torch.device, dry: bool) -> str:
    raise ZeroDivisionError("by zero")


def lacking() -> list[str]:
    raise Left("nothing is here")


@pytest.mark.parametrize(
    ("check", "outcome", "words"),
    [
        (Check("a", "a", wrong), "failed", "2 apart, 1 is allowed"),
        (Check("a", "a", broken), "failed", "ZeroDivisionError: by zero"),
        (Check("a", "a", command=lacking), "left out", "nothing is here"),
        (Check("a", "a", command=lambda: ["true"]), "passed", "true"),
        (Check("a", "a", command=lambda: ["false"]), "failed", "exit status 1: without a word (false)"),
        (Check("a", "a", command=lambda: ["sleep", "9"]), "failed", "it took more than the 20 s that were left"),
    ],
)
def test_outcomes(check: Check, outcome: str, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if check.command is not None and words.startswith("it took"):
        timed_out = gpu_check.subprocess.TimeoutExpired("sleep", 20)

        def late(*_: object, **__: object) -> None:
            raise timed_out

        monkeypatch.setattr(gpu_check.subprocess, "run", late)
    row = perform(check, CPU, dry=False, left=20)
    assert (row.outcome, row.words) == (outcome, words)


def test_a_failure_is_the_exit_status_and_the_last_words(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(gpu_check, "CHECKS", [Check("a", "first", lambda *_: "fine"), Check("b", "second", wrong)])
    assert main([]) == 1
    assert capsys.readouterr().out.splitlines()[-1] == "Dry, on the CPU: 1 passed, 1 failed; failed: second"
    assert main(["--only", "a"]) == 0
    with pytest.raises(SystemExit):
        main(["--only", "c"])
    assert "--only c: it is none of a, b" in capsys.readouterr().err


def test_what_a_python_lacks_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name in ("hydra", "rich") else find(name))
    outcomes = {c.title: perform(c, CPU, dry=True, left=600) for c in CHECKS if c.command}
    assert outcomes["make bench's GPU rows"].words == "rich cannot be imported"
    assert outcomes["50 steps of asr_gpu"].words == "hydra cannot be imported"
    assert outcomes["50 steps of asr_gpu"].outcome == "left out"


def test_without_hydras_launcher_no_config_is_composed(monkeypatch: pytest.MonkeyPatch) -> None:
    launcher = "hydra_plugins.hydra_joblib_launcher"
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == launcher else find(name))
    outcomes = {c.title: perform(c, CPU, dry=True, left=600) for c in CHECKS if c.command}
    assert "--sets gpt2 " in outcomes["make bench's GPU rows"].words
    assert outcomes["50 steps of llm_gpu"].words == f"{launcher} cannot be imported"


def test_a_failure_shows_its_cause_above_the_last_line(monkeypatch: pytest.MonkeyPatch) -> None:
    row = perform(Check("a", "a", command=lambda: ["sh", "-c", "echo cause; echo where; exit 3"]), CPU, False, 600)
    assert row.words.startswith("exit status 3: cause where (sh ")


@pytest.mark.parametrize("task", SMALL_DATA)
def test_the_training_commands_are_configs(
    task: str, compose_config: Callable[..., object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FADAM_DATA", str(tmp_path))
    with pytest.raises(Left, match=f"make data-{task}"):
        training(task)()
    (tmp_path / "data").touch()
    overrides = [word for word in training(task)()[3:] if not word.startswith("paths.")]
    cfg = compose_config(*overrides)
    assert cfg.trainer.max_steps == 50  # type: ignore[attr-defined]
    assert cfg.optimizer.fused is True  # type: ignore[attr-defined]
