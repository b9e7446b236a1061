"""The numbers of docs/use.md are made from the records."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from experiments.analysis.comparisons import Study
from experiments.core.errors import AnalysisError
from experiments.core.protocol import names, protocol
from scripts import use_page
from tests.conftest import ROOT
from tests.made_up import bowl_value, complete, small_studies


def test_the_page_is_what_the_records_make_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`make tables` changes nothing in it."""
    monkeypatch.chdir(ROOT)
    page = tmp_path / "use.md"
    shutil.copy(ROOT / use_page.PAGE, page)
    assert use_page.main(["--page", str(page)]) == 0
    assert page.read_bytes() == (ROOT / use_page.PAGE).read_bytes()


def test_a_decided_study_fills_it(tmp_path: Path) -> None:
    folder = tmp_path / "study"
    small_studies(folder)
    studies = [protocol(name, folder) for name in names(folder)]
    complete(tmp_path / "runs", studies, bowl_value(0.0025, gain=0.02))
    study = Study([tmp_path / "runs"], folder)
    made = use_page.filled((ROOT / use_page.PAGE).read_text(encoding="utf-8"), use_page.blocks(study, ROOT / "results"))
    assert use_page.UNDECIDED not in made
    assert "FAdam's tuned rate was " in made
    assert not re.search(r"was (\S+) to \1 times AdamW's", made)
    assert "FAdam, AdamW's decay against FAdam, AdamW's decay, global clip" in made
    assert "figures/llm-epsilon.png" in made
    assert "GPT-2 124M, 2 threads" in made


def test_a_page_without_its_marks_is_refused(tmp_path: Path, capsys) -> None:
    page = tmp_path / "use.md"
    page.write_text("# Nothing\n")
    assert use_page.main(["--page", str(page), "--published", str(tmp_path)]) == 2
    assert "lacks the lines" in capsys.readouterr().err
    with pytest.raises(AnalysisError, match="lacks the lines"):
        use_page.filled("", {"answer": str})
