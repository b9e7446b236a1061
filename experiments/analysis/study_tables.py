"""Write `results/tables/study-<task>.md`, and `study.md` over all tasks, from the published records of the study.

python -m experiments.analysis.study_tables [asr llm vqvae | all] [--runs results/runs] [--out results/tables]
"""

from __future__ import annotations

import argparse
import math
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from experiments.analysis.choose import point_text, setting_text, write_text
from experiments.analysis.records import AnalysisError, Record, load_records, one_line_warnings
from experiments.analysis.stats import Ratio
from experiments.analysis.study import (
    OPPONENT,
    Arm,
    Comparison,
    EpsSweep,
    Point,
    Profile,
    Progress,
    Study,
    TaskStudy,
    Variation,
    again,
    study,
)
from experiments.analysis.tables import cell, markdown_table, scale_in_words
from experiments.analysis.tasks import SPECS, Metric, arm_label, task_names
from experiments.analysis.verdicts import interval_text, p_text
from experiments.core.errors import UserError
from experiments.core.study import afterwards

TIER_TITLES = {
    "who": "Tier 1: who wins",
    "why": "Tier 2: why, one switch at a time",
    "far": "Tier 3: how far it holds",
    "after": "After the fact: what the results asked for",
}
# Parts that are not called like what they vary.
VARIATIONS = {
    "again": "FAdam again, on the build that ran the switches",
    "neighbour": "The next lower learning rate",
}
# Distances from the best arm at which the performance profile is written down, in units of what matters.
DISTANCES = (0.0, 1.0, 2.0, 5.0, 10.0, 20.0)


class Links:
    """Links from a page in the folder `out` to run records."""

    def __init__(self, out: Path) -> None:
        self._out = out

    def to(self, record: Record, text: object) -> str:
        return f"[{text}]({Path(os.path.relpath(record.path, self._out)).as_posix()})"

    def seeds(self, records: Iterable[Record]) -> str:
        return " ".join(self.to(r, r.seed) for r in records)


def not_yet(progress: Progress) -> list[str]:
    """What is said of a tier or a part that lacks runs; nothing where it is complete."""
    if progress.complete:
        return []
    words = "not run yet" if progress.done == 0 else "not complete"
    return [f"**{words}: {progress.words}.**", ""]


def _arrow(metric: Metric) -> str:
    text = f"{metric.label} ({metric.unit})" if metric.unit else metric.label
    return f"{text} {'↓' if metric.mode == 'min' else '↑'}" if metric.judged else text


def _edge(arm: Arm) -> str:
    return f" **{arm.tuning.edge} end of what was tried**" if arm.tuning.edge else ""


def _luck(arm: Arm) -> str:
    if arm.luck is None:
        return "–"
    metric, chosen, seeds = arm.luck
    return f"{metric.number(chosen)} → {metric.number(seeds.mean)}"


def arms_table(arms: Sequence[Arm], links: Links) -> list[str]:
    """Every arm with its tuned setting and its evaluation runs; then the other metrics of the same runs."""
    header = ["arm", "tuned to", "trials", "chosen trial → these seeds", _arrow(arms[0].metric), "diverged"]
    header.append("records by seed")
    rows = []
    for arm in arms:
        choice = arm.tuning.choice
        setting = "–" if choice is None else point_text(choice.best.point).replace("optimizer.", "") + _edge(arm)
        diverged = "–" if arm.summary is None else f"{arm.summary.diverged} of {arm.summary.n}"
        row = [arm.label, setting, arm.tuning.progress.words.removesuffix(" records"), _luck(arm)]
        rows.append([*row, arm.metric.summary(arm.summary), diverged, links.seeds(arm.runs) or "–"])
    lines = markdown_table(header, rows)
    tuned = next((arm.luck[0].label for arm in arms if arm.luck is not None), None)
    if tuned is not None:
        lines += [
            f"Chosen trial → these seeds: {tuned} of the best trial, on the one seed of the tuning, and on average "
            "over the evaluation seeds. Where the second is much worse, the choice was lucky.",
            "",
        ]
    run = [arm for arm in arms if arm.runs]
    others = list(dict.fromkeys(m for arm in run for m, _ in arm.secondary))
    if others:
        summaries = [dict(arm.secondary) for arm in run]
        rows = [[_arrow(m), *(m.summary(found.get(m)) for found in summaries)] for m in others]
        lines += ["Other metrics of the same runs:", "", *markdown_table(["metric", *(a.label for a in run)], rows)]
    return lines


