"""What the records say about the declared comparisons. The runner stops comparisons by it, and the pages show it.

Gains are the one measure of a difference: in the metric's unit, positive where the arm named first is better.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from experiments.analysis import power
from experiments.analysis.families import Comparison as Looked
from experiments.analysis.families import Verdict, holm, judge
from experiments.analysis.frame import tidy
from experiments.analysis.looks import ALPHA, paired
from experiments.core.catalogue import Metric, task
from experiments.core.plan import Planner, Stage, Tuned
from experiments.core.protocol import FOLDER, Comparison, Protocol, Run, names, protocol
from experiments.core.records import Record, Records, check_one_kind

Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Compared:
    """A declared comparison with the pairs that are there.

    Attributes:
        seeds: of the pairs, up to the first that is missing.
        gains: by pair.
        challenger, baseline: values by pair.
        verdict: at the last look that has its pairs.
        family: how many comparisons share the level.
    """

    protocol: Protocol
    comparison: Comparison
    seeds: tuple[int, ...]
    gains: Array
    challenger: Array
    baseline: Array
    verdict: Verdict
    family: int

    @property
    def metric(self) -> Metric:
        return task(self.protocol.task).metric(self.protocol.metric.name)

    def detectable(self) -> float | None:
        """The true gain that the last look finds with a chance of 90%; None before the first look."""
        sd = self.verdict.sd
        return None if not sd else power.detectable(sd, self.comparison.looks, ALPHA / self.family)

    def pairs_needed(self) -> int | None:
        """Pairs that decide it with a chance of 90% if the difference is the one found; None unless undecided."""
        v, looks = self.verdict, self.comparison.looks
        if v.word != "undecided" or not v.sd or v.mean is None:
            return None
        return power.pairs_to_decide(v.sd, v.mean, self.protocol.matters, looks, v.pairs, ALPHA / self.family)


def pairs_of(
    planner: Planner, arms: tuple[str, str], most: int, tuned: Mapping[str, Tuned]
) -> tuple[list[Record], list[Record]]:
    """The records of two arms, in the order of the seeds, up to the first seed that one of them lacks."""
    found: tuple[list[Record], list[Record]] = ([], [])
    if set(arms) <= set(tuned):
        runs = [planner.evaluation(arm, tuned[arm], most, "") for arm in arms]
        for pair in zip(*runs, strict=True):
            one, other = (planner.result(run) for run in pair)
            if one is None or other is None:
                break
            found[0].append(one)
            found[1].append(other)
    return found


def _values(records: Sequence[Record], p: Protocol) -> Array:
    return np.array([r.value(p.metric.name, p.metric.mode) for r in records])


def compared(planners: Sequence[Planner], family: str | None = None) -> list[Compared]:
    """The comparisons of one family, or of all: a family reaches over all studies."""
    found: dict[str, list[tuple[Protocol, Comparison, tuple[int, ...], Array, Array, Array]]] = {}
    for planner in planners:
        p = planner.protocol
        mine = [c for c in p.comparisons if family in (None, c.family)]
        tuned = planner.tuned() if mine else {}
        for comparison in mine:
            arms = (comparison.challenger, comparison.baseline)
            records = pairs_of(planner, arms, comparison.looks[-1], tuned)
            one, other = (_values(side, p) for side in records)
            seeds = tuple(r.seed for r in records[0])
            entry = (p, comparison, seeds, paired(one, other, p.metric.mode), one, other)
            found.setdefault(comparison.family, []).append(entry)
    done = []
    for entries in found.values():
        verdicts = judge([Looked(gains, comparison.looks, p.matters) for p, comparison, _, gains, _, _ in entries])
        done += [Compared(*entry, verdict, len(entries)) for entry, verdict in zip(entries, verdicts, strict=True)]
    return done


def decider(protocols: Sequence[Protocol], records: Records) -> Callable[[Comparison, int], bool]:
    """Tells whether a comparison was decided after so many pairs or fewer.

    Its whole family is judged, over all studies: Holm's correction depends on the others. A decision is never undone.
    """
    planners = [Planner(p, records, lambda *_: False) for p in protocols]
    known: dict[str, tuple[int, list[Compared]]] = {}

    def decided(comparison: Comparison, pairs: int) -> bool:
        if known.get(comparison.family, (-1, []))[0] != records.forgotten:
            known[comparison.family] = records.forgotten, compared(planners, comparison.family)
        mine = next(c for c in known[comparison.family][1] if c.comparison is comparison)
        return mine.verdict.decided is not None and mine.verdict.decided <= pairs

    return decided


def interval(values: ArrayLike, further: float = math.inf) -> tuple[float, float, float] | None:
    """Mean of finite values and Student's 95% interval, for what bears no word; None with fewer than two.

    With `further`, it is the prediction interval of the mean of so many more values.
    """
    d = np.asarray(values, dtype=np.float64)
    if len(d) < 2 or not np.isfinite(d).all():
        return None
    half = float(stats.t.ppf(0.975, len(d) - 1) * d.std(ddof=1) * math.sqrt(1 / len(d) + 1 / further))
    mean = float(d.mean())
    return mean, mean - half, mean + half


# --- claim C4: epsilon


@dataclass(frozen=True, eq=False)
class Point:
    """One point of the grid of epsilon. `gains`: by seed, against the arm's own reference of the same precision; -inf
    where the run diverged, inf where the reference did, nan where both."""

    arm: str
    precision: str
    eps: float
    scale: float
    gains: Array

    @property
    def same(self) -> bool:
        """Whether it is the reference's result to the last bit, on every seed."""
        return bool(len(self.gains)) and bool((self.gains == 0).all())

    @property
    def gain(self) -> float:
        """Mean of the gains: infinite or nan where some are."""
        with np.errstate(invalid="ignore"):
            return float(self.gains.mean())

    def distance(self) -> float:
        """How far the gain is from 0; infinite where some run diverged."""
        return float(np.nan_to_num(abs(self.gain), nan=np.inf))

    @property
    def weights(self) -> str:
        """What the weights are stored in."""
        return f"{WEIGHTS.get(self.precision, self.precision)} weights"

    def text(self, metric: Metric) -> str:
        """The gain for a table or a figure."""
        if self.same:
            return "same"
        if math.isfinite(self.gain):
            return metric.number(self.gain, signed=True)
        return "reference diverged" if self.gain > 0 else "diverged"


