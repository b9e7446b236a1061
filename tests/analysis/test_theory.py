"""Figure and table of the study of the Fisher information."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from experiments.analysis.theory import main

REPOSITORY = Path(__file__).resolve().parents[2]


def numbers(ratio: float) -> dict[str, float]:
    return {"correlation": 0.9, "low": ratio / 2, "ratio": ratio, "high": 2 * ratio}


@pytest.fixture
def record(tmp_path: Path) -> Path:
    cases = [
        {
            "likelihood": likelihood,
            "batch": batch,
            "stage": stage,
            "step": step,
            "moment_empirical": numbers(1 / batch),
            "frozen_empirical": numbers(1 / batch),
            "empirical_true": numbers(7.0),
        }
        for likelihood in ("categorical", "gaussian")
        for batch in (1, 16)
        for stage, step in (("start", 5), ("end", 50))
    ]
    content = {
        "schema": 1,
        "command": "python -m experiments.theory.fisher",
        "settings": {"parameters": {"categorical": 212}, "samples": 2048, "betas": [0.9, 0.999]},
        "rounding": 1.2e-14,
        "cases": cases,
    }
    path = tmp_path / "fisher.json"
    path.write_text(json.dumps(content))
    return path


def test_table_and_figure_are_the_same_to_the_byte(record: Path, tmp_path: Path) -> None:
    def made() -> dict[str, bytes]:
        assert main(["--record", str(record), "--out", str(tmp_path)]) == 0
        files = [*(tmp_path / "figures").iterdir(), *(tmp_path / "tables").iterdir()]
        return {path.name: path.read_bytes() for path in files}

    first = made()
    assert set(first) == {"theory_fisher.png", "theory_fisher.svg", "theory.md"}
    assert made() == first
    text = first["theory.md"].decode()
    row = next(line for line in text.splitlines() if line.startswith("| Gaussian, sigma of the noise | 16 | 50 |"))
    assert "| 0.0625 [0.0312, 0.125] | 0.900 |" in row
    assert row.count("7 [3.5, 14]") == 1
    assert "up to 1e-14 relative" in text


def test_the_published_table_is_that_of_the_published_record(tmp_path: Path) -> None:
    record = REPOSITORY / "results/theory/fisher.json"
    assert main(["--record", str(record), "--out", str(tmp_path)]) == 0
    published = (REPOSITORY / "results/tables/theory.md").read_text()
    assert (tmp_path / "tables" / "theory.md").read_text() == published


def test_what_is_wrong_with_a_record_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--record", str(tmp_path / "none.json")]) == 2
    assert "make it with python -m experiments.theory.fisher" in capsys.readouterr().err
    (tmp_path / "bad.json").write_text("{")
    assert main(["--record", str(tmp_path / "bad.json")]) == 2
    assert "bad.json: no valid JSON" in capsys.readouterr().err
