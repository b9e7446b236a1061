"""What an addition costs, as CONTRIBUTING says: the files named there are enough."""

from __future__ import annotations

import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from experiments.core import catalogue, menu
from experiments.core.checks import check_choices
from experiments.core.errors import ConfigError
from experiments.core.plan import Planner
from experiments.core.protocol import names, protocol
from experiments.core.records import Records
from tests.conftest import CONFIGS, ROOT, Compose

MOST = {"an arm, in the studies of all tasks": 3, "a scale, for one task": 2, "a metric": 2, "a figure": 2}


@pytest.mark.parametrize("what", MOST)
def test_contributing_names_no_more_files_than_an_addition_may_cost(what: str) -> None:
    row = re.search(rf"^\| {re.escape(what)} \| (.*) \|$", (ROOT / "CONTRIBUTING.md").read_text(), re.MULTILINE)
    assert row is not None
    files = [part for part in re.findall(r"`([^`]+)`", row[1]) if "." in part]
    assert 1 <= len(set(files)) <= MOST[what]
    for name in files:
        path = re.sub(r"<task>", "llm", re.sub(r"<arm>", "fadam", re.sub(r"<scale>", "cpu", name)))
        assert (ROOT / path).is_file(), path


def test_an_arm_joins_every_study_by_one_line(tmp_path: Path) -> None:
    shutil.copytree(CONFIGS / "study", tmp_path / "study")
    before = {name: protocol(name, tmp_path / "study") for name in names(tmp_path / "study")}
    assert {name: protocol(name) for name in names()} == before
    (tmp_path / "more").mkdir()
    shutil.copytree(CONFIGS / "study", tmp_path / "more" / "study")
    (tmp_path / "more" / "context.yaml").write_text(yaml.safe_dump({"arms": ["lion"]}))
    for name, old in before.items():
        p = protocol(name, tmp_path / "more" / "study")
        if old.size is not None:
            assert p == old
            continue
        assert p.context is not None
        assert p.context.arms == (*(old.context.arms if old.context else ()), "lion")
        assert replace(p, context=None) == replace(old, context=None)
        stages = Planner(p, Records([tmp_path]), lambda *_: False).stages()
        tuning = next(stage for stage in stages if stage.name == "context: lion").runs
        assert {run.arm for run in tuning} == {"lion"}
        assert len({run.record for run in tuning}) == len(tuning) == 5 * 2
        assert any(stage.name == "context: lion, pairs" and stage.later == 5 for stage in stages)


def test_an_arm_without_an_entry_has_its_own_name_and_colour() -> None:
    found = catalogue.arm("mine")
    assert (found.label, found.phrase) == ("mine", "mine")
    assert found.colour not in {a.colour for a in catalogue.ARMS.values()}


def test_a_scale_is_a_config_and_an_entry(
    compose_config: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("experiment=llm_cpu", "scale=laptop", "optimizer=fadam")
    with pytest.raises(ConfigError, match="scale must be smoke, cpu, gpu or paper, got 'laptop'"):
        check_choices(compose_config(*words))
    monkeypatch.setitem(catalogue.SCALES, "laptop", catalogue.Scale("laptop", "an hour of a laptop a run"))
    check_choices(compose_config(*words))
    check_choices(compose_config(*words, "tune=lr"))
    assert catalogue.check_scale("laptop") == "laptop"
    assert tuple(menu.SCALES) == tuple(name for name, scale in catalogue.SCALES.items() if scale.shown)[:-1]


def test_no_two_configs_are_the_same() -> None:
    texts: dict[str, Path] = {}
    for path in sorted(CONFIGS.rglob("*.yaml")):
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
        text = "\n".join(line for line in lines if line and not line.startswith("#"))
        assert texts.setdefault(text, path) == path, f"{path} says what {texts[text]} says"
