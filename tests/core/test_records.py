"""Run records: what is read, what is left out by name, what never stands in one table."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from experiments.core.errors import UserError
from experiments.core.records import (
    MixedRecordsError,
    Record,
    Records,
    RecordWarning,
    check_one_kind,
    parse_record,
    select,
)
from tests.made_up import content, put


def record(arm: str = "fadam", seed: int = 1, **changes: Any) -> Record:
    made = content("llm", arm, seed, {"val/loss": 1.5}) | changes
    return parse_record(made, Path(), Path(f"{arm}-s{seed}.json"))


def test_records_are_read_in_the_order_of_their_paths(tmp_path: Path) -> None:
    for arm, seed in (("fadam", 2), ("adamw", 1), ("fadam", 1)):
        put(tmp_path, content("llm", arm, seed, {"val/loss": 1.5}))
    found = Records([tmp_path]).all()
    assert [(r.arm, r.seed) for r in found] == [("adamw", 1), ("fadam", 1), ("fadam", 2)]
    assert found[0].path.is_file()
    assert [r.seed for r in select(found, arm="fadam", seed=2)] == [2]
    assert Records([tmp_path / "none"]).all() == []


def test_the_first_folder_counts(tmp_path: Path) -> None:
    for name, value in (("mine", 1.0), ("theirs", 2.0)):
        put(tmp_path / name, content("llm", "fadam", 1, {"val/loss": value}))
    put(tmp_path / "theirs", content("llm", "fadam", 2, {"val/loss": 3.0}))
    found = Records([tmp_path / "mine", tmp_path / "theirs"]).all()
    assert [r.value("val/loss", "min") for r in found] == [1.0, 3.0]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"schema": 2}, "schema 2, this code reads 1"),
        ({"seed": True}, 'key "seed" has a value of type bool'),
        ({"steps": None}, 'key "steps" is missing'),
        ({"metrics": {"a": "x"}}, 'metric "a" is no number'),
        ({"purpose": "play"}, "purpose 'play' is none of eval, tune, pilot"),
        ({"scale": "study"}, "scale 'study' is none of smoke, cpu, gpu, paper"),
        ({"data": {}}, 'key "data.fingerprint" is missing'),
        ({"history": [1]}, 'key "history" has an entry that is no object'),
        ({"artifacts": ["../x"]}, "artifact '../x' is no plain file name"),
        ({"wall_time_s": "long"}, 'key "wall_time_s" has a value of type str'),
    ],
)
def test_a_file_that_cannot_be_used_is_named(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    path = put(tmp_path, content("llm", "fadam", 1, {"val/loss": 1.5}))
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.warns(RecordWarning, match="left out") as seen:
        assert Records([tmp_path]).all() == []
    assert words in str(seen[0].message)
    assert str(path) in str(seen[0].message)


def test_half_a_file_and_other_files(tmp_path: Path) -> None:
    path = put(tmp_path, content("llm", "fadam", 1, {"val/loss": 1.5}))
    (path.parent / ".main-s1.json").write_text("{")
    (path.parent / "notes.json").write_text("{")
    assert len(Records([tmp_path]).all()) == 1
    path.write_text("[1")
    with pytest.warns(RecordWarning, match="left out"):
        assert Records([tmp_path]).all() == []


def test_diverged_and_missing_values() -> None:
    assert record(diverged=True).value("val/loss", "min") == math.inf
    assert record(diverged=True).value("anything", "max") == -math.inf
    assert record(metrics={"val/loss": None}).value("val/loss", "min") == math.inf
    with pytest.raises(UserError, match="has no metric 'test/x'"):
        record().value("test/x", "min")


def other(key: str, value: Any) -> Record:
    config = dict(record().config)
    node = config
    *parents, leaf = key.split(".")
    for parent in parents:
        node[parent] = dict(node[parent])
        node = node[parent]
    node[leaf] = value
    return record(seed=2, config=config)


@pytest.mark.parametrize("key", ["seed", "optimizer.lr", "trial", "eval_every", "logger", "trainer.accelerator"])
def test_settings_in_which_runs_of_a_table_may_differ(key: str) -> None:
    check_one_kind([record(), other(key, 3)], "the table")


def test_what_is_not_mixed() -> None:
    with pytest.raises(MixedRecordsError, match=r"the table would mix two configurations: trainer.max_steps is 20 in"):
        check_one_kind([record(), other("trainer.max_steps", 3)], "the table")
    with pytest.raises(MixedRecordsError, match="two data sets: sha256:1"):
        check_one_kind([record(), record(seed=2, data={"fingerprint": "sha256:2"})], "the table")
    with pytest.raises(MixedRecordsError, match="two settings of the optimizer fadam"):
        check_one_kind([record(), record(seed=2, optimizer={"lr": 0.1})], "the table")
    check_one_kind([record(), record("adamw", optimizer={"lr": 0.1})], "the table")
