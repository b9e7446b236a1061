"""A run of the pool is the run of the same words on the command line; a failure is a sentence."""

from __future__ import annotations

from pathlib import Path

from experiments.core.records import Records
from experiments.study.pool import perform
from tests.conftest import TEST_CONFIGS


def test_a_run_leaves_its_record_or_a_sentence(tmp_path: Path) -> None:
    words = [
        f"hydra.searchpath=[file://{TEST_CONFIGS}]", "experiment=toy", "optimizer=adamw_clip", "seed=7",
        "logger=none", "progress=line", f"paths.runs_dir={tmp_path}",
    ]  # fmt: skip
    assert perform(words) == ""
    (record,) = Records([tmp_path]).all()
    assert (record.arm, record.seed, record.diverged) == ("adamw_clip", 7, False)
    assert perform([*words, "scale=moon"]).startswith("scale must be smoke, cpu, gpu or paper, got 'moon'")
    assert "Traceback" in perform([*words, "nothing=1"])
