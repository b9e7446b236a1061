"""README: how long it is, and that its numbers are those of the configs."""

from __future__ import annotations

import re

import pytest

from experiments.core.menu import header
from tests.conftest import CONFIGS, ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")
LONGEST = 130
TASKS = ("asr", "llm", "vqvae")


def rows(name: str) -> list[str]:
    """The cells of the table row whose first cell begins with `name`."""
    found = re.findall(rf"^\| `{name}`[^|]*\|.*$", README, re.MULTILINE)
    assert len(found) == 1, found
    return [cell.strip() for cell in found[0].split("|")[1:-1]]


def test_it_is_short() -> None:
    assert README.count("\n") <= LONGEST


@pytest.mark.parametrize("task", TASKS)
def test_times_are_those_of_the_configs(task: str) -> None:
    text = " ".join(header(CONFIGS / "experiment" / f"{task}_cpu.yaml"))
    said = re.search(r"Costs about ([\d.]+) minutes of one core .*? two idle cores: about (\d+) min", text)
    assert said is not None
    assert rows(task)[2:] == [f"{said[1]} min", f"{said[2]} min"]


@pytest.mark.parametrize(
    "experiment", [f"{task}_{scale}" for task in ("asr", "llm", "vqvae") for scale in ("gpu", "paper")]
)
def test_memory_is_that_of_the_configs(experiment: str) -> None:
    text = " ".join(header(CONFIGS / "experiment" / f"{experiment}.yaml"))
    said = re.search(r"Takes ([\d.]+) GB a GPU", text)
    assert said is not None
    assert rows(experiment)[3] == f"{said[1]} GB" + (" on each of 8" if experiment.endswith("paper") else "")
