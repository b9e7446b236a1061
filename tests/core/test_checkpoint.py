"""Checkpoints: whole on the disk, exact to go on from, and the best one the best."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Callback, Trainer
from omegaconf import DictConfig

from experiments.core import checkpoint as ck
from experiments.core import records as rec
from experiments.core import run, stopping
from experiments.core.errors import StorageError
from tests.conftest import record_path
from tests.core.test_run import break_off_at, weights, with_callback

# Its validation loss rises after step 20, so that the last evaluation is not the best.
RISING = (
    "experiment=toy", "optimizer.lr=0.3", "trainer.max_steps=28", "scheduler=constant", "scheduler.warmup_steps=0",
    "logger=none",
)  # fmt: skip


def interrupt(monkeypatch: pytest.MonkeyPatch, cfg: DictConfig, step: int) -> None:
    with monkeypatch.context() as patch:
        break_off_at(patch, step)
        with pytest.raises(RuntimeError, match="broken off"):
            run.execute(cfg)


def step_of(folder: Path, name: str) -> int:
    step: int = torch.load(folder / f"{name}.ckpt", weights_only=True)["global_step"]
    return step


def without_times(record: dict[str, Any]) -> dict[str, Any]:
    """What an interrupted run and its twin that was never stopped must have in common."""
    kept = {k: record[k] for k in ("steps", "seen", "metrics", "objective", "diverged", "samples", "parameters")}
    return kept | {"history": [{k: v for k, v in e.items() if k != "seconds"} for e in record["history"]]}


def test_the_best_is_the_best_after_an_interruption_and_a_move(compose_config, monkeypatch, tmp_path: Path) -> None:
    whole = compose_config(*RISING, "trial=whole")
    record = run.execute(whole)
    losses = {entry["step"]: entry["val/loss"] for entry in record["history"]}
    best = min(losses, key=losses.__getitem__)
    assert 8 < best < 28
    assert step_of(Path(whole.paths.run_dir), "best") == best

    stops = [step for step in (best + 2, best + 6) if step < 28]
    for step in stops:
        cfg = compose_config(*RISING, f"trial=stopped{step}")
        interrupt(monkeypatch, cfg, step)
        assert without_times(run.execute(cfg)) == without_times(record)
        assert step_of(Path(cfg.paths.run_dir), "best") == best

    cfg = compose_config(*RISING, "trial=moved")
    interrupt(monkeypatch, cfg, stops[0])
    shutil.move(tmp_path / "runs", tmp_path / "elsewhere")
    cfg.paths.runs_dir = str(tmp_path / "elsewhere")
    run.execute(cfg)
    assert step_of(Path(cfg.paths.run_dir), "best") == best


def test_a_torn_checkpoint_gives_way_to_the_one_before(compose_config, monkeypatch, capsys) -> None:
    words = ("experiment=toy", "logger=none")
    expected = run.execute(compose_config(*words, "trial=whole"))
    cfg = compose_config(*words)
    interrupt(monkeypatch, cfg, 9)
    folder = Path(cfg.paths.run_dir)
    assert (step_of(folder, "last"), step_of(folder, "last-before")) == (8, 4)
    content = (folder / ck.LAST).read_bytes()
    (folder / ck.LAST).write_bytes(content[: len(content) // 2])
    capsys.readouterr()
    record = run.execute(cfg)
    said = capsys.readouterr().out
    assert said.count("last.ckpt cannot be read (") == 1
    assert "starts at step 4 of 12" in said
    assert without_times(record) == without_times(expected)
    assert not (folder / ck.BEFORE).exists()


def test_a_run_without_a_whole_checkpoint_starts_anew(compose_config, monkeypatch) -> None:
    cfg = compose_config("experiment=toy", "logger=none")
    interrupt(monkeypatch, cfg, 9)
    for name in (ck.LAST, ck.BEFORE):
        (Path(cfg.paths.run_dir) / name).write_bytes(b"")
    assert run.execute(cfg)["seen"] == {"items": 48.0}


def test_a_write_that_breaks_off_leaves_the_last_one_whole(tmp_path: Path, monkeypatch) -> None:
    path = tmp_path / ck.LAST
    ck.WholeFiles().save_checkpoint({"a": 1}, path)

    def half(content: Any, file: Any) -> None:
        file.write(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, "save", half)
    with pytest.raises(KeyboardInterrupt):
        ck.WholeFiles().save_checkpoint({"a": 2}, path)
    assert [p.name for p in tmp_path.iterdir()] == [ck.LAST]
    assert torch.load(path, weights_only=True) == {"a": 1}


@pytest.mark.parametrize("links", [True, False])
def test_the_last_one_is_kept_where_there_are_no_links_too(tmp_path: Path, monkeypatch, links: bool) -> None:
    if not links:
        monkeypatch.setattr(os, "link", lambda *_: (_ for _ in ()).throw(OSError("none here")))
    for number in range(3):
        ck.WholeFiles().save_checkpoint({"a": number}, tmp_path / ck.LAST)
        ck.WholeFiles().save_checkpoint({"a": number}, tmp_path / "best.ckpt")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["best.ckpt", ck.BEFORE, ck.LAST]
    assert torch.load(tmp_path / ck.LAST, weights_only=True) == {"a": 2}
    assert torch.load(tmp_path / ck.BEFORE, weights_only=True) == {"a": 1}


def test_a_full_disk_is_a_sentence_and_loses_nothing(tmp_path: Path) -> None:
    path = tmp_path / ck.LAST
    ck.WholeFiles().save_checkpoint({"a": 1}, path)
    (tmp_path / f".{ck.LAST}.{os.getpid()}.tmp").symlink_to("/dev/full")
    with pytest.raises(StorageError, match=r"last.ckpt cannot be written: no space left on device"):
        ck.WholeFiles().save_checkpoint({"a": torch.zeros(10**6)}, path)
    assert torch.load(path, weights_only=True) == {"a": 1}

    record = tmp_path / "main-s1.json"
    rec.write_record(record, {"a": 1})
    (tmp_path / f".{record.name}.{os.getpid()}.tmp").symlink_to("/dev/full")
    with pytest.raises(StorageError, match=r"main-s1.json cannot be written: no space left on device"):
        rec.write_record(record, {"a": 2})
    assert record.read_text() == '{\n "a": 1\n}\n'


class Send(Callback):
    """Sends this process a signal after a batch of training."""

    def __init__(self, number: int, batch: int) -> None:
        self.number, self.batch = number, batch

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx + 1 == self.batch:
            os.kill(os.getpid(), self.number)


@pytest.fixture
def handlers() -> Iterator[None]:
    """The handlers of a process that `experiments.train` has started."""
    numbers = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
    before = {number: signal.getsignal(number) for number in numbers}
    stopping.watch()
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


# A validation that SIGTERM breaks off, at step 8, is gone with its interval, as is half an accumulated gradient.
@pytest.mark.parametrize(
    ("accumulate", "batch", "saved"),
    [(1, 1, 1), (1, 6, 6), (1, 8, 4), (1, 11, 11), (2, 10, 5), (2, 11, 4), (2, 18, 9)],
)
def test_sigterm_saves_the_step_and_the_run_goes_on_exactly(
    compose_config, monkeypatch, handlers: None, accumulate: int, batch: int, saved: int
) -> None:
    words = ("experiment=toy", "optimizer=fadam", "logger=none", f"trainer.accumulate_grad_batches={accumulate}")
    expected = run.execute(compose_config(*words, "trial=whole"))
    cfg = compose_config(*words)
    with monkeypatch.context() as patch:
        with_callback(patch, Send(signal.SIGTERM, batch))
        with pytest.raises(SystemExit) as end:
            run.execute(cfg)
    assert end.value.code == 143
    assert not record_path(cfg).exists()
    assert step_of(Path(cfg.paths.run_dir), "last") == saved
    assert without_times(run.execute(cfg)) == without_times(expected)
    ours, others = weights(Path(cfg.paths.run_dir)), weights(Path(cfg.paths.run_dir).with_name("whole-s1"))
    assert all(torch.equal(value, others[name]) for name, value in ours.items())


def test_ctrl_c_ends_a_run_as_an_interruption(compose_config, monkeypatch, handlers: None) -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)
    cfg = compose_config("experiment=toy", "logger=none")
    with_callback(monkeypatch, Send(signal.SIGINT, 6))
    with pytest.raises(KeyboardInterrupt):
        run.execute(cfg)
    assert step_of(Path(cfg.paths.run_dir), "last") == 4


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A SLURM job of one process, whose `scontrol` writes down what it is asked for."""
    job = {"JOB_ID": "71", "JOB_NAME": "train", "NTASKS": "1", "PROCID": "0", "LOCALID": "0", "NODEID": "0"}
    for name, value in job.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    asked = tmp_path / "asked"
    script = tmp_path / "bin" / "scontrol"
    script.parent.mkdir()
    script.write_text(f'#!/bin/sh\necho "$@" >> {asked}\n')
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{script.parent}:{os.environ['PATH']}")
    return asked