def comparison_table(comparisons: Sequence[Comparison]) -> list[str]:
    """The paired gains of one arm over others."""
    first = arm_label(comparisons[0].arm)
    rows = []
    for c in comparisons:
        gain = c.gain
        detectable = "–" if c.detectable is None else c.number(c.detectable).lstrip("+")
        flips = p_text(gain.p) + (f" ({p_text(c.p_holm)})" if c.p_holm is not None else "")
        student = p_text(gain.p_t) + (f" ({p_text(c.p_t_holm)})" if c.p_t_holm is not None else "")
        row = [arm_label(c.opponent), c.number(gain.mean) if gain.n else "–", interval_text(c, gain.bca)]
        row += [interval_text(c, gain.t_interval), str(gain.n), flips, student, detectable, f"**{c.said}**"]
        rows.append(row)
    header = [
        f"{first} against",
        "gain",
        "95% bootstrap (BCa)",
        "95% Student's t",
        "pairs",
        "sign-flip p (Holm)",
        "t test p (Holm)",
    ]
    return markdown_table([*header, "detectable (80% power)", f"{first} is"], rows)


def ratio_text(ratio: Ratio) -> str:
    """A ratio with its interval, and how many runs never got there."""
    if ratio.middle is None:
        return "–"

    def number(value: float) -> str:
        return "∞" if math.isinf(value) else f"{value:.2f}"

    text = number(ratio.middle)
    if ratio.interval is not None:
        text += f" [{number(ratio.interval[0])}, {number(ratio.interval[1])}]"
    if ratio.kind == "median":
        n = len(ratio.ratios)
        text += (
            f" (median; not reached by FAdam {len(ratio.censored)}, by the other {len(ratio.other_censored)} of {n})"
        )
    return text


def target_section(found: TaskStudy, names: Iterable[str]) -> list[str]:
    """Steps and time to the target, FAdam's over each other arm's."""
    target, names = found.target, set(names)
    lines = ["### Steps and time to the target", ""]
    if target is None:
        return [
            *lines,
            f"Not known yet: the target comes from the tuned {arm_label(found.protocol['target']['arm'])}.",
            "",
        ]
    unit = target.metric.unit
    lines += [
        f"Target: {target.metric.label} of {target.metric.number(target.value)}{unit}, the mean of the tuned "
        f"{arm_label(target.arm)} after {target.share:.0%} of its steps. Ratios are FAdam's over the other arm's, "
        "below 1 is faster: geometric mean over the seeds with 95% bootstrap interval; where a run never got there, "
        "which counts as worse than any, the median. Seconds were taken on machines shared with other runs.",
        "",
    ]
    rows = [
        [arm_label(s.opponent), ratio_text(s.steps), ratio_text(s.seconds)] for s in found.speeds if s.opponent in names
    ]
    return lines + markdown_table(["FAdam over", "steps", "seconds"], rows)


def tuning_table(arms: Sequence[Arm], links: Links) -> list[str]:
    """Every trial: the setting and what it came to, one column an arm. The chosen ones are bold."""
    done = [arm for arm in arms if arm.tuning.trials]
    if not done:
        return ["No tuning trials yet.", ""]
    trials = list(dict.fromkeys(r.trial for arm in done for r in arm.tuning.trials))
    rows = []
    for trial in sorted(trials, key=_trial_order):
        row = [trial.removeprefix("tune-")]
        for arm in done:
            record = next((r for r in arm.tuning.trials if r.trial == trial), None)
            row.append("–" if record is None else _trial_text(arm, record, links))
        rows.append(row)
    first = done[0].tuning.trials[0]
    lines = [
        f"Objective: {first.objective.get('metric')}, seed {first.seed}. Learning rate and decay stand beside.",
        "",
    ]
    lines += markdown_table(["trial", *(arm.label for arm in done)], rows)
    for arm in done:
        low, high = arm.tuning.widened
        if low or high:
            lines.append(
                f"- The space was widened for every arm: {low} trials below its low end, {high} above its high end."
            )
            break
    for arm in done:
        if arm.tuning.edge:
            lines.append(
                f"- **{arm.label}: the best learning rate is at the {arm.tuning.edge} end of what was tried.**"
            )
    return [*lines, ""]


