"""Draw `results/figures/<task>_curves` and `<task>_tuning` from the published run records.

python -m experiments.analysis.figures [asr llm vqvae | all] [--runs results/runs] [--out results/figures]
"""

from __future__ import annotations

import argparse
import math
import os
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiments.analysis.choose import choose
from experiments.analysis.records import (
    COMPARED,
    AnalysisError,
    MixedRecordsError,
    Record,
    by_arm,
    check_one_kind,
    evaluation,
    finite,
    load_records,
    one_line_warnings,
    sections,
    select,
)
from experiments.analysis.tasks import Metric, TaskSpec, arm_label, task_names, task_spec

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's colours, told apart by eyes of every kind; marker and dash differ as well.
_LOOKS: dict[str, tuple[str, str, str]] = {
    "adamw_clip": ("#0072B2", "o", "-"),
    "fadam": ("#D55E00", "s", "-"),
    "adamw": ("#56B4E9", "^", "--"),
    "adam": ("#009E73", "v", "-."),
}
_SPARE = (("#CC79A7", "D", ":"), ("#E69F00", "P", "--"), ("#000000", "X", "-."))
SVG_LIMIT = 200_000  # bytes


def look(arm: str, arms: Sequence[str]) -> tuple[str, str, str]:
    """Colour, marker and dash of an arm, the same in every figure."""
    others = [a for a in arms if a not in _LOOKS]
    return _LOOKS[arm] if arm in _LOOKS else _SPARE[others.index(arm) % len(_SPARE)]


def curve(record: Record, key: str) -> list[tuple[int, float]]:
    """(step, value) of every evaluation that has `key`; a value that is not finite is NaN."""
    return [
        (int(entry["step"]), finite(entry[key], math.nan))
        for entry in record.history
        if key in entry and isinstance(entry.get("step"), (int, float))
    ]


def mean_curve(curves: Sequence[Sequence[tuple[int, float]]]) -> list[tuple[int, float, float]]:
    """(step, mean, standard deviation) where every one of the runs has a finite value, so that a diverged run ends
    the line instead of dropping out of it."""
    tables = [{step: value for step, value in points if math.isfinite(value)} for points in curves]
    if not tables or not all(tables):
        return []
    steps = sorted(set.intersection(*(set(table) for table in tables)))
    columns = [(step, [table[step] for table in tables]) for step in steps]
    return [(s, statistics.fmean(v), statistics.stdev(v) if len(v) > 1 else 0.0) for s, v in columns]


