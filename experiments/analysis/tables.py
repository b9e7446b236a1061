"""Write `results/tables/<task>.md` from the published run records and `results/paper.yaml`.

python -m experiments.analysis.tables [asr llm vqvae | all] [--runs results/runs] [--out results/tables]
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.analysis.choose import (
    choose,
    edge_words,
    point_text,
    setting_text,
    space_words,
    write_text,
)
from experiments.analysis.paper import DEFAULT, Paper, load_paper
from experiments.analysis.records import (
    COMPARED,
    AnalysisError,
    MixedRecordsError,
    Record,
    by_arm,
    check_one_kind,
    evaluation,
    load_records,
    one_line_warnings,
    sections,
    select,
)
from experiments.analysis.stats import paired_difference, summarise
from experiments.analysis.tasks import (
    Metric,
    TaskSpec,
    arm_label,
    measured,
    opponents,
    task_names,
    task_spec,
    values_by_seed,
)

SAMPLES, SAMPLE_LENGTH = 6, 400
# Sizes of a data set in words: key of the record's `data` -> unit; the first one found leads.
_SIZES = {
    "hours": "h",
    "train_hours": "h",
    "tokens": "tokens",
    "train_tokens": "tokens",
    "images": "images",
    "train_images": "images",
    "tiles": "tiles",
    "train_tiles": "tiles",
    "utterances": "utterances",
    "train_utterances": "utterances",
    "bytes": "bytes",
    "train_bytes": "bytes",
}
_PICTURES = (".png", ".jpg", ".jpeg", ".svg")


def cell(value: Any) -> str:
    """Text that can stand in one cell of a Markdown table."""
    return " ".join(str(value).split()).replace("|", "\\|")


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> list[str]:
    lines = [[cell(v) for v in row] for row in rows]
    text = ["| " + " | ".join(map(cell, header)) + " |", "|" + " --- |" * len(header)]
    return [*text, *("| " + " | ".join(row) + " |" for row in lines), ""]


def count_text(value: float) -> str:
    """A count in the unit people say it in: 912345 -> "0.91 M", 12000000000 -> "12 G"."""
    for limit, scale, unit in ((1e9, 1e9, "G"), (1e5, 1e6, "M")):
        if abs(value) >= limit:
            return f"{value / scale:.{2 if value / scale < 10 else 0}f} {unit}"
    return f"{value:,.0f}"


def model_name(record: Record) -> str:
    """The class of the model in the record's configuration, such as "Conformer"."""

    def target(node: Any) -> str:
        if not isinstance(node, Mapping):
            return ""
        if isinstance(node.get("_target_"), str):
            return str(node["_target_"]).rsplit(".", 1)[-1]
        return next((name for name in map(target, node.values()) if name), "")

    model = record.config.get("model") or record.setting("module.model")
    return target(model) or "model"


def data_words(record: Record) -> str:
    """Size and name of the data set, from the record."""
    data = dict(record.data)
    splits = data.get("splits")
    train = (splits if isinstance(splits, dict) else data).get("train")
    sizes = {**(train if isinstance(train, dict) else {}), **data}
    words = []
    for key, unit in _SIZES.items():
        value = sizes.get(key)
        if isinstance(value, dict):  # by split
            value = value.get("train")
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            words.append(f"{value:.1f} h" if unit == "h" else f"{count_text(value)} {unit}")
    return f"{', '.join(words)} of data set `{data.get('name', 'unnamed')}`".removeprefix(" of ")


def _span(values: Sequence[Any], text: Any = str) -> str:
    """One value, or the least and the greatest."""
    low, high = min(values), max(values)
    return text(low) if text(low) == text(high) else f"{text(low)} to {text(high)}"


def _threads(count: int | None) -> str:
    return "" if count is None else f"{count} thread{'' if count == 1 else 's'}"


