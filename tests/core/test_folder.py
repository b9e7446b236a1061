"""A run's folder and record belong to one configuration, and to one process at a time."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from filelock import FileLock
from omegaconf import DictConfig

from experiments.core import folder as fo
from experiments.core import records as rec
from experiments.core import run
from experiments.core.errors import ConfigError
from tests.conftest import ROOT, TEST_CONFIGS, record_path
from tests.core.test_run import break_off_at, weights


def identity(cfg: DictConfig, fingerprint: str = "sha256:toy") -> fo.Identity:
    config = rec.plain_config(cfg)
    return fo.Identity(rec.config_hash(config), fingerprint, config)


def interrupt(monkeypatch: pytest.MonkeyPatch, cfg: DictConfig, step: int = 6) -> None:
    with monkeypatch.context() as patch:
        break_off_at(patch, step)
        with pytest.raises(RuntimeError, match="broken off"):
            run.execute(cfg)


def test_a_finished_run_of_another_configuration_is_replaced_only_when_asked(compose_config) -> None:
    words = ("experiment=toy", "optimizer=fadam")
    cfg = compose_config(*words)
    path = record_path(cfg)
    run.execute(cfg)
    before = path.read_bytes()
    with pytest.raises(ConfigError) as refused:
        run.execute(compose_config(*words, "optimizer.lr=0.5", "module.decay=all"))
    assert "main-s1.json is the record of another run (module.decay is 'all' here and 'no_norms' there, " in str(
        refused.value
    )
    assert "optimizer.lr is 0.5 here and 0.001 there); give this run a name of its own with trial=<name>" in str(
        refused.value
    )
    assert path.read_bytes() == before
    assert torch.load(Path(cfg.paths.run_dir) / "last.ckpt", weights_only=True)["identity"] == identity(cfg).state()
    run.execute(compose_config(*words, "optimizer.lr=0.5", "overwrite=true"))
    assert json.loads(path.read_text())["optimizer"]["lr"] == 0.5


def test_overwrite_leaves_a_runs_own_record_alone(compose_config) -> None:
    cfg = compose_config("experiment=toy", "overwrite=true")
    run.execute(cfg)
    before = record_path(cfg).stat().st_mtime_ns
    run.execute(cfg)
    assert record_path(cfg).stat().st_mtime_ns == before


def test_an_interrupted_run_of_another_configuration_is_not_taken_up(compose_config, monkeypatch) -> None:
    cfg = compose_config("experiment=toy")
    interrupt(monkeypatch, cfg)
    last = Path(cfg.paths.run_dir) / "last.ckpt"
    before = last.read_bytes()
    other = compose_config("experiment=toy", "optimizer.lr=0.1")
    for resume in ("auto", "never"):
        other.resume = resume
        with pytest.raises(
            ConfigError, match=r"interrupted at step 4 \(optimizer.lr is 0.1 here and 0.001 there\).*overwrite=true"
        ):
            run.execute(other)
    assert last.read_bytes() == before

    # Replaced when asked, it owes nothing to the other.
    alone = compose_config("experiment=toy", "optimizer.lr=0.1", "trial=alone")
    run.execute(alone)
    run.execute(compose_config("experiment=toy", "optimizer.lr=0.1", "overwrite=true"))
    expected = weights(Path(alone.paths.run_dir))
    assert all(torch.equal(value, expected[name]) for name, value in weights(last.parent).items())


def test_other_data_make_another_run(compose_config, monkeypatch) -> None:
    from tests.core.toy import ToyData

    cfg = compose_config("experiment=toy")
    interrupt(monkeypatch, cfg)
    monkeypatch.setattr(ToyData, "fingerprint", "sha256:other")
    with pytest.raises(ConfigError, match=r"the data's fingerprint is 'sha256:other' here and 'sha256:toy' there"):
        run.execute(cfg)


def test_a_checkpoint_that_does_not_say_whose_it_is_is_nobodys(compose_config, monkeypatch) -> None:
    cfg = compose_config("experiment=toy")
    interrupt(monkeypatch, cfg)
    last = Path(cfg.paths.run_dir) / "last.ckpt"
    content = torch.load(last, weights_only=True)
    del content["identity"]
    torch.save(content, last)
    with pytest.raises(ConfigError, match=r"at step 4 \(which one is not known\)"):
        run.execute(cfg)


def test_a_run_may_be_started_anew(compose_config, monkeypatch) -> None:
    interrupt(monkeypatch, compose_config("experiment=toy"))
    cfg = compose_config("experiment=toy", "resume=never")
    folder = fo.RunFolder(Path(cfg.paths.run_dir), identity(cfg))
    assert folder.claim("auto", False) == str(folder.stem / "last.ckpt")
    assert folder.claim("never", False) is None
    assert run.execute(cfg)["seen"] == {"items": 48.0}


def test_many_differences_are_counted() -> None:
    one, other = (fo.Identity(str(n), "f", {"a": {str(k): k + n for k in range(9)}, "b": n}) for n in (0, 1))
    assert one.differences(other).startswith("a.0 is 0 here and 1 there, ")
    assert one.differences(other).endswith("a.3 is 3 here and 4 there, 6 more differ")
    less = fo.Identity("2", "f", {"a": one.config["a"]})
    assert one.differences(less) == "b is 0 here and absent there"


def holding(stem: Path, pid: int, state: dict[str, object]) -> FileLock:
    """Another's lock on a folder, as that process would have left it."""
    stem.mkdir(parents=True)
    lock = FileLock(stem / ".lock", is_singleton=False)
    lock.acquire()
    holder = {"host": socket.gethostname(), "pid": pid, "since": "2026-11-25T10:00:00+00:00", **state}
    (stem / ".holder.json").write_text(json.dumps(holder))
    return lock


