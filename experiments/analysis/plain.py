"""Runs that no study declared: a person's own, runs at other scales, and the pilot. No word rests on them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from experiments.analysis.looks import paired
from experiments.core.catalogue import TASKS, Mode
from experiments.core.plan import undeclared
from experiments.core.protocol import Protocol
from experiments.core.records import Record, config_family, differing, select

Array = NDArray[np.float64]
CHALLENGER, BASELINE = "fadam", "adamw_clip"


@dataclass(frozen=True, eq=False)
class Plain:
    """FAdam against AdamW and clipping, on the seeds that both have."""

    task: str
    scale: str
    variant: str
    metric: str
    challenger: Array
    baseline: Array
    gains: Array


def kinds(records: Iterable[Record], settings: bool = True) -> list[list[Record]]:
    """The records by what may stand in one table: data, configuration and, if asked, each arm's settings."""
    groups: list[list[Record]] = []
    for record in records:
        for group in groups:
            mine = next((r for r in group if r.arm == record.arm), record)
            same = not settings or dict(mine.optimizer) == dict(record.optimizer)
            if same and group[0].fingerprint == record.fingerprint and not differing(group[0], record):
                group.append(record)
                break
        else:
            groups.append([record])
    return groups


def one_kind(records: Iterable[Record]) -> list[Record]:
    """The largest set of records that may stand in one table."""
    return max(kinds(records), key=len, default=[])


def metric_of(task: str, records: Sequence[Record], protocols: Sequence[Protocol]) -> tuple[str, Mode]:
    """The metric that compares runs of a task: that of the study of their task and variant, else the headline's."""
    variant = records[0].variant if records else ""
    for p in protocols:
        if (p.task, p.variant) == (task, variant):
            return p.metric.name, p.metric.mode
    entry = TASKS[task]
    key = next((k for k in entry.headline if any(k in r.metrics for r in records)), entry.headline[0])
    return key, entry.metric(key).mode or "min"


def pairs(
    records: Sequence[Record], key: str, mode: Mode, challenger: str = CHALLENGER, baseline: str = BASELINE
) -> tuple[list[int], Array, Array, Array]:
    """Shared seeds, both arms' values and the gains."""
    by_seed = [{r.seed: r for r in records if r.arm == arm} for arm in (challenger, baseline)]
    seeds = sorted(set(by_seed[0]) & set(by_seed[1]))
    one, other = ([arm[seed].value(key, mode) for seed in seeds] for arm in by_seed)
    return seeds, np.array(one), np.array(other), paired(one, other, mode)


def plain_pairs(records: Iterable[Record], protocols: Sequence[Protocol]) -> list[Plain]:
    """The comparisons of scales, tasks and variants that no study declares."""
    mine = [r for r in undeclared(records, protocols) if r.task in TASKS and r.arm in (CHALLENGER, BASELINE)]
    found = []
    for task, scale, variant in sorted({(r.task, r.scale, r.variant) for r in mine}):
        kept = one_kind(select(mine, task=task, scale=scale, variant=variant))
        key, mode = metric_of(task, kept, protocols)
        seeds, one, other, gains = pairs(kept, key, mode)
        if seeds:
            found.append(Plain(task, scale, variant, key, one, other, gains))
    return found


@dataclass(frozen=True, eq=False)
class Pilot:
    """One group of pilot runs: the same settings but for the arm and the seed.

    Attributes:
        label: the settings in which it differs from the task's other groups.
        values: of the metric, by arm.
        sd: of the paired differences of FAdam and AdamW + clip; None with fewer than two pairs.
    """

    task: str
    variant: str
    metric: str
    label: str
    values: Mapping[str, tuple[float, ...]]
    minutes: float
    pairs: int
    sd: float | None


def pilots(table: pd.DataFrame, protocols: Sequence[Protocol]) -> list[Pilot]:
    """The pilot's runs, by task and settings."""
    rows = table[table["purpose"] == "pilot"]
    found = []
    for (task, variant), of_task in rows.groupby(["task", "variant"]):
        groups = kinds(of_task["record"], settings=False)
        shared = _differing_keys([g[0] for g in groups])
        for group in groups:
            key, mode = metric_of(str(task), group, protocols)
            group = [r for r in group if r.diverged or key in r.metrics]
            if not group:
                continue
            family = config_family(group[0])
            label = ", ".join(f"{k}={family.get(k)}" for k in shared) or "as declared"
            seeds, _, _, gains = pairs(group, key, mode)
            minutes = float(np.median([r.seconds for r in group])) / 60
            sd = float(gains.std(ddof=1)) if len(seeds) > 1 and np.isfinite(gains).all() else None
            values: dict[str, tuple[float, ...]] = {}
            for r in group:
                values[r.arm] = (*values.get(r.arm, ()), r.value(key, mode))
            found.append(Pilot(str(task), str(variant), key, label, values, minutes, len(seeds), sd))
    return found


def _differing_keys(firsts: Sequence[Record]) -> list[str]:
    families = [config_family(r) for r in firsts]
    keys = {k for a, b in combinations(families, 2) for k in a.keys() | b.keys() if a.get(k) != b.get(k)}
    return sorted(keys)
