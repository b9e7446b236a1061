"""What the report is made of, free of any layout: cells that lead to records, tables, plots, groups of records."""

from __future__ import annotations

import base64
import difflib
import io
import math
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

from experiments.analysis.records import Record
from experiments.analysis.stats import Summary
from experiments.analysis.study import Comparison
from experiments.analysis.tasks import Metric, TaskSpec, arm_label

# A trial's name starts with the kind of run it is; the value follows.
_KIND = re.compile(r"tune|main|eps|lr|beta2|batch|gradient_scale|rho")
GOOD, BAD, NEUTRAL, OPEN = "good", "bad", "neutral", "open"


@dataclass(frozen=True)
class Cell:
    """A text, where it leads, and its look: `GOOD`, `BAD`, ... make it a sign; `more` stands small below it."""

    text: str
    href: str = ""
    kind: str = ""
    strong: bool = False
    more: tuple[Cell, ...] = ()


@dataclass(frozen=True)
class Table:
    """`cards`: on a narrow screen every row becomes a card instead of the table scrolling in its box."""

    caption: str
    header: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    cards: bool = False
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Plot:
    svg: str
    caption: str


@dataclass(frozen=True)
class Group:
    """Records that belong together in the appendix: of one task, scale, likelihood, arm and kind of run."""

    id: str
    title: str
    table: Table
    count: int


@dataclass
class Links:
    """Where the numbers lead: to a record's own file, or to the place in the appendix that lists several of them.

    Attributes:
        out: folder of the page.
        groups, pairs: what has been asked for, in the order of the page, by anchor.
    """

    out: Path
    groups: dict[str, list[Record]] = field(default_factory=dict)
    pairs: dict[str, Comparison] = field(default_factory=dict)

    def file(self, path: Path) -> str:
        return quote(Path(os.path.relpath(path, self.out)).as_posix())

    def record(self, record: Record) -> str:
        return self.file(record.path)

    def runs(self, records: Sequence[Record]) -> str:
        """The record itself if there is but one, else the group that they are in."""
        if len(records) == 1:
            return self.record(records[0])
        return f"#{group_id(records[0])}" if records else ""

    def pair(self, comparison: Comparison) -> str:
        name = slug(
            f"pair {comparison.task} {comparison.scale} {comparison.part} {comparison.arm} {comparison.opponent}"
        )
        self.pairs.setdefault(name, comparison)
        return f"#{name}"


def slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


def run_kind(record: Record) -> str:
    found = _KIND.match(record.trial)
    return found[0] if found else record.trial


def group_id(record: Record) -> str:
    return slug(f"runs {record.task} {record.scale} {record.variant} {record.arm} {run_kind(record)}")


def grouped(records: Iterable[Record]) -> dict[str, list[Record]]:
    groups: dict[str, list[Record]] = {}
    for record in records:
        groups.setdefault(group_id(record), []).append(record)
    return groups


def dash(text: str = "–") -> Cell:
    return Cell(text)


def outcome_cell(word: str) -> Cell:
    """A verdict or the outcome of a comparison as a sign: its colour says no more than its words."""
    kinds = {
        "supported": GOOD,
        "better": GOOD,
        "contradicted": BAD,
        "worse": BAD,
        "no detectable difference": NEUTRAL,
    }
    return Cell(word, kind=kinds.get(word, OPEN))


def phrase(spec: TaskSpec) -> str:
    """A task inside a sentence."""
    return f"the {spec.title}" if spec.title[1].isupper() else spec.title[0].lower() + spec.title[1:]


