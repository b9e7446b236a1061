"""Weights & Biases may be lost at any moment, and never takes the run with it."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import wandb
from lightning import Callback, Trainer
from wandb.sdk import wandb_setup
from wandb.sdk.lib.wbauth import unauthenticate_session

from experiments.core import loggers as log
from experiments.core import run
from experiments.core.errors import ConfigError
from tests.core.test_checkpoint import interrupt, without_times
from tests.core.test_run import with_callback

WANDB = ("experiment=toy", "logger=wandb")


@pytest.fixture(autouse=True)
def nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Nobody is logged in, and no setting of this machine counts."""
    for name in ("WANDB_MODE", "WANDB_API_KEY", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "no-netrc"))
    monkeypatch.setenv("HOME", str(tmp_path))
    yield
    os.environ.pop("WANDB_MODE", None)
    unauthenticate_session()
    with contextlib.suppress(Exception):
        wandb.teardown()
    wandb_setup._singleton = None  # where its service is dead, it does not forget it


def parts(folder: Path) -> list[str]:
    """The ids of a run's offline parts. (W&B numbers the folders of parts that start in the same second.)"""
    return [path.stem.removeprefix("run-") for path in sorted(folder.glob("wandb/offline-run-*/run-*.wandb"))]


def test_a_key_without_a_network_is_offline_and_said_once(compose_config, monkeypatch, capsys) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "a" * 40)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    cfg = compose_config(*WANDB)
    record = run.execute(cfg)
    assert record["steps"] == 12
    assert capsys.readouterr().out.count("W&B: its server does not answer, so this run is logged offline") == 1
    assert len(parts(Path(cfg.paths.run_dir))) == 1


@pytest.mark.parametrize(("error", "answers"), [(None, True), (404, True), (OSError(), False), (ValueError(), False)])
def test_any_answer_counts(monkeypatch, error: Any, answers: bool) -> None:
    import urllib.error
    import urllib.request
    from types import SimpleNamespace

    def opened(url: str, timeout: float) -> Any:
        if isinstance(error, int):
            raise urllib.error.HTTPError(url, error, "", {}, None)  # type: ignore[arg-type]
        if error is not None:
            raise error
        return SimpleNamespace(close=lambda: None)

    monkeypatch.setattr(urllib.request, "urlopen", opened)
    assert log._answers("https://example.org") is answers


def test_a_refused_key_is_offline(monkeypatch) -> None:
    def login(prompt: bool, verify: bool = True) -> bool:
        if verify:
            raise wandb.errors.AuthenticationError("401\nmore")
        return True

    monkeypatch.setattr(wandb, "login", login)
    monkeypatch.setattr(log, "_answers", lambda url: True)
    assert log.unreachable() == "its server refuses the key (AuthenticationError: 401)"


def test_an_interrupted_run_is_one_run(compose_config, monkeypatch) -> None:
    cfg = compose_config(*WANDB)
    interrupt(monkeypatch, cfg, 6)
    record = run.execute(cfg)
    folder = Path(cfg.paths.run_dir)
    expected = log.run_id("toy", "smoke", "", "adamw_clip", "main", 1, record["config_hash"])
    assert parts(folder) == [expected, expected]


class EndService(Callback):
    """Kills the process that W&B has beside a run."""

    killed = False

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        if trainer.global_step == 6:
            found = subprocess.run(["pgrep", "-P", str(os.getpid())], capture_output=True, text=True, check=True)
            for pid in found.stdout.split():
                if "wandb" in Path(f"/proc/{pid}/cmdline").read_text():
                    os.kill(int(pid), signal.SIGKILL)
                    self.killed = True


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks at /proc")
def test_the_death_of_its_service_is_survived(compose_config, monkeypatch, capsys) -> None:
    ended = EndService()
    with monkeypatch.context() as patch:
        with_callback(patch, ended)
        record = run.execute(compose_config(*WANDB))
    assert ended.killed
    assert record["steps"] == 12
    assert capsys.readouterr().out.count("; the run goes on without it, its record has the same numbers.") == 1


@pytest.mark.parametrize("method", ["log", "finish", "init"])
def test_whatever_fails_is_said_once(compose_config, monkeypatch, capsys, method: str) -> None:
    expected = run.execute(compose_config("experiment=toy", "logger=none", "trial=without"))
    failed: list[str] = []

    def fail(*words: Any, **options: Any) -> None:
        failed.append(method)
        raise OSError(28, "No space left on device")

    if method == "init":
        monkeypatch.setattr(wandb, "init", fail)
    else:
        monkeypatch.setattr(wandb.Run, method, fail)
    record = run.execute(compose_config(*WANDB))
    said = capsys.readouterr().out
    assert said.count("W&B: OSError: [Errno 28] No space left on device; the run goes on without it") == 1
    assert len(failed) == 1
    assert without_times(record) == without_times(expected)


def test_wandb_has_nothing_to_warn_of(compose_config, capfd) -> None:
    """Of neither a setting without effect nor an environment that changed, over two runs in one process."""
    for seed in (1, 2):
        run.execute(compose_config(*WANDB, f"seed={seed}"))
    shown = capfd.readouterr()
    assert (shown.out + shown.err).count("W&B: no API key") == 2
    assert "WARNING" not in shown.out + shown.err


def test_tensorboard_that_is_not_installed_is_a_sentence(compose_config, monkeypatch) -> None:
    monkeypatch.setattr(log, "find_spec", lambda name: None)
    cfg = compose_config("experiment=toy", "logger=tensorboard")
    with pytest.raises(ConfigError, match="logger=tensorboard needs the package tensorboard: install it with"):
        run.execute(cfg)


def test_loggers_stand_beside_one_another(compose_config) -> None:
    assert set(compose_config("experiment=toy", "logger=[csv,tensorboard,wandb]").logger) == {
        "csv", "tensorboard", "wandb",
    }  # fmt: skip
