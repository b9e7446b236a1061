"""Runs side by side on this machine, each in a process that stays for the next one."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import traceback
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

from experiments.core import provenance
from experiments.core.protocol import Run


def execute(words: Sequence[str]) -> None:
    """Make one run in this process."""
    from hydra.core.hydra_config import HydraConfig
    from omegaconf import open_dict

    from experiments.core import run
    from experiments.core.choices import composed

    cfg = composed(*words, hydra=True)
    HydraConfig.instance().set_config(cfg)
    with open_dict(cfg):
        del cfg["hydra"]
    run.execute(cfg)


def perform(words: Sequence[str]) -> str:
    """Make one run in this process; returns a sentence where it failed, else ""."""
    from experiments.core.errors import UserError

    try:
        execute(words)
    except UserError as error:
        return str(error)
    except Exception:
        return traceback.format_exc()
    return ""


def _start(parent: int) -> None:
    # One that is left behind ends at its next run.
    if os.getppid() != parent:
        raise SystemExit(1)
    provenance.commit()  # of the modules that are read now
    with contextlib.suppress(ImportError):
        import experiments.core.run  # noqa: F401


class Pool:
    """Keeps `jobs` runs going. `next_run` is called whenever one may start; it returns None if there is nothing to do.

    A process that dies takes the pool with it: the runs that were under way count as failed once, and a new pool goes
    on.
    """

    def __init__(self, jobs: int, words: Callable[[Run], Sequence[str]]) -> None:
        self.jobs, self.words = jobs, words
        self._executor = self._new()
        self._going: dict[Future[str], Run] = {}

    def _new(self) -> ProcessPoolExecutor:
        return ProcessPoolExecutor(
            self.jobs, mp_context=multiprocessing.get_context("spawn"), initializer=_start, initargs=(os.getpid(),)
        )

    @property
    def going(self) -> set[Path]:
        """Records of the runs under way."""
        return {run.record for run in self._going.values()}

    def work(self, next_run: Callable[[], Run | None]) -> Iterator[tuple[Run, str]]:
        """Yields each run that ended, with a sentence where it failed."""
        while True:
            while len(self._going) < self.jobs and (run := next_run()) is not None:
                self._going[self._executor.submit(perform, self.words(run))] = run
            if not self._going:
                return
            done, _ = wait(self._going, return_when=FIRST_COMPLETED)
            broken = False
            for future in done:
                run = self._going.pop(future)
                try:
                    failure = future.result()
                except BrokenProcessPool:
                    broken, failure = True, "its process died"
                yield run, failure
            if broken:
                for run in self._going.values():
                    yield run, "its process died"
                self._going.clear()
                self._executor.shutdown(wait=False, cancel_futures=True)
                self._executor = self._new()

    def close(self) -> None:
        """End at once; runs under way keep their checkpoints."""
        for process in list((self._executor._processes or {}).values()):
            process.terminate()
        self._executor.shutdown(wait=False, cancel_futures=True)
