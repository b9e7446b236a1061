"""What the report says first: the answer, the verdict on every claim, and the paper's numbers beside ours."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from experiments.analysis import report_figures as draw
from experiments.analysis.paper import Paper
from experiments.analysis.records import SCALES, Record, by_arm, evaluation, sections, select
from experiments.analysis.report_parts import (
    Cell,
    Links,
    Plot,
    Table,
    arrow,
    axis_text,
    dash,
    enumerated,
    gain_cell,
    gain_text,
    grouped,
    matters_text,
    minus_signs,
    outcome_cell,
    phrase,
    run_kind,
    slug,
    summary_text,
)
from experiments.analysis.stats import summarise
from experiments.analysis.study import OPPONENT, SCALE, Study, TaskStudy, compare_runs
from experiments.analysis.summary import HEADLINES
from experiments.analysis.tables import count_text
from experiments.analysis.tasks import SPECS, arm_label, values_by_seed
from experiments.analysis.verdicts import NOT_TESTED, Claim, Verdict, detectable_text, p_text

_SETTINGS = {"optimizer.lr": "learning rate", "optimizer.weight_decay": "weight decay"}


@dataclass(frozen=True)
class Point:
    """One line of the answer: a task, the outcome as a sign, and the numbers in words."""

    title: str
    sign: Cell
    words: Cell


@dataclass(frozen=True)
class Answer:
    """`lead` stands before `points`, one for each task at the scale that answers; `others` are further scales."""

    lead: str
    points: tuple[Point, ...]
    others: tuple[str, ...]
    table: Table | None
    plot: Plot | None


def headline_verdicts(found: Sequence[Verdict]) -> list[Verdict]:
    """On who wins: FAdam against its declared opponent, one task a claim; the study first, then by task."""
    parts = [
        part
        for v in found
        if v.claim.test == "superiority" and (v.claim.arm, v.claim.opponent) == ("fadam", OPPONENT)
        for part in v.parts
    ]
    return sorted(parts, key=lambda p: (SCALES.index(p.scale), list(SPECS).index(p.task)))


def _tested(part: Verdict) -> bool:
    return part.word != NOT_TESTED and part.comparison is not None


def _how(parts: Sequence[Verdict], records: Sequence[Record]) -> str:
    """How the two were tuned and compared, such as "8 trials over learning rate and weight decay, 5 paired seeds"."""
    scale, tasks = parts[0].scale, {p.task for p in parts}
    trials = [r for r in records if r.scale == scale and r.task in tasks and r.purpose == "tune" and r.arm == "fadam"]
    searched = [words for key, words in _SETTINGS.items() if any(key in r.searched for r in trials)]
    words = []
    if searched:
        counts = sorted(
            {sum((r.task, r.variant) == key for r in trials) for key in {(r.task, r.variant) for r in trials}}
        )
        span = "–".join(map(str, dict.fromkeys((counts[0], counts[-1]))))
        words.append(f"{span} trials each over {enumerated(searched)}")
    pairs = sorted({p.comparison.gain.n for p in parts if p.comparison is not None})
    words.append(f"{'–'.join(map(str, dict.fromkeys((pairs[0], pairs[-1]))))} paired seeds")
    return ", ".join(words)


def _outcomes(parts: Sequence[Verdict]) -> str:
    """Such as "better on speech recognition and not detectably different on the VQ-VAE"."""
    clauses = []
    for outcome, words in (
        ("better", "better on {}"),
        ("worse", "worse on {}"),
        ("no detectable difference", "not detectably different on {}"),
    ):
        names = [phrase(SPECS[p.task]) for p in parts if p.comparison is not None and p.comparison.outcome == outcome]
        if names:
            clauses.append(words.format(enumerated(names)))
    return enumerated(clauses)


def answer(found: Sequence[Verdict], numbers: Study, records: Sequence[Record], links: Links) -> Answer:
    """What a reader in a hurry takes away: the study's answer, or that of the longer runs as long as it has none."""
    parts = headline_verdicts(found)
    tested = [p for p in parts if _tested(p)]
    if not records or not tested:
        lead = "Nothing has been published yet, so there is no answer."
        if records:
            lead = "The published records do not suffice for an answer yet."
        return Answer(lead, tuple(_untested(parts)) if records else (), (), None, None)
    by_scale = {scale: [p for p in tested if p.scale == scale] for scale in dict.fromkeys(p.scale for p in tested)}
    first = next(iter(by_scale))
    how = _how(by_scale[first], records)
    lead = f"Against AdamW with global-norm clipping ({how}; scale “{first}”), FAdam is {_outcomes(by_scale[first])}."
    points = [_point(p, links) for p in by_scale[first]]
    if first == SCALE:
        points += _untested(parts)
    others = [
        f"At scale “{scale}” ({_how(mine, records)}) it is {_outcomes(mine)}."
        for scale, mine in by_scale.items()
        if scale != first
    ]
    if first != SCALE:
        missing = [f"{phrase(SPECS[p.task])} ({p.sentence})" for p in parts if p.scale == SCALE]
        others.append(f"The study itself, at scale “{SCALE}”, has no answer yet on {enumerated(missing)}.")
    return Answer(lead, tuple(points), tuple(others), _answer_table(tested, links), _answer_plot(tested))


