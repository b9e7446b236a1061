"""Made-up run records with known answers."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

FINGERPRINT = "sha256:" + "a" * 64
Write = Callable[..., Path]


def record(arm: str, seed: int, wer: float | None, **changes: Any) -> dict[str, Any]:
    """One evaluation record of the speech task whose test-clean WER is `wer`."""
    content: dict[str, Any] = {
        "schema": 1,
        "task": "asr",
        "scale": "cpu",
        "arm": arm,
        "trial": "main",
        "purpose": "eval",
        "seed": seed,
        "data_seed": seed,
        "optimizer": {"_target_": f"some.{arm}", "lr": 0.002},
        "data": {"name": "synthetic", "fingerprint": FINGERPRINT, "hours": 2.7, "utterances": 6000},
        "config_hash": "0123456789ab",
        "config": {
            "seed": seed,
            "optimizer": {"lr": 0.002},
            "model": {"_target_": "experiments.asr.model.Conformer", "dim": 96},
            "trainer": {"max_steps": 200, "gradient_clip_val": 1.0 if arm == "adamw_clip" else None},
        },
        "steps": 200,
        "seen": {"hours": 9.1},
        "metrics": {"test-clean/wer": wer, "test-clean/cer": None if wer is None else wer / 4},
        "history": [
            {"step": 100, "dev-clean/wer": 0.9, "seconds": 12.0},
            {"step": 200, "dev-clean/wer": wer, "seconds": 24.0},
        ],
        "target": {"metric": "dev-clean/wer", "value": 0.6, "mode": "min", "steps": 150, "seconds": 18.0},
        "wall_time_s": 240.0,
        "step_time_s": 0.15 + seed / 1000,
        "peak_memory_bytes": 2**30,
        "parameters": 912345,
        "diverged": False,
        "problems": {"too-short-for-ctc": 3},
        "samples": [
            {"split": "test-clean", "id": "1-2-3", "reference": "a | b", "hypothesis": f"{arm} says"},
        ],
        "artifacts": [],
        "versions": {"python": "3.11", "torch": "2.11.0"},
        "commit": "abc1234",
        "device": "one processor",
        "threads": 1,
        "started": "2026-11-01T10:00:00",
        "finished": "2026-11-01T10:04:00",
        "dirty": False,
        "command": f"python -m experiments.train experiment=asr_cpu optimizer={arm} seed={seed}",
    }
    content.update(changes)
    return content


def tuning(arm: str, rate: float, value: float | None, **changes: Any) -> dict[str, Any]:
    """One tuning record whose objective came out as `value`."""
    defaults: dict[str, Any] = {
        "purpose": "tune",
        "trial": f"tune-lr{rate:g}",
        "optimizer": {"_target_": f"some.{arm}", "lr": rate},
        "objective": {"metric": "dev-clean/wer", "mode": "min", "value": value},
        "searched": {"optimizer.lr": rate},
        "diverged": value is None,
    }
    content = record(arm, changes.pop("seed", 100), value, **{**defaults, **changes})
    content["config"]["optimizer"]["lr"] = rate
    return content


def path_of(root: Path, content: dict[str, Any]) -> Path:
    variant = f"{content['variant']}-" if content.get("variant") else ""
    name = f"{variant}{content['trial']}-s{content['seed']}.json"
    return root / content["task"] / content["scale"] / content["arm"] / name


@pytest.fixture(name="record")
def record_maker() -> Callable[..., dict[str, Any]]:
    return record


@pytest.fixture(name="tuning")
def tuning_maker() -> Callable[..., dict[str, Any]]:
    return tuning


@pytest.fixture
def repository() -> Path:
    return Path(__file__).resolve().parents[2]


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    return tmp_path / "runs"


@pytest.fixture
def write(runs: Path) -> Write:
    """Write records under `runs` (or another root) where they belong; returns the path of the last."""

    def write_records(*contents: dict[str, Any], root: Path = runs) -> Path:
        for content in contents:
            path = path_of(root, content)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(content), encoding="utf-8")
        return path

    return write_records


@pytest.fixture
def six() -> list[dict[str, Any]]:
    """Three seeds of two arms: FAdam lower by 0.02, 0.03 and 0.04."""
    opponent = [record("adamw_clip", s, w) for s, w in ((1, 0.42), (2, 0.44), (3, 0.46))]
    return opponent + [record("fadam", s, w) for s, w in ((1, 0.40), (2, 0.41), (3, 0.42))]


@pytest.fixture
def trials() -> list[dict[str, Any]]:
    """Three trials of two arms, the best at 0.002 inside the space; FAdam diverges at the highest rate."""
    values = {"adamw_clip": (0.6, 0.5, 0.7), "fadam": (0.6, 0.45, None)}
    return [
        tuning(arm, rate, value)
        for arm, row in values.items()
        for rate, value in zip((0.001, 0.002, 0.004), row, strict=True)
    ]