def scale_in_words(records: Sequence[Record], spec: TaskSpec) -> str:
    """What was measured, and on what, in one sentence drawn from the records."""
    first = records[0]
    parts = []
    sizes = sorted({r.parameters for r in records if r.parameters is not None})
    size = f"{' / '.join(count_text(s) for s in sizes)}-parameter " if sizes else ""
    parts.append(f"{size}{model_name(first)}")
    parts.append(data_words(first))
    whole = [r.steps for r in records if not r.diverged] or [r.steps for r in records]
    parts.append(f"{_span(whole, count_text)} steps")
    seen = [
        f"{count_text(value) if value >= 1000 else f'{value:.3g}'} {unit}"
        for unit, value in first.seen.items()
        if isinstance(value, (int, float))
    ]
    if seen:
        parts.append(f"{', '.join(seen)} seen")
    threads = sorted({r.threads for r in records if r.threads is not None})
    devices = sorted({r.device for r in records if r.device})
    if devices or threads:
        words = " and ".join(_threads(n) for n in threads)
        parts.append(" on ".join(part for part in (words, " / ".join(devices)) if part))
    minutes = [r.wall_time_s / 60 for r in records if r.wall_time_s is not None]
    if minutes:
        parts.append(f"{_span(minutes, lambda v: f'{v:.1f}')} min a run")
    sentence = ", ".join(parts)
    return sentence if first.scale == "paper" else f"{sentence}; {spec.caveat}"


def paper_section(spec: TaskSpec, paper: Paper) -> list[str]:
    """The paper's claims and the numbers it stands among."""
    lines = ["## What the paper says", ""]
    for claim in paper.claims_of(spec.name):
        lines.append(f"- {claim.id} [{claim.mark}]: {claim.text} ({claim.source}).")
    references = paper.references_of(spec.name)
    if references:
        keys = list(dict.fromkeys(key for r in references for key in r.values))
        shown = [m.keys[0] for m in spec.metrics if m.keys[0] in keys]
        keys = shown + [key for key in keys if key not in shown]
        percent = any(r.unit == "percent" for r in references)
        lines += ["", f"Reported numbers{' in %' if percent else ''}:", ""]
        lines += markdown_table(
            ["system", *keys, "mark", "source"],
            [
                [
                    f"{r.name} ({r.setting})",
                    *(f"{r.values[k]:g}" if k in r.values else "–" for k in keys),
                    f"[{r.mark}]",
                    r.source,
                ]
                for r in references
            ],
        )
    else:
        lines += ["", "No number of the paper for this task is known from the sources used here.", ""]
    used = sorted({r.mark for r in references} | {c.mark for c in paper.claims_of(spec.name)})
    lines += ["Marks: " + "; ".join(f"[{mark}] {paper.marks[mark]}" for mark in used) + ".", ""]
    return lines


def reported(paper: Paper, spec: TaskSpec, metric: Metric, optimizer: str, sources: bool = True) -> str:
    """The paper's side of one row: numbers reported with `optimizer` for this metric, each with its mark."""
    words = [
        f"{r.values[metric.keys[0]]:g} ({r.name}{f', {r.source}' if sources else ''}) [{r.mark}]"
        for r in paper.references_of(spec.name)
        if r.optimizer == optimizer and metric.keys[0] in r.values
    ]
    return "; ".join(words) or "–"


def comparison_table(records: Sequence[Record], spec: TaskSpec, paper: Paper) -> list[str]:
    arms = by_arm(records)
    metrics = measured(records, spec.metrics)
    if not metrics:
        return ["No metric of this task is in the records.", ""]
    known = any(m.keys[0] in r.values for m in metrics for r in paper.references_of(spec.name))
    rivals = opponents(list(arms)) if "fadam" in arms else []
    header = ["metric", *(["reported with Adam", "reported with FAdam"] if known else [])]
    header += [f"ours, {arm_label(arm)}" for arm in arms]
    for rival in rivals:
        header += [f"FAdam - {arm_label(rival)} [95% interval]", "in words"]
    rows = []
    for metric in metrics:
        name = metric.label + (f" ({metric.unit})" if metric.unit else "")
        row = [f"{name} {'↓' if metric.mode == 'min' else '↑'}" if metric.judged else name]
        if known:
            row += [reported(paper, spec, metric, optimizer) for optimizer in ("adam", "fadam")]
        values = {arm: values_by_seed(runs, metric) for arm, runs in arms.items()}
        row += [metric.summary(summarise(list(v.values()))) for v in values.values()]
        for rival in rivals:
            paired = paired_difference(values["fadam"], values[rival], metric.mode)
            row += [metric.difference(paired), metric.verdict(paired)]
        rows.append(row)
    lines = markdown_table(header, rows)
    lines += [
        "Ours: mean ± standard deviation over n seeds (↓ lower is better, ↑ higher is better). Differences are taken "
        "seed by seed (same initial weights, same data order), with a 95% t interval; "
        f"each of the {len(metrics)} rows is judged by itself, without a correction for looking at several. A diverged "
        "run counts as infinitely bad. Only the difference can be set beside the paper, not the absolute numbers.",
        "",
    ]
    return lines


