"""What the results decide: when a comparison may stop, and which settings `configs/tuned` names."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from experiments.analysis.families import Comparison as Looked
from experiments.analysis.families import judge
from experiments.analysis.looks import paired
from experiments.core.protocol import Comparison, Protocol
from experiments.study.plan import CONFIGS, Planner, Tuned
from experiments.study.results import Results


def looked_at(planner: Planner, comparison: Comparison, tuned: dict[str, Tuned]) -> Looked:
    """The pairs of a comparison that are there, in the order of the seeds, up to the first that is missing."""
    metric, arms = planner.protocol.metric, (comparison.challenger, comparison.baseline)
    values: tuple[list[float], list[float]] = ([], [])
    if set(arms) <= set(tuned):
        most = comparison.looks[-1]
        runs = [planner.evaluation(arm, tuned[arm], most, "") for arm in arms]
        for pair in zip(*runs, strict=True):
            found = [planner.result(run) for run in pair]
            if any(result is None for result in found):
                break
            for of_arm, result in zip(values, found, strict=True):
                assert result is not None
                of_arm.append(result.value(metric))
    return Looked(paired(*values, metric.mode), comparison.looks, planner.protocol.matters)


def decider(protocols: Sequence[Protocol], results: Results) -> Callable[[Comparison, int], bool]:
    """Tells whether a comparison is decided on the pairs that are there.

    Its whole family is asked, over all studies: Holm's correction depends on the others. What is decided stays decided.
    """
    planners = [Planner(p, results, lambda *_: False) for p in protocols]

    def decided(comparison: Comparison, pairs: int) -> bool:
        family, mine = {}, ""
        for planner in planners:
            tuned: dict[str, Tuned] | None = None
            for other in planner.protocol.comparisons:
                if other.family != comparison.family:
                    continue
                tuned = planner.tuned() if tuned is None else tuned
                key = f"{planner.protocol.name} {other.id}"
                family[key] = looked_at(planner, other, tuned)
                mine = key if other is comparison else mine
        return judge(family)[mine].word != "undecided"

    return decided


def write_tuned(planners: Sequence[Planner], results: Results) -> list[Path]:
    """Write what is chosen so far, one file for each experiment and arm, which `experiments.train` reads by itself."""
    from experiments.core.files import write_whole

    written = []
    for planner in planners:
        p = planner.protocol
        if p.prefix:
            continue
        for arm, tuned in planner.tuned().items():
            path = CONFIGS / "tuned" / f"{p.experiment}-{arm}.yaml"
            lines = [
                "# @package _global_",
                f"# Written by: python -m experiments.study tuned {p.name}",
                f"# Chosen as configs/study/{p.name}.yaml declares, by {p.tuning.name} on its tuning seeds.",
                "optimizer:",
                *(f"  {key.removeprefix('optimizer.')}: {value:g}" for key, value in tuned.settings),
            ]
            write_whole(path, "\n".join(lines) + "\n")
            written.append(path)
    return written
