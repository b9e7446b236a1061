"""Every run of a protocol, as far as the records so far decide it: which learning rates, which decays, how many pairs.

A plan is a list of stages. The runs of a stage are known when those before it are done; until then it says what it
waits for and how many runs it will have at most. Nothing is stored: the same records always give the same plan.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from experiments.core.catalogue import SCALES
from experiments.core.protocol import Bowl, Comparison, Key, Protocol, Run, Switches, rate, step_of
from experiments.core.records import Record, Records

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
RATE, DECAY = "optimizer.lr", "optimizer.weight_decay"


@dataclass(frozen=True)
class Stage:
    """A part of a protocol.

    Attributes:
        runs: the runs that are known to be wanted.
        coming: keys of the runs that may follow once `waits` is over; stages may share them. See `Run.key`.
        waits: what the stage waits for, in words; "" where nothing more will come.
        rank: stages of all protocols run in the order of their ranks.
    """

    protocol: str
    name: str
    rank: int
    runs: tuple[Run, ...]
    coming: tuple[Key, ...] = ()
    waits: str = ""

    @property
    def later(self) -> int:
        """How many more runs there will be at most."""
        return len(self.coming)


@dataclass(frozen=True)
class Tuned:
    """The settings chosen for an arm, and the step of its learning rate (see `experiments.core.protocol.rate`)."""

    arm: str
    step: int
    weight_decay: float

    @property
    def settings(self) -> tuple[tuple[str, Any], ...]:
        return ((RATE, rate(self.step)), (DECAY, self.weight_decay))


@functools.cache
def decay_kind(arm: str) -> str:
    """Which kind of weight decay an arm's optimizer has: `natural`, in the metric, or `decoupled`."""

    def mode(name: str) -> str | None:
        content = yaml.safe_load((CONFIGS / "optimizer" / f"{name}.yaml").read_text(encoding="utf-8"))
        own: str | None = content.get("optimizer", {}).get("decay_mode")
        parents = content.get("defaults", [])
        return own or next((found for parent in parents if (found := mode(parent))), None)

    return mode(arm) or "decoupled"


@dataclass(frozen=True)
class Sweep:
    """The learning rates of one arm: mean objective by step, and where the best one lies."""

    arm: str
    values: Mapping[int, tuple[float, ...]]
    best: int | None
    end: str  # "low", "high" or ""


