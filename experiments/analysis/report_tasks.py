"""The sections of the report on the study: who wins on each task, why, how far it holds, and all tasks together."""

from __future__ import annotations

import math
import re
import statistics
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from experiments.analysis import report_figures as draw
from experiments.analysis.figures import curve, mean_curve
from experiments.analysis.records import Record
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
    metric_text,
    outcome_cell,
    phrase,
    setting_text,
    slug,
    summary_text,
    unit_text,
)
from experiments.analysis.stats import summarise
from experiments.analysis.status import status
from experiments.analysis.study import OPPONENT, Arm, Comparison, EpsSweep, Speed, Study, TaskStudy, Variation, again
from experiments.analysis.tables import scale_in_words
from experiments.analysis.tasks import SPECS, Metric, arm_label, values_by_seed
from experiments.analysis.verdicts import interval_text, p_text

# How the axis of a variation is written.
_VARIED = {
    "lr": "learning rate",
    "beta2": "1 − beta2",
    "batch": "sequences a batch",
    "gradient_scale": "factor on every gradient",
    "rho": "rho",
}


@dataclass(frozen=True)
class TaskView:
    id: str
    title: str
    words: str
    missing: tuple[str, ...]
    table: Table | None
    plots: tuple[Plot, ...]
    legend: tuple[str, ...]
    details: tuple[Table, ...]
    notes: tuple[str, ...]


def _factor(metric: Metric) -> float:
    return 100.0 if metric.percent else 1.0


def arms_table(task: TaskStudy, arms: Sequence[Arm], caption: str, links: Links) -> Table:
    """Arms beside each other, and what FAdam gains over each."""
    speeds = {s.opponent: s for s in task.speeds}
    metric = task.metric
    rows = []
    for arm in arms:
        c = task.comparison("fadam", arm.name)
        c = c if c is not None and c.gain.n else None
        settings = arm.tuning.settings
        chosen = () if arm.tuning.choice is None else arm.tuning.choice.best.records
        speed = speeds.get(arm.name)
        rows.append(
            (
                Cell(arm.label, strong=True),
                Cell(summary_text(metric, arm.summary), links.runs(arm.runs)),
                gain_cell(c, links),
                dash() if c is None else Cell(f"{p_text(c.gain.p)} / {p_text(c.gain.p_t)}", links.pair(c)),
                dash() if c is None else outcome_cell(c.said),
                _ratio_cell(speed, links, arm) if speed is not None else dash(),
                *(
                    Cell(setting_text(settings[key]), links.runs(chosen)) if key in settings else dash()
                    for key in ("optimizer.lr", "optimizer.weight_decay")
                ),
            )
        )
    header = (
        "arm", f"{axis_text(metric)} {arrow(metric)}", "gain of FAdam over it [95%]", "p: sign-flip / t", "FAdam is",
        "steps to target, FAdam / it", "learning rate", "weight decay",
    )  # fmt: skip
    notes = []
    if task.target is not None:
        notes.append(
            f"Target: {task.target.metric.label} of {metric_text(task.target.metric, task.target.value)}, the mean of "
            f"the tuned {arm_label(task.target.arm)} after {task.target.share:.0%} of its steps. A ratio below 1 means "
            "that FAdam gets there in fewer steps."
        )
    return Table(caption, header, tuple(rows), notes=tuple(notes))


def _ratio_cell(speed: Speed, links: Links, arm: Arm) -> Cell:
    ratio = speed.steps
    if ratio.middle is None:
        return dash()
    text = "never" if math.isinf(ratio.middle) else f"{ratio.middle:.2f}"
    if ratio.interval is not None:
        text += f" [{', '.join('∞' if math.isinf(v) else f'{v:.2f}' for v in ratio.interval)}]"
    more: tuple[Cell, ...] = ()
    if ratio.censored or ratio.other_censored:
        missed = f"FAdam misses it on {len(ratio.censored)}, the other on {len(ratio.other_censored)}"
        more = (Cell(f"{ratio.kind}; {missed} of {len(ratio.ratios)} seeds"),)
    return Cell(text, links.runs(arm.runs), more=more)


