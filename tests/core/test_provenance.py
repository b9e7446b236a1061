"""Which commit a record names, and when it says that no commit holds the code."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from experiments.core import provenance


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A checkout with one commit, in which the module seems to lie."""
    for name in ("code.py", "README.md", "docs/use.md", "configs/tuned/llm_cpu.yaml", "results/runs/one.json"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("1\n")
    git(tmp_path, "init", "-q")
    commit(tmp_path)
    monkeypatch.setattr(provenance, "__file__", str(tmp_path / "experiments/core/provenance.py"))
    provenance._first.cache_clear()
    yield tmp_path
    provenance._first.cache_clear()


def git(root: Path, *words: str) -> str:
    named = ("-c", "user.name=nobody", "-c", "user.email=nobody@example.org", "-c", "commit.gpgsign=false")
    return subprocess.run(["git", *named, *words], cwd=root, check=True, capture_output=True, text=True).stdout.strip()


def commit(root: Path) -> str:
    git(root, "add", "-A")
    git(root, "commit", "-qm", "Change")
    return git(root, "rev-parse", "--short=12", "HEAD")


def test_what_is_generated_does_not_make_the_code_dirty(checkout: Path) -> None:
    """Everything that `make tables` and `study tuned` write, while runs go on, and its commit."""
    head = git(checkout, "rev-parse", "--short=12", "HEAD")
    for name in ("README.md", "docs/use.md", "configs/tuned/llm_cpu.yaml", "results/runs/two.json"):
        (checkout / name).write_text("2\n")
    assert provenance.commit() == (head, False)
    commit(checkout)
    assert provenance.commit() == (head, False)


@pytest.mark.parametrize("name", ["code.py", "new.py"])
def test_code_that_no_commit_holds_is_told(checkout: Path, name: str) -> None:
    (checkout / name).write_text("2\n")
    assert provenance.commit()[1]


def test_code_that_came_after_the_process_began_is_told(checkout: Path) -> None:
    """The modules are those of the first commit, the configs those of the second: no commit holds both."""
    first, dirty = provenance.commit()
    assert not dirty
    (checkout / "code.py").write_text("2\n")
    commit(checkout)
    assert provenance.commit() == (first, True)


def test_outside_a_checkout_nothing_is_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(provenance, "__file__", str(tmp_path / "experiments/core/provenance.py"))
    provenance._first.cache_clear()
    assert provenance.commit() == ("unknown", True)
