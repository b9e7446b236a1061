"""Weights & Biases, online where that is possible and offline where it is not, and TensorBoard; no run needs them."""

from __future__ import annotations

import functools
import hashlib
import os
import urllib.error
import urllib.request
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any, TypeVar

from lightning.fabric.loggers.logger import _DummyExperiment, rank_zero_experiment
from lightning.pytorch.loggers import Logger, WandbLogger

from experiments.core.errors import ConfigError

MODES = ("auto", "online", "offline")
ANSWER_S = 5.0

Method = TypeVar("Method", bound=Callable[..., Any])


def run_id(task: str, scale: str, variant: str, arm: str, trial: str, seed: int, config_hash: str) -> str:
    """A run's id on W&B: the same after an interruption, when its record is pushed, and on every machine."""
    parts = (task, scale, variant, arm, trial, str(seed), config_hash)
    return hashlib.sha256("/".join(parts).encode()).hexdigest()[:16]


def _answers(url: str) -> bool:
    try:
        # Through a proxy, where the environment names one.
        urllib.request.urlopen(url, timeout=ANSWER_S).close()
    except urllib.error.HTTPError:
        return True
    except (OSError, ValueError):
        return False
    return True


def unreachable() -> str:
    """Why W&B cannot be reached from here, in words; "" where it can."""
    import wandb

    if not wandb.login(prompt=False, verify=False):
        return "no API key (WANDB_API_KEY, or `wandb login`)"
    if not _answers(wandb.setup().settings.base_url):
        return "its server does not answer"
    try:
        wandb.login(prompt=False)
    except Exception as error:
        return f"its server refuses the key ({_line(error)})"
    return ""


def wandb_mode(mode: str) -> str:
    """The mode for `wandb.init`; "auto" is online only with a key and an answering server, and says why if not."""
    if mode not in MODES:
        raise ConfigError(f"logger.wandb.mode must be one of {', '.join(MODES)}, got {mode!r}")
    if mode != "auto":
        return mode
    if os.environ.get("WANDB_MODE"):
        # "dryrun" is an old word for it.
        chosen = os.environ["WANDB_MODE"]
        return "offline" if chosen == "dryrun" else chosen
    try:
        reason = unreachable()
    except Exception as error:
        reason = _line(error)
    if not reason:
        return "online"
    print(f"W&B: {reason}, so this run is logged offline; `make push` uploads it later.", flush=True)
    return "offline"


def _line(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}".partition("\n")[0]


def _optional(method: Method) -> Method:
    """What W&B cannot do any more, because its service, its disk or its network is gone, the run does without."""

    @functools.wraps(method)
    def tried(self: OptionalWandbLogger, *words: Any, **options: Any) -> Any:
        if self.lost:
            return None
        try:
            return method(self, *words, **options)
        except Exception as error:
            self.lose(error)
            return None

    return tried  # type: ignore[return-value]


class OptionalWandbLogger(WandbLogger):
    """Lightning's `WandbLogger`, whose failures end the logging and never the run."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        # Lightning names this setting, and W&B warns of everybody who does: it has no effect any more.
        self._wandb_init.pop("anonymous", None)
        self.lost = False

    def lose(self, error: Exception) -> None:
        self.lost = True
        print(f"W&B: {_line(error)}; the run goes on without it, its record has the same numbers.", flush=True)

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        # Lightning asks for it by itself.
        if not self.lost:
            try:
                return super().experiment
            except Exception as error:
                self.lose(error)
        return _DummyExperiment()

    def identify(self, run_id: str) -> None:
        """Takes this id, where the config names none. To be called before anything is logged."""
        if self._id is None:
            self._id = self._wandb_init["id"] = run_id

    log_hyperparams = _optional(WandbLogger.log_hyperparams)
    log_metrics = _optional(WandbLogger.log_metrics)
    log_table = _optional(WandbLogger.log_table)
    log_image = _optional(WandbLogger.log_image)
    after_save_checkpoint = _optional(WandbLogger.after_save_checkpoint)
    finalize = _optional(WandbLogger.finalize)

    @_optional
    def finish(self) -> None:
        if self._experiment is not None:
            self._experiment.finish()


def wandb_logger(mode: str = "auto", **options: Any) -> OptionalWandbLogger:
    """An `OptionalWandbLogger` in the mode that `wandb_mode` finds; `options` are the logger's own."""
    os.makedirs(options.get("save_dir") or ".", exist_ok=True)
    found = wandb_mode(mode)
    # A run of its own, so that one that was lost is not taken for the next one of a sweep in this process.
    # Lightning's own `offline` would change the environment, and W&B warns that it has read that already.
    return OptionalWandbLogger(mode=found, reinit="create_new", **options)


def tensorboard_logger(**options: Any) -> Logger:
    """Lightning's `TensorBoardLogger`; `options` are its own.

    Raises:
        ConfigError: the package that it needs is not installed.
    """
    if find_spec("tensorboard") is None:
        raise ConfigError(
            "logger=tensorboard needs the package tensorboard: install it with `pip install tensorboard`, or take "
            "logger=csv or logger=wandb"
        )
    from lightning.pytorch.loggers import TensorBoardLogger

    return TensorBoardLogger(**options)


def log_samples(loggers: list[Logger], samples: list[dict[str, Any]]) -> None:
    """The samples as a table, in the loggers that can show one."""
    if not samples:
        return
    columns = list(samples[0])
    rows = [[str(sample.get(column, "")) for column in columns] for sample in samples]
    for logger in loggers:
        if isinstance(logger, WandbLogger):
            logger.log_table("samples", columns=columns, data=rows)


def close(loggers: list[Logger], status: str = "success") -> None:
    """End each logger's run, so that the next run of a sweep in this process begins its own."""
    for logger in loggers:
        logger.finalize(status)
        if isinstance(logger, OptionalWandbLogger):
            logger.finish()
