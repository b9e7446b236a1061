"""Weights & Biases, online where that is possible and offline where it is not; nothing depends on it."""

from __future__ import annotations

import os
import socket
from typing import Any
from urllib.parse import urlparse

from lightning.pytorch.loggers import Logger, WandbLogger

from experiments.core.errors import ConfigError

MODES = ("auto", "online", "offline")


def _reachable(url: str, timeout_s: float = 3.0) -> bool:
    parts = urlparse(url)
    port = parts.port or (443 if parts.scheme == "https" else 80)
    try:
        with socket.create_connection((parts.hostname or "", port), timeout=timeout_s):
            return True
    except OSError:
        return False


def unreachable() -> str:
    """Why W&B cannot be reached from here, in words; "" where it can."""
    import wandb

    if not wandb.login(prompt=False):
        return "no API key (WANDB_API_KEY, or `wandb login`)"
    return "" if _reachable(wandb.setup().settings.base_url) else "its server does not answer"


def wandb_mode(mode: str) -> str:
    """The mode for `wandb.init`; "auto" is online only with a key and an answering server, and says why if not."""
    if mode not in MODES:
        raise ConfigError(f"logger.wandb.mode must be one of {', '.join(MODES)}, got {mode!r}")
    if mode != "auto":
        return mode
    if os.environ.get("WANDB_MODE"):
        # "dryrun" is an old word for it, which Lightning sets once a run is offline.
        chosen = os.environ["WANDB_MODE"]
        return "offline" if chosen == "dryrun" else chosen
    reason = unreachable()
    if not reason:
        return "online"
    print(f"W&B: {reason}, so this run is logged offline; `make push` uploads it later.", flush=True)
    return "offline"


def wandb_logger(mode: str = "auto", **options: Any) -> WandbLogger:
    """A `WandbLogger` in the mode that `wandb_mode` finds; `options` are the logger's own."""
    os.makedirs(options.get("save_dir") or ".", exist_ok=True)
    found = wandb_mode(mode)
    return WandbLogger(offline=found == "offline", mode=found, **options)


def log_samples(loggers: list[Logger], samples: list[dict[str, Any]]) -> None:
    """The samples as a table, in the loggers that can show one."""
    if not samples:
        return
    columns = list(samples[0])
    rows = [[str(sample.get(column, "")) for column in columns] for sample in samples]
    for logger in loggers:
        if isinstance(logger, WandbLogger):
            logger.log_table("samples", columns=columns, data=rows)


def close(loggers: list[Logger]) -> None:
    """End each logger's run, so that the next run of a sweep in this process begins its own."""
    for logger in loggers:
        logger.finalize("success")
        if isinstance(logger, WandbLogger):
            logger.experiment.finish()
