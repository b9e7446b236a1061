"""The table, figures and texts of what the optimizer knows, from made-up records, and the published ones."""

from __future__ import annotations

import inspect
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from experiments.core.errors import AnalysisError
from experiments.theory import agreement, knows, sizes, uses
from experiments.theory.blocks import Grid, Spread, of_ratios, spread
from fadam.fisher import diagonal_fim
from tests.theory import made_up

ROOT = Path(knows.__file__).parents[2]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A clone with made-up records."""
    records = {name: made_up.use(name) for name in uses.USES}
    records["tasks"] = made_up.tasks()
    for name, path in knows.paths(tmp_path / "results").items():
        path.parent.mkdir(parents=True, exist_ok=True)
        if name in records:
            path.write_text(json.dumps(records[name]))
        else:
            path.write_bytes(knows.paths(ROOT / "results")[name].read_bytes())
    (tmp_path / "README.md").write_text(f"# x\n\n{knows.BEGIN}\nold\n{knows.END}\n\nmore\n")
    return tmp_path


@pytest.fixture
def records(folder: Path) -> dict[str, Any]:
    return knows.load(knows.paths(folder / "results"))


@pytest.fixture(scope="module")
def published() -> dict[str, Any]:
    return knows.load(knows.paths(ROOT / "results"))


def arguments(folder: Path) -> list[str]:
    places = {"results": folder / "results", "readme": folder / "README.md", "claims": ROOT / "results" / "claims.yaml"}
    return [word for name, path in places.items() for word in (f"--{name}", str(path))]


def grid(records: dict[str, Any], caption: str) -> Grid:
    blocks = [block for part in knows.parts(records) for block in part.blocks]
    return next(b for b in blocks if isinstance(b, Grid) and b.caption.startswith(caption))


# ---- the uses --------------------------------------------------------------------------------------------------------
def test_intervals_are_student_s() -> None:
    mean, low, high = uses.interval([1.0, 2.0, 3.0])
    assert mean == 2.0
    assert high - mean == pytest.approx(4.302653 / 3**0.5)
    assert mean - low == pytest.approx(high - mean)
    assert uses.interval([1.0])[2] == float("inf")


def test_differences_are_paired_by_seed(records: dict[str, Any]) -> None:
    mean, low, high = uses.against(records["merging"], "FAdam", "free", "identity")
    assert mean == pytest.approx(-0.2 + 0.02)
    assert high - low == pytest.approx(2 * 4.302653 * 0.01 / 3**0.5)
    assert uses.word(low, high) == "better"
    assert uses.word(0.1, 0.2) == "worse"
    assert uses.word(-0.1, 0.2) == "no difference seen"


def test_the_table_has_a_row_for_each_use_and_optimizer(records: dict[str, Any]) -> None:
    rows = grid(records, "Test losses").rows
    assert [row[:2] for row in rows[:2]] == [["merging two checkpoints", "FAdam"], ["merging two checkpoints", "AdamW"]]
    assert len(rows) == 8
    assert rows[0][2:4] == ["3.0000", "2.2000"]
    assert rows[0][4].startswith("-0.1800 [")
    assert rows[0][-1] == "worse"


def test_forgetting_variance_and_calibration_are_shown(records: dict[str, Any]) -> None:
    del next(r for r in records["laplace"]["rows"] if r["method"] == "none")["deviation"]
    for row in records["laplace"]["rows"]:
        if row["method"] == "none":
            row.pop("deviation", None)
    rows = grid(records, "Forgetting").rows
    assert [row[0].split(":")[0] for row in rows] == ["forgetting"] * 2 + ["Laplace"] * 4
    assert rows[0][2] == "3.0000 [3.0000, 3.0000]"
    assert rows[2][2] == "–"
    assert rows[2][3].startswith("0.2000 [")


def test_choices_at_the_ends_of_what_was_tried_are_told(records: dict[str, Any]) -> None:
    assert uses.edges(records) == []
    record = records["consolidation"]
    record["settings"]["strengths"] = [0.1, 1.0, 10.0]
    for row in record["rows"]:
        row["strength"] = 10.0 if row["method"] == "true" and row["optimizer"] == "AdamW" else 1.0
    assert uses.edges(records) == ["elastic weight consolidation (AdamW, true: 10)"]
    assert "FAdam identity 1, free 1, empirical 1, true 1; AdamW identity 1" in uses.strengths(record)
    assert "may lie outside: elastic weight consolidation (AdamW, true: 10)." in knows.page(records)


def test_optimizers_are_named_where_they_differ(records: dict[str, Any]) -> None:
    for row in records["pruning"]["rows"]:
        if row["optimizer"] == "AdamW" and row["method"] == "free":
            row["value"] += 1
    found = uses.words(records, "free", "identity")
    assert found["worse"] == ["pruning (AdamW)"]
    assert found["better"] == [
        "merging two checkpoints", "elastic weight consolidation", "pruning (FAdam)", "diagonal Laplace",
    ]  # fmt: skip


# ---- the size on the tasks -------------------------------------------------------------------------------------------
def test_measures_for_a_verdict(records: dict[str, Any]) -> None:
    found = sizes.measures(records["tasks"], 0.9)
    assert [(m.task, m.batch, m.step) for m in found[:2]] == [("asr", 2, 100), ("asr", 16, 100)]
    assert found[1].ratio == pytest.approx((1.9 * 1.1**0.5, 1.9, 1.9 * 1.1))
    assert found[1].bare == pytest.approx([r / 16 for r in found[1].ratio])
    assert (found[1].predicted, found[1].ceiling) == pytest.approx((5.0, 0.95))
    assert found[1].rank == found[1].rank_true == pytest.approx((0.95, 0.95, 0.95))


def test_a_spread_is_written_with_its_ends() -> None:
    assert spread([1.0, 2.0, 6.0]) == Spread(3.0, 1.0, 6.0)
    assert of_ratios([1.0, 4.0]) == pytest.approx((2.0, 1.0, 4.0))
    assert str(Spread(1.234567, 1.0, 200000.0)) == "1.23 [1, 2e+05]"
    assert Spread(2.0, 1.5, 2.5).words() == "1.5 to 2.5"
    assert Spread(2.0, 2.0, 2.0).words() == "2"


def test_every_table_is_whole_and_stands_on_the_page(records: dict[str, Any]) -> None:
    text = knows.page(records)
    found = [b for part in knows.parts(records) for b in part.blocks if isinstance(b, Grid)]
    assert len(found) == 6
    for each in found:
        assert each.rows
        assert all(len(row) == len(each.header) for row in each.rows)
        assert each.markdown() in text
    assert len(grid(records, "Layer by layer").rows) == 3
    said = (
        "Speech, beta2 0.9 and 0.999: f_t times the factor is 1.99 [1.9, 2.09] and 2.1 [2, 2.2] with batches of 2 (1.5 "
    )
    assert said in text
    assert "categorical likelihood, batches of 1 to 64: the median ratio is 0.96 to 1.05 from step 300 on" in text


def test_the_docstring_says_what_was_measured(published: dict[str, Any]) -> None:
    """The factor's table in `diagonal_fim` is that of the published record."""
    said = inspect.getdoc(diagonal_fim) or ""
    lines = [line.strip() for line in said.splitlines()]
    table = sizes.factor_table(published["tasks"]).splitlines()
    assert any(lines[i : i + len(table)] == table for i in range(len(lines))), "\n" + "\n".join(table)
    for sentence in sizes.factor_sentences(published["tasks"]):
        assert sentence in " ".join(said.split())
    settings = published["tasks"]["settings"]
    of = f"after {max(settings['stages'])} steps of the three tasks' models, {len(settings['seeds'])} seeds"
    assert of in " ".join(said.split()).lower()
    small = knows.toy_sentence(published["toy"])
    late, early = re.findall(r"[\d.]+ to [\d.]+(?= from| at)", small)
    assert f"is {late} for B from 1 to 64 once it has trained for 300 steps, and {early} at step 30" in (
        " ".join(said.split())
    )


