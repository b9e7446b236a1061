"""Gradients that a trainer clips although FAdam clips inside: told once, and noted."""

from __future__ import annotations

import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from lightning import Trainer
from lightning.pytorch.demos.boring_classes import BoringModel
from lightning.pytorch.loggers import CSVLogger
from torch import nn

from experiments.core import records as rec
from experiments.core import run
from fadam import FAdam
from fadam.clipping import clipped_twice
from fadam.lightning import FAdamMonitor

SAID = "gradients are clipped twice: by gradient_clip_val=1 and inside FAdam; leave the first out, or set clip=None"


@pytest.mark.parametrize(
    ("optimizer", "words", "twice"),
    [
        ("fadam", ("trainer.gradient_clip_val=1.0",), True), ("fadam", (), False), ("adamw_clip", (), False),
        ("fadam_global_clip", (), False),
    ],
)  # fmt: skip
def test_a_run_says_so_once_and_its_record_notes_it(compose_config, capsys, optimizer, words, twice) -> None:
    cfg = compose_config("experiment=toy", f"optimizer={optimizer}", "logger=none", "progress=line", *words)
    record = run.execute(cfg)
    assert capsys.readouterr().out.count("clipped twice") == twice
    assert ("notes" in record) is twice
    # The note is no part of what the run is.
    assert record["config_hash"] == rec.config_hash(rec.plain_config(cfg))
    assert rec.parse_record(record, Path("runs"), Path("a.json")).config_hash == record["config_hash"]


def test_who_clips() -> None:
    weight = [nn.Parameter(torch.ones(2))]

    class Wrapper:
        optimizer = FAdam(weight)

    assert clipped_twice(Wrapper(), 1.0, "gradient_clip_val") == SAID
    for optimizer, value in ((FAdam(weight), None), (FAdam(weight), 0.0), (FAdam(weight, clip=None), 1.0)):
        assert clipped_twice(optimizer, value, "max_grad_norm") == ""
    assert clipped_twice(torch.optim.AdamW(weight), 1.0, "max_grad_norm") == ""


class Boring(BoringModel):
    def configure_optimizers(self):
        return FAdam(self.parameters())


@pytest.mark.parametrize("clip", [None, 1.0])
def test_lightnings_callback_warns_and_logs(tmp_path: Path, clip: float | None) -> None:
    logger = CSVLogger(str(tmp_path))
    trainer = Trainer(
        max_steps=4, accelerator="cpu", logger=logger, callbacks=[FAdamMonitor(2)], gradient_clip_val=clip,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, limit_val_batches=0,
    )  # fmt: skip
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer.fit(Boring())
    assert [str(w.message) for w in caught if "twice" in str(w.message)] == [SAID] * (clip is not None)
    logged = (Path(logger.log_dir) / "metrics.csv").read_text().splitlines()
    assert "fadam/update_rms" in logged[0]
    assert len(logged) == 3
    with pytest.raises(ValueError, match="every_n_steps must be at least 0, got -1"):
        FAdamMonitor(-1)


def test_the_callback_is_of_the_lightning_that_is_in_use() -> None:
    """Not of the other one of its two packages, whose Trainer would refuse it."""
    said = "from fadam.lightning import FAdamMonitor; print(FAdamMonitor.__mro__[1].__module__.split('.')[0])"
    done = subprocess.run(
        [sys.executable, "-c", f"import pytorch_lightning; {said}"], capture_output=True, text=True, check=True
    )  # fmt: skip
    assert done.stdout.split() == ["pytorch_lightning"]