@dataclass(frozen=True)
class GridVerdict:
    """Attributes:
    word: "supported", "contradicted" or "undecided"; "" while runs are missing, and where nothing is judged.
    within: whether the arm was shown to be within `matters` everywhere; `beyond`: worse by more somewhere.
    farthest: by arm, at each epsilon the point whose gain is farthest from 0; the largest epsilon first.
    """

    word: str
    done: int
    planned: int
    within: Mapping[str, bool]
    beyond: Mapping[str, bool]
    farthest: Mapping[str, Sequence[Point]]


WEIGHTS = {"32-true": "float32", "bf16-true": "bfloat16"}
JUDGED = "llm"  # the task on which C4 is decided; the others are too noisy for so many points
REFERENCE = (1e-8, 1.0)  # epsilon, scale of the gradients


def _different(points: Sequence[Point]) -> list[Array]:
    """The gains of the points that are not the reference's result; what is equal on every seed once."""
    return list({p.gains.tobytes(): p.gains for p in points if not p.same}.values())


def _farthest(points: Sequence[Point]) -> list[Point]:
    by_eps = {point.eps: point for point in sorted(points, key=Point.distance)}
    return [by_eps[eps] for eps in sorted(by_eps, reverse=True)]


def _tests(points: Sequence[Point], matters: float) -> tuple[bool, bool]:
    """Whether all of one arm's points are within `matters`, and whether some is worse by more than that.

    Results that are equal on every seed count once, and one that is the reference's needs no test. The variance is
    pooled over the points that are left. A diverged run is not within anything; where all runs of a point diverged and
    none of the reference's, it is worse by more than `matters`.
    """
    different = _different(points)
    if not different:
        return True, False
    finite = [d for d in different if np.isfinite(d).all()]
    freedom = sum(len(d) - 1 for d in finite)
    square = sum(float(((d - d.mean()) ** 2).sum()) for d in finite)
    p_within, p_beyond = [], []
    for d in different:
        if not freedom or not np.isfinite(d).all():
            p_within.append(1.0)
            p_beyond.append(0.0 if np.isneginf(d).all() else 1.0)
            continue
        error = max(np.sqrt(square / freedom / len(d)), 1e-300)
        mean = float(d.mean())
        above, below = (float(stats.t.sf((matters + side * mean) / error, freedom)) for side in (1, -1))
        p_within.append(max(above, below))
        p_beyond.append(float(stats.t.cdf((mean + matters) / error, freedom)))
    return max(p_within) <= ALPHA, bool((holm(p_beyond) <= ALPHA).any())


