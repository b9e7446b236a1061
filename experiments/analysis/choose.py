"""Choose each arm's hyperparameters from its tuning trials, and write them where the experiments read them.

    python -m experiments.analysis.choose asr --scale cpu

Leaves with status 3 if an arm's best trial lies at the edge of the search space, which must then be widened for all
arms.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments.analysis.records import (
    AnalysisError,
    Record,
    by_arm,
    check_one_kind,
    load_records,
    one_line_warnings,
    sections,
    select,
)
from experiments.analysis.stats import summarise
from experiments.analysis.tasks import arm_label, task_spec

EDGE_STATUS = 3
Point = tuple[tuple[str, Any], ...]


@dataclass(frozen=True)
class Trial:
    """One point of the search space, with the mean of its runs; infinite if one diverged."""

    point: Point
    value: float
    records: tuple[Record, ...]

    @property
    def settings(self) -> dict[str, Any]:
        return dict(self.point)


@dataclass(frozen=True)
class Choice:
    """The best point of one arm. `edges` holds the searched keys whose best value is the least or greatest tried."""

    arm: str
    metric: str
    mode: str
    trials: tuple[Trial, ...]
    best: Trial
    edges: tuple[str, ...]

    @property
    def lost(self) -> bool:
        """Whether every trial diverged."""
        return not math.isfinite(self.best.value)


def _order(point: Point) -> list[tuple[int, float, str]]:
    return [(0, float(v), k) if _is_number(v) else (1, 0.0, f"{k}={v}") for k, v in point]


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def choose_arm(records: Sequence[Record], *, lost: bool = False) -> Choice:
    """Best point of one arm's tuning records; of equals, the one with the smaller values.

    Args:
        lost: whether an arm may have diverged everywhere; its point is the one with the smallest values then.

    Raises:
        AnalysisError: a record has no objective or nothing searched, the records disagree on the objective, or every
            trial diverged and that is not allowed.
    """
    first = records[0]
    groups: dict[Point, list[Record]] = {}
    for record in records:
        if not record.searched:
            raise AnalysisError(f'{record.path}: a tuning record without "searched" settings')
        if record.searched.keys() != first.searched.keys():
            raise AnalysisError(f"{first.path} and {record.path} searched different settings")
        record.objective_value()
        same = ("metric", "mode")
        if any(record.objective.get(k) != first.objective.get(k) for k in same):
            raise AnalysisError(f"{first.path} and {record.path} were tuned for different objectives")
        groups.setdefault(tuple(sorted(record.searched.items())), []).append(record)
    mode = str(first.objective["mode"])
    sign = 1.0 if mode == "min" else -1.0
    trials = []
    for point in sorted(groups, key=_order):
        summary = summarise([r.objective_value() for r in groups[point]])
        assert summary is not None
        trials.append(Trial(point, summary.mean, tuple(groups[point])))
    best = min(trials, key=lambda t: sign * t.value)
    if not math.isfinite(best.value) and not lost:
        raise AnalysisError(f"every tuning trial of arm {first.arm} diverged; {first.path} is one of them")
    edges = []
    for key in sorted(first.searched):
        values = sorted({t.settings[key] for t in trials if _is_number(t.settings[key])})
        searched = len({json.dumps(t.settings[key]) for t in trials}) > 1 or len(first.searched) == 1
        if searched and values and best.settings[key] in (values[0], values[-1]):
            edges.append(key)
    return Choice(first.arm, str(first.objective["metric"]), mode, tuple(trials), best, tuple(edges))


def choose(records: Sequence[Record], what: str) -> dict[str, Choice]:
    """Arm -> its choice, from tuning records of one task, scale and variant.

    Raises:
        AnalysisError: the arms have unequal numbers of trials or seeds, or were tuned for different objectives.
        MixedRecordsError: the trials are of two data sets or configurations.
    """
    check_one_kind(records, what)
    choices = {arm: choose_arm(runs) for arm, runs in by_arm(records).items()}
    counts = {arm: (len(c.trials), sum(len(t.records) for t in c.trials)) for arm, c in choices.items()}
    if len(set(counts.values())) > 1:
        words = ", ".join(f"{arm} {points} trials in {runs} runs" for arm, (points, runs) in counts.items())
        raise AnalysisError(f"{what}: every arm must get the same number of trials, but there are: {words}.")
    if len({(c.metric, c.mode) for c in choices.values()}) > 1:
        words = ", ".join(f"{arm} for {c.metric} ({c.mode})" for arm, c in choices.items())
        raise AnalysisError(f"{what}: the arms were tuned for different objectives: {words}.")
    return choices


def space_words(choice: Choice, key: str) -> str:
    """The searched values of one setting, in words."""
    values = sorted({json.dumps(t.settings[key]): t.settings[key] for t in choice.trials}.values(), key=_sortable)
    return ", ".join(setting_text(v) for v in values)


def _sortable(value: Any) -> tuple[int, float, str]:
    return (0, float(value), "") if _is_number(value) else (1, 0.0, str(value))


def setting_text(value: Any) -> str:
    return f"{value:g}" if _is_number(value) else str(value)


def point_text(point: Point) -> str:
    return ", ".join(f"{key}={setting_text(value)}" for key, value in point)


def edge_words(choice: Choice) -> str:
    """One sentence on an arm whose best trial lies at the edge of the space."""
    parts = [
        f"{key}={setting_text(choice.best.settings[key])} of {{{space_words(choice, key)}}}" for key in choice.edges
    ]
    return (
        f"{arm_label(choice.arm)}: the best trial lies at the edge of the search space ({'; '.join(parts)}); "
        "widen the space for all arms and run the new trials."
    )


def _nested(settings: Mapping[str, Any]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for key, value in settings.items():
        *parents, leaf = key.split(".")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[leaf] = value
    return tree


def config_text(choice: Choice, task: str, scale: str, variant: str, command: str = "") -> str:
    """The Hydra config of one arm's tuned values, with a comment on where they come from: `command` wrote it."""
    import yaml

    first = choice.best.records[0]
    seeds = sorted({r.seed for t in choice.trials for r in t.records})
    flag = " --allow-edge" if choice.edges else ""
    lines = [
        "# @package _global_",
        f"# Written by: {command or f'python -m experiments.analysis.choose {task} --scale {scale}{flag}'}",
        f"# {task} {scale}{f' {variant}' if variant else ''}, {arm_label(choice.arm)}: best of {len(choice.trials)} "
        f"trials by {choice.metric} ({choice.mode}), tuning seed {', '.join(map(str, seeds))}.",
        f"# Data {first.fingerprint}",
    ]
    for trial in choice.trials:
        value = "diverged" if not math.isfinite(trial.value) else f"{trial.value:.6g}"
        mark = "  <- chosen" if trial is choice.best else ""
        paths = " ".join(str(r.relative) for r in trial.records)
        lines.append(f"#   {point_text(trial.point)}: {value}  {paths}{mark}")
    if choice.lost:
        lines.append("# Every trial diverged; the smallest values stand for them all.")
    elif choice.edges:
        lines.append(f"# At the edge of the search space: {', '.join(choice.edges)}.")
    body = yaml.safe_dump(_nested(choice.best.settings), sort_keys=True, default_flow_style=False)
    return "\n".join(lines) + "\n\n" + body