def _trial_order(trial: str) -> tuple[float, str]:
    number = trial.removeprefix("tune-")[1:]
    try:
        return float(number), trial
    except ValueError:
        return math.inf, trial


def _trial_text(arm: Arm, record: Record, links: Links) -> str:
    value = record.objective_value()
    text = links.to(record, f"{value:.4f}" if math.isfinite(value) else "diverged")
    choice = arm.tuning.choice
    if choice is not None and record in choice.best.records:
        text = f"**{text}**"
    return f"{text} ({', '.join(setting_text(v) for v in record.searched.values())})"


def eps_section(sweeps: Sequence[EpsSweep], links: Links) -> list[str]:
    """The metric over epsilon."""
    lines = ["### Epsilon", ""]
    for sweep in sweeps:
        lines += [f"{arm_label(sweep.arm)}: {line}" for line in not_yet(sweep.progress) if line]
    if not any(s.runs for s in sweeps):
        return [*lines, ""]
    rows = []
    for eps in sorted({eps for s in sweeps for eps in s.values}, reverse=True):
        row = [f"{eps:g}"]
        for sweep in sweeps:
            runs = {r.seed: r for r in sweep.runs if r.trial == f"eps{eps}"}
            here = sweep.values.get(eps, {})
            row.append(", ".join(links.to(runs[seed], sweep.metric.number(v)) for seed, v in here.items()) or "–")
        rows.append(row)
    lines += ["", *markdown_table(["eps", *(f"{arm_label(s.arm)}: {_arrow(s.metric)}" for s in sweeps)], rows)]
    for s in sweeps:
        if s.range is not None:
            chance = "unknown" if s.noise is None else f"up to {s.metric.number(s.noise)}{s.metric.unit}"
            verdict = {None: "", True: ": sensitive", False: ": not sensitive"}[s.sensitive]
            lines.append(
                f"- {arm_label(s.arm)}: the means lie {s.metric.number(s.range)}{s.metric.unit} apart, "
                f"by chance {chance}, {s.metric.number(s.matters)}{s.metric.unit} would matter{verdict}."
            )
    return [*lines, ""]


def variation_section(variation: Variation, links: Links) -> list[str]:
    """One setting varied, for every arm."""
    lines = [f"### {VARIATIONS.get(variation.name, variation.name)}", "", *not_yet(variation.progress)]
    points = [p for p in variation.points if p.runs]
    if not points:
        return lines
    arms = list(dict.fromkeys(p.arm for p in points))
    by_place: dict[tuple[float, float], dict[str, Point]] = {}
    for p in points:
        by_place.setdefault((p.value, p.factor), {})[p.arm] = p
    rows = []
    for (value, factor), here in sorted(by_place.items()):
        label = f"{value:g}" + (f" (learning rate × {factor:g})" if variation.setting == "rho" else "")
        cells = []
        for arm in arms:
            point = here.get(arm)
            text = "–" if point is None else f"{variation.metric.summary(point.summary)} {links.seeds(point.runs)}"
            cells.append(text)
        rows.append([label, *cells])
    header = [variation.setting, *(f"{arm_label(a)}: {_arrow(variation.metric)}" for a in arms)]
    return lines + markdown_table(header, rows)