def _untested(parts: Sequence[Verdict]) -> list[Point]:
    return [
        Point(SPECS[p.task].title, outcome_cell(p.word), Cell(p.sentence))
        for p in parts
        if p.scale == SCALE and not _tested(p)
    ]


def _point(part: Verdict, links: Links) -> Point:
    c = part.comparison
    assert c is not None
    assert c.metric is not None
    text = f"gain {gain_text(c)} in {c.metric.label}"
    if c.outcome not in ("better", "worse") and c.detectable is not None:
        text += f"; {detectable_text(c)}, {matters_text(c)} would matter"
    return Point(SPECS[part.task].title, outcome_cell(c.said), Cell(text, links.pair(c)))


def _answer_table(parts: Sequence[Verdict], links: Links) -> Table:
    rows = []
    for p in parts:
        c = p.comparison
        assert c is not None
        assert c.metric is not None
        metric = c.metric
        sides = [[r for r in c.runs if r.arm == arm] for arm in (c.opponent, c.arm)]
        tests = f"{p_text(c.gain.p)} / {p_text(c.gain.p_t)} / {p_text(c.p_t_holm)}"
        rows.append(
            (
                Cell(f"{SPECS[p.task].title}, {p.scale}", more=(Cell(f"{axis_text(metric)} {arrow(metric)}"),)),
                outcome_cell(c.said),
                *(
                    Cell(summary_text(metric, summarise(list(values_by_seed(runs, metric).values()))), links.runs(runs))
                    for runs in sides
                ),
                gain_cell(c, links),
                Cell(matters_text(c)),
                Cell(tests, f"#{slug(f'verdict {p.claim.id}')}"),
            )
        )
    header = (
        "task, scale", "FAdam is", "AdamW + clip", "FAdam", "gain of FAdam [95%]", "would matter",
        "p: sign-flip / t / t, Holm",
    )  # fmt: skip
    return Table("FAdam against AdamW with global-norm clipping", header, tuple(rows))


def _answer_plot(parts: Sequence[Verdict]) -> Plot:
    rows = []
    for p in parts:
        c = p.comparison
        assert c is not None
        gain, unit = c.gain, c.matters
        rows.append(
            draw.Row(
                label=f"{SPECS[p.task].title}, {p.scale}",
                mean=None if gain.mean is None else gain.mean / unit,
                interval=None if gain.t_interval is None else (gain.t_interval[0] / unit, gain.t_interval[1] / unit),
                values=[v / unit for v in gain.gains.values() if math.isfinite(v)],
            )
        )
    label = "Gain of FAdam over AdamW with clipping, in units of what matters: " + "; ".join(
        f"{row.label} {row.mean:+.2f}" for row in rows if row.mean is not None
    )
    picture = draw.forest("answer", label, rows, 1.0, "gain of FAdam / difference that matters")
    return Plot(
        picture,
        "Gain of FAdam over AdamW + clip: mean and 95% interval over paired seeds (ticks: each seed), in units of the "
        "smallest difference declared to matter. Right is better; inside the shaded band the difference is too small.",
    )


# --- the verdicts