def curve_plot(name: str, title: str, arms: Sequence[Arm], metric: Metric, target: float | None) -> Plot | None:
    factor = _factor(metric)
    data = {}
    for arm in arms:
        curves = [next((c for k in metric.keys if (c := curve(r, k))), []) for r in arm.runs]
        if not any(curves):
            continue
        mean = [(float(s), m * factor, d * factor) for s, m, d in mean_curve(curves)]
        seeds = [[(float(s), v * factor) for s, v in points if math.isfinite(v)] for points in curves]
        data[arm.name] = (mean, seeds)
    if not data:
        return None
    ends = [f"{arm_label(a)} {mean[-1][1]:.{metric.digits}f}" for a, (mean, _) in data.items() if mean]
    label = f"{title}: {metric.label} against steps. At the end: {', '.join(ends)}."
    picture = draw.curves(
        name, label, data, "optimizer steps", axis_text(metric), None if target is None else target * factor
    )
    n = sorted({len(seeds) for _, seeds in data.values()})
    words = f"{'–'.join(map(str, n))} seeds an arm"
    dashed = " Dashed: the target." if target is not None else ""
    return Plot(
        picture,
        f"Learning curves: mean ± one standard deviation, {words}; thin: each seed. The first third of the steps "
        f"may run off the drawing.{dashed}",
    )


def sensitivity_plot(name: str, title: str, arms: Sequence[Arm], metric: Metric, key: str, x: str) -> Plot | None:
    """The tuning metric of every trial against one searched setting."""
    factor, drawn = _factor(metric), []
    for arm in arms:
        points, bad = [], []
        for r in arm.tuning.trials:
            place, value = r.setting(key), r.objective_value()
            if not isinstance(place, (int, float)):
                continue
            if math.isfinite(value):
                points.append((float(place), value * factor))
            else:
                bad.append(float(place))
        best = arm.tuning.choice.best if arm.tuning.choice is not None else None
        chosen = (float(best.settings[key]), best.value * factor) if best is not None and key in best.settings else None
        if points or bad:
            joined = sorted(points) if key == "optimizer.lr" else []
            drawn.append(draw.Line(arm.name, points, bad, chosen, path=joined))
    if not drawn:
        return None
    label = f"{title}: {metric.label} of every tuning trial against {x}, " + ", ".join(
        f"{arm_label(line.arm)} best at {line.chosen[0]:.3g}" for line in drawn if line.chosen
    )
    picture = draw.lines(name, label, drawn, x, axis_text(metric), low_is_better=metric.mode == "min")
    lines = ""
    if key != "optimizer.lr":
        lines = (
            " Each trial has its own learning rate too; FAdam's decay is another than AdamW's and has its own range."
        )
    crosses = " × diverged." if any(line.bad for line in drawn) else ""
    return Plot(picture, f"Tuning trials against {x}; ring: chosen.{crosses}{lines}")


def tuning_table(arms: Sequence[Arm], metric: Metric, links: Links) -> Table | None:
    """Every trial of every arm, each leading to its record."""
    trials = sorted({t.trial for arm in arms for t in arm.tuning.trials}, key=_trial_order)
    if not trials:
        return None
    rows = []
    for trial in trials:
        cells = [Cell(trial.removeprefix("tune-"))]
        for arm in arms:
            record = next((t for t in arm.tuning.trials if t.trial == trial), None)
            if record is None:
                cells.append(dash())
                continue
            value = record.objective_value()
            text = metric_text(metric, value) if math.isfinite(value) else "diverged"
            best = arm.tuning.choice is not None and record in arm.tuning.choice.best.records
            settings = ", ".join(setting_text(record.searched[k]) for k in sorted(record.searched))
            cells.append(Cell(text, links.record(record), strong=best, more=(Cell(settings),)))
        rows.append(tuple(cells))
    notes = ["Small: learning rate, then weight decay where it was searched. In bold: chosen."]
    for arm in arms:
        if arm.tuning.edge:
            notes.append(f"{arm.label}: the best learning rate is the {arm.tuning.edge}est one that was tried.")
    low = sorted({arm.tuning.widened for arm in arms} - {(0, 0)})
    if low:
        notes.append(
            f"The declared space was widened for all arms, by {low[-1][0]} points below and {low[-1][1]} above."
        )
    return Table(f"Tuning trials: {metric.label}", ("trial", *(a.label for a in arms)), tuple(rows), notes=tuple(notes))


