"""The structure of the code keeps its rules, and a broken one is seen."""

from __future__ import annotations

import ast

import pytest

from scripts import structure


def test_the_rules_hold() -> None:
    counted, sources = structure.lines(), structure.modules()
    graph = structure.imports(sources)
    assert sum(counted.values()) <= structure.MOST_LINES
    assert {path for path, count in counted.items() if count > structure.LONGEST_FILE} == set()
    assert structure.circles(structure.imports(sources, inside=False)) == []
    assert structure.arrows_back(graph) == []
    assert structure.heavy(graph) == []


def test_what_is_broken_is_seen() -> None:
    study = "from experiments.study import pool"
    sources = {
        "experiments.core.a": "from experiments.core import b",
        "experiments.core.b": "from experiments.core.a import x",
        "experiments.core.c": "import torch",
        "experiments.asr.data": "def late():\n    from experiments.llm import model",
        "experiments.llm.model": "",
        "experiments.train": "import experiments.analysis.pages\nfrom experiments.core import c",
        "experiments.analysis.pages": f"if TYPE_CHECKING:\n    {study}\nimport experiments.core.c",
        "experiments.study.pool": "from experiments.analysis import pages",
        "scripts.mine": study,
    }
    trees = {name: ast.parse(text) for name, text in sources.items()}
    graph = structure.imports(trees)
    assert structure.circles(structure.imports(trees, inside=False)) == [
        "experiments.core.a -> experiments.core.b -> experiments.core.a"
    ]
    assert structure.arrows_back(graph) == [
        "experiments.asr.data imports experiments.llm.model",
        "experiments.train imports experiments.analysis.pages",
        "experiments.analysis.pages imports experiments.study.pool",
    ]
    assert structure.heavy(graph) == ["experiments.core.c imports torch"]


# Files that ask a question of several modules.
QUESTIONS = {"launchers", "loops", "rotten"}


@pytest.mark.parametrize("folder", ["analysis", "study", "core", "asr", "llm", "vqvae", "theory", "scripts"])
def test_test_files_are_named_after_the_modules_they_test(folder: str) -> None:
    tested = structure.ROOT / ("scripts" if folder == "scripts" else f"experiments/{folder}")
    known = {path.stem for path in tested.iterdir()} | QUESTIONS
    tests = {path.stem.removeprefix("test_") for path in (structure.ROOT / "tests" / folder).glob("test_*.py")}
    assert tests
    assert tests <= known