# ---- the files -------------------------------------------------------------------------------------------------------
def test_the_command_writes_everything_and_repeats(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = arguments(folder)
    assert knows.main(words) == 0
    said = capsys.readouterr().out
    assert said.startswith("Fisher information for free. FAdam ends training")
    assert "no difference was seen:\nresults/fisher/table.md." in said or "seen: results/fisher/table.md." in said
    assert max(map(len, said.splitlines())) <= 100
    names = ("fisher.png", "fisher.svg", "fisher_pruning.png", "fisher_pruning.svg", "knows.json", "table.md")
    made = [folder / "results" / "fisher" / name for name in names]
    text = made[-1].read_text()
    assert text.startswith("# What the optimizer knows\n\nGenerated by `python -m experiments.theory.knows`")
    assert "\n## Its size on the real tasks" in text
    assert "](fisher.png)" in text
    readme = (folder / "README.md").read_text()
    assert "**Fisher information for free.**" in readme
    assert "old" not in readme
    assert readme.endswith(f"{knows.END}\n\nmore\n")
    data = json.loads(made[-2].read_text())
    assert data["claims"]["C10"]["word"] == "contradicted"
    for section in data["sections"]:
        assert f"\n## {section['title']}\n" in text
        assert all(block in text for block in section["blocks"] if isinstance(block, str))
    before = [p.read_bytes() for p in made]
    assert knows.main(words) == 0
    assert [p.read_bytes() for p in made] == before
    assert (folder / "README.md").read_text() == readme


def test_the_published_files_are_those_of_the_published_records(published: dict[str, Any], tmp_path: Path) -> None:
    """`python -m experiments.theory.knows` changes no file."""
    (tmp_path / "README.md").write_bytes((ROOT / "README.md").read_bytes())
    knows.write(published, tmp_path / "results", tmp_path / "README.md", ROOT / "results" / "claims.yaml")
    made = [p for p in tmp_path.rglob("*") if p.is_file()]
    assert len(made) == 7
    for path in made:
        name = path.relative_to(tmp_path)
        assert path.read_bytes() == (ROOT / name).read_bytes(), f"{name} is not what the records say"
    there = {p for p in (ROOT / "results" / "fisher").iterdir() if p not in knows.paths(ROOT / "results").values()}
    assert {p.name for p in there} == {p.name for p in made} - {"README.md"}


def test_own_records_are_compared_and_published_when_asked(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own, words = folder / "own", arguments(folder)
    for name, path in knows.own_paths(own).items():
        own.mkdir(exist_ok=True)
        path.write_bytes(knows.paths(folder / "results")[name].read_bytes())
    assert knows.main([*words, "--own", str(own)]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert said.count("all the same to the last digit.") == 7
    assert "README's paragraph would be the same" in said
    record = json.loads((own / "merging.json").read_text())
    for row in record["rows"]:
        row["value"] *= 1.001 if row["method"] == "free" else 1
    (own / "merging.json").write_text(json.dumps(record))
    before = (folder / "results" / "fisher" / "merging.json").read_bytes()
    assert knows.main([*words, "--own", str(own)]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "the others apart by 0.001 in the middle and 0.001 at most, relative." in said
    assert (folder / "results" / "fisher" / "merging.json").read_bytes() == before
    assert knows.main([*words, "--own", str(own), "--publish"]) == 0
    assert json.loads((folder / "results" / "fisher" / "merging.json").read_text()) == record
    with pytest.raises(SystemExit):
        knows.main([*words, "--publish"])


def test_what_cannot_be_compared_is_told(records: dict[str, Any]) -> None:
    one = records["tasks"]
    assert "made with other settings" in agreement.compared("tasks", one, one | {"settings": {}})
    fewer = one | {"rows": one["rows"][:-1], "versions": {"torch": "2.12.0"}}
    said = agreement.compared("tasks", one, fewer)
    count = len(agreement.numbers(one))
    assert f"tasks: {len(agreement.numbers(fewer))} numbers of {count} published and" in said
    assert said.endswith("all the same to the last digit (torch 2.11.0 there and 2.12.0 here).")


def test_what_is_missing_is_named_with_its_command(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = folder / "results" / "fisher" / "tasks.json"
    for content, reason in (("{", "JSONDecodeError"), ('{"schema": 1}', "of another schema")):
        path.write_text(content)
        assert knows.main(arguments(folder)) == 2
        said = capsys.readouterr().err
        assert f"tasks.json cannot be used ({reason}): python -m experiments.theory.tasks makes such a record" in said
    path.unlink()
    with pytest.raises(AnalysisError, match="FileNotFoundError"):
        knows.load(knows.paths(folder / "results"))
    with pytest.raises(AnalysisError, match="the README has no place for the paragraph"):
        knows.insert("# x", "text")


def test_it_needs_no_torch_and_nothing_of_the_analysis() -> None:
    code = "import sys, experiments.theory.knows, experiments.theory.identity; print(sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert "'experiments.theory.sizes'" in done.stdout
    assert "'torch'" not in done.stdout
    assert "experiments.analysis" not in done.stdout