def _spread(values: Sequence[float | None], digits: int, factor: float = 1.0) -> str:
    numbers = [v * factor for v in values if v is not None]
    if not numbers:
        return "–"
    spread = f" ± {statistics.stdev(numbers):.{digits}f}" if len(numbers) > 1 else ""
    return f"{statistics.fmean(numbers):.{digits}f}{spread} (n={len(numbers)})"


def cost_table(records: Sequence[Record], spec: TaskSpec) -> list[str]:
    """Time, memory and steps to the target, per arm."""
    arms = by_arm(records)
    rows = [
        ["minutes a run", *(_spread([r.wall_time_s for r in runs], 2, 1 / 60) for runs in arms.values())],
        ["milliseconds a step", *(_spread([r.step_time_s for r in runs], 1, 1e3) for runs in arms.values())],
        ["peak memory (MiB)", *(_spread([r.peak_memory_bytes for r in runs], 0, 2**-20) for runs in arms.values())],
    ]
    targets = {(str(r.target["metric"]), r.target.get("value")) for r in records if r.target.get("metric")}
    if len(targets) == 1:
        key, goal = targets.pop()
        metric = next((m for m in (*spec.metrics, *spec.curves) if key in m.keys), None)
        if metric is not None and isinstance(goal, (int, float)):
            row = [f"steps to {metric.label} of {metric.number(goal)}{metric.unit}"]
            for runs in arms.values():
                steps = [r.target.get("steps") for r in runs]
                reached = [float(s) for s in steps if s is not None]
                row.append(_spread(reached, 0) if len(reached) == len(steps) else _partly(reached, len(steps)))
            rows.append(row)
    return markdown_table(["cost", *(arm_label(arm) for arm in arms)], rows)


def _partly(reached: Sequence[float], n: int) -> str:
    others = f"; {_spread(reached, 0)}" if reached else ""
    return f"not reached by {n - len(reached)} of {n}{others}"


def notes(records: Sequence[Record]) -> list[str]:
    """What a reader must know of these runs: divergence, collapse, few seeds, bad data left out."""
    lines = []
    for word, runs in (
        ("Diverged", [r for r in records if r.diverged]),
        ("**Collapsed codebook**", [r for r in records if r.collapsed]),
        ("Run from a changed working tree", [r for r in records if r.dirty]),
    ):
        if runs:
            names = ", ".join(f"{arm_label(r.arm)} seed {r.seed}" for r in runs)
            lines.append(f"- {word}: {names}.")
    problems: dict[str, set[int]] = {}
    for r in records:
        for kind, count in r.problems.items():
            problems.setdefault(kind, set()).add(count)
    words = [f"{kind} {_span(sorted(counts))}" for kind, counts in sorted(problems.items()) if any(counts)]
    if words:
        lines.append(f"- Bad items met in the data, by kind: {', '.join(words)}.")
    seeds = {arm: [r.seed for r in runs] for arm, runs in by_arm(records).items()}
    if len({tuple(s) for s in seeds.values()}) > 1:
        words = [f"{arm_label(arm)} {', '.join(map(str, s))}" for arm, s in seeds.items()]
        lines.append(f"- The arms have different seeds: {'; '.join(words)}.")
    orders = {(r.seed, r.data_seed) for r in records}
    mixed = sorted({seed for seed, _ in orders if sum(s == seed for s, _ in orders) > 1})
    if mixed:
        lines.append(f"- **Not paired: the data order differs between arms for seeds {', '.join(map(str, mixed))}.**")
    return [*lines, ""] if lines else []