def test_a_requeued_job_goes_on_from_our_checkpoint_alone(
    compose_config, monkeypatch, slurm: Path, handlers: None
) -> None:
    words = ("experiment=toy", "logger=none")
    expected = run.execute(compose_config(*words, "trial=whole"))
    cfg = compose_config(*words)
    with monkeypatch.context() as patch:
        with_callback(patch, Send(signal.SIGUSR1, 6))
        with pytest.raises(SystemExit) as end:
            run.execute(cfg)
    assert end.value.code == 143
    assert slurm.read_text() == "requeue 71\n"
    folder = Path(cfg.paths.run_dir)
    assert sorted(p.name for p in folder.glob("*.ckpt")) == ["best.ckpt", ck.BEFORE, ck.LAST]
    # What an earlier version of this code let Lightning save.
    shutil.copy(folder / "best.ckpt", folder / "hpc_ckpt_1.ckpt")
    assert without_times(run.execute(cfg)) == without_times(expected)


def test_a_job_that_cannot_be_requeued_goes_on(compose_config, monkeypatch, slurm: Path, handlers, capsys) -> None:
    (slurm.parent / "bin" / "scontrol").write_text("#!/bin/sh\necho 'no such job' >&2; exit 1\n")
    with_callback(monkeypatch, Send(signal.SIGUSR1, 6))
    assert run.execute(compose_config("experiment=toy", "logger=none"))["steps"] == 12
    assert "job 71 could not be put into the queue again (no such job); it goes on" in capsys.readouterr().err