@dataclass(frozen=True)
class PartView:
    """What one task says; `also` are comparisons that are reported beside and decide nothing."""

    title: str
    sign: Cell
    gain: Cell
    sentence: str
    also: tuple[Cell, ...]


@dataclass(frozen=True)
class VerdictView:
    """The verdict of one scale; `records` leads to all groups of runs behind it."""

    scale: str
    verdict: Verdict
    sign: Cell
    parts: tuple[PartView, ...]
    records: tuple[Cell, ...]


@dataclass(frozen=True)
class ClaimView:
    id: str
    claim: Claim
    verdicts: tuple[VerdictView, ...]


def claim_views(found: Sequence[Verdict], records: Sequence[Record], links: Links, theory: str = "") -> list[ClaimView]:
    """Every claim with the verdict of every scale.

    Args:
        theory: link to the measures that a claim on the theory rests on.
    """
    by_path = {r.relative: r for r in records}
    views: dict[str, list[VerdictView]] = {}
    claims: dict[str, Claim] = {}
    for v in found:
        claims[v.claim.id] = v.claim
        parts = [
            PartView(
                SPECS[part.task].title if part.task in SPECS else "",
                outcome_cell(part.word),
                gain_cell(part.comparison, links) if _tested(part) else dash(""),
                minus_signs(part.sentence),
                tuple(Cell(f"{c.label}, gain {gain_text(c)}, {c.said}", links.pair(c)) for c in part.also),
            )
            for part in v.parts or (v,)
        ]
        cells = [
            Cell(f"{arm_label(rs[0].arm)}, {rs[0].task}{_variant(rs[0])}, {run_kind(rs[0])}: {len(rs)}", f"#{key}")
            for key, rs in grouped(by_path[path] for path in v.records if path in by_path).items()
        ]
        if v.claim.test == "identity" and theory:
            cells.append(Cell("the measures", theory))
        scale = f"scale {v.scale}" if v.scale in SCALES else v.scale
        view = VerdictView(scale, v, outcome_cell(v.word), tuple(parts), tuple(cells))
        views.setdefault(v.claim.id, []).append(view)
    return [ClaimView(slug(f"verdict {key}"), claims[key], tuple(vs)) for key, vs in views.items()]


def _variant(record: Record) -> str:
    return f" {record.variant.replace('_', ' ')}" if record.variant else ""


def verdict_table(views: Sequence[ClaimView]) -> Table:
    """One row a claim, one column a scale; a claim on the theory is of no scale and stands in the first column."""
    scales = sorted({v.verdict.scale for c in views for v in c.verdicts if v.verdict.scale in SCALES}, key=SCALES.index)
    rows = []
    for view in views:
        by_scale = {v.verdict.scale: v for v in view.verdicts}
        if not by_scale.keys() & set(scales):
            by_scale = dict.fromkeys(scales[:1], view.verdicts[0])
        cells = [_verdict_cell(by_scale[s], view.id) if s in by_scale else dash() for s in scales]
        rows.append((Cell(view.claim.id, f"#{view.id}", strong=True), Cell(view.claim.says), *cells))
    header = ("claim", "what the paper says", *(f"here, scale {scale}" for scale in scales))
    return Table("Verdicts on the paper's claims", header, tuple(rows), cards=True)


def _verdict_cell(view: VerdictView, anchor: str) -> Cell:
    v = view.verdict
    if v.word == NOT_TESTED:
        more: tuple[Cell, ...] = (Cell(v.sentence if v.need else view.parts[0].sentence),)
    else:
        more = tuple(Cell(f"{p.title}: {p.sign.text}") for p in view.parts if len(view.parts) > 1)
        if len(view.parts) == 1 and view.parts[0].gain.href:
            more = (Cell(f"gain {view.parts[0].gain.text}", view.parts[0].gain.href),)
    return Cell(v.word, f"#{anchor}", view.sign.kind, more=more)


# --- the paper beside ours


@dataclass(frozen=True)
class PaperView:
    title: str
    gap: str
    table: Table


