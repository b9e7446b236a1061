"""The end of `make reproduce-<task>`: a person's own runs beside the published ones. One sentence, then one table.

"Agrees" means that the own mean lies inside the 95% prediction interval of the published runs,
mean ± t * sd * sqrt(1 / published + 1 / own), which is as wide as chance makes the mean of so few runs.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from experiments.analysis.comparisons import interval
from experiments.analysis.plain import BASELINE, CHALLENGER, metric_of, one_kind, pairs
from experiments.analysis.tables import mean_sd
from experiments.analysis.verdicts import versus
from experiments.core.catalogue import TASKS, Metric, arm, check_scale, in_order, signed, task, where
from experiments.core.protocol import names, protocol
from experiments.core.records import Record, Records, differing, select
from experiments.core.table import Cell, Table, fill

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Line:
    """One quantity: its name, the published and the own values, and whether they agree (None: cannot be told)."""

    name: str
    published: str
    own: str
    width: str
    agrees: bool | None


def line(name: str, metric: Metric, published: Array, own: Array, is_gain: bool = False) -> Line:
    """How the own mean compares with the published values."""

    def text(values: Array) -> str:
        if is_gain and len(values) and np.isfinite(values).all():
            return metric.number(float(values.mean()), signed=True)
        return mean_sd(metric, values, False)

    predicted = interval(published, len(own)) if len(own) else None
    if predicted is None:
        lost = [bool(len(v)) and not np.isfinite(v).all() for v in (published, own)]
        return Line(name, text(published), text(own), "–", all(lost) if any(lost) and len(own) else None)
    _, low, high = predicted
    slack = 1e-6 * max(abs(low), abs(high))  # values kept as float32 and averaged in another order are the same values
    inside = bool(np.isfinite(own).all()) and low - slack <= float(own.mean()) <= high + slack
    return Line(name, text(published), text(own), f"{metric.number(low)} to {metric.number(high)}", inside)


@dataclass(frozen=True)
class Comparison:
    """What is printed of one variant: the sentence, the table, and remarks."""

    sentence: str
    table: Table | None
    remarks: tuple[str, ...]

    def text(self, width: int) -> str:
        parts = ["\n".join(fill(self.sentence, width))]
        if self.table is not None:
            parts.append(self.table.terminal(width))
        parts += ["\n".join(fill(remark, width)) for remark in self.remarks]
        return "\n\n".join(parts)


def own_runs(
    records: Iterable[Record], published: Sequence[Record], seeds: Sequence[int], arms: Sequence[str]
) -> tuple[list[Record], list[Record]]:
    """The runs of this comparison, and the runs left out: they have other seeds, arms or settings."""
    wanted = [r for r in records if r.trial == "main" and r.purpose == "eval"]
    mine = [r for r in wanted if r.seed in seeds and r.arm in arms]
    if published:
        like = [r for r in mine if r.fingerprint == published[0].fingerprint and not differing(published[0], r)]
        kept = one_kind(like) or one_kind(mine)
    else:
        kept = one_kind(mine)
    return kept, [r for r in wanted if r not in kept]


def compare(
    name: str, scale: str, variant: str, published: Sequence[Record], own: Sequence[Record], left_out: Sequence[Record]
) -> Comparison:
    """One variant of a task at a scale."""
    entry = task(name)
    declared = [protocol(n) for n in names()]
    key, mode = metric_of(name, [*published, *own], declared)
    metric = entry.metric(key)
    place = f"{where(name, variant)}, scale {scale}"
    remarks = []
    if left_out:
        shown = ", ".join(str(r.relative) for r in left_out[:3]) + (", ..." if len(left_out) > 3 else "")
        remarks.append(
            f"Left out, since other seeds, optimizers or settings made them: {len(left_out)} runs ({shown})."
        )
    if not own:
        makes = f"`make reproduce-{name}` with SCALE={scale} makes some" if name in TASKS else "train one first"
        return Comparison(f"{place}: no run of your own is there yet; {makes}.", None, tuple(remarks))
    seeds, _, _, gains = pairs(own, key, mode)
    finite = len(gains) and np.isfinite(gains).all()
    differ = versus(metric, float(gains.mean()), CHALLENGER, BASELINE) if finite else ""
    yours = f" In your {len(seeds)} pairs {differ}." if differ else ""
    arms = in_order(r.arm for r in own)

    def values(records: Sequence[Record], of: str) -> Array:
        return np.array([r.value(key, mode) for r in records if r.arm == of and (r.diverged or key in r.metrics)])

    lines = [line(arm(a).label, metric, values(published, a), values(own, a)) for a in arms]
    theirs = pairs(published, key, mode)[3]
    if len(gains):
        fine = signed(metric, float(gains.mean())) if finite else metric
        lines.append(line("gain of FAdam", fine, theirs, gains, is_gain=True))
    rows = tuple(
        tuple(map(Cell, (q.name, q.published, q.own, q.width, {True: "yes", False: "no", None: "–"}[q.agrees])))
        for q in lines
    )
    minutes = [r.seconds / 60 for r in own]
    took = f"Your runs took {min(minutes):.1f} to {max(minutes):.1f} minutes each."
    note = f"{metric.title}, mean ± standard deviation. {took}"
    table = Table(place, ("", "published", "yours", "agrees if within", "agrees"), rows, (note,))
    if not published:
        start = f"{place}: nothing has been published to compare with yet; these are your own runs alone."
        return Comparison(start + yours, table, tuple(remarks))
    kind = differing(published[0], own[0])
    if published[0].fingerprint != own[0].fingerprint:
        remarks.insert(
            0, "Your data are not the published ones, so that agreement is not to be expected to the last digit."
        )
    if kind:
        remarks.insert(0, f"Your settings are not the published ones: {kind}.")
    known = [q.agrees for q in lines if q.agrees is not None]
    word = "reproduced" if known and all(known) else "not reproduced" if known else "not comparable"
    says = "each of your means lies where chance puts the mean of so few runs" if word == "reproduced" else (
        f"{', '.join(q.name for q in lines if q.agrees is False) or 'the published runs'} "
        + ("lies outside of what chance explains" if known else "are too few to say")
    )  # fmt: skip
    published_gain = float(theirs.mean()) if len(theirs) and np.isfinite(theirs).all() else None
    ours = "" if published_gain is None else (
        f" As published, {versus(metric, published_gain, CHALLENGER, BASELINE)} ({len(theirs)} pairs)."
    )  # fmt: skip
    count = len(select(published, arm=arms[-1]))
    means = f" “Agrees” means within the 95% prediction interval of the {count} published runs."
    return Comparison(f"{place}: {word}; {says}.{yours}{ours}{means}", table, tuple(remarks))


def comparisons(
    name: str, scale: str, roots: tuple[Path, Path], seeds: Sequence[int], arms: Sequence[str]
) -> list[Comparison]:
    """Every variant of a task for which there are runs; `roots`: the published records and the own ones."""
    task(name)
    check_scale(scale)
    sides = [select(Records([root]).all(), task=name, scale=scale) for root in roots]
    variants = sorted({r.variant for side in sides for r in side if r.purpose == "eval"}) or [""]
    found = []
    for variant in variants:
        published, own = (select(side, variant=variant, purpose="eval", trial="main") for side in sides)
        published = one_kind([r for r in published if r.arm in arms])
        kept, left_out = own_runs(own, published, seeds, arms)
        found.append(compare(name, scale, variant, published, kept, left_out))
    return found
