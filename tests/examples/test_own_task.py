"""Tasks of one's own: the examples in small, what a changed file does, and a sentence for each mistake in one."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from experiments.core import catalogue
from experiments.core.declared import read
from experiments.core.errors import ConfigError
from experiments.study import __main__ as study
from experiments.study import runs
from experiments.study.pool import perform
from tests.conftest import ROOT

EXAMPLES = ROOT / "examples"
TASK = """
import torch
from torch import nn
from experiments.own import Metric, OwnTask


class Line(OwnTask):
    title = "A line"
    metrics = (Metric("loss", "squared error", "min", 3),)

    def data(self):
        x = torch.linspace(-1, 1, 96)[:, None]
        y = 2 * x + 0.1 * torch.sin(40 * x)
        return {"train": (x[::3], y[::3]), "val": (x[1::3], y[1::3]), "test": (x[2::3], y[2::3])}

    def model(self):
        return nn.Linear(1, 1)

    def loss(self, model, batch):
        x, y = batch
        return (model(x) - y).square().mean()
"""
CONFIG = """
own: {_target_: NAME.Line}
data: {batch_size: 8}
trainer: {max_steps: 8}
scheduler: {warmup_steps: 2}
objective: {metric: val/loss, mode: min}
study: {matters: 0.01, lowest: 0.1, highest: 0.25, tuning_seeds: 1, looks: [5]}
"""
METRICS = ("test/loss", "val/loss")


class Serial:
    """Makes the runs one by one in this process."""

    def __init__(self, jobs: int, words: Callable[..., Any]) -> None:
        self.words, self.going = words, set[Path]()

    def work(self, next_run: Callable[[], Any]) -> Iterator[tuple[Any, str]]:
        while (run := next_run()) is not None:
            yield run, perform(self.words(run))

    def close(self) -> None:
        pass


@pytest.fixture
def own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> Iterator[Callable[..., int]]:
    """`own(task=..., config=...)` writes a task's two files and compares; each test has a module name of its own."""
    monkeypatch.setattr(runs, "Pool", Serial)
    name = "own_" + "".join(c if c.isalnum() else "_" for c in request.node.name)
    known, paths = dict(catalogue.TASKS), list(sys.path)

    def run(task: str = TASK, config: str = CONFIG, *words: str) -> int:
        sys.modules.pop(name, None)
        (tmp_path / f"{name}.py").write_text(task)
        (tmp_path / "line.yaml").write_text(config.replace("NAME", name))
        return study.main(["own", str(tmp_path / "line.yaml"), "--runs", str(tmp_path / "runs"), *words])

    yield run
    catalogue.TASKS.clear()
    catalogue.TASKS.update(known)
    sys.path[:] = paths


def records(root: Path) -> dict[str, dict[str, Any]]:
    return {str(path): json.loads(path.read_text()) for path in root.glob("*/*/*/*.json")}


def test_the_example_is_short_and_its_smoke_form_runs(tmp_path: Path, capsys, monkeypatch) -> None:
    assert len((EXAMPLES / "own_task" / "textures.py").read_text().splitlines()) <= 80
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(runs, "Pool", Serial)
    words = ["own", "examples/own_task/textures.yaml", "--smoke", "--runs", str(tmp_path), "--jobs", "1"]
    assert study.main(words) == 0
    shown = capsys.readouterr().out
    assert "AdamW with clipping" in shown
    assert "wrong patches" in (tmp_path / "textures/tables/textures.md").read_text()
    assert {path.name for path in (tmp_path / "textures/figures").iterdir()} == {
        "textures-bowls.png", "textures-forest.png"
    }  # fmt: skip
    found = list(records(tmp_path).values())
    assert len(found) == 2 * 3 + 2 * 5
    assert {r["scale"] for r in found} == {"smoke"}
    assert "own://examples/own_task" in found[0]["command"]
    catalogue.TASKS.pop("textures")


def test_a_comparison_ends_in_the_words_of_the_three_tasks(own, tmp_path: Path, capsys) -> None:
    assert own() == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "FAdam against AdamW" in (tmp_path / "runs/line/tables/line.md").read_text()
    assert any(word in shown for word in ("equivalent", "better", "worse", "undecided after 5 pairs"))
    assert "Easier" in shown or "easier to tune" in shown or "harder to tune" in shown
    made = records(tmp_path / "runs")
    assert own() == 0  # nothing is left to do
    assert "starts at step" not in capsys.readouterr().out
    assert records(tmp_path / "runs") == made
    # Another file means other runs; other words for the study do not.
    assert own(TASK, CONFIG.replace("matters: 0.01", "matters: 0.02")) == 0
    assert records(tmp_path / "runs") == made
    assert own(TASK.replace("2 * x", "3 * x")) == 0
    again = records(tmp_path / "runs")
    assert {r["config"]["code"] for r in again.values()} == {read(tmp_path / "line.yaml").code}
    assert all(again[name]["metrics"] != made[name]["metrics"] for name in again if name in made)


