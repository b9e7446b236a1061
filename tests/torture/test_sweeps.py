"""A sweep that is killed at any moment is made good by the same command, record for record and bit for bit."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.conftest import ROOT, TEST_CONFIGS
from tests.torture.conftest import differences

SWEEP = (
    "-m", "experiment=toy", "optimizer=adamw_clip,fadam", "seed=1,2", "trainer.max_steps=600", "eval_every=60",
    "scheduler.warmup_steps=5", "logger=none", "progress=line", "hydra.launcher.n_jobs=2",
    f"hydra.searchpath=[file://{TEST_CONFIGS}]",
)  # fmt: skip


def start(root: Path) -> subprocess.Popen[bytes]:
    line = [sys.executable, "-m", "experiments.train", *SWEEP, f"paths.runs_dir={root}"]
    with Path(f"{root}.log").open("ab") as log:
        return subprocess.Popen(
            line, cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"}, stdout=log, stderr=log, start_new_session=True
        )


def outcome(root: Path) -> dict[str, Any]:
    """Every record of a sweep, and the weights of every run."""
    records = {str(path.relative_to(root)): path for path in sorted(root.glob("*/*/*/*.json"))}
    return {
        name: {
            "record": json.loads(path.read_text()),
            "weights": torch.load(path.with_suffix("") / "last.ckpt", weights_only=True)["state_dict"],
        }
        for name, path in records.items()
    }


@pytest.mark.timeout(7200)
@pytest.mark.parametrize("kills", [1, pytest.param(int(os.environ.get("TORTURE_KILLS", "20")), marks=pytest.mark.long)])
def test_a_killed_sweep_is_made_good_by_the_same_command(tmp_path: Path, kills: int) -> None:
    begun = time.monotonic()
    assert start(tmp_path / "whole").wait() == 0
    seconds = time.monotonic() - begun
    expected = outcome(tmp_path / "whole")
    assert len(expected) == 4
    moments = random.Random(kills)
    ended = left = number = 0
    while ended < kills:
        root = tmp_path / str(number)
        begun, sweep = time.monotonic(), start(root)
        with contextlib.suppress(subprocess.TimeoutExpired):
            sweep.wait(seconds * moments.uniform(0.3, 0.95))
        if sweep.poll() is None:
            ended += 1
            # The parent alone, or all of its processes.
            (os.killpg if ended % 2 else os.kill)(sweep.pid, signal.SIGKILL)
        else:
            seconds = time.monotonic() - begun  # it was too fast to be killed: the next one is awaited less
        sweep.wait()
        left += len(list(root.glob("*/*/*/*.json")))
        assert start(root).wait() == 0, Path(f"{root}.log").read_text()[-3000:]
        assert differences(expected, outcome(root)) == [], f"sweep {number}"
        assert not list(root.rglob("*.tmp"))
        number += 1
    print(f"{ended} of {number} sweeps were killed, with {left} of their 4 records each there; nothing was lost")