def after_section(found: TaskStudy, links: Links) -> list[str]:
    """What was asked once the results were known."""
    after, fadam = found.protocol["tiers"]["after"], found.arms["fadam"]
    lines = [f"## {TIER_TITLES['after']}", "", *not_yet(found.tier("after")), after["why"].strip(), ""]
    sides = [found.arms[after["clipping"][side]] for side in ("against", "arm")]
    lines += ["### FAdam's clip, or global-norm clipping in its place", ""]
    lines += _part(found, sides, "clipping", links)
    for variation in (v for v in found.variations if v.tier == "after"):
        lines += variation_section(variation, links)
        if variation.name == "again" and (repeated := again(found)):
            matters = f"{fadam.metric.number(found.matters)}{fadam.metric.unit}"
            lines += [f"The gain of FAdam, so run again, over the switches; {matters} would matter:", ""]
            lines += comparison_table(repeated)
    return lines


def _part(found: TaskStudy, arms: Sequence[Arm], part: str, links: Links) -> list[str]:
    """The arms of one part, FAdam before them where it belongs to another, and what FAdam gains on them."""
    lines = []
    if any(arm.runs for arm in arms if arm.part == part):
        lines += arms_table(arms, links)
        noted = [f"- {arm.label}: {note}." for arm in arms for note in arm.notes]
        lines += [*noted, ""] if noted else []
        shown = [c for c in found.comparisons if c.part == part and c.gain.n]
        if shown:
            lines += [
                f"{arm_label(shown[0].arm)}'s gain, positive where it is better; {_matters(found, arms)} would matter.",
                "",
            ]
            lines += comparison_table(shown)
    return [*lines, "#### Tuning", "", *tuning_table([a for a in arms if a.part == part], links)]


def _matters(found: TaskStudy, arms: Sequence[Arm]) -> str:
    metric = arms[0].metric
    matters = next((c.matters for c in found.comparisons if c.metric == metric), found.matters)
    return f"{metric.number(matters)}{metric.unit}"


def page(found: TaskStudy, out: Path) -> str:
    """The Markdown page of one task; links go from the folder `out`."""
    links, spec, plan = Links(out), found.spec, found.protocol
    lines = [
        f"# {spec.title}: the study",
        "",
        f"Generated by `python -m experiments.analysis.study_tables {spec.name}` from the published records and "
        f"`configs/study/{spec.name}.yaml`, which was written before them (what was not, says so); not to be edited. "
        "What the numbers mean for the paper's claims: [verdicts](verdicts.md).",
        "",
    ]
    runs = [r for arm in found.arms.values() for r in arm.runs]
    if runs:
        lines += [f"{scale_in_words(runs, spec)}.", ""]
    lines += [
        f"Every arm has {plan['points']} tuning trials at the same low-discrepancy points of learning rate and weight "
        f"decay, on {plan['tuning']['metric']} with seed {plan['tuning']['seed']}; then it is evaluated on "
        f"{found.metric.label} with seeds {', '.join(map(str, plan['seeds']))}, which share initial weights and data "
        f"order between arms. A difference of {found.metric.number(found.matters)}{found.metric.unit} would matter.",
        "",
    ]
    lines += markdown_table(["tier", "records"], [[TIER_TITLES[p.tier], p.words] for p in found.progress])
    who = [a for a in found.arms.values() if a.tier == "who"]
    lines += [f"## {TIER_TITLES['who']}", "", *not_yet(found.tier("who"))]
    lines += _part(found, who, "main", links)
    lines += target_section(found, [a.name for a in who])
    lines += [f"## {TIER_TITLES['why']}", "", *not_yet(found.tier("why"))]
    switches = [a for a in found.arms.values() if a.part == "switches"]
    fadam = found.arms["fadam"]
    lines += ["### FAdam with one correction turned back", ""]
    lines += _part(found, [fadam, *switches], "switches", links)
    lines += eps_section(found.eps, links)
    if found.continuous:
        arms = list(found.continuous.values())
        lines += [f"### The continuous likelihood, `{arms[0].variant}`", ""]
        lines += _part(found, arms, "continuous", links)
    if any(p.tier == "far" for p in found.progress):
        lines += [f"## {TIER_TITLES['far']}", "", *not_yet(found.tier("far"))]
        for variation in found.variations:
            lines += variation_section(variation, links) if variation.tier == "far" else []
        context = [a for a in found.arms.values() if a.part == "context"]
        if context:
            lines += ["### Optimizers in use today, tuned alike", ""]
            lines += _part(found, [fadam, *context], "context", links)
    if any(p.tier == "after" for p in found.progress):
        lines += after_section(found, links)
    if noted := afterwards(plan):
        lines += ["## What the protocol did not declare", "", *(f"- {note}" for note in noted)]
    return "\n".join(lines).rstrip() + "\n"


