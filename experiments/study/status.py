"""How many runs of the studies are published, done here, due or to come, and about how long the rest takes."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from experiments.core.durations import duration
from experiments.core.plan import Stage, done
from experiments.core.protocol import protocol
from experiments.core.records import Records
from experiments.core.table import Cell, Table, fill

WIDTH = 80
COLUMNS = ("published", "here", "due", "later", "core time")
OF_STAGES = ("done", *COLUMNS[2:])


@dataclass
class Count:
    """Runs of a stage or of a study.

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


def like(study: str, results: Records) -> list[float]:
    """Seconds of all records of a study's experiment, whatever they were made for; none where it changes the model."""
    p = protocol(study)
    return [] if p.overrides else [r.seconds for r in results.all() if r.experiment_name == p.experiment and r.seconds]


def counts(stages: Sequence[Stage], results: Records, published: Path | None = None) -> list[tuple[Stage, Count]]:
    """How much of each stage is done.

    A missing run will take the median of its stage, else of its study, else of the records of its experiment.
    """
    rows = []
    of_study: dict[str, list[float]] = {}
    for stage, records, due, later in done(stages, results):
        there = sum(published is not None and (published / r.relative).is_file() for r in records)
        count = Count(there, len(records) - there, due, later, [r.seconds for r in records])
        of_study.setdefault(stage.protocol, []).extend(count.seconds)
        rows.append((stage, count))
    for study, seconds in of_study.items():
        if not seconds and any(stage.protocol == study and count.missing for stage, count in rows):
            seconds.extend(like(study, results))
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


def _table(title: str, header: Sequence[str], rows: Sequence[Sequence[str]], width: int) -> str:
    table = Table(title, tuple(header), tuple(tuple(map(Cell, row)) for row in rows))
    return f"{title}\n\n{table.terminal(width)}\n"


def said(
    stages: Sequence[Stage],
    results: Records,
    jobs: int,
    width: int = WIDTH,
    published: Path | None = None,
    details: bool = False,
) -> str:
    """A table of the studies, or of their stages, and what is left, in at most 80 columns."""
    width = min(WIDTH, width)
    rows = counts(stages, results, published)
    studies = list(dict.fromkeys(stage.protocol for stage, _ in rows))
    lines = []
    for study in studies if details else ():
        cells = []
        waiting: dict[str, list[str]] = {}
        for stage, count in ((stage, count) for stage, count in rows if stage.protocol == study):
            done = str(count.published + count.here or "")
            cells.append([stage.name.replace(" against ", ", "), done, *count.cells()[2:]])
            if stage.waits:
                waiting.setdefault(stage.name.partition(":")[0], []).append(stage.waits)
        lines.append(_table(study, ("stage", *OF_STAGES), cells, width))
        for name, waits in waiting.items():
            lines += fill(f"{name} waits for {_joined(waits)}", width)
        lines.append("")
    if not details:
        of = {study: total([count for stage, count in rows if stage.protocol == study]) for study in studies}
        cells = [[study, *count.cells()] for study, count in of.items()]
        lines.append(_table("The declared studies, in runs", ("study", *COLUMNS), cells, width))
    whole = total([count for _, count in rows])
    lines += fill(
        f"{whole.published} runs are published, {whole.here} more are done here, {whole.due} are due, at most "
        f"{whole.later} come later: {time_left(rows, jobs)}.",
        width,
    )
    if not details:
        lines += fill(
            "Times are those of runs that are done. `python -m experiments.study status llm` shows the stages of a "
            "study; docs/study.md has the rules.",
            width,
        )
    return "\n".join(lines)