def _trial_order(text: str) -> float:
    found = re.search(r"-?\d+(?:\.\d+)?$", text)
    return float(found[0].replace("-p", "")) if found else 0.0


def secondary_table(arms: Sequence[Arm], links: Links) -> Table | None:
    metrics = list(dict.fromkeys(m for arm in arms for m, _ in arm.secondary))
    if not metrics:
        return None
    rows = []
    for m in metrics:
        found = [dict(arm.secondary).get(m) for arm in arms]
        cells = [
            dash() if s is None else Cell(summary_text(m, s), links.runs(arm.runs))
            for s, arm in zip(found, arms, strict=True)
        ]
        rows.append((Cell(f"{axis_text(m)} {arrow(m) if m.judged else ''}"), *cells))
    return Table("Other measures of the same runs", ("measure", *(a.label for a in arms)), tuple(rows))


def cost_table(arms: Sequence[Arm], links: Links) -> Table | None:
    def spread(values: Iterable[float | None], digits: int, factor: float) -> str:
        numbers = [v * factor for v in values if v is not None]
        if not numbers:
            return "–"
        around = f" ± {statistics.stdev(numbers):.{digits}f}" if len(numbers) > 1 else ""
        return f"{statistics.fmean(numbers):.{digits}f}{around}"

    if not any(arm.runs for arm in arms):
        return None
    rows = []
    for title, digits, factor, name in (
        ("minutes a run", 2, 1 / 60, "wall_time_s"),
        ("milliseconds a step", 1, 1e3, "step_time_s"),
        ("peak memory (MiB)", 0, 2**-20, "peak_memory_bytes"),
    ):
        cells = [
            Cell(spread([getattr(r, name) for r in arm.runs], digits, factor), links.runs(arm.runs)) for arm in arms
        ]
        rows.append((Cell(title), *cells))
    return Table(
        "Cost, mean ± standard deviation; other runs shared the machine",
        ("cost", *(a.label for a in arms)),
        tuple(rows),
    )


def task_view(task: TaskStudy, links: Links, root: Path, records: Sequence[Record], tuned: Path) -> TaskView:
    """Tier 1 of one task."""
    arms = [arm for arm in task.arms.values() if arm.tier == "who"]
    runs = [r for arm in arms for r in (*arm.runs, *arm.tuning.trials)]
    words = scale_in_words(runs, task.spec) + "." if runs else ""
    missing = missing_words(task.task, root, records, ("who",), tuned)
    target = task.target.value if task.target is not None else None
    shown = [arm for arm in arms if arm.runs or arm.tuning.trials]
    plots = [
        curve_plot(f"curves-{task.task}", task.spec.title, arms, task.tuning_metric, target),
        sensitivity_plot(f"lr-{task.task}", task.spec.title, arms, task.tuning_metric, "optimizer.lr", "learning rate"),
        sensitivity_plot(
            f"wd-{task.task}", task.spec.title, arms, task.tuning_metric, "optimizer.weight_decay", "weight decay"
        ),
    ]
    details = [tuning_table(shown, task.tuning_metric, links), secondary_table(arms, links), cost_table(arms, links)]
    notes = [f"{arm.label}: {note}." for arm in arms for note in arm.notes]
    caption = f"{task.spec.title}: tuned arms on the evaluation seeds, mean ± standard deviation"
    return TaskView(
        id=f"task-{task.task}",
        title=task.spec.title,
        words=words,
        missing=missing,
        table=arms_table(task, arms, caption, links) if runs else None,
        plots=tuple(p for p in plots if p is not None),
        legend=tuple(arm.name for arm in shown),
        details=tuple(t for t in details if t is not None),
        notes=tuple(notes),
    )


