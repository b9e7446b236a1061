"""The table, figures and texts of what the optimizer knows, from made-up records."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from experiments.theory import closed_forms, knows

ROOT = Path(knows.__file__).parents[2]
# By method: value at seed 1, and what each further seed adds.
VALUES = {"identity": (2.0, 0.1), "free": (1.8, 0.11), "empirical": (2.0, 0.1), "true": (1.7, 0.1), "none": (3.0, 0.0)}


def use(name: str) -> dict[str, Any]:
    rows = [
        {
            "seed": seed, "optimizer": optimizer, "method": method, "value": first + more * seed,
            "curve": [2.0, 2.5 + seed],
        }
        for seed in (1, 2, 3)
        for optimizer in ("FAdam", "AdamW")
        for method, (first, more) in VALUES.items()
    ]  # fmt: skip
    return {
        "schema": 1,
        "command": f"python -m examples.fisher {name}",
        "settings": {"sparsities": [0.2, 0.8]},
        "rows": rows,
    }


def tasks() -> dict[str, Any]:
    def pair(ratio: float) -> dict[str, float]:
        return {"rank": 0.9, "ratio": ratio, "median": ratio}

    rows = [
        {
            "task": task, "batch": batch, "step": step, "samples": 8, "layer": layer, "entries": 5, "ceiling": 0.95,
            "excess": 0.25 * batch, "empirical_true": pair(1.1),
            "free": [{"beta2": b, "empirical": pair(1 + b), "true": pair(2.0)} for b in (0.9, 0.999)],
        }
        for task in ("asr", "llm", "vqvae")
        for batch in (2, 8)
        for step in (10, 100)
        for layer in ("head", "all")
    ]  # fmt: skip
    settings = {"batches": [2, 8], "betas2": [0.9, 0.999], "stages": [10, 100], "samples": 8}
    return {"schema": 1, "command": "python -m experiments.theory.tasks", "settings": settings, "rows": rows}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    records = {name: use(name) for name in knows.USES} | {"tasks": tasks(), "closed_forms": closed_forms.study()}
    for name, record in records.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(record))
    (tmp_path / "README.md").write_text(f"# x\n\n{knows.BEGIN}\nold\n{knows.END}\n\nmore\n")
    return tmp_path


@pytest.fixture
def records(folder: Path) -> dict[str, Any]:
    return knows.load(folder, ROOT / knows.TOY)


def test_intervals_are_student_s():
    mean, low, high = knows.interval([1.0, 2.0, 3.0])
    assert mean == 2.0
    assert high - mean == pytest.approx(4.302653 / 3**0.5)
    assert mean - low == pytest.approx(high - mean)
    assert knows.interval([1.0])[2] == float("inf")


def test_differences_are_paired_by_seed(records):
    mean, low, high = knows.against(records["merging"], "FAdam", "free", "identity")
    assert mean == pytest.approx(-0.2 + 0.02)
    assert high - low == pytest.approx(2 * 4.302653 * 0.01 / 3**0.5)
    assert knows.word(low, high) == "better"
    assert knows.word(0.1, 0.2) == "worse"
    assert knows.word(-0.1, 0.2) == "no difference seen"


def test_the_table_has_a_row_for_each_use_and_optimizer(records):
    rows = knows.uses_rows(records)
    assert [row[:2] for row in rows[:2]] == [["merging two checkpoints", "FAdam"], ["merging two checkpoints", "AdamW"]]
    assert len(rows) == 8
    assert all(len(row) == len(knows.USES_HEADER) for row in rows)
    assert rows[0][2:4] == ["3.0000", "2.2000"]
    assert rows[0][4].startswith("-0.1800 [")
    assert rows[0][-1].endswith(": worse")


def test_the_section_says_where_the_free_one_is_worse(records):
    text = knows.section(records)
    assert "Against the true one it is worse in merging two checkpoints, " in text
    assert "Speech: f_t times the factor is 1.90 to 2.00 with batches of 2 (1.50 predicted at the last weights)" in text
    assert (
        "On the toy problem (C10), categorical likelihood, batches of 1 to 64: the median ratio is 0.96 to 1.05" in text
    )
    for header, rows in (
        (knows.TASKS_HEADER, knows.tasks_rows(records["tasks"])),
        (knows.LAYERS_HEADER, knows.layers_rows(records["tasks"], 0.999)),
        (knows.CLOSED_HEADER, knows.closed_rows(records["closed_forms"])),
    ):
        assert rows
        assert all(len(row) == len(header) for row in rows)
        assert knows.table(header, rows) in text
    assert len(knows.layers_rows(records["tasks"], 0.999)) == 6


def test_choices_at_the_ends_of_what_was_tried_are_told(records):
    assert knows.edges(records) == []
    record = records["consolidation"]
    record["settings"]["strengths"] = [0.1, 1.0, 10.0]
    for row in record["rows"]:
        row["strength"] = 10.0 if row["method"] == "true" and row["optimizer"] == "AdamW" else 1.0
    assert knows.edges(records) == ["elastic weight consolidation (AdamW, true: 10)"]
    assert "FAdam identity 1, free 1, empirical 1, true 1; AdamW identity 1" in knows.strengths(record)
    assert "may lie outside: elastic weight consolidation (AdamW, true: 10)." in knows.section(records)


def test_optimizers_are_named_where_they_differ(records):
    for row in records["pruning"]["rows"]:
        if row["optimizer"] == "AdamW" and row["method"] == "free":
            row["value"] += 1
    found = knows.words(records, "free", "identity")
    assert found["worse"] == ["pruning (AdamW)"]
    assert found["better"] == [
        "merging two checkpoints", "elastic weight consolidation", "pruning (FAdam)", "diagonal Laplace",
    ]  # fmt: skip


def test_measures_for_a_verdict(records):
    found = knows.measures(records["tasks"], 0.9)
    assert [(m["task"], m["batch"], m["step"]) for m in found[:2]] == [("asr", 2, 100), ("asr", 8, 100)]
    numbers = {key: value for key, value in found[1].items() if isinstance(value, float)}
    expected = {"ratio": 1.9, "predicted": 3.0, "bare": 1.9 / 8, "rank": 0.9, "ceiling": 0.95}
    assert numbers == pytest.approx(expected)


def test_lists_of_words():
    assert knows.listed([]) == "none"
    assert knows.listed(["a"]) == "a"
    assert knows.listed(["a", "b", "c"]) == "a, b and c"


def test_the_command_writes_everything_and_repeats(folder, capsys):
    words = ["--records", str(folder), "--out", str(folder / "out"), "--toy", str(ROOT / knows.TOY)]
    words += ["--readme", str(folder / "README.md")]
    assert knows.main(words) == 0
    assert "| merging two checkpoints | FAdam |" in capsys.readouterr().out
    files = sorted(p for p in (folder / "out").rglob("*") if p.is_file())
    names = ["fisher.png", "fisher.svg", "fisher_pruning.png", "fisher_pruning.svg", "table.md"]
    assert [p.name for p in files] == names
    text = files[-1].read_text()
    assert text.startswith("# What the optimizer knows\n\nGenerated by `python -m experiments.theory.knows`")
    assert "\n## Its size on the real tasks" in text
    readme = (folder / "README.md").read_text()
    assert "**Fisher information for free.**" in readme
    assert "old" not in readme
    assert readme.endswith(f"{knows.END}\n\nmore\n")
    before = [p.read_bytes() for p in files]
    assert knows.main(words) == 0
    assert [p.read_bytes() for p in files] == before
    assert (folder / "README.md").read_text() == readme


def test_what_is_missing_is_named_with_its_command(folder, capsys):
    (folder / "tasks.json").unlink()
    assert knows.main(["--records", str(folder), "--toy", str(ROOT / knows.TOY)]) == 2
    assert "tasks.json is missing or of another schema: make it with python -m experiments.theory.tasks" in (
        capsys.readouterr().err
    )
    with pytest.raises(knows.MissingRecordError, match="the README has no place for the paragraph"):
        knows.insert("# x", "text")


def test_the_readme_has_a_place_for_the_paragraph():
    assert knows.insert((ROOT / "README.md").read_text(encoding="utf-8"), "text")


def test_it_needs_no_torch():
    code = "import sys, experiments.theory.knows; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