def judge_grid(
    points: Sequence[Point], matters: float, fadam: str, other: str
) -> tuple[str, dict[str, tuple[bool, bool]]]:
    """The word of claim C4 from all points of both arms, and each arm's (within, beyond)."""
    found = {arm: _tests([p for p in points if p.arm == arm], matters) for arm in (fadam, other)}
    if found[fadam][1]:
        return "contradicted", found
    return ("supported" if found[fadam][0] and found[other][1] else "undecided"), found


def grid(planner: Planner, tuned: Mapping[str, Tuned]) -> tuple[list[Point], GridVerdict] | None:
    """The points of a study's grid whose runs are all there, and the verdict; None where no grid is declared."""
    p = planner.protocol
    if p.epsilon is None:
        return None
    stage = planner.epsilon(tuned, 0)
    cells: dict[tuple[str, str, float, float], list[Run]] = {}
    for run in stage.runs:
        s = dict(run.settings)
        cells.setdefault((run.arm, s["trainer.precision"], s["optimizer.eps"], s["value"]), []).append(run)
    values: dict[tuple[str, str, float, float], Array] = {}
    done = 0
    for key, runs in cells.items():
        found = [r for run in runs if (r := planner.result(run)) is not None]
        done += len(found)
        if len(found) == len(runs):
            values[key] = _values(found, p)
    points = [
        Point(*key, paired(value, values[base], p.metric.mode))
        for key, value in values.items() if (base := (*key[:2], *REFERENCE)) in values
    ]  # fmt: skip
    planned = len(stage.runs) + stage.later
    by_arm = {arm: mine for arm in p.epsilon.arms if (mine := [q for q in points if q.arm == arm])}
    farthest = {arm: _farthest(mine) for arm, mine in by_arm.items()}
    word = ""
    tests: dict[str, tuple[bool, bool]] = {}
    if p.task == JUDGED and planned and done == planned and len(by_arm) == 2:
        fadam = next(arm for arm in by_arm if arm.startswith("fadam"))
        word, tests = judge_grid(points, p.matters, fadam, next(arm for arm in by_arm if arm != fadam))
    within, beyond = ({arm: t[i] for arm, t in tests.items()} for i in (0, 1))
    return points, GridVerdict(word, done, planned, within, beyond, farthest)


# --- sizes


@dataclass(frozen=True)
class Ladder:
    """Does the gain grow with size?

    Attributes:
        sizes: (millions of parameters, comparison), the smallest first.
        slope: of the gain for ten times the size, (mean, low, high): a line through each seed's gains at the sizes that
            were looked at, Student's interval over the seeds that all of them have; None while there are fewer than
            two of either.
        pairs: the seeds it is from.
    """

    sizes: tuple[tuple[float, Compared], ...]
    slope: tuple[float, float, float] | None
    pairs: int

    @property
    def looked_at(self) -> list[tuple[float, Compared]]:
        """The sizes whose pairs are all there."""
        return [(size, c) for size, c in self.sizes if c.verdict.pairs]


