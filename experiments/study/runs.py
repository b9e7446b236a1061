"""The runs of some plans, until none is missing."""

from __future__ import annotations

import signal
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from experiments.core.plan import Planner, plan_all, wanted
from experiments.core.protocol import Run
from experiments.core.records import Records
from experiments.core.stopping import end_at_once
from experiments.study.pool import Pool
from experiments.study.status import counts, time_left

ATTEMPTS = 2


def run_all(
    planners: Sequence[Planner],
    results: Records,
    runs: Path,
    words: Sequence[str],
    jobs: int,
    minutes: float | None = None,
) -> int:
    """Make runs until none is missing, or time is up; SIGTERM ends it as Ctrl-C does. Returns 1 if some failed.

    Args:
        runs: root of this machine's records, which `results` reads.
        words: further Hydra overrides for every run.
        jobs: runs at a time.
        minutes: after so many, no run is started.
    """
    signal.signal(signal.SIGTERM, end_at_once)
    until = time.monotonic() + 60 * minutes if minutes else None
    tried: Counter[Path] = Counter()
    failures: dict[Path, str] = {}

    def next_run() -> Run | None:
        if until is not None and time.monotonic() > until:
            return None
        candidates = [run for run in wanted(plan_all(planners), results) if run.record not in pool.going]
        for attempt in range(ATTEMPTS):
            for run in candidates:
                if tried[run.record] == attempt:
                    tried[run.record] += 1
                    return run
        return None

    more = ("progress=line", "logger=none", f"paths.runs_dir={runs.resolve()}", *words)
    pool = Pool(jobs, lambda run: [*run.words, *more])
    done = 0
    try:
        for run, failure in pool.work(next_run):
            results.forget(run)
            if not failure and results.of(run) is None:
                failure = f"it left a record that does not belong to it: {run.record}"
            if failure:
                failures[run.record] = failure
                print(f"failed: {run.record}: {failure}", file=sys.stderr, flush=True)
            else:
                done += 1
                failures.pop(run.record, None)
                stages = plan_all(planners)
                due, left = len(list(wanted(stages, results))), time_left(counts(stages, results), jobs)
                print(f"{done} done, {due} due: {run.protocol}, {run.stage}: {run.record}; {left}", flush=True)
    finally:
        pool.close()
    for record, failure in failures.items():
        print(f"failed {ATTEMPTS} times: {record}: {failure.strip().splitlines()[-1]}", file=sys.stderr)
    return 1 if failures else 0
