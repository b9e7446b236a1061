"""The README's table."""

from __future__ import annotations

from pathlib import Path

import pytest

from experiments.analysis.paper import load_paper
from experiments.analysis.records import AnalysisError, load_records
from experiments.analysis.summary import BEGIN, BEGIN_VERDICTS, END, block, insert, main
from tests.analysis.conftest import record


def published(write, wers: dict[str, list[float]]) -> None:
    for arm, values in wers.items():
        for seed, wer in enumerate(values, start=1):
            write(record(arm, seed, wer))


def test_table_holds_means_and_paired_difference(runs: Path, write) -> None:
    published(write, {"adamw_clip": [0.40, 0.42, 0.44], "fadam": [0.35, 0.38, 0.39]})
    lines = block(load_records(runs), load_paper()).splitlines()
    row = next(line for line in lines if "test-clean WER" in line)
    assert "AdamW + clip: 42.00 ± 2.00 (n=3)" in row
    assert "37.33 ± 2.08 (n=3)" in row
    assert "-4.67 [-6.10, -3.23] (3 pairs)" in row
    assert "**FAdam better, taken alone**" in row
    assert "not comparable with LibriSpeech" in "\n".join(lines)


def test_without_an_opponent_there_is_no_row(runs: Path, write) -> None:
    published(write, {"fadam": [0.35, 0.38]})
    assert block(load_records(runs), load_paper()) == "No published records yet."


def test_only_the_part_between_the_marks_is_written(tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n{BEGIN}\nold\n{END}\nbetween\n{BEGIN_VERDICTS}\nold\n{END}\nafter\n")
    assert main(["--readme", str(readme), "--runs", str(tmp_path / "none")]) == 0
    head, rest = readme.read_text().split("\nbetween\n")
    assert head == f"before\n{BEGIN}\nNo published records yet.\n{END}"
    assert rest.startswith(f"{BEGIN_VERDICTS}\n| claim | the paper says |")
    assert "| C1 |" in rest
    assert "asr: `who` 0 of 52, `why` 0 of 82, `after` 0 of 12; llm: `who` 0 of 52" in rest
    assert rest.endswith(f"{END}\nafter\n")


def test_missing_marks_are_named() -> None:
    with pytest.raises(AnalysisError, match="lacks the lines"):
        insert("no marks", "x")


def test_where_no_number_is_known_the_claim_stands(runs: Path, write) -> None:
    for arm, value in (("adamw_clip", 1.7), ("fadam", 1.6)):
        write(record(arm, 1, None, task="llm", metrics={"test/bits_per_byte": value}))
    row = next(line for line in block(load_records(runs), load_paper()).splitlines() if "bits per byte" in line)
    assert "| – | claim C1: LLM pretraining: lower loss than Adam [A] |" in row
    assert "-0.1000 (1 pair)" in row