def ladder(comparisons: Sequence[Compared]) -> Ladder | None:
    """The studies that name a size; None where none does."""
    sizes = sorted(((c.protocol.size, c) for c in comparisons if c.protocol.size), key=lambda s: s[0])
    if not sizes:
        return None
    found = Ladder(tuple(sizes), None, 0)
    there = [(size, dict(zip(c.seeds, c.gains, strict=True))) for size, c in found.looked_at]
    shared = sorted(set.intersection(*(set(gains) for _, gains in there))) if len(there) > 1 else []
    if len(shared) > 1:
        x = np.log10([size for size, _ in there])
        x -= x.mean()
        y = np.array([[gains[seed] for seed in shared] for _, gains in there])  # (sizes, seeds)
        if np.isfinite(y).all():
            found = replace(found, slope=interval(x @ y / (x @ x)), pairs=len(shared))
    return found


# --- context


@dataclass(frozen=True, eq=False)
class Context:
    """An optimizer that is shown beside the study's two, on the same seeds. Never part of a verdict.

    Attributes:
        planned: how many runs are declared.
    """

    protocol: Protocol
    arm: str
    planned: int
    values: Array
    gains: Mapping[str, Array]  # over each main arm

    @property
    def metric(self) -> Metric:
        return task(self.protocol.task).metric(self.protocol.metric.name)


def context(planner: Planner, tuned: Mapping[str, Tuned]) -> list[Context]:
    """The context optimizers that have runs."""
    p = planner.protocol
    found = []
    for arm in p.context.arms if p.context else ():
        if arm not in tuned:
            continue
        runs = planner.evaluation(arm, tuned[arm], planner.context_pairs, "")
        mine = [r for run in runs if (r := planner.result(run)) is not None]
        gains = {}
        for main in (name for name in p.bowl.arms if name in tuned):
            one, other = (_values(side, p) for side in pairs_of(planner, (arm, main), len(runs), tuned))
            gains[main] = paired(one, other, p.metric.mode)
        if mine:
            found.append(Context(p, arm, len(runs), _values(mine, p), gains))
    return found


# --- everything, read once


class Study:
    """The declared studies, or those of `protocols`, on the records of some folders. Every answer is computed once."""

    def __init__(
        self, roots: Sequence[Path], folder: Path = FOLDER, protocols: Sequence[Protocol] | None = None
    ) -> None:
        self.protocols = [protocol(name, folder) for name in names(folder)] if protocols is None else list(protocols)
        self.records = Records(roots)
        decided = decider(self.protocols, self.records)
        self.planners = {p.name: Planner(p, self.records, decided) for p in self.protocols}

    @functools.cached_property
    def table(self) -> pd.DataFrame:
        return tidy(self.records, [stage for stages in self.stages.values() for stage in stages])

    @functools.cached_property
    def stages(self) -> dict[str, list[Stage]]:
        return {name: planner.stages() for name, planner in self.planners.items()}

    @functools.cached_property
    def tuned(self) -> dict[str, dict[str, Tuned]]:
        return {name: planner.tuned() for name, planner in self.planners.items()}

    @functools.cached_property
    def comparisons(self) -> list[Compared]:
        return compared(list(self.planners.values()))

    @functools.cached_property
    def grids(self) -> dict[str, tuple[list[Point], GridVerdict]]:
        found = {name: grid(planner, self.tuned[name]) for name, planner in self.planners.items()}
        return {name: g for name, g in found.items() if g is not None}

    @functools.cached_property
    def ladder(self) -> Ladder | None:
        return ladder(self.comparisons)

    @functools.cached_property
    def contexts(self) -> list[Context]:
        return [c for name, planner in self.planners.items() for c in context(planner, self.tuned[name])]

    def of_task(self, name: str) -> list[Protocol]:
        """The studies of a task that name no size."""
        return [p for p in self.protocols if p.task == name and p.size is None]

    def evaluated(self, p: Protocol) -> pd.DataFrame:
        """The rows of a study's evaluation runs, of one kind.

        Raises:
            MixedRecordsError: they must not stand in one table.
        """
        rows = self.table[(self.table["protocol"] == p.name) & (self.table["part"] == "eval")]
        check_one_kind(list(rows["record"]), f"the tables of {p.name}")
        return rows
