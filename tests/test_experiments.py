"""The package of the pipelines itself."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.conftest import ROOT


@pytest.mark.parametrize("module", ["experiments.train", "experiments.study", "experiments.theory.knows"])
def test_a_python_without_the_packages_is_told_where_they_are(module: str) -> None:
    done = subprocess.run([sys.executable, "-S", "-m", module], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {sys.executable} lacks the project's packages. `make install` ")
    assert done.stderr.count("\n") == 1
