"""Bowls of the studies: how good is an arm at its best learning rate, and how easy is it to tune?"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd  # type: ignore[import-untyped,unused-ignore]
from numpy.typing import NDArray

from experiments.analysis.bowls import Bowl, bowl, jackknife, width
from experiments.core.catalogue import arm, task
from experiments.core.plan import decay_kind
from experiments.core.protocol import Protocol

Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class ArmBowl:
    """The bowl of one arm over the learning rates whose tuning seeds all have records.

    Attributes:
        values: (R, S) of the tuning metric, rates by seeds.
        planned: how many rates were declared.
    """

    arm: str
    values: Array
    found: Bowl
    planned: int

    @property
    def rates(self) -> Array:
        return self.found.rates


def bowls(table: pd.DataFrame, p: Protocol) -> dict[str, ArmBowl]:
    """The bowls of a study's main arms, those with at least three rates that did not all diverge."""
    rows = table[(table["protocol"] == p.name) & (table["part"] == "tune")]
    seeds = list(p.bowl.seeds)
    found = {}
    for name in p.bowl.arms:
        start = p.bowl.start[decay_kind(name)]
        mine = rows[(rows["arm"] == name) & np.isclose(rows["weight_decay"].astype(float), start, rtol=1e-9)]
        by_rate: dict[float, list[float]] = {}
        for lr, group in mine.groupby("lr"):
            by_seed: Mapping[Any, float] = dict(zip(group["seed"], group[p.tuning.name], strict=True))
            if set(seeds) <= set(by_seed):
                by_rate[float(str(lr))] = [float(by_seed[seed]) for seed in seeds]
        if len(by_rate) >= 3:
            values = np.array(list(by_rate.values()))
            made = bowl(list(by_rate), values, p.tuning.mode, p.matters, p.bowl.cliff)
            if made.lowest is not None:
                found[name] = ArmBowl(name, values, made, p.bowl.last - p.bowl.first + 1)
    return found


def tuning_sentence(found: Mapping[str, ArmBowl], p: Protocol) -> str:
    """Which of FAdam and AdamW with clipping is easier to tune: the wider bowl, where an interval says so."""
    if not {"fadam", "adamw_clip"} <= set(found):
        return "Easier to tune? Not known yet: learning rates wait to be run."
    one, other = found["fadam"], found["adamw_clip"]
    metric = task(p.task).metric(p.tuning.name)
    matters = metric.amount.format(metric.plain(p.matters))

    def factor(b: ArmBowl) -> str:
        return f"{'at least ' if b.found.open else ''}{b.found.width:.1f}"

    says = "Neither is shown to be easier to tune"
    shared = sorted(set(one.rates) & set(other.rates))
    if len(shared) >= 3:

        def log_width(values: Array) -> float:
            return math.log(width(shared, values, p.tuning.mode, p.matters)) if _trains(values) else math.nan

        tables = [b.values[np.isin(b.rates, shared)] for b in (one, other)]
        ends = jackknife(lambda a, b: log_width(a) - log_width(b), *tables)
        if ends is not None and (ends[0] > 0 or ends[1] < 0):
            says = f"FAdam is {'easier' if ends[0] > 0 else 'harder'} to tune"
    return (
        f"{says}: FAdam stays within {matters} of its best over a factor of {factor(one)} of learning rates, "
        f"{arm('adamw_clip').phrase} over {factor(other)}."
    )


def _trains(values: Array) -> bool:
    """Whether at some rate no seed diverged."""
    return bool(np.isfinite(values).all(axis=1).any())