class Planner:
    """Plans one protocol on the results so far."""

    def __init__(self, protocol: Protocol, results: Records, decided: Callable[[Comparison, int], bool]) -> None:
        self.protocol, self.results, self.decided = protocol, results, decided

    def run(
        self,
        stage: str,
        arm: str,
        trial: str,
        seed: int,
        settings: Sequence[tuple[str, Any]],
        purpose: str = "eval",
        choices: tuple[tuple[str, str], ...] = (),
    ) -> Run:
        p = self.protocol
        return Run(
            p.name, stage, p.task, p.scale, p.experiment, arm, p.variant, p.prefix + trial, seed, purpose,
            (*settings, *p.overrides.items()), choices,
        )  # fmt: skip

    def result(self, run: Run) -> Record | None:
        return self.results.of(run)

    def objective(self, run: Run) -> float | None:
        """What tuning looks at, infinitely bad for a diverged run; None where there is no record yet."""
        found = self.result(run)
        tuning = self.protocol.tuning
        return None if found is None else found.value(tuning.name, tuning.mode)

    def worse(self, value: float, than: float) -> float:
        """By how much `value` is worse."""
        return value - than if self.protocol.tuning.mode == "min" else than - value

    # ---- learning rates ------------------------------------------------------------------------------------------

    def rate_runs(self, stage: str, arm: str, steps: Sequence[int], seeds: Sequence[int], decay: float) -> list[Run]:
        return [
            self.run(
                stage, arm, f"tune-lr{rate(step):g}-wd{decay:g}", seed, ((RATE, rate(step)), (DECAY, decay)), "tune"
            )
            for step, seed in itertools.product(steps, seeds)
        ]

    def swept(self, arm: str, runs: Sequence[Run], cliff: float) -> Sweep | None:
        """What the rates of an arm gave; None while a run is missing."""
        table: dict[int, list[float]] = {}
        for run in runs:
            value = self.objective(run)
            if value is None:
                return None
            table.setdefault(step_of(dict(run.settings)[RATE]), []).append(value)
        values = {step: tuple(found) for step, found in sorted(table.items())}
        best, end = choose_rate(values, self.protocol.tuning.mode, cliff * self.protocol.matters)
        return Sweep(arm, values, best, end)

    def grown(
        self, stage: str, bowl: Bowl | Switches, first: int, last: int, decay: Callable[[str], float]
    ) -> tuple[list[Run], dict[str, Sweep] | None]:
        """The runs of all arms over a grid that grows where some arm's best lies at its end; and what they gave, None
        while runs are missing."""
        low = high = 0
        while True:
            steps = range(first - 2 * low, last + 2 * high + 1)
            by_arm = {arm: self.rate_runs(stage, arm, steps, bowl.seeds, decay(arm)) for arm in bowl.arms}
            runs = [run for of_arm in by_arm.values() for run in of_arm]
            sweeps = {arm: self.swept(arm, of_arm, bowl.cliff) for arm, of_arm in by_arm.items()}
            if any(sweep is None for sweep in sweeps.values()):
                return runs, None
            found = {arm: sweep for arm, sweep in sweeps.items() if sweep is not None}
            ends = {sweep.end for sweep in found.values()}
            more_low, more_high = "low" in ends and low < bowl.growth, "high" in ends and high < bowl.growth
            if not (more_low or more_high):
                return runs, found
            low, high = low + more_low, high + more_high

    # ---- runs that are not planned in full yet --------------------------------------------------------------------

    def pairs(self, arms: Sequence[str], first: int, end: int) -> tuple[Key, ...]:
        """Keys of the runs of a comparison, from one number of pairs to another."""
        return tuple((self.protocol.name, arm, seed) for arm in arms for seed in self.protocol.evaluation[first:end])

    def numbered(self, what: str, count: int) -> tuple[Key, ...]:
        """Keys of runs that no other stage has."""
        return tuple((self.protocol.name, what, number) for number in range(count))

    # ---- stages --------------------------------------------------------------------------------------------------

    def bowl(self, name: str, bowl: Bowl, rank: int) -> tuple[list[Stage], dict[str, Tuned]]:
        """Learning rates, then weight decays; and what was chosen, for the arms that are done."""
        start = {arm: bowl.start[decay_kind(arm)] for arm in bowl.arms}
        runs, sweeps = self.grown(name, bowl, bowl.first, bowl.last, start.__getitem__)
        stages = [Stage(self.protocol.name, name, rank, tuple(runs))]
        seeds = bowl.seeds[: bowl.decay_seeds]
        tries = {arm: bowl.decays.get(decay_kind(arm), (start[arm],)) for arm in bowl.arms}
        later = sum((len(values) - 1) * len(seeds) for values in tries.values())
        decays = f"{name}, decay"
        if sweeps is None:
            if later:
                coming = self.numbered(decays, later)
                stages.append(Stage(self.protocol.name, decays, rank + 1, (), coming, "the best learning rates"))
            return stages, {}
        tuned: dict[str, Tuned] = {}
        more: list[Run] = []
        for arm, sweep in sweeps.items():
            step = sweep.best if sweep.best is not None else min(sweep.values)
            by_decay = {
                value: self.rate_runs(name if value == start[arm] else decays, arm, [step], seeds, value)
                for value in tries[arm]
            }
            means: dict[float, float] = {}
            for value, of_value in by_decay.items():
                more += [] if value == start[arm] else of_value
                found = [self.objective(run) for run in of_value]
                if all(v is not None for v in found):
                    means[value] = sum(v for v in found if v is not None) / len(found)
            if len(means) == len(by_decay):
                sign = 1 if self.protocol.tuning.mode == "min" else -1
                # Of equals (all diverged, or one value) the one nearest to the start is taken.
                chosen = min(means, key=lambda v: (sign * means[v], abs(math.log(v / start[arm])) if v else math.inf))
                tuned[arm] = Tuned(arm, step, chosen)
        if more:
            stages.append(Stage(self.protocol.name, decays, rank + 1, tuple(more)))
        return stages, tuned

    def switched(self, switches: Switches, tuned: Mapping[str, Tuned], rank: int) -> tuple[Stage, dict[str, Tuned]]:
        """Learning rates of FAdam's kin around its own."""
        size = len(switches.arms) * len(switches.seeds) * (2 * switches.reach + 1)
        needed = {switches.centre, *switches.decay_from.values()}
        if missing := sorted(needed - set(tuned)):
            waits = f"{' and '.join(missing)} to be tuned"
            return Stage(self.protocol.name, "switches", rank, (), self.numbered("switches", size), waits), {}
        centre = tuned[switches.centre].step

        def decay(arm: str) -> float:
            return tuned[switches.decay_from[decay_kind(arm)]].weight_decay

        runs, sweeps = self.grown("switches", switches, centre - switches.reach, centre + switches.reach, decay)
        found = {
            arm: Tuned(arm, sweep.best if sweep.best is not None else min(sweep.values), decay(arm))
            for arm, sweep in (sweeps or {}).items()
        }
        return Stage(self.protocol.name, "switches", rank, tuple(runs)), found

    def evaluation(self, arm: str, tuned: Tuned, pairs: int, stage: str) -> list[Run]:
        return [self.run(stage, arm, "main", seed, tuned.settings) for seed in self.protocol.evaluation[:pairs]]

    def compared(self, comparison: Comparison, tuned: Mapping[str, Tuned], rank: int) -> Stage:
        """The pairs of one comparison, up to the look that is due."""
        arms, looks = (comparison.challenger, comparison.baseline), comparison.looks
        name = f"{comparison.id}: {comparison.challenger} against {comparison.baseline}"
        if missing := [arm for arm in arms if arm not in tuned]:
            waits = f"{' and '.join(missing)} to be tuned"
            return Stage(self.protocol.name, name, rank, (), self.pairs(arms, 0, looks[-1]), waits)
        for pairs in looks:
            runs = [run for arm in arms for run in self.evaluation(arm, tuned[arm], pairs, name)]
            if any(self.result(run) is None for run in runs):
                coming = self.pairs(arms, pairs, looks[-1])
                waits = f"the look at {pairs} pairs" if coming else ""
                return Stage(self.protocol.name, name, rank, tuple(runs), coming, waits)
            if self.decided(comparison, pairs):
                break
        return Stage(self.protocol.name, name, rank, tuple(runs))

    def epsilon(self, tuned: Mapping[str, Tuned], rank: int) -> Stage:
        """The grid of claim C4, at the tuned settings."""
        grid = self.protocol.epsilon
        assert grid is not None
        points = list(itertools.product(grid.eps, grid.gradient_scale, grid.precision))
        like = {arm: grid.like.get(arm, arm) for arm in grid.arms}
        if missing := sorted(set(like.values()) - set(tuned)):
            size = len(points) * sum(grid.seeds[arm] for arm in grid.arms)
            waits = f"{' and '.join(missing)} to be tuned"
            return Stage(self.protocol.name, "epsilon", rank, (), self.numbered("epsilon", size), waits)
        runs = [
            self.run(
                "epsilon", arm, f"eps{eps:g}-scale{scale:g}-{precision.removesuffix('-true')}", seed,
                (
                    *tuned[like[arm]].settings,
                    ("optimizer.eps", eps), ("trainer.precision", precision), ("value", scale),
                ),
                choices=(("vary", "gradient_scale"),),
            )
            for arm in grid.arms
            for eps, scale, precision in points
            for seed in self.protocol.evaluation[: grid.seeds[arm]]
        ]  # fmt: skip
        return Stage(self.protocol.name, "epsilon", rank, tuple(runs))

    def stages(self) -> list[Stage]:
        """All parts of the protocol, in the order in which they depend on one another."""
        p, base = self.protocol, 100 * self.protocol.priority
        stages, tuned = self.bowl("rates", p.bowl, base)
        main = [c for c in p.comparisons if {c.challenger, c.baseline} <= set(p.bowl.arms)]
        stages += [self.compared(comparison, tuned, base + 2) for comparison in main]
        if p.switches is not None:
            stage, kin = self.switched(p.switches, tuned, base + 1000)
            tuned = {**kin, **tuned}
            stages.append(stage)
        rest = [c for c in p.comparisons if c not in main]
        stages += [self.compared(comparison, tuned, base + 1002) for comparison in rest]
        if p.epsilon is not None:
            stages.append(self.epsilon(tuned, base + 2000))
        stages += self.contexts(base + 3000)[0]
        return stages

    context_pairs = 5

    def contexts(self, rank: int) -> tuple[list[Stage], dict[str, Tuned]]:
        """The context optimizers, one after another: each on a grid that grows for itself alone, then its pairs."""
        stages: list[Stage] = []
        tuned: dict[str, Tuned] = {}
        if (context := self.protocol.context) is None:
            return stages, tuned
        for place, arm in enumerate(context.arms):
            name, first = f"context: {arm}", rank + 3 * place
            parts, found = self.bowl(name, replace(context, arms=(arm,)), first)
            stages += parts
            tuned |= found
            runs = self.evaluation(arm, found[arm], self.context_pairs, name) if found else ()
            coming, waits = ((), "") if found else (self.pairs([arm], 0, self.context_pairs), f"{arm} to be tuned")
            stages.append(Stage(self.protocol.name, f"{name}, pairs", first + 2, tuple(runs), coming, waits))
        return stages, tuned

    def tuned(self) -> dict[str, Tuned]:
        """What is chosen so far, arm by arm."""
        p = self.protocol
        _, found = self.bowl("rates", p.bowl, 0)
        if p.switches is not None:
            found = {**self.switched(p.switches, found, 0)[1], **found}
        return {**self.contexts(0)[1], **found}


