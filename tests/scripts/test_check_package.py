"""What may be in the optimizer's package, and what may not. Building it is a job of its own (`make check-package`)."""

from __future__ import annotations

import subprocess

import pytest

from scripts.check_package import NEEDED, SDIST, WHEEL, wrong_names
from tests.conftest import ROOT

HERE = [
    path
    for path in subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True).stdout.split()
    if path.startswith("fadam/")
]


def test_the_package_as_it_stands_is_right() -> None:
    assert set(NEEDED) <= set(HERE)
    assert wrong_names([*HERE, "fadam-0.1.0.dist-info/METADATA"], WHEEL) == []
    root = "fadam-0.1.0/"
    files = [*HERE, "PKG-INFO", "pyproject.toml", "README.md", "LICENSE", "fadam.egg-info/SOURCES.txt"]
    assert wrong_names([f"{root}{name}" for name in files], SDIST, root) == []


@pytest.mark.parametrize("name", ["tests/test_readme.py", "results/verdicts.json", "experiments/train.py"])
def test_what_does_not_belong_is_named(name: str) -> None:
    assert wrong_names([*HERE, name], WHEEL) == [f"{name} should not be there"]
    assert wrong_names([*HERE, name], SDIST) == [f"{name} should not be there"]


def test_what_is_missing_is_named() -> None:
    names = [name for name in HERE if not name.endswith((".cpp", ".typed"))]
    missing = wrong_names(names, WHEEL)
    assert missing == ["fadam/py.typed is missing", "fadam/fused/cpu.cpp is missing"]