MISTAKES = {
    "no loss": (
        ("    def loss(self, model, batch):", "    def los(self, model, batch):"),
        "Line has no method 'loss': The training loss of a batch, a scalar; a negative log-likelihood if it can be",
    ),
    "loss of items": (
        (".square().mean()", ".square()"), "Line.loss must give the loss as a scalar tensor, got shape (8, 1)",
    ),
    "loss without gradient": (
        (".square().mean()", ".square().mean().detach()"),
        "Line.loss must give a loss that depends on the model's parameters; this one has no gradient",
    ),
    "no model": (
        ("return nn.Linear(1, 1)", "return None"), "Line.model must give a torch.nn.Module, got NoneType",
    ),
    "no validation": (('"val"', '"valid"'), "Line.data must give a dict with train, val and test"),
    "odd data": (
        ('"train": (x[::3], y[::3])', '"train": [1, 2]'),
        "Line.data: train must be a tuple of tensors or a Dataset with a length, got list",
    ),
    "uneven data": (
        ('"train": (x[::3], y[::3])', '"train": (x[::3], y[::2])'), "Line.data: train has tensors of 32, 48 items",
    ),
    "empty data": (
        ('"test": (x[2::3], y[2::3])', '"test": (x[:0], y[:0])'),
        "Line.data: test must have at least one item",
    ),
    "its own exception": (("x, y = batch\n", "x, z = batch\n"), "NameError: name 'y' is not defined"),
    "its own exception in the model": (
        ("return nn.Linear(1, 1)", "return nn.Linear(1)"),
        ".py, line 17, in model: TypeError: Linear.__init__() missing 1 required positional argument",
    ),
    "no import": (("import torch\n", "import torches\n"), "No module named 'torches'"),
    "no class": (("class Line", "class Curve"), "Line"),
    "not ours": (("class Line(OwnTask)", "class Line"), "own: Line must derive from experiments.own.OwnTask"),
}  # fmt: skip


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_in_the_file_is_told_in_a_sentence(own, capsys, mistake: str) -> None:
    change, said = MISTAKES[mistake]
    assert own(TASK.replace(*change)) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert said in error
    assert error.count("\n") == 1
    if mistake == "its own exception":
        assert ".py, line 21, in loss: " in error


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("val/loss", "val/accuracy", "objective.metric must be one of val/loss, which evaluations report"),
        ("val/loss", "loss", "must have objective: {metric: val/<name>, mode: min or max}"),
        ("matters: 0.01, ", "", "study: "),
        ("matters: 0.01", "matters: 0", "matters must be above 0, got 0"),
        ("looks: [5]", "looks: [2]", "study.looks must begin with at least 5 pairs, got [2]"),
        ("lowest: 0.1", "lowest: 0", "study.lowest must be above 0, got 0"),
        ("looks: [5]", "optimizers: [fadams]", "there is no configs/optimizer/fadams.yaml"),
        ("looks: [5]", "pairs: [3]", "study has no pairs; its keys are decays, highest, "),
        ("own: {_target_: NAME.Line}", "", "must have one of the keys own, a task in one file, and lightning"),
        ("own: {_target_: NAME.Line}", "own: {Line: 1}", "own must have a _target_, such as examples."),
        ("trainer: {max_steps: 8}", "", "must say trainer.max_steps, the optimizer steps of a run"),
        ("own: {_target_", "task: llm\nown: {_target_", "task must be a name of its own, and llm is one of"),
        ("data: {batch_size: 8}", "data: {batch_size: 99}", "data.batch_size must be from 1 to 32, the items of train"),
        ("data: {", "data: [{", "cannot be read"),
    ],
)  # fmt: skip
def test_a_mistake_in_the_config_is_told_in_a_sentence(own, capsys, old: str, new: str, said: str) -> None:
    assert own(TASK, CONFIG.replace(old, new)) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert said in error
    assert error.count("\n") == 1


@pytest.mark.parametrize("name", ["own_task/textures", "lightning_module/transformer"])
def test_the_examples_are_declared_as_studies_are(name: str) -> None:
    declared = read(EXAMPLES / f"{name}.yaml")
    p = declared.protocol()
    assert (p.scale, p.bowl.arms, p.metric.name, p.tuning.name) == ("cpu", ("adamw_clip", "fadam"), *METRICS)
    assert not set(p.bowl.seeds) & set(p.evaluation)
    assert p.overrides == {"code": declared.code}
    entry = declared.entry()
    assert entry.metric("test/loss").mode == "min"
    assert entry.metric("val/loss").label.startswith("validation loss")


def test_a_missing_config_names_the_page(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"docs/own-task\.md says what a task's config holds"):
        read(tmp_path / "nothing.yaml")


def test_other_optimizers_are_compared_with_the_first(own, tmp_path: Path, capsys) -> None:
    three = CONFIG.replace("looks: [5]", "looks: [5], optimizers: [adamw_clip, fadam, adam_atan2]")
    assert own(TASK, three) == 0
    page = (tmp_path / "runs/line/tables/line.md").read_text()
    assert "adam_atan2: Adam-atan2 against AdamW + clip" in page
    assert "fadam: FAdam against AdamW + clip" in page