def profile_table(profile: Profile) -> list[str]:
    """Share of the problems on which each arm is within a distance of the best."""
    if not profile.problems:
        return ["No seed has been run by all arms of tier 1 yet.", ""]
    tasks = {task: sum(t == task for t, _ in profile.problems) for task, _ in profile.problems}
    words = ", ".join(f"{n} of {task}" for task, n in tasks.items())
    rows = [
        [arm_label(arm), *(f"{profile.share(arm, distance):.0%}" for distance in DISTANCES)] for arm in profile.gaps
    ]
    header = ["arm", *("best" if d == 0 else f"≤ {d:g}" for d in DISTANCES)]
    return [
        f"Share of {len(profile.problems)} problems, one a task and evaluation seed ({words}), on which an arm is at "
        "most so far behind the best one, in units of the difference that matters in that task.",
        "",
        *markdown_table(header, rows),
    ]


def overview(found: Study) -> str:
    """The Markdown page over all tasks."""
    lines = [
        "# The study",
        "",
        "Generated by `python -m experiments.analysis.study_tables` from the published records; not to be edited. "
        "What it says of the paper's claims: [verdicts](verdicts.md).",
        "",
    ]
    rows = []
    for task, mine in found.tasks.items():
        words = {p.tier: p.words if p.done else f"not run yet: {p.words}" for p in mine.progress}
        rows.append(
            [f"[{cell(mine.spec.title)}](study-{task}.md)", *(words.get(tier, "not planned") for tier in TIER_TITLES)]
        )
    lines += markdown_table(["task", *TIER_TITLES.values()], rows)
    rows = []
    for mine in found.tasks.values():
        c = mine.comparison("fadam", OPPONENT, "main")
        if c is None or not c.gain.n:
            continue
        sides = [mine.arms[name] for name in (OPPONENT, "fadam")]
        rows.append(
            [
                mine.spec.title,
                _arrow(mine.metric),
                *(mine.metric.summary(a.summary) for a in sides),
                c.number(c.gain.mean),
                interval_text(c, c.gain.t_interval),
                f"**{c.said}**",
            ]
        )
    if rows:
        header = [
            "task",
            "metric",
            arm_label(OPPONENT),
            arm_label("fadam"),
            "gain",
            "95% Student's t",
            "FAdam: outcome",
        ]
        lines += ["## FAdam against its declared opponent", "", *markdown_table(header, rows)]
    lines += ["## Performance profile of tier 1", "", *profile_table(found.profile)]
    return "\n".join(lines).rstrip() + "\n"


def pages(records: Sequence[Record], tasks: Sequence[str], out: Path, found: Study | None = None) -> Mapping[Path, str]:
    """File -> text, of the tasks named, and of all tasks where all are named."""
    found = found or study(records)
    made = {out / f"study-{task}.md": page(found.tasks[task], out) for task in tasks}
    return {out / "study.md": overview(found), **made} if set(tasks) == set(found.tasks) else made


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m experiments.analysis.study_tables", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("tasks", nargs="*", metavar="task", help=f"{', '.join(SPECS)} or all (default: all)")
    parser.add_argument("--runs", default="results/runs", help="root of the records (default: results/runs)")
    parser.add_argument("--out", default="results/tables", help="folder of the tables (default: results/tables)")
    options = parser.parse_args(argv)
    one_line_warnings()
    try:
        made = pages(load_records(options.runs), task_names(options.tasks), Path(options.out))
    except (AnalysisError, UserError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for path, text in made.items():
        write_text(path, text)
        print(f"wrote {path}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