def choose_rate(values: Mapping[int, Sequence[float]], mode: str, cliff: float) -> tuple[int | None, str]:
    """The step with the best mean whose neighbours are no cliff, and the end at which the best one lies, if it does.

    A rate at the edge of a cliff is passed over: some neighbour in learning rate is worse by more than `cliff`. So is a
    rate beyond the cliff, worse than the best by more than `cliff`, as long as there is another one inside. If the
    best mean of all lies at an end of the grid, the end is named; then a rate beyond it might be better. Where every
    rate diverged there is no best, and the end is the low one.
    """
    sign = 1.0 if mode == "min" else -1.0
    steps = sorted(values)
    means = {step: sign * math.fsum(values[step]) / len(values[step]) for step in steps}
    if all(math.isinf(mean) for mean in means.values()):
        return None, "low"
    best = min(steps, key=lambda step: means[step])
    end = {steps[0]: "low", steps[-1]: "high"}.get(best, "")

    def drop(step: int) -> float:
        near = [means[s] for s in (step - 1, step + 1) if s in means]
        return max(near) - means[step]

    inside = [step for step in steps[1:-1] if not math.isinf(means[step])]
    inside = [step for step in inside if means[step] - means[best] <= cliff] or inside
    calm = [step for step in inside if drop(step) <= cliff]
    if calm:
        return min(calm, key=lambda step: means[step]), end
    # No rate is calm: the one whose neighbours are least worse.
    return min(inside or [best], key=lambda step: (drop(step), means[step])), end