def missing_words(
    task: str, root: Path, records: Sequence[Record], tiers: Sequence[str], tuned: Path
) -> tuple[str, ...]:
    """What is not done of these tiers, in the words of the status command."""
    parts = status(task, root, records, tiers, tuned)
    return tuple(part.words() for part in parts if len(part.states["done"]) < part.total)


@dataclass(frozen=True)
class WhyView:
    title: str
    missing: tuple[str, ...]
    forest: Plot | None
    table: Table | None
    eps: Plot | None
    eps_table: Table | None
    eps_words: tuple[str, ...]


def why_view(task: TaskStudy, links: Links, root: Path, records: Sequence[Record], tuned: Path) -> WhyView:
    arms = [arm for arm in task.arms.values() if arm.part == "switches"]
    compared = [task.comparison("fadam", arm.name) for arm in arms]
    found = [c for c in compared if c is not None and c.gain.n]
    forest = None
    if found:
        factor = _factor(task.metric)
        rows = [
            draw.Row(
                label=arm_label(c.opponent).removeprefix("FAdam").lstrip(", "),
                mean=None if c.gain.mean is None else c.gain.mean * factor,
                interval=None if c.gain.t_interval is None else tuple(v * factor for v in c.gain.t_interval),
                values=[v * factor for v in c.gain.gains.values() if math.isfinite(v)],
            )
            for c in found
        ]
        label = f"{task.spec.title}: what FAdam gains over FAdam with one correction turned back: " + "; ".join(
            f"{r.label} {r.mean:+.3g}" for r in rows if r.mean is not None
        )
        unit = " (points)" if task.metric.percent else ""
        picture = draw.forest(
            f"why-{task.task}", label, rows, task.matters * factor, f"gain in {task.metric.label}{unit}"
        )
        forest = Plot(
            picture,
            f"{task.spec.title}: gain of FAdam over FAdam with the switch so turned, mean and 95% interval (ticks: "
            "each seed). To the right, the correction helps; shaded: too small to matter.",
        )
    table = None
    if any(arm.runs or arm.tuning.trials for arm in arms):
        table = arms_table(task, arms, f"{task.spec.title}: FAdam with one correction turned back", links)
    eps, eps_table, words = _eps_parts(task, links)
    return WhyView(
        task.spec.title, missing_words(task.task, root, records, ("why",), tuned), forest, table, eps, eps_table, words
    )


def _eps_parts(task: TaskStudy, links: Links) -> tuple[Plot | None, Table | None, tuple[str, ...]]:
    sweeps = [s for s in task.eps if s.runs]
    if not sweeps:
        return None, None, ()
    factor, metric = _factor(task.metric), task.metric
    drawn = []
    for s in sweeps:
        good, bad, spread = [], [], []
        for eps, values in s.values.items():
            summary = summarise(list(values.values()))
            if summary is None:
                continue
            if summary.diverged:
                bad.append(eps)
            else:
                good.append((eps, summary.mean * factor))
                spread.append((summary.sd or 0.0) * factor)
        drawn.append(draw.Line(s.arm, good, bad, None, spread))
    label = f"{task.spec.title}: {metric.label} against epsilon for {enumerated([arm_label(s.arm) for s in sweeps])}"
    picture = draw.lines(
        f"eps-{task.task}", label, drawn, "epsilon", axis_text(metric), low_is_better=metric.mode == "min"
    )
    crosses = " × diverged." if any(line.bad for line in drawn) else ""
    plot = Plot(picture, f"{task.spec.title}: epsilon swept, all else as tuned; bars: one standard deviation.{crosses}")
    values = sorted({eps for s in sweeps for eps in s.values}, reverse=True)
    rows = []
    for eps in values:
        cells = [Cell(draw.power_text(eps))]
        for s in sweeps:
            seeds = s.values.get(eps, {})
            more = tuple(Cell(f"seed {r.seed}", links.record(r)) for r in s.runs if _is_eps(r, eps))
            cells.append(
                Cell(summary_text(metric, summarise(list(seeds.values()))), more=more) if seeds else dash("not run yet")
            )
        rows.append(tuple(cells))
    table = Table(
        f"{task.spec.title}: {axis_text(metric)} over epsilon",
        ("epsilon", *(arm_label(s.arm) for s in sweeps)),
        tuple(rows),
    )
    return plot, table, tuple(w for w in map(_eps_words, sweeps) if w)


