"""Runs in processes of their own, which real signals can hit, and how alike two runs are.

A process is forked from this one, which has imported everything and computes nothing itself.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import DictConfig

from experiments.core import run, stopping
from tests.conftest import record_path

# What another run of the same configuration may have otherwise: times, and where it lies.
TIMES = frozenset(
    {
        "wall_time_s", "step_time_s", "peak_memory_bytes", "started", "finished", "command", "seconds", "step_times",
        "dirpath", "best_model_path", "kth_best_model_path", "last_model_path", "best_k_models",
    }
)  # fmt: skip


def flat(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            if key not in TIMES and "speed/" not in str(key):
                yield from flat(inner, f"{prefix}.{key}")
    elif isinstance(value, (list, tuple)):
        for number, inner in enumerate(value):
            yield from flat(inner, f"{prefix}[{number}]")
    else:
        yield prefix, value


def alike(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        return one.shape == other.shape and torch.equal(one.nan_to_num(), other.nan_to_num())
    return bool(one == other or (one != one and other != other))


def differences(one: Any, other: Any) -> list[str]:
    """The keys in which two records or checkpoints differ."""
    a, b = dict(flat(one)), dict(flat(other))
    return sorted(key for key in a.keys() | b.keys() if not alike(a.get(key, "absent"), b.get(key, "absent")))


def outcome(cfg: DictConfig) -> dict[str, Any]:
    """All that a finished run leaves: its record, and both checkpoints to the last bit."""
    stem = Path(cfg.paths.run_dir)
    saved = {name: torch.load(stem / f"{name}.ckpt", weights_only=True) for name in ("last", "best")}
    return {"record": json.loads(record_path(cfg).read_text()), **saved}


def _work(cfg: DictConfig) -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)
    stopping.watch()
    try:
        run.execute(cfg)
    except KeyboardInterrupt:
        os._exit(130)


Perform = Callable[..., int]


@pytest.fixture
def perform() -> Perform:
    """`perform(cfg)`: the status of the run in a process of its own; `perform(cfg, after=0.5, number=SIGKILL)`: which
    gets the signal after so many seconds, if it is still at work.
    """
    torch.set_num_threads(1)
    context = multiprocessing.get_context("fork")

    def performed(cfg: DictConfig, after: float | None = None, number: int = signal.SIGKILL) -> int:
        process = context.Process(target=_work, args=(cfg,))
        process.start()
        if after is not None:
            process.join(after)
            if process.is_alive():
                os.kill(process.pid or 0, number)
        process.join(240)
        assert process.exitcode is not None, "the run hangs"
        return process.exitcode

    return performed


@pytest.fixture
def measured(perform: Perform) -> Callable[[DictConfig], tuple[dict[str, Any], float]]:
    """The outcome of a run that nothing disturbs, and its seconds."""

    def measure(cfg: DictConfig) -> tuple[dict[str, Any], float]:
        start = time.monotonic()
        assert perform(cfg) == 0
        return outcome(cfg), time.monotonic() - start

    return measure