def enumerated(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else ", ".join(words[:-1]) + f" and {words[-1]}"


def arrow(metric: Metric) -> str:
    return "↓" if metric.mode == "min" else "↑"


def axis_text(metric: Metric) -> str:
    """A metric with its unit, as an axis or a column is headed."""
    return metric.label + (f" ({metric.unit})" if metric.unit else "")


def summary_text(metric: Metric, summary: Summary | None) -> str:
    return metric.summary(summary).replace("-", "−")


def minus_signs(text: str) -> str:
    """A sentence whose negative numbers have a real minus sign."""
    return re.sub(r"(?<![\w.])-(?=\d)", "−", text)


def setting_text(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, (int, float)) and not isinstance(value, bool) else str(value)


def unit_text(metric: Metric | None) -> str:
    """What stands behind a difference: those of percentages are points."""
    return " points" if metric is not None and metric.percent else ""


def number_text(comparison: Comparison, value: float | None) -> str:
    """A gain without its unit, with a real minus sign."""
    if value is None:
        return "–"
    metric = comparison.metric
    text = f"{value:+.2f}" if metric is None else metric.number(value, signed=True)
    return text.replace("-", "−")


def metric_text(metric: Metric, value: float) -> str:
    return (metric.number(value) + metric.unit).replace("-", "−")


def matters_text(comparison: Comparison) -> str:
    metric = comparison.metric
    return "1" if metric is None else metric.number(comparison.matters) + unit_text(metric)


def gain_text(comparison: Comparison) -> str:
    """Mean gain and Student's 95% interval."""
    gain = comparison.gain
    if gain.mean is None:
        return "both diverged"
    text = number_text(comparison, gain.mean)
    if gain.t_interval is not None:
        text += f" [{', '.join(number_text(comparison, v) for v in gain.t_interval)}]"
    return text + unit_text(comparison.metric)


def gain_cell(comparison: Comparison | None, links: Links) -> Cell:
    """A gain that leads to the pairs behind it."""
    if comparison is None or not comparison.gain.n:
        return dash()
    return Cell(gain_text(comparison), links.pair(comparison))


def data_uri(image: Any) -> str:
    """An image as a PNG inside the page."""
    target = io.BytesIO()
    image.save(target, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(target.getvalue()).decode("ascii")


def word_differences(reference: str, hypothesis: str) -> list[tuple[str, str]]:
    """The hypothesis as (kind, words): "same", "wrong" where it says something else, "missing" what it left out."""
    a, b = reference.split(), hypothesis.split()
    parts: list[tuple[str, str]] = []
    for kind, i, j, k, m in difflib.SequenceMatcher(None, a, b, autojunk=False).get_opcodes():
        if kind == "equal":
            parts.append(("same", " ".join(b[k:m])))
        elif k == m:
            parts.append(("missing", " ".join(a[i:j])))
        else:
            parts.append(("wrong", " ".join(b[k:m])))
    return parts


def pair_table(comparison: Comparison, links: Links) -> Table:
    """Every seed of a comparison, with the records of both sides."""
    metric = comparison.metric
    sides: dict[tuple[str, int], list[Record]] = {}
    for record in comparison.runs:
        sides.setdefault((record.arm, record.seed), []).append(record)
    rows = []
    for seed, gain in comparison.gain.gains.items():
        cells = [Cell(str(seed))]
        for arm in (comparison.arm, comparison.opponent):
            found = sides.get((arm, seed), [])
            if metric is None:
                cells.append(Cell("", more=tuple(Cell(r.variant or "record", links.record(r)) for r in found)))
                continue
            values = [(r.value(metric.keys, metric.mode), r) for r in found]
            cells.append(
                next((Cell(metric_text(metric, v), links.record(r)) for v, r in values if v is not None), dash())
            )
        cells.append(Cell(number_text(comparison, gain) + unit_text(metric)))
        rows.append(tuple(cells))
    unit = metric.label if metric is not None else "units of the difference that matters"
    variant = f", {comparison.variant.replace('_', ' ')}" if comparison.variant else ""
    labels = arm_label(comparison.arm), arm_label(comparison.opponent)
    return Table(
        f"{comparison.task}, {comparison.scale}{variant}: {labels[0]} against {labels[1]}, {unit}",
        ("seed", *labels, "gain"),
        tuple(rows),
    )


def group_table(records: Sequence[Record], metrics: Sequence[Metric], links: Links) -> Table:
    """Every run of a group, each with its file."""
    shown = [m for m in metrics if any(k in r.metrics for r in records for k in m.keys)]
    rows = []
    for r in sorted(records, key=lambda r: (r.seed, _natural(r.trial))):
        values = [r.value(m.keys, m.mode) for m in shown]
        decay = r.setting("optimizer.weight_decay")
        rows.append(
            (
                Cell(f"{r.trial}-s{r.seed}", links.record(r)),
                *(
                    Cell("–" if v is None else "diverged" if not math.isfinite(v) else metric_text(m, v))
                    for m, v in zip(shown, values, strict=True)
                ),
                Cell(setting_text(r.setting("optimizer.lr"))),
                Cell("–" if decay is None else setting_text(decay)),
                Cell(f"{r.steps:,}"),
                Cell("–" if r.wall_time_s is None else f"{r.wall_time_s / 60:.1f}"),
                Cell(r.commit[:7] + (" (changed)" if r.dirty else "") or "–"),
            )
        )
    header = ("record", *(m.label for m in shown), "learning rate", "decay", "steps", "min", "commit")
    first = records[0]
    return Table(f"{first.task}, {first.scale}, {arm_label(first.arm)}: records", header, tuple(rows))


def _natural(text: str) -> list[tuple[int, float, str]]:
    """Sorts tune-p10 behind tune-p9, and 1e-4 behind 1e-12."""
    parts = re.split(r"(-?\d+(?:\.\d+)?(?:e[-+]?\d+)?)", text)
    return [(0, float(p), "") if i % 2 else (1, 0.0, p) for i, p in enumerate(parts)]
