from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from experiments.analysis.paper import load_paper
from experiments.analysis.records import (
    AnalysisError,
    MixedRecordsError,
    RecordWarning,
    check_one_kind,
    config_family,
    evaluation,
    load_records,
    sections,
    select,
)

MODULES = ("records", "stats", "paper", "tasks", "choose", "tables", "figures", "compare", "publish")


def test_the_package_starts_without_torch_or_anything_heavy(repository):
    code = (
        f"import sys, importlib\nfor m in {MODULES}: importlib.import_module('experiments.analysis.' + m)\n"
        "print([m for m in sys.modules if m.split('.')[0] in "
        "('torch', 'lightning', 'matplotlib', 'scipy', 'numpy', 'hydra') or m.startswith('experiments.core')])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=repository, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_records_are_loaded_whole_and_in_order(write, six, runs):
    write(*reversed(six))
    records = load_records(runs)
    assert [(r.arm, r.seed) for r in records] == [(c["arm"], c["seed"]) for c in six]
    assert records[0].metrics["test-clean/wer"] == 0.42
    assert records[0].fingerprint == six[0]["data"]["fingerprint"]
    assert records[0].setting("optimizer.lr") == 0.002
    assert records[0].setting("optimizer.momentum") is None
    assert json.loads(records[0].path.read_text()) == six[0]


def test_no_folder_is_no_records(tmp_path):
    assert load_records(tmp_path / "none") == []


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"seed": None}, '"seed" has a value of type NoneType'),
        ({"seed": True}, '"seed" has a value of type bool'),
        ({"schema": 2}, "schema 2"),
        ({"data": {"name": "x"}}, "data.fingerprint"),
        ({"purpose": "play"}, "purpose 'play'"),
        ({"scale": "huge"}, "scale 'huge'"),
        ({"metrics": {"wer": "low"}}, 'metric "wer"'),
        ({"artifacts": ["../../etc/passwd"]}, "artifact '../../etc/passwd'"),
        ({"history": [3]}, '"history"'),
    ],
)
def test_a_bad_record_is_named_and_left_out(write, record, runs, six, change, words):
    write(*six)
    path = runs / "asr/cpu/fadam/main-s9.json"
    path.write_text(json.dumps(record("fadam", 9, 0.4) | change))
    with pytest.warns(RecordWarning) as caught:
        records = load_records(runs)
    assert len(records) == 6
    assert len(caught) == 1
    assert str(path) in str(caught[0].message)
    assert words in str(caught[0].message)


def test_broken_json_and_a_missing_key_are_named_and_left_out(write, record, runs):
    content = record("fadam", 1, 0.4)
    path = write(content)
    path.write_text(json.dumps(content)[:50])
    short = record("fadam", 2, 0.4)
    del short["metrics"]
    other = write(short)
    with pytest.warns(RecordWarning) as caught:
        assert load_records(runs) == []
    texts = [str(w.message) for w in caught]
    assert str(path) in texts[0]
    assert str(other) in texts[1]
    assert 'key "metrics" is missing' in texts[1]


def test_half_written_and_foreign_files_are_not_records(write, six, runs):
    write(*six)
    (runs / "asr/cpu/fadam/.main-s4.json.17.tmp").write_text("{")
    (runs / "asr/cpu/fadam/summary.json").write_text("{}")
    assert len(load_records(runs)) == 6


def test_of_two_records_of_one_run_the_newer_counts(write, record, runs):
    write(record("fadam", 1, 0.5))
    copy = runs / "asr/cpu/fadam/copy-s1.json"
    copy.write_text(json.dumps(record("fadam", 1, 0.4, finished="2026-11-02T00:00:00")))
    with pytest.warns(RecordWarning, match="newer record"):
        records = load_records(runs)
    assert [r.path for r in records] == [copy]


