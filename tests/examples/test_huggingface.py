"""FAdam in transformers' Trainer: both arms, from a checkpoint as from the start, and clipping told."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import TrainerCallback

from examples.huggingface import __main__ as example
from fadam import FAdam


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(example, "TRAIN", 64)
    monkeypatch.setattr(example, "TEST", 32)


def test_both_arms_on_three_seeds(tmp_path: Path, capsys) -> None:
    words = ["--steps", "4", "--out", str(tmp_path)]
    assert example.main(words) == 0
    shown = capsys.readouterr().out
    assert [shown.count(f"{arm} seed {seed}: test loss") for arm in example.ARMS for seed in (1, 2, 3)] == [1] * 6
    assert "seed by seed: " in shown
    assert "twice" not in shown
    times = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*/record.json")}
    assert len(times) == 6
    assert example.main(words) == 0
    assert times == {path: path.stat().st_mtime_ns for path in times}


def test_an_interrupted_run_goes_on_exactly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Stop(TrainerCallback):
        def on_step_end(self, args, state, control, **words) -> None:
            if state.global_step == 3:
                raise RuntimeError("broken off")

    whole = example.run("fadam", 1, tmp_path / "whole", 1e-3, 8)
    made = example.trainer
    with monkeypatch.context() as patch:
        patch.setattr(example, "trainer", lambda *words: _with(made(*words), Stop()))
        with pytest.raises(RuntimeError, match="broken off"):
            example.run("fadam", 1, tmp_path / "broken", 1e-3, 8)
    assert len(list((tmp_path / "broken").glob("*/checkpoint-2"))) == 1
    assert example.run("fadam", 1, tmp_path / "broken", 1e-3, 8) == whole


def _with(trainer, callback):
    trainer.add_callback(callback)
    return trainer


def test_clipping_twice_is_told_once_and_noted(tmp_path: Path, capsys) -> None:
    record = example.run("fadam", 1, tmp_path, 1e-3, 2, clip=1.0)
    assert capsys.readouterr().out.count("clipped twice: by max_grad_norm=1 and inside FAdam") == 1
    assert len(record["notes"]) == 1
    # Another clip is another run.
    assert example.run("fadam", 1, tmp_path, 1e-3, 2)["notes"] == []


def test_seeds_are_whole_numbers(capsys) -> None:
    with pytest.raises(SystemExit):
        example.main(["--seeds", "a"])
    assert "--seeds=a is not allowed; --seeds must be whole numbers" in capsys.readouterr().err


def test_initial_weights_are_the_seeds(tmp_path: Path) -> None:
    one, other = (example.trainer(arm, 1, tmp_path, 1e-3, 2) for arm in example.ARMS)
    assert all(torch.equal(a, b) for a, b in zip(one.model.parameters(), other.model.parameters(), strict=True))
    assert isinstance(other.create_optimizer(), FAdam)