def config_name(record: Record) -> str:
    """File name under which the experiment that made `record` looks for its tuned values."""
    stem = record.experiment_name or "-".join(p for p in (f"{record.task}_{record.scale}", record.variant) if p)
    return f"{stem}-{record.arm}.yaml"


def write_text(path: Path, text: str) -> None:
    """Write the whole file or nothing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m experiments.analysis.choose", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("task")
    parser.add_argument("--scale", default="cpu")
    parser.add_argument("--runs", default="runs", help="root of the run records (default: runs)")
    parser.add_argument("--out", default="configs/tuned", help="folder of the configs (default: configs/tuned)")
    parser.add_argument(
        "--allow-edge", action="store_true", help="write a choice at the edge of the space all the same; it says so"
    )
    options = parser.parse_args(argv)
    one_line_warnings()
    try:
        task = task_spec(options.task).name
        records = select(load_records(options.runs), task=task, scale=options.scale, purpose="tune")
        if not records:
            raise AnalysisError(f"no tuning records of {task} {options.scale} in {options.runs}")
        status = 0
        for scale, variant in sections(records):
            what = " ".join(part for part in ("tuning of", task, scale, variant) if part)
            choices = choose(select(records, variant=variant), what)
            at_edge = [c for c in choices.values() if c.edges]
            for choice in choices.values():
                label = f"{arm_label(choice.arm)}{f' ({variant})' if variant else ''}"
                best = f"{point_text(choice.best.point)}, {choice.metric} {choice.best.value:.6g}"
                print(f"{label}: {best}, best of {len(choice.trials)} trials")
            for choice in at_edge:
                print(f"AT THE EDGE: {edge_words(choice)}", file=sys.stderr)
            if at_edge and not options.allow_edge:
                print(f"{what}: nothing written.", file=sys.stderr)
                status = EDGE_STATUS
                continue
            for choice in choices.values():
                path = Path(options.out) / config_name(choice.best.records[0])
                write_text(path, config_text(choice, task, scale, variant))
                print(f"wrote {path}")
        return status
    except AnalysisError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    raise SystemExit(main())
