"""Whole runs of the speech experiments on a tiny tree."""

from __future__ import annotations

import csv
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from experiments.asr.module import UTTERANCES
from experiments.core import run
from experiments.core.errors import DataError
from tests.asr.conftest import write_split
from tests.core.test_run import break_off_at, weights

FAST = ("debug=fast", "data.cache_features=false", "model.dim=16", "model.layers=1", "model.heads=2", "model.kernel=3")


@pytest.fixture
def librispeech(tmp_path: Path) -> Path:
    """The splits that asr_gpu reads, in LibriSpeech's own folder."""
    root = tmp_path / "data" / "LibriSpeech"
    write_split(root, "train-clean-100", 20)
    for speaker, split in enumerate(("dev-clean", "dev-other", "test-clean", "test-other"), start=8):
        write_split(root, split, 4, speaker)
    return root


@pytest.mark.parametrize("optimizer", ["adamw_clip", "fadam"])
def test_asr_cpu_takes_steps_and_keeps_transcripts(compose_config, speech_root: Path, optimizer: str) -> None:
    cfg = compose_config("experiment=asr_cpu", f"optimizer={optimizer}", *FAST, f"data.root={speech_root}")
    record = run.execute(cfg)
    assert record["steps"] == 2
    for split in ("dev-clean", "dev-other", "test-clean", "test-other"):
        assert record["metrics"][f"{split}/wer"] >= 0.0
        assert 0.0 < record["metrics"][f"{split}/loss"] < 100.0
    assert 0 < record["seen"]["hours"] < 0.02
    assert {sample["split"] for sample in record["samples"]} == {"test-clean", "test-other"}
    assert all(sample["reference"] for sample in record["samples"])
    assert record["data"]["fingerprint"].startswith("sha256:")
    with (Path(cfg.paths.run_dir) / UTTERANCES).open(encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["split"] == "test-clean"]
    errors = sum(int(row[kind]) for row in rows for kind in ("substitutions", "deletions", "insertions"))
    assert len(rows) == 4
    assert errors / sum(int(row["words"]) for row in rows) == pytest.approx(record["metrics"]["test-clean/wer"])
    assert UTTERANCES not in record["artifacts"]


def test_asr_gpu_takes_a_step_on_a_tiny_librispeech(compose_config, librispeech: Path) -> None:
    cfg = compose_config(
        "experiment=asr_gpu",
        "optimizer=fadam",
        *FAST,
        "trainer=cpu",
        "data.min_seconds=0.1",
        "data.vocab_size=24",
        "model.vocab_size=24",
        "data.num_workers=0",
        "data.pin_memory=false",
    )
    assert cfg.module.augment["_target_"] == "experiments.asr.features.SpecAugment"
    record = run.execute(cfg)
    assert record["steps"] == 2
    assert record["problems"] == {}
    assert record["data"]["train_utterances"] == 20
    assert 0.0 < record["metrics"]["test-other/loss"] < 100.0


def test_an_interrupted_run_with_augmentation_and_dropout_goes_on_exactly(
    compose_config, speech_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = (
        "experiment=asr_cpu",
        "optimizer=fadam",
        *FAST,
        f"data.root={speech_root}",
        "data.max_utterances=4",
        "model.dropout=0.2",
        "module.augment={_target_: experiments.asr.features.SpecAugment}",
        "trainer.max_steps=6",
        "eval_every=2",
    )
    whole, broken = compose_config(*options, "trial=whole"), compose_config(*options)
    expected = run.execute(whole)
    with monkeypatch.context() as patch:
        break_off_at(patch, 3)
        with pytest.raises(RuntimeError, match="broken off"):
            run.execute(broken)
    record = run.execute(broken)
    assert record["metrics"] == expected["metrics"]
    assert record["seen"] == expected["seen"]
    found = weights(Path(broken.paths.run_dir))
    for name, value in weights(Path(whole.paths.run_dir)).items():
        assert torch.equal(value, found[name]), name


def test_missing_data_are_one_sentence_with_the_command(compose_config, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no speech data at .*make data-asr"):
        run.execute(compose_config("experiment=asr_cpu", f"data.root={tmp_path / 'nowhere'}"))
    words = ["experiment=asr_cpu", f"paths.data_dir={tmp_path / 'nowhere'}", f"paths.runs_dir={tmp_path}"]
    done = subprocess.run(
        [sys.executable, "-m", "experiments.train", *words], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode != 0
    assert done.stderr.strip().splitlines()[-1].startswith("error: no speech data at")
    assert "Traceback" not in done.stderr


def test_missing_librispeech_says_how_to_get_it(compose_config, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    with pytest.raises(DataError, match=r"has no split 'train-clean-100'; .*data\.download=true fetches it"):
        run.execute(compose_config("experiment=asr_gpu", "trainer=cpu"))
