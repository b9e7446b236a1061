"""Run one tier of a task's study: plain Hydra multiruns, and the choice of hyperparameters between them.

    python -m experiments.study llm --tier who
    python -m experiments.study llm --tier why --jobs 0 hydra/launcher=slurm

What has a record is not run again; what was interrupted goes on. A run that fails stops nothing: it is tried a second
time at the end of its multirun, and then reported. Further words are Hydra overrides for every run.
"""

from __future__ import annotations

import argparse
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from experiments.analysis.plan import TIERS, Multirun, multiruns, planned
from experiments.analysis.records import AnalysisError, load_records, one_line_warnings
from experiments.analysis.tuning import current, settle
from experiments.core import study
from experiments.core.errors import UserError

ATTEMPTS = 2


def command(run: Multirun, jobs: int | None, runs: Path, words: Sequence[str]) -> list[str]:
    """The Hydra multirun that makes the runs of one part."""
    own = [f"hydra.launcher.n_jobs={jobs}"] if jobs else []
    return [
        sys.executable, "-m", "experiments.train", "-m", *run.words, f"paths.runs_dir={runs.resolve()}", *own, *words,
    ]  # fmt: skip


def missing(run: Multirun, runs: Path) -> list[str]:
    """The planned records that do not exist, or were made with hyperparameters that have been chosen anew since."""
    records = {record.relative: record for record in load_records(runs)}
    return [str(p.record) for p in run.runs if p.record not in records or not current(p, records[p.record])]


def perform(run: Multirun, jobs: int | None, runs: Path, words: Sequence[str]) -> list[str]:
    """Make the runs of one part; returns the records that are missing all the same."""
    left = missing(run, runs)
    for attempt in range(ATTEMPTS):
        if not left:
            break
        line = command(run, jobs, runs, words)
        again = " (again)" if attempt else ""
        print(f"{run.tier}, {run.part}: {len(left)} of {len(run.runs)} runs{again}", flush=True)
        print(f"  {shlex.join(line[1:])}", flush=True)
        done = subprocess.run(line, check=False)
        if done.returncode in (-2, 130):
            raise KeyboardInterrupt
        left = missing(run, runs)
    return left


def tier(task: str, name: str, jobs: int | None, runs: Path, words: Sequence[str], failed: list[str]) -> None:
    """All parts of a tier in their order; adds the records that could not be made to `failed`.

    Raises:
        AnalysisError: two tuning records contradict one another, or a space was widened too often.
        ConfigError: the hyperparameters of an earlier tier are not settled.
    """
    done: set[Multirun] = set()
    # Planned anew each time: a space that was widened has more runs.
    while (run := next((m for m in multiruns(planned(task, [name])) if m not in done), None)) is not None:
        done.add(run)
        for arm in run.needs:
            study.tuned(run.experiment, arm, "optimizer")
        left = perform(run, jobs, runs, words)
        failed += left
        if run.purpose == "tune" and not left:
            settled = settle(run.runs, load_records(runs))
            for reason in settled.widen:
                print(f"{run.part}: {reason}; the space is widened for every arm", flush=True)
            for choice in settled.choices.values():
                at = ", ".join(f"{key}={value:g}" for key, value in choice.best.point)
                print(f"{run.part}: {choice.arm}: {at} ({choice.metric} {choice.best.value:.4g})", flush=True)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m experiments.study", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("task")
    parser.add_argument("--tier", choices=TIERS, default="who")
    parser.add_argument(
        "--jobs", type=int, default=2, help="runs at a time on this machine (default: 2); 0 on a cluster"
    )
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="root of the run records (default: runs)")
    parser.add_argument("words", nargs="*", metavar="key=value", help="Hydra overrides for every run")
    options = parser.parse_intermixed_args(argv)
    one_line_warnings()
    if options.jobs < 0:
        parser.error(f"--jobs must be at least 0, got {options.jobs}")
    failed: list[str] = []
    status = 0
    try:
        tier(options.task, options.tier, options.jobs or None, options.runs, options.words, failed)
    except (UserError, AnalysisError) as error:
        print(f"error: {error}", file=sys.stderr)
        status = 2
    except KeyboardInterrupt:
        print("interrupted: the same command goes on with what is missing", file=sys.stderr)
        return 130
    for record in failed:
        print(f"failed: {record}", file=sys.stderr)
    return status or (1 if failed else 0)


if __name__ == "__main__":
    raise SystemExit(main())
