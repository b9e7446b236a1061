"""How a run ends before its time: Ctrl-C, SIGTERM, the end of the sweep that it belongs to, a requeue on SLURM.

Whatever ends a run, the same command goes on with it. A run that SIGTERM ends finishes its step and saves its state.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from types import FrameType
from typing import NoReturn

INTERRUPTED = "interrupted: the same command goes on with what is missing"
TERMINATED = 128 + signal.SIGTERM
# For a step and a checkpoint; then a worker whose sweep has ended is ended too.
GRACE_S = 60.0
POLL_S = 1.0

_trainer_at_work = False
_parent: int | None = None  # of a sweep's worker


def end_at_once(*_: object) -> NoReturn:
    """For SIGTERM, in a process that has nothing to save."""
    print(INTERRUPTED, file=sys.stderr, flush=True)
    raise SystemExit(TERMINATED)


def in_worker() -> bool:
    """Whether this process does the runs of a sweep that another process has started."""
    return multiprocessing.current_process().name.startswith("Loky")


def orphaned() -> bool:
    """Whether this is a worker whose sweep has ended."""
    return _parent is not None and os.getppid() != _parent


def watch() -> None:
    """Let SIGTERM end this process with a saved state, and let a worker end with its sweep. Called again, it does
    nothing."""
    global _parent
    if threading.current_thread() is not threading.main_thread():
        return
    # Handlers that others have set, such as a job launcher, stay.
    if signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        signal.signal(signal.SIGTERM, _terminate)
    if "SLURM_JOB_ID" in os.environ and signal.getsignal(signal.SIGUSR1) is signal.SIG_DFL:
        # Lightning's own handler saves a checkpoint in the middle of a step, and then prefers it to all others.
        signal.signal(signal.SIGUSR1, _requeue)
    if in_worker() and _parent is None:
        _parent = os.getppid()
        threading.Thread(target=_follow, name="follows the sweep", daemon=True).start()


@contextlib.contextmanager
def left_to_trainer() -> Iterator[None]:
    """Signals are Lightning's in here, which ends a run after its step."""
    global _trainer_at_work
    _trainer_at_work = True
    try:
        yield
    finally:
        _trainer_at_work = False


def _terminate(signum: int, frame: FrameType | None) -> None:
    if _trainer_at_work:
        return
    if in_worker():
        os._exit(TERMINATED)
    workers = [child for child in multiprocessing.active_children() if child.name.startswith("Loky")]
    for worker in workers:
        with contextlib.suppress(ProcessLookupError):
            os.kill(worker.pid or 0, signal.SIGTERM)
    for worker in workers:
        worker.join(GRACE_S)
    raise SystemExit(TERMINATED)


def _follow() -> None:
    while not orphaned():
        time.sleep(POLL_S)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(GRACE_S)
    os._exit(TERMINATED)


def _requeue(signum: int, frame: FrameType | None) -> None:
    """Puts the SLURM job into the queue again, and ends the run with a saved state."""
    if os.environ.get("SLURM_PROCID", "0") == "0":
        array, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
        job = f"{array}_{task}" if array else os.environ["SLURM_JOB_ID"]
        try:
            subprocess.run(["scontrol", "requeue", job], check=True, capture_output=True, text=True)
        except (OSError, subprocess.CalledProcessError) as error:
            reason = getattr(error, "stderr", "") or str(error)
            print(f"job {job} could not be put into the queue again ({reason.strip()}); it goes on", file=sys.stderr)
            return
        print(f"job {job} is in the queue again", flush=True)
    os.kill(os.getpid(), signal.SIGTERM)