def plan_all(planners: Sequence[Planner]) -> list[Stage]:
    """The stages of all protocols in the order in which they run."""
    found = [stage for planner in planners for stage in planner.stages()]
    return sorted(found, key=lambda stage: stage.rank)


def done(stages: Sequence[Stage], results: Records) -> Iterator[tuple[Stage, list[Record], int, int]]:
    """Of each stage its records, how many runs are due, and how many come later at most; a run counts once."""
    seen: set[object] = set()
    planned = {run.key for stage in stages for run in stage.runs}
    for stage in stages:
        fresh = {run.record: run for run in stage.runs if run.record not in seen}
        coming = set(stage.coming) - planned - seen
        seen |= {*fresh, *coming}
        found = [record for run in fresh.values() if (record := results.of(run)) is not None]
        yield stage, found, len(fresh) - len(found), len(coming)


def undeclared(records: Iterable[Record], protocols: Sequence[Protocol]) -> list[Record]:
    """Evaluation runs of scales, tasks and variants that no protocol declares, as `make reproduce-...` makes."""
    declared = {(p.task, p.scale, p.variant) for p in protocols}
    return [
        r for r in records
        if (r.purpose, r.trial) == ("eval", "main") and SCALES[r.scale].shown
        and (r.task, r.scale, r.variant) not in declared
    ]  # fmt: skip


def wanted(stages: Sequence[Stage], results: Records) -> Iterator[Run]:
    """The runs that can be made now, each once, in order."""
    seen: set[Path] = set()
    for run in (run for stage in stages for run in stage.runs):
        if run.record not in seen and results.of(run) is None:
            seen.add(run.record)
            yield run