def paper_size(paper: Paper, task: str) -> float | None:
    """Parameters of the paper's model, where a source says so."""
    texts = [c.text for c in paper.claims_of(task)]
    texts += [r.setting for r in paper.references_of(task) if r.optimizer == "fadam"]
    found = next((m for m in (re.search(r"about ([\d.]+)\s?([BM]) parameters", t) for t in texts) if m), None)
    return None if found is None else float(found[1]) * {"B": 1e9, "M": 1e6}[found[2]]


def size_gap(paper: Paper, task: str, records: Sequence[Record]) -> str:
    """How much larger the paper's model is, in one or two sentences."""
    size = paper_size(paper, task)
    ours = sorted({r.parameters for r in records if r.parameters})
    words = ["How large the paper's model is does not stand in the sources used."]
    if size is not None:
        many = f"{size / 1e9:g} billion" if size >= 1e8 else f"{size / 1e6:g} million"
        words = [f"The paper's model has about {many} parameters."]
    if ours:
        text = " / ".join(dict.fromkeys(count_text(n) for n in ours))
        if size is not None:
            digits = math.floor(math.log10(size / ours[-1])) - 1
            text += f", about {round(size / ours[-1], -digits):,.0f} times fewer"
        words.append(f"Ours has {text}.")
    return " ".join(words)


def paper_views(paper: Paper, numbers: Study, records: Sequence[Record], links: Links) -> list[PaperView]:
    """Reported numbers with ours under them, task by task."""
    views = []
    for task, spec in SPECS.items():
        metrics = [m for m in spec.metrics if m.keys[0] in HEADLINES[task]]
        rows = []
        for r in paper.references_of(task):
            values = [Cell(f"{r.values[m.keys[0]]:g}") if m.keys[0] in r.values else dash() for m in metrics]
            if any(v.text != "–" for v in values):
                kind = {"fadam": "FAdam", "adam": "Adam"}.get(r.optimizer, "–")
                rows.append((Cell(f"{r.name}, {r.setting}"), Cell(kind), *values, Cell(f"{r.source} [{r.mark}]")))
        if not rows:
            said = "; ".join(f"{c.text} [{c.mark}]" for c in paper.claims_of(task)[:1])
            rows.append((Cell(f"the paper: {said}"), Cell("–"), *[dash() for _ in metrics], Cell("no number is known")))
        here = [r for r in evaluation(records) if r.task == task]
        for scale, variant in sections(here):
            runs = by_arm(r for r in select(here, scale=scale, variant=variant) if r.arm in ("fadam", OPPONENT))
            name = Cell(f"ours, scale {scale}" + (f", {variant.replace('_', ' ')}" if variant else ""), strong=True)
            for arm, mine in runs.items():
                values = []
                for m in metrics:
                    summary = summarise(list(values_by_seed(mine, m).values()))
                    values.append(dash() if summary is None else Cell(summary_text(m, summary), links.runs(mine)))
                rows.append((name, Cell(arm_label(arm)), *values, Cell(f"{len(mine)} records", links.runs(mine))))
            if len(runs) == 2:
                gains = _gain_row(numbers.tasks[task], scale, variant, runs, links)
                rows.append((name, Cell("gain of FAdam"), *gains, dash()))
        header = ("system", "optimizer", *(f"{axis_text(m)} {arrow(m)}" for m in metrics), "source")
        table = Table(f"{spec.title}: reported beside ours", header, tuple(rows))
        views.append(PaperView(spec.title, size_gap(paper, task, here), table))
    return views


def _gain_row(
    task: TaskStudy, scale: str, variant: str, runs: Mapping[str, Sequence[Record]], links: Links
) -> list[Cell]:
    """The gain of FAdam in each of the headline measures, seed by seed."""
    declared = {task.protocol["variant"]: ("main", task.metric)}
    for arm in task.continuous.values():
        declared[arm.variant] = ("continuous", arm.metric)
    cells = []
    for metric in task.spec.metrics:
        if metric.keys[0] not in HEADLINES[task.task]:
            continue
        part, decides = declared.get(variant, ("", None))
        c = compare_runs(task.task, scale, variant, metric, task.matters, runs["fadam"], runs[OPPONENT])
        # The same anchor as everywhere else for the measure that decides, one of its own for the others.
        cells.append(gain_cell(replace(c, part=part if metric == decides else f"{variant} {metric.keys[0]}"), links))
    return cells