def test_selection(write, six, trials, record, runs):
    write(*six, *trials, record("fadam", 1, 0.3, trial="no-clip"), record("fadam", 1, 0.2, scale="gpu", variant="v"))
    records = load_records(runs)
    assert len(select(records, purpose="tune", arm="fadam")) == 3
    assert {(r.arm, r.seed) for r in evaluation(select(records, scale="cpu"))} == {(c["arm"], c["seed"]) for c in six}
    assert sections(records) == [("cpu", ""), ("gpu", "v")]


def test_a_diverged_run_and_a_null_are_infinitely_bad(write, record, runs):
    write(record("fadam", 1, 0.4, diverged=True), record("fadam", 2, None))
    diverged, null = load_records(runs)
    for r in (diverged, null):
        assert r.value(("test-clean/wer",), "min") == float("inf")
        assert r.value(("test-clean/wer",), "max") == float("-inf")
    assert diverged.value(("not/measured",), "min") == float("inf")
    assert null.value(("not/measured",), "min") is None


def test_two_data_sets_in_one_table_are_refused_by_name(write, six, record, runs):
    write(*six, record("fadam", 4, 0.4, data={"name": "other", "fingerprint": "sha256:bbb"}))
    with pytest.raises(MixedRecordsError, match="the table would mix two data sets") as caught:
        check_one_kind(load_records(runs), "the table")
    assert six[0]["data"]["fingerprint"] in str(caught.value)
    assert "sha256:bbb" in str(caught.value)


def test_two_configurations_in_one_table_are_refused_by_name(write, six, record, runs):
    other = record("fadam", 4, 0.4)
    other["config"]["model"]["dim"] = 144
    write(*six, other)
    with pytest.raises(MixedRecordsError, match=r"model\.dim is 96 in .*main-s1.json and 144 in .*main-s4.json"):
        check_one_kind(load_records(runs), "the table")


def test_one_arm_with_two_settings_is_refused(write, six, record, runs):
    write(*six, record("fadam", 4, 0.4, optimizer={"_target_": "some.fadam", "lr": 0.1}))
    with pytest.raises(MixedRecordsError, match="two optimizer settings of arm fadam"):
        check_one_kind(load_records(runs), "the table")


def test_arms_seeds_and_clipping_are_one_family(write, six, runs):
    write(*six)
    records = load_records(runs)
    check_one_kind(records, "the table")
    assert config_family(records[0]) == {
        "model._target_": "experiments.asr.model.Conformer",
        "model.dim": 96,
        "trainer.max_steps": 200,
    }


def test_the_papers_numbers_are_those_of_the_project(repository):
    paper = load_paper(repository / "results/paper.yaml")
    fadam = next(r for r in paper.references if r.name == "FAdam")
    assert fadam.values == {
        "dev-clean/wer": 1.29,
        "dev-other/wer": 2.49,
        "test-clean/wer": 1.34,
        "test-other/wer": 2.49,
    }
    assert fadam.mark == "L"
    assert {c.task for c in paper.claims} == {"asr", "llm", "vqvae"}


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("mark: L", "mark: Z", "mark 'Z' is none of"),
        ("unit: percent", "unit: furlong", "unit 'furlong'"),
        ("dev-clean/wer: 1.29", "dev-clean/wer: low", "'dev-clean/wer' is no finite number"),
        ("source: leaderboards of arXiv:2405.12807", 'source: ""', '"source" must be a text'),
        ("task: vqvae", "task: chess", "task 'chess'"),
        ("schema: 1", "schema: 7", "schema 1"),
        ("    setting: 30M parameters\n", "", "exactly the keys"),
        ("paper:", "paper: [", "no valid YAML"),
    ],
)
def test_a_bad_entry_of_the_papers_numbers_is_named(repository, tmp_path, old, new, words):
    text = (repository / "results/paper.yaml").read_text()
    assert old in text
    path = tmp_path / "paper.yaml"
    path.write_text(text.replace(old, new))
    with pytest.raises(AnalysisError, match=r"paper\.yaml") as caught:
        load_paper(path)
    assert words in str(caught.value)


def test_missing_numbers_of_the_paper_are_one_sentence(tmp_path):
    with pytest.raises(AnalysisError, match="cannot be read"):
        load_paper(Path(tmp_path / "none.yaml"))