def tuning_section(trials: Sequence[Record], runs: Sequence[Record], what: str) -> list[str]:
    """The search space, every trial, and the value chosen for each arm."""
    lines = ["### Tuning", ""]
    if not trials:
        return [*lines, "No tuning trials published yet.", ""]
    try:
        choices = choose(trials, f"the tuning table of {what}")
    except MixedRecordsError:
        raise
    except AnalysisError as error:
        return [*lines, f"No choice can be made: {error}", ""]
    first = next(iter(choices.values()))
    seeds = sorted({r.seed for r in trials})
    lines += [
        f"Objective: {first.metric} ({'lower' if first.mode == 'min' else 'higher'} is better), tuning seed "
        f"{', '.join(map(str, seeds))}, {len(first.trials)} trials for each of {len(choices)} arms. "
        "Chosen values are in bold.",
        "",
    ]
    points = list(dict.fromkeys(t.point for c in choices.values() for t in c.trials))
    points.sort(
        key=lambda p: [(not isinstance(v, (int, float)), v if isinstance(v, (int, float)) else 0) for _, v in p]
    )
    rows = []
    for point in points:
        row = [point_text(point)]
        for choice in choices.values():
            trial = next((t for t in choice.trials if t.point == point), None)
            if trial is None:
                row.append("–")
                continue
            diverged = sum(r.diverged for r in trial.records)
            text = f"diverged ({diverged} of {len(trial.records)})" if diverged else f"{trial.value:.4f}"
            row.append(f"**{text}** (chosen)" if trial is choice.best else text)
        rows.append(row)
    lines += markdown_table(["setting", *(arm_label(arm) for arm in choices)], rows)
    for arm, choice in choices.items():
        space = "; ".join(f"{key} in {{{space_words(choice, key)}}}" for key in choice.best.settings)
        if choice.edges:
            lines.append(f"- **{edge_words(choice)}**")
        else:
            best = point_text(choice.best.point)
            lines.append(f"- {arm_label(arm)}: {best} lies inside the space ({space}).")
        for key, value in choice.best.settings.items():
            used = {setting_text(r.setting(key)) for r in runs if r.arm == arm} - {setting_text(value)}
            if used:
                lines.append(f"  - **The evaluation runs use {key} = {', '.join(sorted(used))} instead.**")
    untuned = [arm_label(arm) for arm in by_arm(runs) if arm not in choices]
    if untuned:
        lines.append(f"- **Not tuned: {', '.join(untuned)}.**")
    overlap = sorted({r.seed for r in runs} & set(seeds))
    if overlap:
        lines.append(f"- **Seeds used both for tuning and for evaluation: {', '.join(map(str, overlap))}.**")
    if runs and trials[0].fingerprint != runs[0].fingerprint:
        lines.append(f"- **Tuned on other data ({trials[0].fingerprint}) than evaluated ({runs[0].fingerprint}).**")
    return [*lines, ""]


def _sides(sample: Mapping[str, Any]) -> tuple[str, str]:
    """What was given and what came out, of one sample."""
    given = next((sample[k] for k in ("reference", "prompt") if k in sample), "")
    made = next((sample[k] for k in ("hypothesis", "continuation", "text", "sample") if k in sample), "")
    return _short(given), _short(made)


def _short(text: Any) -> str:
    words = " ".join(str(text).split())
    return words if len(words) <= SAMPLE_LENGTH else words[:SAMPLE_LENGTH] + " ..."


def samples_section(records: Sequence[Record], out: Path) -> list[str]:
    """A few samples of one seed that the arms share, side by side, and the pictures kept with its runs."""
    arms = by_arm(records)
    shared = sorted(set.intersection(*({r.seed for r in runs} for runs in arms.values())))
    if not shared:
        return []
    runs = {arm: next(r for r in group if r.seed == shared[0]) for arm, group in arms.items()}
    by_id = {
        arm: {
            (str(s.get("split", "")), str(s.get("id", i))): _sides(s) for i, s in enumerate(r.samples) if any(_sides(s))
        }
        for arm, r in runs.items()
    }
    keys = list(dict.fromkeys(key for samples in by_id.values() for key in samples))[:SAMPLES]
    lines = []
    if keys:
        rows = []
        for key in keys:
            sides = {arm: samples.get(key, ("", "–")) for arm, samples in by_id.items()}
            given = next((g for g, _ in sides.values() if g), "–")
            rows.append([key[0] or "–", given, *(made for _, made in sides.values())])
        lines += markdown_table(["split", "reference or prompt", *(arm_label(arm) for arm in runs)], rows)
    for arm, r in runs.items():
        for name in r.artifacts:
            if name.endswith(_PICTURES):
                link = Path(os.path.relpath(r.path.parent / name, out)).as_posix()
                lines += [f"{arm_label(arm)}:", "", f"![{arm_label(arm)}, seed {r.seed}: {name}]({link})", ""]
    return [f"### Samples, seed {shared[0]}", "", *lines] if lines else []


