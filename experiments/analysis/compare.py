"""Show reported numbers, the published runs and a person's own runs side by side.

    python -m experiments.analysis.compare asr --scale cpu [--runs runs] [--published results/runs]

"Agrees" means that the mean of the own runs lies inside the 95% t prediction interval of the published ones,
mean ± t · sd · sqrt(1/n_published + 1/n_own).
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from experiments.analysis.paper import DEFAULT, Paper, load_paper
from experiments.analysis.records import (
    AnalysisError,
    Record,
    by_arm,
    check_one_kind,
    evaluation,
    family_difference,
    load_records,
    one_line_warnings,
    sections,
    select,
)
from experiments.analysis.stats import paired_difference, prediction_interval, summarise
from experiments.analysis.tables import reported, scale_in_words
from experiments.analysis.tasks import (
    Metric,
    TaskSpec,
    arm_label,
    measured,
    opponents,
    task_spec,
    values_by_seed,
)

if TYPE_CHECKING:
    from rich.console import Console

AGREES = "agrees"


def agreement(published: Sequence[float], own: Sequence[float]) -> str:
    """Whether the mean of `own` agrees with `published` within the spread of runs, in words."""
    if not own:
        return "no own runs"
    if not published:
        return "nothing published"
    bad = sum(not math.isfinite(v) for v in own)
    published_bad = sum(not math.isfinite(v) for v in published)
    if bad or published_bad:
        text = f"own diverged {bad} of {len(own)}, published {published_bad} of {len(published)}"
        return f"{AGREES}: {text}" if bad * len(published) == published_bad * len(own) else f"differs: {text}"
    interval = prediction_interval(published, len(own))
    if interval is None:
        return "one published value, spread unknown"
    mean = sum(own) / len(own)
    # Values stored as float32 and averaged in another order are still the same values.
    slack = 1e-6 * max(abs(v) for v in (*interval, mean))
    if interval[0] - slack <= mean <= interval[1] + slack:
        return AGREES
    return "lower than published" if mean < interval[0] else "higher than published"


def differences_of_kind(published: Sequence[Record], own: Sequence[Record]) -> list[str]:
    """Sentences on what makes two sets of records incomparable: other data, another configuration, other settings."""
    if not published or not own:
        return []
    words = []
    if published[0].fingerprint != own[0].fingerprint:
        words.append(
            f"Your data ({own[0].fingerprint}) are not the published data ({published[0].fingerprint}): "
            "agreement is not to be expected to the last digit."
        )
    difference = family_difference(published[0], own[0])
    if difference:
        words.append(f"Your configuration is not the published one: {difference}.")
    others = by_arm(own)
    for arm, runs in by_arm(published).items():
        if arm in others and dict(runs[0].optimizer) != dict(others[arm][0].optimizer):
            keys = sorted(
                k
                for k in runs[0].optimizer.keys() | others[arm][0].optimizer.keys()
                if runs[0].optimizer.get(k) != others[arm][0].optimizer.get(k)
            )
            text = ", ".join(
                f"{k} {others[arm][0].optimizer.get(k)!r} instead of {runs[0].optimizer.get(k)!r}" for k in keys
            )
            words.append(f"Your {arm_label(arm)} has other settings: {text}.")
    return words


def brief_metrics(spec: TaskSpec) -> list[Metric]:
    """What there is room for in a terminal; the tables have the rest."""
    return [m for m in spec.metrics if m.brief]


def comparison_rows(
    published: Sequence[Record], own: Sequence[Record], spec: TaskSpec, paper: Paper
) -> list[list[str]]:
    """Rows of metric, optimizer, reported, published, own, agreement."""
    ours, theirs = by_arm(published), by_arm(own)
    arms = list(by_arm([*published, *own]))
    rows = []
    for metric in measured([*published, *own], brief_metrics(spec)):
        name = metric.label + (f" ({metric.unit})" if metric.unit else "")
        values = {
            arm: (values_by_seed(ours.get(arm, []), metric), values_by_seed(theirs.get(arm, []), metric))
            for arm in arms
        }
        for arm in arms:
            old, new = values[arm]
            kind = "fadam" if arm == "fadam" else "adam" if arm in opponents(arms)[:1] else ""
            rows.append(
                [
                    name,
                    arm_label(arm),
                    reported(paper, spec, metric, kind, sources=False) if kind else "–",
                    metric.summary(summarise(list(old.values()))),
                    metric.summary(summarise(list(new.values()))),
                    agreement(list(old.values()), list(new.values())),
                ]
            )
            name = ""
        if "fadam" in arms and len(arms) > 1:
            rival = opponents(arms)[0]
            rows.append(["", f"FAdam - {arm_label(rival)}", "–", *_difference(values["fadam"], values[rival], metric)])
    return rows


def _difference(
    fadam: tuple[Mapping[int, float], Mapping[int, float]],
    rival: tuple[Mapping[int, float], Mapping[int, float]],
    metric: Metric,
) -> list[str]:
    pairs = [paired_difference(a, b, metric.mode) for a, b in zip(fadam, rival, strict=True)]
    cells = [f"{metric.difference(p)}: {metric.verdict(p)}" if p.n else "–" for p in pairs]
    if any(p.diverged or p.opponent_diverged for p in pairs):
        return [*cells, "–"]
    return [*cells, agreement(*(list(p.differences.values()) for p in pairs))]


def run_rows(own: Sequence[Record], spec: TaskSpec) -> list[list[str]]:
    """Rows of arm, seed, metrics, minutes: one for each own run."""
    metrics = measured(own, brief_metrics(spec))
    rows = []
    for arm, runs in by_arm(own).items():
        for r in runs:
            values = [r.value(m.keys, m.mode) for m in metrics]
            rows.append(
                [
                    arm_label(arm),
                    str(r.seed),
                    *("–" if v is None else m.number(v) for m, v in zip(metrics, values, strict=True)),
                    "–" if r.wall_time_s is None else f"{r.wall_time_s / 60:.1f}",
                ]
            )
    return rows


def show(console: Console, published: Sequence[Record], own: Sequence[Record], spec: TaskSpec, paper: Paper) -> None:
    """Print the comparison of one scale and variant."""
    from rich.markup import escape
    from rich.table import Table

    for name, records in (("published", published), ("your own", own)):
        if records:
            console.print(escape(f"{name}: {scale_in_words(records, spec)}"), style="dim")
        else:
            console.print(f"{name}: no evaluation records yet", style="dim")
    if not published and not own:
        return
    table = Table(title=escape(f"{spec.title}: reported, published, your own"))
    for header in ("metric", "optimizer", "reported", "published", "your own", "within the spread?"):
        table.add_column(header, overflow="fold")
    for row in comparison_rows(published, own, spec, paper):
        words = [escape(text) for text in row]
        if words[-1].startswith(AGREES):
            words[-1] = f"[green]{words[-1]}[/green]"
        elif words[-1].startswith(("lower", "higher", "differs")):
            words[-1] = f"[yellow]{words[-1]}[/yellow]"
        table.add_row(*words, end_section=row[1].startswith("FAdam -"))
    console.print(table)
    if paper.references_of(spec.name):
        console.print(f"Reported numbers with their sources: {DEFAULT}; {spec.caveat}.", style="dim")
    for sentence in differences_of_kind(published, own):
        console.print(escape(f"Note: {sentence}"), style="yellow")
    if own:
        runs = Table(title="Your runs")
        metrics = [m.label + (f" ({m.unit})" if m.unit else "") for m in measured(own, brief_metrics(spec))]
        for header in ("optimizer", "seed", *metrics, "minutes"):
            runs.add_column(header, justify="left" if header == "optimizer" else "right")
        for row in run_rows(own, spec):
            runs.add_row(*map(escape, row))
        console.print(runs)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m experiments.analysis.compare", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("task")
    parser.add_argument("--scale", default="cpu")
    parser.add_argument("--runs", default="runs", help="root of the own records (default: runs)")
    parser.add_argument(
        "--published", default="results/runs", help="root of the published ones (default: results/runs)"
    )
    parser.add_argument("--paper", default=str(DEFAULT), help=f"the paper's numbers (default: {DEFAULT})")
    options = parser.parse_args(argv)
    one_line_warnings()
    from rich.console import Console

    console = Console()
    if not console.is_terminal:
        # A log file has no width of its own; 80 columns would break most cells.
        console = Console(width=160)
    try:
        spec, paper = task_spec(options.task), load_paper(options.paper)
        sides = [
            evaluation(select(load_records(root), task=spec.name, scale=options.scale))
            for root in (options.published, options.runs)
        ]
        variants = [variant for _, variant in sections([*sides[0], *sides[1]])] or [""]
        for variant in variants:
            published, own = (select(side, variant=variant) for side in sides)
            title = " ".join(part for part in (spec.name, options.scale, variant) if part)
            check_one_kind(published, f"the published runs of {title}")
            check_one_kind(own, f"your runs of {title}")
            console.rule(title)
            show(console, published, own, spec, paper)
    except AnalysisError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
