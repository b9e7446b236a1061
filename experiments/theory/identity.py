"""The rule of claim C10: Adam's second moment is, up to its moving average, the diagonal empirical Fisher information.

It rests on two measurements: a small network whose Fisher information is known exactly (results/theory/fisher.json),
and the three tasks' own models (results/fisher/tasks.json). docs/study.md states the rule, results/claims.yaml its
limits. Imports no torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from experiments.theory.blocks import Spread
from experiments.theory.sizes import TASKS, Measure, measures

SUPPORTED, CONTRADICTED, UNDECIDED = "supported", "contradicted", "undecided"


@dataclass(frozen=True)
class Judged:
    """`word`: supported, contradicted or undecided; "" while a measurement is missing. `remark`: which part agrees."""

    word: str
    remark: str
    sentence: str


def _within(values: Sequence[float], least: float, most: float) -> bool | None:
    """Whether all of them lie inside; None where some do."""
    inside = [least <= v <= most for v in values]
    return True if all(inside) else None if any(inside) else False


def _all(found: Sequence[bool | None]) -> bool | None:
    return False if False in found else None if None in found else True


def toy(limits: Mapping[str, float], record: Mapping[str, Any]) -> tuple[bool, bool | None, bool | None, str]:
    """Whether f_t is Adam's second moment, pattern and size of the small network, and the sentence."""
    cases = [c for c in record["cases"] if c["batch"] == limits["batch"]]
    # Two cases that agree to the last digit are one: the gradients of two likelihoods may differ by a factor only.
    numbers = {(c["moment_empirical"]["correlation"], c["moment_empirical"]["ratio"]) for c in cases}
    correlations, ratios = zip(*sorted(numbers), strict=True)

    def words(values: Sequence[float], factor: float = 1) -> str:
        return f"{factor * min(values):.2g} to {factor * max(values):.2g}"

    says = (
        f"f_t is Adam's corrected second moment up to {record['rounding']:.0e} relative. A small network, batches of "
        f"{limits['batch']:g}: the correlation of its logarithm with that of the diagonal empirical Fisher information "
        f"is {words(correlations)}, the median ratio {words(ratios)}, or {words(ratios, limits['batch'])} times 1 / "
        "batch."
    )
    pattern = min(correlations) >= limits["correlation"]
    size = all(1 / limits["ratio"] <= ratio <= limits["ratio"] for ratio in ratios)
    return record["rounding"] <= limits["rounding"], pattern, size, says


def task(limits: Mapping[str, float], m: Measure) -> tuple[bool | None, bool | None, str]:
    """Pattern and size of one task, and its part of the sentence."""
    pattern = _within((m.rank.least, m.rank.most), limits["correlation"], 1)
    size = _within((m.bare.least, m.bare.most), 1 / limits["ratio"], limits["ratio"])
    times = Spread(*(m.batch * value for value in m.bare)).words()
    return pattern, size, f"{TASKS[m.task]} {m.rank.words()} and {m.bare.words()}, or {times} times 1 / batch"


def judge(limits: Mapping[str, float], small: Mapping[str, Any] | None, tasks: Mapping[str, Any] | None) -> Judged:
    """Supported if pattern and size lie inside the limits in every case and on every task with all seeds; contradicted
    if in some case, or on some task with all seeds, one of them lies outside."""
    there = [m for m in measures(tasks, limits["beta2"]) if m.batch == limits["batch"]] if tasks else []
    if small is None or not any(c["batch"] == limits["batch"] for c in small["cases"]):
        return Judged("", "", f"There are no cases of the small network with batches of {limits['batch']:g}.")
    if {m.task for m in there} != set(TASKS):
        return Judged("", "", f"Not every task has been measured with batches of {limits['batch']:g}.")
    exact, pattern, size, says = toy(limits, small)
    found = [task(limits, m) for m in there]
    pattern, size = _all([pattern, *(f[0] for f in found)]), _all([size, *(f[1] for f in found)])
    whole = _all([exact, pattern, size])
    seeds = len(tasks["settings"]["seeds"]) if tasks else 0
    says += (
        f" The tasks' own models, {seeds} seeds, after {there[0].step} steps with the same batches: the rank "
        f"correlation with it and the ratio of the sums are {'; '.join(f[2] for f in found)}."
    )
    agrees = {True: "agrees", False: "does not", None: "does with some seeds"}
    remark = "" if whole else f": the pattern {agrees[pattern]}, the size {agrees[size]}"
    if pattern is False and size is False:
        remark = ": neither the pattern nor the size agrees"
    return Judged({True: SUPPORTED, False: CONTRADICTED, None: UNDECIDED}[whole], remark, says)