def provenance_section(runs: Sequence[Record], trials: Sequence[Record], out: Path) -> list[str]:
    """Where each number comes from."""
    records = [*runs, *trials]
    lines = ["### Provenance", ""]
    for fingerprint in dict.fromkeys(r.fingerprint for r in records):
        names = sorted({data_words(r) for r in records if r.fingerprint == fingerprint})
        lines.append(f"- Data: {'; '.join(names)}, `{fingerprint}`")
    parameters = sorted({r.parameters for r in records if r.parameters is not None})
    if parameters:
        lines.append(f"- Parameters: {', '.join(f'{p:,}' for p in parameters)}")
    for versions in dict.fromkeys(tuple(sorted(r.versions.items())) for r in records if r.versions):
        lines.append(f"- Versions: {', '.join(f'{name} {version}' for name, version in versions)}")
    lines += ["", "Commands:", "", "```"]
    commands = list(dict.fromkeys(r.command for r in runs if r.command))
    lines += [*(commands or ["(the records hold no command)"]), "```", ""]
    rows = []
    for r in sorted(records, key=lambda r: (r.purpose, r.arm, str(r.relative))):
        link = Path(os.path.relpath(r.path, out)).as_posix()
        rate = r.setting("optimizer.lr")
        rows.append(
            [
                arm_label(r.arm),
                r.trial,
                r.seed,
                setting_text(rate) if rate is not None else "–",
                r.steps,
                "–" if r.step_time_s is None else f"{r.step_time_s * 1e3:.1f}",
                "–" if r.wall_time_s is None else f"{r.wall_time_s / 60:.2f}",
                ", ".join(part for part in (r.device, _threads(r.threads)) if part) or "–",
                (r.commit or "–") + (" (changed)" if r.dirty else ""),
                r.config_hash,
                f"[record]({link})",
            ]
        )
    header = ["arm", "trial", "seed", "lr", "steps", "ms a step", "minutes", "device", "commit", "config", "file"]
    return lines + markdown_table(header, rows)


def page(spec: TaskSpec, records: Sequence[Record], paper: Paper, out: Path) -> str:
    """The Markdown page of one task.

    Args:
        records: of this task; a study has tables of its own (`study_tables`), and smoke runs are not shown.
        out: folder of the page, from which links go.

    Raises:
        MixedRecordsError: evaluation records of two data sets or configurations.
    """
    records = [r for r in records if r.task == spec.name and r.scale in COMPARED]
    lines = [
        f"# {spec.title}: FAdam against Adam",
        "",
        f"Generated by `python -m experiments.analysis.tables {spec.name}` from the published records and "
        "`results/paper.yaml`; not to be edited.",
        "",
        *paper_section(spec, paper),
    ]
    runs, trials = evaluation(records), select(records, purpose="tune")
    if not runs and not trials:
        return "\n".join([*lines, "## Ours", "", "No published records yet."]) + "\n"
    if runs:
        lines += [f"![Curves](../figures/{spec.name}_curves.png)", ""]
    if trials:
        lines += [f"![Tuning](../figures/{spec.name}_tuning.png)", ""]
    if any(name.endswith(_PICTURES) for r in runs for name in r.artifacts):
        lines += [f"![Originals and reconstructions](../figures/{spec.name}_reconstructions.png)", ""]
    for scale, variant in sections([*runs, *trials]):
        here = select(runs, scale=scale, variant=variant)
        tried = select(trials, scale=scale, variant=variant)
        what = f"{spec.name} {scale}" + (f" {variant}" if variant else "")
        check_one_kind(here, f"the table of {what}")
        lines += [f"## Ours, scale `{scale}`" + (f", `{variant}`" if variant else ""), ""]
        lines += [f"{scale_in_words(here or tried, spec)}.", ""]
        if here:
            lines += comparison_table(here, spec, paper) + notes(here) + cost_table(here, spec)
        else:
            lines += ["No published evaluation records yet.", ""]
        lines += tuning_section(tried, here, what)
        if here:
            lines += samples_section(here, out)
        lines += provenance_section(here, tried, out)
    return "\n".join(lines).rstrip() + "\n"


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m experiments.analysis.tables", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("tasks", nargs="*", metavar="task", help="asr, llm, vqvae or all (default: all)")
    parser.add_argument("--runs", default="results/runs", help="root of the records (default: results/runs)")
    parser.add_argument("--paper", default=str(DEFAULT), help=f"the paper's numbers (default: {DEFAULT})")
    parser.add_argument("--out", default="results/tables", help="folder of the tables (default: results/tables)")
    options = parser.parse_args(argv)
    one_line_warnings()
    try:
        names = task_names(options.tasks)
        paper, records, out = load_paper(options.paper), load_records(options.runs), Path(options.out)
        pages = {name: page(task_spec(name), records, paper, out) for name in names}
    except AnalysisError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for name, text in pages.items():
        write_text(out / f"{name}.md", text)
        print(f"wrote {out / f'{name}.md'}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