def _is_eps(record: Record, eps: float) -> bool:
    value = record.setting("optimizer.eps")
    return isinstance(value, (int, float)) and math.isclose(float(value), eps)


def _eps_words(sweep: EpsSweep) -> str:
    metric = sweep.metric
    if sweep.range is None or sweep.noise is None:
        return f"{arm_label(sweep.arm)}: {sweep.progress.words}; its range cannot be judged yet."
    unit = unit_text(metric)

    def text(value: float) -> str:
        return "∞" if math.isinf(value) else metric.number(value) + unit

    judged = {True: "it depends on epsilon", False: "no dependence on epsilon can be seen", None: "not judged yet"}
    return (
        f"{arm_label(sweep.arm)} moves by {text(sweep.range)} over epsilon; chance alone gives up to "
        f"{text(sweep.noise)}, {text(sweep.matters)} would matter: "
        f"{judged[sweep.sensitive]}."
    )


@dataclass(frozen=True)
class LikelihoodView:
    table: Table
    sentence: str


def likelihood_view(numbers: Study, links: Links) -> LikelihoodView | None:
    """The discrete loss beside the continuous one (claim C9)."""
    task = next((t for t in numbers.tasks.values() if t.continuous), None)
    if task is None:
        return None
    compared = [
        c
        for c in task.comparisons
        if (c.arm, c.opponent) == ("fadam", OPPONENT) and c.part in ("main", "continuous") and c.gain.n
    ]
    if not any(c.part == "continuous" for c in compared):
        return None
    rows = []
    for c in compared:
        assert c.metric is not None
        arms = task.arms if c.part == "main" else task.continuous
        rows.append(
            (
                Cell(c.variant.replace("_", " "), strong=True),
                Cell(f"{axis_text(c.metric)} {arrow(c.metric)}"),
                *(Cell(summary_text(c.metric, arms[a].summary), links.runs(arms[a].runs)) for a in (OPPONENT, "fadam")),
                gain_cell(c, links),
                outcome_cell(c.said),
            )
        )
    table = Table(
        f"{task.spec.title}: the discrete likelihood and the continuous one",
        ("likelihood", "measure", "AdamW + clip", "FAdam", "gain of FAdam [95%]", "FAdam is"),
        tuple(rows),
    )
    between = numbers.interaction
    sentence = ""
    if between is not None and between.gain.mean is not None:
        sentence = (
            "Gain under the discrete likelihood minus gain under the continuous one, each in units of the difference "
            f"that matters: {gain_text(between)}, {between.gain.n} pairs: {between.said}."
        )
    return LikelihoodView(table, sentence)


@dataclass(frozen=True)
class FarView:
    title: str
    missing: tuple[str, ...]
    plots: tuple[Plot, ...]
    legend: tuple[str, ...]
    tables: tuple[Table, ...]
    context: Table | None
    context_plots: tuple[Plot, ...]
    context_legend: tuple[str, ...]


