"""What of the studies is done, due, or waits for something, and about how long the rest takes."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from experiments.core.plan import Stage
from experiments.core.records import Records


def duration(minutes: float) -> str:
    """Such as "45 min" or "3 h 20 min"."""
    whole = round(minutes)
    return f"{whole} min" if whole < 60 else f"{whole // 60} h {whole % 60:02d} min"


def show(stages: Sequence[Stage], results: Records, jobs: int, console: Console | None = None) -> None:
    """Print a table of the stages and one sentence on the whole.

    A run counts once, in the first stage that wants it. The time of a run that is missing is the median of its stage,
    else of its protocol's done runs.
    """
    console = console or Console()
    table = Table(title="The declared studies")
    for name in ("study", "stage", "done", "due", "later, at most", "waits for", "core time left"):
        table.add_column(name, justify="left" if name in ("study", "stage", "waits for") else "right")
    costs: dict[str, list[float]] = {}
    seen: set[object] = set()
    rows = []
    for stage in stages:
        done, due, own = 0, 0, []
        for run in stage.runs:
            if run.record in seen:
                continue
            seen.add(run.record)
            found = results.of(run)
            if found is None:
                due += 1
            else:
                done += 1
                own.append(found.seconds)
        costs.setdefault(stage.protocol, []).extend(own)
        rows.append((stage, done, due, own))
    total_done = total_due = total_later = 0
    minutes, unknown = 0.0, set()
    for stage, done, due, own in rows:
        of_protocol = costs[stage.protocol]
        left, rest = "", due + stage.later
        if rest and of_protocol:
            cost = rest * statistics.median(own or of_protocol) / 60
            minutes += cost
            left = duration(cost)
        elif rest:
            unknown.add(stage.protocol)
            left = "unknown"
        table.add_row(stage.protocol, stage.name, str(done), str(due or ""), str(stage.later or ""), stage.waits, left)
        total_done, total_due, total_later = total_done + done, total_due + due, total_later + stage.later
    console.print(table)
    more = f" and what {', '.join(sorted(unknown))} take" if unknown else ""
    sentence = (
        f"{total_done} runs done, {total_due} due, at most {total_later} more later; at most about {minutes / 60:.1f} "
        f"core-hours left{more}, {duration(minutes / jobs)} with {jobs} at a time."
    )
    console.print(sentence, highlight=False, soft_wrap=True)