def canvas(rows: int, columns: int) -> tuple[Figure, list[list[Axes]]]:
    """An empty figure without a window, and its axes by row and column."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.4 * columns, 3.7 * rows), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, columns, squeeze=False)
    for axis in axes.flat:
        axis.grid(True, color="#dddddd", linewidth=0.6)
        axis.set_axisbelow(True)
        axis.spines[["top", "right"]].set_visible(False)
    return figure, [list(row) for row in axes]


def _label(metric: Metric) -> str:
    return metric.label + (f" ({metric.unit})" if metric.unit else "")


def _draw_curves(axis: Axes, records: Sequence[Record], metric: Metric) -> None:
    factor = 100.0 if metric.percent else 1.0
    arms = by_arm(records)
    for arm, runs in arms.items():
        colour, marker, dash = look(arm, list(arms))
        curves = [next((c for k in metric.keys if (c := curve(r, k))), []) for r in runs]
        failed = 0
        for run, points in zip(runs, curves, strict=True):
            good = [(s, v * factor) for s, v in points if math.isfinite(v)]
            axis.plot([s for s, _ in good], [v for _, v in good], color=colour, linewidth=0.7, alpha=0.45)
            if run.diverged:
                failed += 1
                if good:
                    axis.plot(*good[-1], marker="x", markersize=9, markeredgewidth=2, color=colour, linestyle="none")
        mean = mean_curve([c for run, c in zip(runs, curves, strict=True) if c or run.diverged])
        seeds = f"n={len(runs)}" + (f", {failed} diverged ×" if failed else "")
        axis.plot(
            [s for s, _, _ in mean],
            [m * factor for _, m, _ in mean],
            color=colour,
            linestyle=dash,
            linewidth=2,
            marker=marker,
            markersize=4,
            label=f"{arm_label(arm)} ({seeds})",
        )
        if len(runs) > 1:
            low = [(m - d) * factor for _, m, d in mean]
            high = [(m + d) * factor for _, m, d in mean]
            axis.fill_between([s for s, _, _ in mean], low, high, color=colour, alpha=0.15, linewidth=0)
    axis.set_xlabel("optimizer steps")
    axis.set_ylabel(_label(metric))
    axis.legend(frameon=False, fontsize=9, title="mean ± sd; thin: each seed", title_fontsize=9)


def curves_figure(records: Sequence[Record], spec: TaskSpec) -> Figure | None:
    """Metrics against steps: mean, ± one standard deviation and every seed, per arm. None without such a history."""
    runs = [r for r in evaluation(records) if r.scale in COMPARED]
    metrics = [m for m in spec.curves if any(k in entry for r in runs for entry in r.history for k in m.keys)]
    if not metrics:
        return None
    parts = sections(runs)
    figure, axes = canvas(len(parts), len(metrics))
    for row, (scale, variant) in zip(axes, parts, strict=True):
        here = select(runs, scale=scale, variant=variant)
        check_one_kind(here, f"the curves of {spec.name} {scale}{f' {variant}' if variant else ''}")
        for axis, metric in zip(row, metrics, strict=True):
            if not any(k in entry for r in here for entry in r.history for k in metric.keys):
                axis.set_visible(False)
                continue
            _draw_curves(axis, here, metric)
            axis.set_title(f"{spec.title}, scale {scale}{f', {variant}' if variant else ''}", fontsize=10)
    return figure


def tuning_figure(records: Sequence[Record], spec: TaskSpec) -> Figure | None:
    """Objective against learning rate, per arm; the chosen trial has a star, diverged ones stand at the rim."""
    trials = [r for r in records if r.purpose == "tune" and r.scale in COMPARED and "optimizer.lr" in r.searched]
    if not trials:
        return None
    parts = sections(trials)
    figure, axes = canvas(len(parts), 1)
    for (axis,), (scale, variant) in zip(axes, parts, strict=True):
        here = select(trials, scale=scale, variant=variant)
        choices = choose(here, f"the tuning figure of {spec.name} {scale}{f' {variant}' if variant else ''}")
        first = next(iter(choices.values()))
        metric = next((m for m in (*spec.metrics, *spec.curves) if first.metric in m.keys), None)
        factor = 100.0 if metric is not None and metric.percent else 1.0
        for place, (arm, choice) in enumerate(choices.items()):
            colour, marker, dash = look(arm, list(choices))
            good = [
                (float(t.settings["optimizer.lr"]), t.value * factor) for t in choice.trials if math.isfinite(t.value)
            ]
            bad = [float(t.settings["optimizer.lr"]) for t in choice.trials if not math.isfinite(t.value)]
            # Of several trials at one learning rate the line joins the best.
            pick = min if choice.mode == "min" else max
            best = [(x, pick(v for u, v in good if u == x)) for x in sorted({x for x, _ in good})]
            axis.plot([x for x, _ in best], [v for _, v in best], color=colour, linestyle=dash)
            axis.plot([x for x, _ in good], [v for _, v in good], color=colour, marker=marker, linestyle="none")
            axis.plot([], [], color=colour, marker=marker, linestyle=dash, label=arm_label(arm))
            x, y = float(choice.best.settings["optimizer.lr"]), choice.best.value * factor
            axis.plot(
                x,
                y,
                marker="*",
                markersize=max(10, 20 - 6 * place),
                color=colour,
                markeredgecolor="black",
                linestyle="none",
            )
            if bad:
                # A row for each arm, so that none hides another.
                rim = 0.97 - 0.05 * place if choice.mode == "min" else 0.03 + 0.05 * place
                transform = axis.get_xaxis_transform()
                style: dict[str, Any] = {"marker": "x", "markeredgewidth": 2, "linestyle": "none"}
                label = f"{arm_label(arm)}, diverged"
                axis.plot(bad, [rim] * len(bad), color=colour, transform=transform, label=label, **style)
        axis.set_xscale("log")
        axis.set_xlabel("learning rate")
        axis.set_ylabel(_label(metric) if metric is not None else first.metric)
        axis.set_title(f"{spec.title}, tuning, scale {scale}{f', {variant}' if variant else ''}", fontsize=10)
        axis.legend(frameon=False, fontsize=9, title="★ chosen", title_fontsize=9)
    return figure


def save(figure: Figure, stem: Path) -> list[Path]:
    """Write `<stem>.png`, and `<stem>.svg` where that is small; each whole or not at all. Returns the paths."""
    import matplotlib as mpl

    stem.parent.mkdir(parents=True, exist_ok=True)
    written = []
    # Neither date nor random ids, so that the same records give the same bytes.
    with mpl.rc_context({"svg.hashsalt": stem.name}):
        for kind, metadata in (("png", {"Software": None}), ("svg", {"Date": None})):
            path = stem.with_name(f"{stem.name}.{kind}")
            temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
            figure.savefig(temporary, format=kind, dpi=150, metadata=metadata)
            if kind == "svg" and temporary.stat().st_size > SVG_LIMIT:
                temporary.unlink()
                path.unlink(missing_ok=True)
                continue
            os.replace(temporary, path)
            written.append(path)
    return written


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m experiments.analysis.figures", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("tasks", nargs="*", metavar="task", help="asr, llm, vqvae or all (default: all)")
    parser.add_argument("--runs", default="results/runs", help="root of the records (default: results/runs)")
    parser.add_argument("--out", default="results/figures", help="folder of the figures (default: results/figures)")
    options = parser.parse_args(argv)
    one_line_warnings()
    try:
        records = load_records(options.runs)
        for name in task_names(options.tasks):
            spec, mine = task_spec(name), select(records, task=name)
            for kind, draw in (("curves", curves_figure), ("tuning", tuning_figure)):
                try:
                    figure = draw(mine, spec)
                except MixedRecordsError:
                    raise
                except AnalysisError as error:
                    print(f"warning: no {kind} drawn: {error}", file=sys.stderr)
                    continue
                if figure is None:
                    print(f"{name}: no records to draw {kind} from")
                    continue
                for path in save(figure, Path(options.out) / f"{name}_{kind}"):
                    print(f"wrote {path}")
    except AnalysisError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