def far_view(task: TaskStudy, links: Links, root: Path, records: Sequence[Record], tuned: Path) -> FarView | None:
    if not any(p.tier == "far" for p in task.progress):
        return None
    plots, tables = [], []
    variations = [v for v in task.variations if v.tier == "far"]
    for v in variations:
        if any(p.runs for p in v.points):
            plots.append(_variation_plot(task, v))
            tables.append(_variation_table(v, links))
    context = [arm for arm in task.arms.values() if arm.part == "context"]
    there = [arm for arm in context if arm.runs or arm.tuning.trials]
    beside = [task.arms[name] for name in (OPPONENT, "fadam") if name in task.arms]
    context_plots = [
        curve_plot(
            f"context-{task.task}", f"{task.spec.title}, other optimizers", [*beside, *there], task.tuning_metric, None
        )
    ]
    return FarView(
        title=task.spec.title,
        missing=missing_words(task.task, root, records, ("far",), tuned),
        plots=tuple(plots),
        legend=tuple(dict.fromkeys(p.arm for v in variations for p in v.points if p.runs)),
        tables=tuple(tables),
        context=arms_table(task, there, f"{task.spec.title}: other optimizers under the same protocol", links)
        if there
        else None,
        context_plots=tuple(p for p in context_plots if p is not None and there),
        context_legend=tuple(arm.name for arm in [*beside, *there]),
    )


@dataclass(frozen=True)
class AfterView:
    title: str
    missing: tuple[str, ...]
    tables: tuple[Table, ...]


def after_view(task: TaskStudy, links: Links, root: Path, records: Sequence[Record], tuned: Path) -> AfterView | None:
    """What was asked once the results were known."""
    if not any(p.tier == "after" for p in task.progress):
        return None
    tables = []
    clipping = [c for c in task.comparisons if c.part == "clipping" and c.gain.n]
    if clipping:
        tables.append(comparisons_table(f"{task.spec.title}: FAdam's clip or global-norm clipping", clipping, links))
    if repeated := again(task):
        tables.append(comparisons_table(f"{task.spec.title}: the switches, against FAdam run again", repeated, links))
    tables += [
        _variation_table(v, links) for v in task.variations if v.tier == "after" and any(p.runs for p in v.points)
    ]
    missing = missing_words(task.task, root, records, ("after",), tuned)
    return AfterView(task.spec.title, missing, tuple(tables))


def comparisons_table(caption: str, comparisons: Sequence[Comparison], links: Links) -> Table:
    """Pairs of arms, each with its mean and what the first gains."""
    rows = []
    for c in comparisons:
        metric = c.metric
        assert metric is not None
        sides = [[r for r in c.runs if r.arm == arm] for arm in (c.arm, c.opponent)]
        means = [summarise(list(values_by_seed(side, metric).values())) for side in sides]
        p = f"{p_text(c.gain.p)} / {p_text(c.gain.p_t)}" + ("" if c.p_t_holm is None else f" / {p_text(c.p_t_holm)}")
        rows.append(
            (
                Cell(c.label, strong=True),
                *(Cell(summary_text(metric, m), links.runs(rs)) for m, rs in zip(means, sides, strict=True)),
                Cell(f"{c.number(c.gain.mean)} {interval_text(c, c.gain.t_interval)}"),
                Cell(p),
                outcome_cell(c.said),
            )
        )
    metric = comparisons[0].metric
    assert metric is not None
    unit = f"{axis_text(metric)} {arrow(metric)}"
    header = (
        "arms",
        f"first: {unit}",
        f"second: {unit}",
        "gain of the first [95%]",
        "p: sign-flip / t (/ Holm)",
        "first is",
    )
    return Table(caption, header, tuple(rows))


def _place(name: str, value: float) -> float:
    return 1 - value if name == "beta2" else value


