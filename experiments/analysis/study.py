"""The numbers of a study: what its records say under the protocol that was declared before they were made.

Differences are gains: positive means that the first arm is better, whatever the direction of the metric. See
`stats.decide` for what a comparison rests on.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from experiments.analysis.choose import Choice, choose_arm
from experiments.analysis.plan import TIERS, Planned, planned, widened
from experiments.analysis.records import AnalysisError, MixedRecordsError, Record, check_one_kind, finite
from experiments.analysis.stats import (
    LEVEL,
    NEITHER,
    Gain,
    Ratio,
    Summary,
    decide,
    detectable_difference,
    first_reached,
    gain_of,
    holm,
    paired_gain,
    paired_ratio,
    range_noise,
    summarise,
)
from experiments.analysis.tasks import SPECS, Metric, TaskSpec, arm_label, measured, task_spec, values_by_seed
from experiments.analysis.tuning import current, end
from experiments.core.study import FOLDER, TUNED, protocol

SCALE = "study"
# The fair opponent of FAdam, which clips inside; the comparison with it is the primary one.
OPPONENT = "adamw_clip"


@dataclass(frozen=True)
class Progress:
    """How many of the planned runs of a tier (or of a part of one) have their record."""

    tier: str
    part: str
    done: int
    planned: int

    @property
    def complete(self) -> bool:
        return self.done == self.planned

    @property
    def words(self) -> str:
        return f"{self.done} of {self.planned} records"


@dataclass(frozen=True)
class Tuning:
    """The tuning trials of one arm.

    Attributes:
        choice: the trials and the best of them; None as long as trials are missing or if all diverged.
        trials: the finished tuning records.
        edge: "low" or "high" where the best learning rate is the least or the greatest that was tried, else "".
        widened: points that were added to the declared space at its low and at its high end.
    """

    progress: Progress
    choice: Choice | None
    trials: tuple[Record, ...]
    edge: str
    widened: tuple[int, int]

    @property
    def settings(self) -> dict[str, Any]:
        return {} if self.choice is None else self.choice.best.settings


@dataclass(frozen=True)
class Arm:
    """The tuned evaluation runs of one arm, and the tuning before them.

    Attributes:
        part: "main", "switches", "continuous" or "context", as in `plan.Planned`.
        values: seed -> final value of the protocol's metric, infinite where the run diverged.
        secondary: the other metrics of the task that the runs measured, each with its summary.
        notes: what is wrong with these runs, in words: other settings than the chosen ones, a collapsed codebook.
    """

    name: str
    tier: str
    part: str
    variant: str
    metric: Metric
    progress: Progress
    runs: tuple[Record, ...]
    values: Mapping[int, float]
    summary: Summary | None
    secondary: tuple[tuple[Metric, Summary], ...]
    tuning: Tuning
    notes: tuple[str, ...]

    @property
    def label(self) -> str:
        return arm_label(self.name)

    @property
    def complete(self) -> bool:
        return self.progress.complete and self.tuning.progress.complete

    @property
    def luck(self) -> tuple[Metric, float, Summary] | None:
        """The metric of the tuning, its value at the chosen trial, and the same on the evaluation seeds: chosen as the
        best of several on one seed, the first is lucky, most of all beside the learning rates at which training
        breaks. None as long as either is missing."""
        choice = self.tuning.choice
        found = None if choice is None else next(((m, s) for m, s in self.secondary if choice.metric in m.keys), None)
        return None if choice is None or found is None else (found[0], choice.best.value, found[1])


@dataclass(frozen=True)
class Comparison:
    """One arm against another on the evaluation seeds that both have.

    Attributes:
        part: of the planned runs it is between; "interaction", or "secondary" for another metric than the protocol's.
        primary: whether it belongs to the family that Holm's correction is for: FAdam against its declared opponent,
            FAdam against itself without each correction, its clip against global-norm clipping, and the interaction
            with the likelihood, on all tasks.
        matters: the smallest difference that would matter, in the units of the metric (or 1 where `metric` is None:
            the gains are then in such units).
        p_holm, p_t_holm: the p of `gain` after Holm's correction over the family; None outside it.
        family: how many comparisons that family has; 1 outside it.
        outcome: "better", "worse" or "no detectable difference", of the first arm; of a primary comparison, after
            Holm's correction.
    """

    task: str
    scale: str
    part: str
    variant: str
    metric: Metric | None
    matters: float
    arm: str
    opponent: str
    primary: bool
    gain: Gain
    outcome: str
    runs: tuple[Record, ...]
    p_holm: float | None = None
    p_t_holm: float | None = None
    family: int = 1

    @property
    def said(self) -> str:
        """The outcome in words; outside the family it is not corrected, and says so."""
        return self.outcome if self.primary or self.outcome == NEITHER else f"{self.outcome}, taken alone"

    @property
    def detectable(self) -> float | None:
        """The smallest true difference that would have been found in 80% of such comparisons, even as the only one of
        the family; None where the spread is not known."""
        sd = self.gain.sd
        return None if sd is None else detectable_difference(sd, self.gain.n, level=LEVEL / self.family)

    @property
    def label(self) -> str:
        text = f"{arm_label(self.arm)} against {arm_label(self.opponent)}"
        if self.part not in ("continuous", "interaction", "secondary"):
            return text
        unit = self.metric.label if self.metric else "in units of what matters"
        return ", ".join(part for part in (text, self.variant, unit) if part)

    def number(self, value: float | None) -> str:
        """A gain in the units of the metric, with its sign."""
        if value is None:
            return "–"
        return f"{value:+.2f}" if self.metric is None else self.metric.number(value, signed=True) + self.metric.unit


@dataclass(frozen=True)
class Target:
    """The value of the tuning metric that the tuned `arm` has, on average, after `share` of its steps."""

    arm: str
    share: float
    metric: Metric
    value: float


@dataclass(frozen=True)
class Speed:
    """Steps and seconds that one arm needs to reach the target, over what another needs. Seconds are training time on
    machines that were shared with other runs, so that steps are the safer of the two."""

    arm: str
    opponent: str
    steps: Ratio
    seconds: Ratio


@dataclass(frozen=True)
class EpsSweep:
    """The metric of one arm over epsilon (claim C4).

    Attributes:
        values: epsilon -> seed -> value. means: epsilon -> mean over the seeds that every epsilon has.
        range: greatest minus least mean; None where fewer than two epsilons have a run.
        noise: how large a range chance alone would give, from the spread of the arm's evaluation runs, in all but 5%
            of cases (studentised range); None without these.
        sensitive: whether `range` is larger than both `noise` and what matters; None while runs are missing.
    """

    arm: str
    metric: Metric
    matters: float
    progress: Progress
    values: Mapping[float, Mapping[int, float]]
    means: Mapping[float, float]
    range: float | None
    noise: float | None
    sensitive: bool | None
    runs: tuple[Record, ...]


@dataclass(frozen=True)
class Point:
    """One setting of a variation; `factor` is of the learning rate, 1 where only the value was varied."""

    arm: str
    value: float
    factor: float
    values: Mapping[int, float]
    summary: Summary | None
    runs: tuple[Record, ...]


@dataclass(frozen=True)
class Variation:
    """One setting varied, all others as tuned: tier 3, or what was asked afterwards.

    Attributes:
        name: of the part. setting: what is varied.
    """

    name: str
    tier: str
    setting: str
    progress: Progress
    metric: Metric
    points: tuple[Point, ...]


@dataclass(frozen=True)
class TaskStudy:
    """All numbers of one task. `arms` has those of the main likelihood by name, `continuous` those of the other."""

    spec: TaskSpec
    protocol: Mapping[str, Any]
    metric: Metric
    matters: float
    tuning_metric: Metric
    progress: tuple[Progress, ...]
    arms: Mapping[str, Arm]
    continuous: Mapping[str, Arm]
    comparisons: tuple[Comparison, ...]
    target: Target | None
    speeds: tuple[Speed, ...]
    eps: tuple[EpsSweep, ...]
    variations: tuple[Variation, ...]

    @property
    def task(self) -> str:
        return self.spec.name

    def tier(self, name: str) -> Progress:
        return next(p for p in self.progress if p.tier == name)

    def comparison(self, arm: str, opponent: str, part: str | None = None) -> Comparison | None:
        """The comparison of two arms; None where they share no seed."""
        return next(
            (c for c in self.comparisons if (c.arm, c.opponent) == (arm, opponent) and part in (None, c.part)), None
        )


@dataclass(frozen=True)
class Profile:
    """Performance profile over problems, one a task and evaluation seed (after Dolan and More, 2002, with gaps instead
    of ratios, since bits and decibels have no common zero).

    Attributes:
        problems: (task, seed) pairs that all of the arms have run.
        gaps: arm -> its distance from the best arm on each problem, in units of the difference that matters there.
    """

    problems: tuple[tuple[str, int], ...]
    gaps: Mapping[str, tuple[float, ...]]

    def share(self, arm: str, within: float) -> float:
        """Share of the problems on which `arm` is at most `within` behind the best."""
        return sum(gap <= within for gap in self.gaps[arm]) / len(self.problems)


@dataclass(frozen=True)
class Study:
    """The study of several tasks.

    Attributes:
        interaction: of the optimizers with the likelihood, each side in units of what matters; `same_metric`: of the
            metric that both sides have.
        family: how many primary comparisons were planned, which Holm's correction is for.
    """

    scale: str
    tasks: Mapping[str, TaskStudy]
    interaction: Comparison | None
    same_metric: Comparison | None
    profile: Profile
    family: int


def again(task: TaskStudy) -> tuple[Comparison, ...]:
    """The switches against FAdam as it was run again beside them, where that has been done on all evaluation seeds: the
    sweep of epsilon and the tier after the fact have runs at the default, which is FAdam as tuned."""
    part = next((v for v in task.variations if v.name == "again"), None)
    sweep = next((s for s in task.eps if s.arm == "fadam"), None)
    fadam = task.arms["fadam"]
    if part is None or sweep is None or not part.progress.complete:
        return ()
    beside = [r for p in part.points for r in p.runs]
    runs = [r for r in sweep.runs if r.trial in {b.trial for b in beside}] + beside
    if {r.seed for r in runs} != set(fadam.values):
        return ()
    switches = [arm for arm in task.arms.values() if arm.part == "switches" and arm.runs]
    made = (
        compare_runs(task.task, SCALE, fadam.variant, fadam.metric, task.matters, runs, arm.runs) for arm in switches
    )
    return tuple(replace(c, part="again", primary=False) for c in made)


def other_metric(
    task: str, scale: str, name: str, plan: Mapping[str, Any], arm: Sequence[Record], other: Sequence[Record]
) -> Comparison:
    """Two arms by another metric that the protocol declares somewhere, with what matters in it.

    Raises:
        AnalysisError: the protocol declares no such metric.
    """
    declared = [plan["metric"], plan["tiers"]["why"].get("continuous", {}).get("metric", {})]
    found = next((m for m in declared if m.get("name") == name), None)
    if found is None:
        raise AnalysisError(f"the protocol of {task} does not say what matters in {name}")
    metric = metric_of(task_spec(task), found)
    made = compare_runs(task, scale, "", metric, float(found["matters"]), arm, other)
    return replace(made, part="secondary", primary=False)


def metric_of(spec: TaskSpec, declared: Mapping[str, Any]) -> Metric:
    """The metric that a protocol names.

    Raises:
        AnalysisError: the task has no such metric, or the protocol turns it round.
    """
    for metric in (*spec.metrics, *spec.curves):
        if declared["metric" if "metric" in declared else "name"] in metric.keys:
            if metric.mode != declared["mode"]:
                raise AnalysisError(f"the protocol of {spec.name} says {declared['mode']!r} of {metric.keys[0]}")
            return metric
    raise AnalysisError(f"the protocol of {spec.name} names a metric that the task does not have: {dict(declared)}")


def _progress(tier: str, part: str, runs: Sequence[Planned], by_path: Mapping[Path, Record]) -> Progress:
    return Progress(tier, part, sum(run.record in by_path for run in runs), len(runs))


def _found(runs: Iterable[Planned], by_path: Mapping[Path, Record]) -> tuple[Record, ...]:
    return tuple(by_path[run.record] for run in runs if run.record in by_path)


def _tuning(runs: Sequence[Planned], by_path: Mapping[Path, Record], tuned: Path) -> Tuning:
    first, trials = runs[0], _found(runs, by_path)
    progress = _progress(first.tier, first.part, runs, by_path)
    choice, edge = None, ""
    if progress.complete and not all(r.diverged for r in trials):
        choice = choose_arm(trials)
        edge = end(choice)
    return Tuning(progress, choice, trials, edge, widened(first.experiment, first.part, tuned))


def _notes(runs: Sequence[Record], tuning: Tuning) -> tuple[str, ...]:
    words = []
    for key, value in tuning.settings.items():
        used = sorted({str(r.setting(key)) for r in runs if r.setting(key) != value})
        if used:
            words.append(f"the evaluation runs use {key} = {', '.join(used)}, the best trial has {value}")
    for what, chosen in (
        ("diverged", [r for r in runs if r.diverged]),
        ("collapsed codebook", [r for r in runs if r.collapsed]),
        ("run from a changed working tree", [r for r in runs if r.dirty]),
    ):
        if chosen:
            words.append(f"{what}: seed {', '.join(str(r.seed) for r in chosen)}")
    return tuple(words)


def _arms(
    runs: Sequence[Planned], by_path: Mapping[Path, Record], spec: TaskSpec, metric: Metric, tuned: Path
) -> dict[str, Arm]:
    arms = {}
    for name in dict.fromkeys(run.arm for run in runs):
        mine = [run for run in runs if run.arm == name]
        evaluated = [run for run in mine if run.purpose == "eval"]
        records = _found(evaluated, by_path)
        tuning = _tuning([run for run in mine if run.purpose == "tune"], by_path, tuned)
        others = [m for m in measured(records, spec.metrics) if m != metric]
        values = values_by_seed(records, metric)
        summaries = [(m, summarise(list(values_by_seed(records, m).values()))) for m in others]
        first = mine[0]
        arms[name] = Arm(
            name=name,
            tier=first.tier,
            part=first.part,
            variant=first.variant,
            metric=metric,
            progress=_progress(first.tier, first.part, evaluated, by_path),
            runs=records,
            values=values,
            summary=summarise(list(values.values())),
            secondary=tuple((m, s) for m, s in summaries if s is not None),
            tuning=tuning,
            notes=_notes(records, tuning),
        )
    return arms


def compare_runs(
    task: str, scale: str, variant: str, metric: Metric, matters: float, arm: Sequence[Record], other: Sequence[Record]
) -> Comparison:
    """The runs of one arm against those of another, on the seeds that both have; a primary comparison."""
    values, opposite = values_by_seed(arm, metric), values_by_seed(other, metric)
    gain = paired_gain(values, opposite, metric.mode)
    runs = tuple(r for r in (*arm, *other) if r.seed in gain.gains)
    return Comparison(
        task=task,
        scale=scale,
        part="main",
        variant=variant,
        metric=metric,
        matters=matters,
        arm=next((r.arm for r in arm), ""),
        opponent=next((r.arm for r in other), ""),
        primary=True,
        gain=gain,
        outcome=decide(gain, matters),
        runs=runs,
    )


def compare(arm: Arm, other: Arm, task: str, matters: float, primary: bool) -> Comparison:
    """One arm of the study against another."""
    found = compare_runs(task, SCALE, arm.variant, arm.metric, matters, arm.runs, other.runs)
    part = other.part if other.tier != "who" else arm.part
    return replace(found, part=part, arm=arm.name, opponent=other.name, primary=primary)


def interaction(one: Comparison, other: Comparison) -> Comparison:
    """How much larger the gain of `one` is than that of `other`, seed by seed.

    It is in the units of the metric where both have the same one, else each in units of what matters there.
    """
    same = one.metric == other.metric
    units = (1.0, 1.0) if same else (one.matters, other.matters)
    matters = one.matters if same else 1.0

    def difference(a: float, b: float) -> float:
        return 0.0 if a == b else a / units[0] - b / units[1]

    seeds = sorted(one.gain.gains.keys() & other.gain.gains.keys())
    gains = {s: difference(one.gain.gains[s], other.gain.gains[s]) for s in seeds}
    gain = gain_of(gains, tuple(sorted(one.gain.gains.keys() ^ other.gain.gains.keys())))
    return replace(
        one,
        part="interaction",
        variant=f"{one.variant} minus {other.variant}",
        metric=one.metric if same else None,
        matters=matters,
        primary=not same,
        gain=gain,
        outcome=decide(gain, matters),
        runs=one.runs + other.runs,
    )


def interactions(
    main: Comparison, continuous: Comparison, arm: Sequence[Record], other: Sequence[Record]
) -> tuple[Comparison, Comparison]:
    """The interaction of the optimizers with the likelihood (claim C9): as the protocol measures each side, and with
    the metric of the continuous side on both.

    Args:
        arm, other: the runs of the main side.
    """
    assert continuous.metric is not None
    again = compare_runs(main.task, main.scale, main.variant, continuous.metric, continuous.matters, arm, other)
    again = replace(again, arm=main.arm, opponent=main.opponent)
    return interaction(main, continuous), interaction(again, continuous)


def _curve(record: Record, metric: Metric, key: str) -> list[tuple[float, float]]:
    """(place, value) at every evaluation; a value that is not finite is NaN."""
    name = next((k for k in metric.keys if any(k in entry for entry in record.history)), metric.keys[0])
    return [
        (float(entry[key]), finite(entry[name], math.nan))
        for entry in record.history
        if name in entry and finite(entry.get(key), math.nan) >= 0
    ]


def value_at(points: Sequence[tuple[float, float]], place: float) -> float | None:
    """Linear interpolation of a curve; None outside it."""
    for (x, y), (x_next, y_next) in itertools.pairwise(points):
        if x <= place <= x_next:
            return y + (y_next - y) * (place - x) / (x_next - x)
    return None


def _target(declared: Mapping[str, Any], arms: Mapping[str, Arm], metric: Metric) -> Target | None:
    arm = arms.get(declared["arm"])
    if arm is None or not arm.progress.complete:
        return None
    values = [value_at(_curve(r, metric, "step"), declared["share"] * r.steps) for r in arm.runs if not r.diverged]
    numbers = [v for v in values if v is not None and math.isfinite(v)]
    if not numbers or len(numbers) < len(arm.runs):
        return None
    return Target(arm.name, declared["share"], metric, sum(numbers) / len(numbers))


def _costs(arm: Arm, target: Target, key: str) -> dict[int, float]:
    def cost(record: Record) -> float:
        curve = _curve(record, target.metric, key)
        return math.inf if record.diverged else first_reached(curve, target.value, target.metric.mode)

    return {r.seed: cost(r) for r in arm.runs}


def speed(arm: Arm, other: Arm, target: Target) -> Speed:
    """Steps and seconds to the target, `arm` over `other`."""
    ratios = [paired_ratio(_costs(arm, target, key), _costs(other, target, key)) for key in ("step", "seconds")]
    return Speed(arm.name, other.name, *ratios)


def _value(run: Planned) -> tuple[float, float]:
    """The varied value of a planned run, and the factor of its learning rate."""
    words = dict(word.split("=", 1) for word in run.overrides)
    return float(words["value"]), float(words.get("factor", 1))


def _points(runs: Sequence[Planned], by_path: Mapping[Path, Record], metric: Metric) -> tuple[Point, ...]:
    groups: dict[tuple[str, float, float], list[Planned]] = {}
    for run in runs:
        groups.setdefault((run.arm, *_value(run)), []).append(run)
    points = []
    for (arm, value, factor), members in sorted(groups.items()):
        records = _found(members, by_path)
        values = values_by_seed(records, metric)
        points.append(Point(arm, value, factor, values, summarise(list(values.values())), records))
    return tuple(points)


def eps_sweep(arm: str, points: Sequence[Point], progress: Progress, main: Arm | None, matters: float) -> EpsSweep:
    """How far the metric of one arm moves with epsilon; `main` are its evaluation runs, whose spread is the noise."""
    values = {p.value: p.values for p in points}
    shared = sorted(set.intersection(*(set(v) for v in values.values()))) if values else []
    means = {eps: sum(v[s] for s in shared) / len(shared) for eps, v in values.items()} if shared else {}
    ends = (min(means.values()), max(means.values())) if len(means) > 1 else None
    # With a diverged run the range is infinite, and so is it where all have diverged.
    width = None if ends is None else ends[1] - ends[0] if all(map(math.isfinite, ends)) else math.inf
    sd = main.summary.sd if main is not None and main.summary is not None else None
    noise = None
    if sd is not None and width is not None and main is not None and main.summary is not None:
        noise = range_noise(sd, main.summary.n, len(means), len(shared))
    known = progress.complete and width is not None and noise is not None
    metric = main.metric if main is not None else None
    assert metric is not None
    sensitive = width > max(matters, noise) if known and width is not None and noise is not None else None
    runs = tuple(r for p in points for r in p.runs)
    return EpsSweep(arm, metric, matters, progress, values, means, width, noise, sensitive, runs)


def _check_data(records: Sequence[Record], what: str) -> None:
    """Refuse runs on two data sets; their configurations differ where the protocol varies them.

    Raises:
        MixedRecordsError: naming one run of each.
    """
    for record in records[1:]:
        if record.fingerprint != records[0].fingerprint:
            sides = [f"{r.fingerprint} in {r.path}" for r in (records[0], record)]
            raise MixedRecordsError(f"{what} would mix two data sets: {' and '.join(sides)}.")


def study_task(task: str, records: Iterable[Record], folder: Path = FOLDER, tuned: Path = TUNED) -> TaskStudy:
    """The numbers of one task's study.

    Args:
        records: of any kind; those that the protocol did not plan are not looked at.
        folder, tuned: where protocols and tuned values are.

    Raises:
        ConfigError: no study of that task is declared.
        MixedRecordsError: runs that belong together are of two data sets or configurations.
    """
    spec, plan = task_spec(task), protocol(task, folder)
    runs = planned(task, TIERS, folder, tuned)
    by_path = {r.relative: r for r in records if r.task == task and r.scale == SCALE}
    # Evaluation runs with other settings than the chosen ones are shown with a note; other runs are as good as missing.
    for run in runs:
        if run.trial != "main" and run.record in by_path and not current(run, by_path[run.record], tuned):
            del by_path[run.record]
    metric, tuning_metric = metric_of(spec, plan["metric"]), metric_of(spec, plan["tuning"])
    matters = float(plan["metric"]["matters"])

    def part(*names: str) -> list[Planned]:
        return [run for run in runs if run.part in names]

    what = f"the study of {task}"
    _check_data(_found(runs, by_path), what)
    check_one_kind(_found(part("main", "switches", "clipping"), by_path), what)
    tuned_runs = part("main", "switches", "context", "clipping")
    arms = _arms(tuned_runs, by_path, spec, metric, tuned)
    continuous: dict[str, Arm] = {}
    comparisons = [
        compare(arms["fadam"], other, task, matters, primary=other.name == OPPONENT or other.part == "switches")
        for other in arms.values()
        if other.name != "fadam" and other.part != "clipping"
    ]
    after = plan["tiers"].get("after")
    if after is not None:
        sides = (arms[after["clipping"][side]] for side in ("against", "arm"))
        comparisons.append(compare(*sides, task, matters, primary=True))
    if part("continuous"):
        declared = plan["tiers"]["why"]["continuous"]["metric"]
        check_one_kind(_found(part("continuous"), by_path), f"{what}, continuous loss")
        continuous = _arms(part("continuous"), by_path, spec, metric_of(spec, declared), tuned)
        comparisons += [
            compare(continuous["fadam"], other, task, float(declared["matters"]), primary=False)
            for other in continuous.values()
            if other.name != "fadam"
        ]
    target = _target(plan["target"], arms, tuning_metric)
    rivals = [arm for arm in arms.values() if arm.name != "fadam" and arm.runs]
    speeds = [speed(arms["fadam"], other, target) for other in rivals] if target and arms["fadam"].runs else []
    eps_runs = part("eps")
    sweeps = []
    for arm in dict.fromkeys(run.arm for run in eps_runs):
        mine = [run for run in eps_runs if run.arm == arm]
        progress = _progress("why", "eps", mine, by_path)
        points = _points(mine, by_path, metric)
        sweeps.append(eps_sweep(arm, points, progress, arms[arm], matters))
    names = {run.part: run for run in runs if run.tier in ("far", "after") and run.part not in ("context", "clipping")}
    variations = [
        Variation(
            name,
            first.tier,
            dict(word.split("=", 1) for word in first.overrides)["vary"],
            _progress(first.tier, name, part(name), by_path),
            metric,
            _points(part(name), by_path, metric),
        )
        for name, first in names.items()
    ]
    tiers = [[run for run in runs if run.tier == tier] for tier in TIERS]
    return TaskStudy(
        spec=spec,
        protocol=plan,
        metric=metric,
        matters=matters,
        tuning_metric=tuning_metric,
        progress=tuple(_progress(tier, "", mine, by_path) for tier, mine in zip(TIERS, tiers, strict=True) if mine),
        arms=arms,
        continuous=continuous,
        comparisons=tuple(comparisons),
        target=target,
        speeds=tuple(speeds),
        eps=tuple(sweeps),
        variations=tuple(variations),
    )


def correct(comparisons: Sequence[Comparison]) -> list[Comparison]:
    """The comparisons with Holm's correction over the family of the primary ones among them.

    A primary one whose t test does not survive it is no better or worse, whatever it is taken alone.
    """
    family = [c for c in comparisons if c.primary]
    flips, students = holm([c.gain.p for c in family]), holm([c.gain.p_t for c in family])
    corrected = (
        replace(
            c, p_holm=p, p_t_holm=q, family=len(family), outcome=NEITHER if q is not None and q > LEVEL else c.outcome
        )
        for c, p, q in zip(family, flips, students, strict=True)
    )
    return [next(corrected) if c.primary else c for c in comparisons]


def profile(tasks: Iterable[TaskStudy]) -> Profile:
    """The performance profile of the arms of tier 1, over the evaluation runs of all tasks."""
    problems: list[tuple[str, int]] = []
    gaps: dict[str, list[float]] = {}
    for study in tasks:
        arms = [arm for arm in study.arms.values() if arm.tier == "who"]
        for seed in sorted(set.intersection(*(set(arm.values) for arm in arms))):
            problems.append((study.task, seed))
            losses = {a.name: a.values[seed] * (1 if study.metric.mode == "min" else -1) for a in arms}
            best = min(losses.values())
            for name, loss in losses.items():
                gap = (loss - best) / study.matters if math.isfinite(loss) else math.inf
                gaps.setdefault(name, []).append(gap)
    return Profile(tuple(problems), {name: tuple(values) for name, values in gaps.items()})


def study(
    records: Sequence[Record], tasks: Sequence[str] = tuple(SPECS), folder: Path = FOLDER, tuned: Path = TUNED
) -> Study:
    """The study of all `tasks`, with Holm's correction over the family of its primary comparisons.

    Raises: as `study_task`.
    """
    found = {task: study_task(task, records, folder, tuned) for task in tasks}
    crossed = next((s for s in found.values() if s.continuous), None)
    between: list[Comparison] = []
    if crossed is not None:
        sides = [crossed.comparison("fadam", OPPONENT, part) for part in ("main", "continuous")]
        if sides[0] is not None and sides[1] is not None:
            runs = [crossed.arms[name].runs for name in ("fadam", OPPONENT)]
            between = list(interactions(sides[0], sides[1], *runs))
    corrected = correct([*(c for s in found.values() for c in s.comparisons), *between])
    family = sum(c.primary for c in corrected)
    by_task = {task: tuple(c for c in corrected if c.task == task and c.part != "interaction") for task in found}
    crossing = {c.metric is None: c for c in corrected if c.part == "interaction"}
    return Study(
        scale=SCALE,
        tasks={task: replace(s, comparisons=by_task[task]) for task, s in found.items()},
        interaction=crossing.get(True),
        same_metric=crossing.get(False),
        profile=profile(found.values()),
        family=family,
    )