def test_a_folder_in_use_is_refused_with_its_holder(compose_config) -> None:
    cfg = compose_config("experiment=toy")
    lock = holding(Path(cfg.paths.run_dir), os.getpid(), identity(cfg).state())
    try:
        with pytest.raises(ConfigError, match=rf"is in use: process {os.getpid()} on .*, since 2026-.* this very run"):
            run.execute(cfg)
        with pytest.raises(ConfigError, match=r"another one \(data_seed is 2 here and 1 there\)"):
            fo.RunFolder(
                Path(cfg.paths.run_dir), identity(compose_config("experiment=toy", "data_seed=2"))
            ).held().__enter__()
    finally:
        lock.release()
    run.execute(cfg)


def test_what_a_killed_process_still_holds_is_waited_for(compose_config, monkeypatch) -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    cfg = compose_config("experiment=toy")
    lock = holding(Path(cfg.paths.run_dir), ended.pid, identity(cfg).state())
    waited: list[float] = []
    acquire = FileLock.acquire

    def released_after_a_while(self: FileLock, timeout: float, **options: object) -> object:
        if timeout:
            waited.append(timeout)
            lock.release()
        return acquire(self, timeout, **options)

    monkeypatch.setattr(FileLock, "acquire", released_after_a_while)
    run.execute(cfg)
    assert waited == [fo.WORKERS_END_S]


def sweep(tmp_path: Path, *words: str) -> subprocess.CompletedProcess[str]:
    line: Sequence[str] = (
        sys.executable, "-m", "experiments.train", "-m", f"hydra.searchpath=[file://{TEST_CONFIGS}]", "experiment=toy",
        f"paths.runs_dir={tmp_path}", *words,
    )  # fmt: skip
    return subprocess.run(line, cwd=ROOT, capture_output=True, text=True, timeout=240)


def test_a_sweep_whose_runs_would_share_a_record_does_not_start(tmp_path: Path) -> None:
    done = sweep(tmp_path, "optimizer.lr=1e-3,1e-2", "seed=1,2")
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr == (
        f"error: two runs of this sweep would share the record {tmp_path}/toy/smoke/adamw_clip/main-s1.json: "
        "optimizer.lr=0.001, and optimizer.lr=0.01; put what differs into its name, such as "
        "'trial=lr${optimizer.lr}'\n"
    )
    assert not list(tmp_path.rglob("main*"))