def _variation_plot(task: TaskStudy, v: Variation) -> Plot:
    metric, factor = v.metric, _factor(v.metric)
    drawn = []
    for arm in dict.fromkeys(p.arm for p in v.points):
        good, bad, spread = [], [], []
        for p in v.points:
            if p.arm != arm or p.summary is None:
                continue
            if p.summary.diverged:
                bad.append(_place(v.setting, p.value))
            else:
                good.append((_place(v.setting, p.value), p.summary.mean * factor))
                spread.append((p.summary.sd or 0.0) * factor)
        pick = min if metric.mode == "min" else max
        path = [(x, pick(b for a, b in good if a == x)) for x in sorted({a for a, _ in good})]
        if good or bad:
            drawn.append(draw.Line(arm, good, bad, None, spread, path))
    x = _VARIED.get(v.setting, v.setting)
    label = f"{task.spec.title}: {metric.label} against {x} for {enumerated([arm_label(d.arm) for d in drawn])}"
    picture = draw.lines(
        f"far-{task.task}-{slug(v.name)}", label, drawn, x, axis_text(metric),
        log=v.setting not in ("rho",), low_is_better=metric.mode == "min",
    )  # fmt: skip
    crosses = " × diverged." if any(d.bad for d in drawn) else ""
    several = " Several learning rates at each value; the line joins the best." if v.setting == "rho" else ""
    return Plot(
        picture, f"{x[0].upper() + x[1:]} varied, {v.progress.words}; bars: one standard deviation.{several}{crosses}"
    )


def _variation_table(v: Variation, links: Links) -> Table:
    arms = list(dict.fromkeys(p.arm for p in v.points))
    points = sorted({(p.value, p.factor) for p in v.points})
    rows = []
    for value, factor in points:
        name = setting_text(value) + (f", learning rate × {factor:g}" if v.setting == "rho" else "")
        cells = [Cell(name)]
        for arm in arms:
            p = next((p for p in v.points if (p.arm, p.value, p.factor) == (arm, value, factor)), None)
            if p is None or not p.runs:
                cells.append(dash("not run yet"))
                continue
            more = tuple(Cell(f"seed {r.seed}", links.record(r)) for r in p.runs)
            cells.append(Cell(summary_text(v.metric, p.summary), more=more))
        rows.append(tuple(cells))
    x = {"beta2": "beta2"}.get(v.setting, _VARIED.get(v.setting, v.setting))
    return Table(f"{axis_text(v.metric)} over {x}", (x, *(arm_label(a) for a in arms)), tuple(rows))


@dataclass(frozen=True)
class ProfileView:
    plot: Plot
    table: Table
    legend: tuple[str, ...]


def profile_view(numbers: Study, links: Links) -> ProfileView | None:
    profile = numbers.profile
    if not profile.problems:
        return None
    arms = [a for a in ("adamw", "adamw_clip", "adamw_update_clip", "fadam") if a in profile.gaps]
    counts = Counter(task for task, _ in profile.problems)
    words = enumerated([f"{n} of {phrase(SPECS[task])}" for task, n in counts.items()])
    label = "Performance profile: " + ", ".join(f"{arm_label(a)} best on {profile.share(a, 0.0):.0%}" for a in arms)
    picture = draw.steps(
        "profile", label, {a: profile.gaps[a] for a in arms}, "gap to the best arm / difference that matters",
        "share of task and seed pairs",
    )  # fmt: skip
    plot = Plot(
        picture,
        f"Performance profile over {len(profile.problems)} pairs of task and seed ({words}): the share on which an arm "
        "is at most so far behind the best. Higher and further left is better; dashed: the difference that matters.",
    )
    rows = []
    for a in arms:
        runs = [r for t in numbers.tasks.values() for r in t.arms[a].runs]
        groups = grouped(runs)
        more = tuple(Cell(f"{rs[0].task}: {len(rs)} records", f"#{key}") for key, rs in groups.items())
        rows.append(
            (
                Cell(arm_label(a), strong=True),
                *(Cell(f"{profile.share(a, w):.0%}") for w in (0.0, 1.0, 2.0)),
                Cell("", more=more),
            )
        )
    header = ("arm", "is the best", "behind by no more than matters", "by no more than twice that", "records")
    return ProfileView(plot, Table("Share of the pairs of task and seed", header, tuple(rows)), tuple(arms))
