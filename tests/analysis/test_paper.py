"""The numbers of others."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from experiments.analysis.paper import load_paper
from experiments.core.errors import AnalysisError
from tests.analysis.conftest import ROOT


def test_the_file_is_sound() -> None:
    book = load_paper(ROOT / "results/paper.yaml")
    assert set(book.marks) == set("ALPW")
    assert {r.name for r in book.of("asr")} >= {"FAdam", "w2v-BERT XL"}
    assert book.of("llm") == []


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"mark": "X"}, r"references\[0\]: mark must be one of 'A', 'L', 'P', 'W'"),
        ({"task": "play"}, "task must be one of"),
        ({"optimizer": "sgd"}, "optimizer must be one of"),
        ({"values": {"a": float("nan")}}, "values must be finite numbers"),
        ({"colour": "red"}, "unexpected keyword argument 'colour'"),
    ],
)
def test_a_bad_entry_is_named(tmp_path: Path, change: dict[str, Any], words: str) -> None:
    content = yaml.safe_load((ROOT / "results/paper.yaml").read_text())
    content["references"][0] |= change
    path = tmp_path / "paper.yaml"
    path.write_text(yaml.safe_dump(content))
    with pytest.raises(AnalysisError, match=words):
        load_paper(path)
    path.write_text("{}")
    with pytest.raises(AnalysisError, match="must have exactly the keys"):
        load_paper(path)
