"""What of the studies is published, done here, due, or waits for something, and about how long the rest takes."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table

from experiments.core.durations import duration
from experiments.core.plan import Stage
from experiments.core.protocol import protocol
from experiments.core.records import Records

WIDTH = 80
COLUMNS = ("published", "here", "due", "later", "core time")
OF_STAGES = ("done", *COLUMNS[2:])


@dataclass
class Count:
    """Runs of a stage or of a study; a run counts once, in the first stage that wants it.

    Attributes:
        published, here: with a record, where there are published ones and elsewhere.
        due: without one, that can be made now.
        later: at most, that wait for results.
        seconds: what the runs with a record took.
        minutes: about what the others will take on one core; None where nothing tells.
    """

    published: int = 0
    here: int = 0
    due: int = 0
    later: int = 0
    seconds: list[float] = field(default_factory=list)
    minutes: float | None = 0.0

    @property
    def missing(self) -> int:
        return self.due + self.later

    def cells(self) -> list[str]:
        left = "unknown" if self.minutes is None else duration(self.minutes) if self.missing else ""
        return [*(str(n or "") for n in (self.published, self.here, self.due, self.later)), left]


def like(study: str, roots: Sequence[Path]) -> list[float]:
    """Seconds of all records of a study's experiment, whatever they were made for; none where it changes the model."""
    p = protocol(study)
    found = []
    for path in () if p.overrides else (path for root in roots for path in root.glob(f"{p.task}/{p.scale}/*/*.json")):
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            if content["experiment_name"] == p.experiment:
                found.append(float(content["wall_time_s"]))
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return found


def counts(stages: Sequence[Stage], results: Records, published: Path | None = None) -> list[tuple[Stage, Count]]:
    """What of each stage is done.

    A missing run will take the median of its stage, else of its study, else of the records of its experiment.
    """
    rows = []
    seen: set[object] = set()
    planned = {run.key for stage in stages for run in stage.runs}
    of_study: dict[str, list[float]] = {}
    for stage in stages:
        count = Count()
        for run in stage.runs:
            if run.record in seen:
                continue
            seen.add(run.record)
            found = results.of(run)
            if found is None:
                count.due += 1
                continue
            count.seconds.append(found.seconds)
            if published is not None and found.path.is_relative_to(published):
                count.published += 1
            else:
                count.here += 1
        coming = set(stage.coming) - planned - seen
        seen |= coming
        count.later = len(coming)
        of_study.setdefault(stage.protocol, []).extend(count.seconds)
        rows.append((stage, count))
    for study, seconds in of_study.items():
        if not seconds and any(stage.protocol == study and count.missing for stage, count in rows):
            seconds.extend(like(study, results.roots))
    for stage, count in rows:
        known = count.seconds or of_study[stage.protocol]
        if count.missing:
            count.minutes = count.missing * statistics.median(known) / 60 if known else None
    return rows


def total(rows: Sequence[Count]) -> Count:
    """The sum; its minutes are of what is known."""
    found = Count()
    for row in rows:
        for name in ("published", "here", "due", "later"):
            setattr(found, name, getattr(found, name) + getattr(row, name))
        found.minutes = (found.minutes or 0.0) + (row.minutes or 0.0)
    if rows and all(row.minutes is None for row in rows if row.missing) and found.missing:
        found.minutes = None
    return found


def time_left(rows: Sequence[tuple[Stage, Count]], jobs: int) -> str:
    """Such as "at most about 12 h with 2 at a time"."""
    whole = total([count for _, count in rows])
    if whole.minutes is None:
        return "how long they take is not known yet"
    unknown = sorted({stage.protocol for stage, count in rows if count.minutes is None})
    more = f", and what {', '.join(unknown)} take" if unknown else ""
    return f"at most about {duration(whole.minutes / jobs)} with {jobs} at a time{more}"


def _joined(waits: Sequence[str]) -> str:
    """What a stage waits for; several optimizers that are to be tuned are one list."""
    tuned = " to be tuned"
    if len(waits) > 1 and all(each.endswith(tuned) for each in waits):
        return ", ".join(each.removesuffix(tuned) for each in waits) + tuned
    return "; ".join(waits)


def _table(title: str, first: str, columns: Sequence[str]) -> Table:
    table = Table(title=title, box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    table.add_column(first, no_wrap=True)
    for name in columns:
        table.add_column(name, justify="right", no_wrap=True)
    return table


def show(
    stages: Sequence[Stage],
    results: Records,
    jobs: int,
    console: Console | None = None,
    published: Path | None = None,
    details: bool = False,
) -> None:
    """Print a table of the studies, or of their stages, and what is left, in at most 80 columns."""
    console = console or Console()
    console = Console(width=min(WIDTH, console.width), file=console.file, force_terminal=console.is_terminal or None)
    rows = counts(stages, results, published)
    studies = list(dict.fromkeys(stage.protocol for stage, _ in rows))
    if details:
        for study in studies:
            table = _table(study, "stage", OF_STAGES)
            waiting: dict[str, list[str]] = {}
            for stage, count in rows:
                if stage.protocol == study:
                    rest = count.cells()[2:]
                    done = str(count.published + count.here or "")
                    table.add_row(stage.name.replace(" against ", ", "), done, *rest)
                    if stage.waits:
                        waiting.setdefault(stage.name.partition(":")[0], []).append(stage.waits)
            console.print(table)
            for name, waits in waiting.items():
                console.print(f"{name} waits for {_joined(waits)}", highlight=False)
            console.print()
    else:
        table = _table("The declared studies, in runs", "study", COLUMNS)
        for study in studies:
            table.add_row(study, *total([count for stage, count in rows if stage.protocol == study]).cells())
        console.print(table)
        console.print()
    whole = total([count for _, count in rows])
    lines = [
        f"{whole.published} runs are published, {whole.here} more are done here, {whole.due} are due, at most "
        f"{whole.later} come later: {time_left(rows, jobs)}.",
    ]
    if not details:
        lines.append(
            "Times are those of runs that are done. `python -m experiments.study status llm` shows the stages of a "
            "study; docs/study.md has the rules."
        )
    for line in lines:
        console.print(line, highlight=False)
