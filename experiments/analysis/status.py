"""What of a study is done, running, failed or missing, and about how long the rest takes.

python -m experiments.analysis.status [asr llm vqvae] [--tier who] [--runs runs] [--jobs 2] [--list missing]
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from experiments.analysis.plan import TIERS, Planned, planned
from experiments.analysis.records import Record, load_records, one_line_warnings
from experiments.analysis.tuning import current
from experiments.core.errors import UserError
from experiments.core.study import TUNED, protocol

STATES = ("done", "running", "failed", "missing")
# A run that writes nothing into its folder for so long is no longer at work.
SILENT_S = 300.0


@dataclass(frozen=True)
class Part:
    """One part of one tier: the planned runs by state, and the minutes of one core that the rest will take, if any run
    of the task has been done."""

    task: str
    tier: str
    part: str
    states: dict[str, tuple[Planned, ...]]
    minutes: float | None

    @property
    def total(self) -> int:
        return sum(len(runs) for runs in self.states.values())

    def words(self) -> str:
        """One sentence, as the tables and the page quote it."""
        counts = ", ".join(f"{len(self.states[s])} {s}" for s in STATES if self.states[s])
        return f"{self.task}, tier {self.tier}, {self.part}: {counts} of {self.total}"


def state(run: Planned, root: Path, done: set[Path], now: float) -> str:
    """`done`: its record exists, made with what is chosen now. `running`: its folder was written to lately. `failed`:
    else, where a folder exists."""
    if run.record in done:
        return "done"
    folder = (root / run.record).with_suffix("")
    if not folder.is_dir():
        return "missing"
    latest = max((p.stat().st_mtime for p in folder.rglob("*")), default=folder.stat().st_mtime)
    return "running" if now - latest < SILENT_S else "failed"


def status(
    task: str, root: Path, records: Sequence[Record], tiers: Sequence[str] = TIERS, tuned: Path = TUNED
) -> list[Part]:
    """The parts of a task's study in their order; `tuned` says how far their spaces were widened."""
    mine = {record.relative: record for record in records if record.root == root}
    seconds = {r.relative: r.wall_time_s for r in records if r.task == task and r.scale == "study" and r.wall_time_s}
    cost = statistics.median(seconds.values()) if seconds else None
    groups: dict[tuple[str, str], list[Planned]] = {}
    runs = planned(task, tiers, tuned=tuned)
    done = {run.record for run in runs if run.record in mine and current(run, mine[run.record], tuned)}
    for run in runs:
        groups.setdefault((run.tier, run.part), []).append(run)
    now = time.time()
    parts = []
    for (tier, part), members in groups.items():
        states: dict[str, list[Planned]] = {name: [] for name in STATES}
        for run in members:
            states[state(run, root, done, now)].append(run)
        left = len(members) - len(states["done"])
        minutes = None if cost is None else left * cost / 60
        parts.append(Part(task, tier, part, {k: tuple(v) for k, v in states.items()}, minutes))
    return parts


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m experiments.analysis.status", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("tasks", nargs="*", metavar="task", default=[], help="default: all three")
    parser.add_argument("--tier", choices=TIERS, action="append", help="default: all of them")
    parser.add_argument("--runs", default="runs", type=Path, help="root of the run records (default: runs)")
    parser.add_argument("--jobs", default=2, type=int, help="runs at a time, for the time left (default: 2)")
    parser.add_argument("--list", choices=STATES, help="also name every run in this state")
    options = parser.parse_args(argv)
    one_line_warnings()
    if options.jobs < 1:
        parser.error(f"--jobs must be at least 1, got {options.jobs}")
    console = Console()
    table = Table(title=f"The study in {options.runs}")
    for name in ("task", "tier", "part", *STATES, "of", "time left"):
        table.add_column(name, justify="left" if name in ("task", "tier", "part") else "right")
    total: Counter[str] = Counter()
    minutes, unknown = 0.0, False
    listed: list[Planned] = []
    try:
        for task in options.tasks or ["asr", "llm", "vqvae"]:
            protocol(task)
            records = load_records(options.runs)
            for part in status(task, options.runs, records, options.tier or TIERS):
                counts = {name: len(part.states[name]) for name in STATES}
                total.update(counts)
                left = "" if counts["done"] == part.total else "unknown"
                if left and part.minutes is not None:
                    minutes += part.minutes
                    left = duration(part.minutes / options.jobs)
                elif left:
                    unknown = True
                shown = [str(counts[name] or "") for name in STATES]
                table.add_row(part.task, part.tier, part.part, *shown, str(part.total), left)
                listed += part.states[options.list] if options.list else ()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    console.print(table)
    words = ", ".join(f"{total[name]} {name}" for name in STATES)
    rest = "nothing has run that would tell the time left"
    if minutes or not unknown:
        more = " and what is unknown" if unknown else ""
        rest = f"about {duration(minutes / options.jobs)}{more} left with {options.jobs} at a time"
    sentence = f"{words} of {total.total()} runs; {rest}."
    console.print(sentence, highlight=False, soft_wrap=True)
    for run in listed:
        console.print(f"{options.list}: {run.record}", highlight=False, soft_wrap=True)
    return 0


def duration(minutes: float) -> str:
    """Such as "45 min" or "3 h 20 min"."""
    whole = round(minutes)
    return f"{whole} min" if whole < 60 else f"{whole // 60} h {whole % 60:02d} min"


if __name__ == "__main__":
    raise SystemExit(main())
