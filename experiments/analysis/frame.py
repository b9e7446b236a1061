"""Run records as one tidy table: a row a run, a column a setting or metric."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from experiments.core.catalogue import metric
from experiments.core.plan import Stage
from experiments.core.protocol import Run
from experiments.core.records import Record, Records

# Metrics stand under their own keys, which all have a slash.
SETTINGS = {
    "lr": "optimizer.lr",
    "weight_decay": "optimizer.weight_decay",
    "eps": "optimizer.eps",
    "precision": "trainer.precision",
    "gradient_scale": "value",
}


def row(record: Record, run: Run | None = None) -> dict[str, Any]:
    """One run. `protocol` is "" where no study planned it; what is no finite number is infinitely bad.

    `part` says what a planned run is for: `tune`, `epsilon` (claim C4) or `eval`.
    """
    values = {
        key: metric(record.task, key).worst if value is None or not math.isfinite(value) else float(value)
        for key, value in record.metrics.items()
    }
    return {
        "protocol": run.protocol if run else "",
        "part": "epsilon" if run and run.choices else record.purpose,
        **{k: getattr(record, k) for k in ("task", "scale", "variant", "arm", "trial", "purpose", "seed", "steps")},
        **{name: record.setting(key) for name, key in SETTINGS.items()},
        "diverged": record.diverged,
        "minutes": record.seconds / 60 if record.wall_time_s else math.nan,
        "step_ms": 1000 * record.step_time_s if record.step_time_s else math.nan,
        "memory_gb": record.peak_memory_bytes / 1e9 if record.peak_memory_bytes else math.nan,
        "parameters": record.parameters,
        "path": record.relative,
        "record": record,
        **values,
    }


COLUMNS = (
    "protocol", "part", "task", "scale", "variant", "arm", "trial", "purpose", "seed", "steps", *SETTINGS, "diverged",
    "minutes", "step_ms", "memory_gb", "parameters", "path", "record",
)  # fmt: skip


def tidy(records: Records, stages: Sequence[Stage]) -> pd.DataFrame:
    """All records of their folders. Records of planned runs name their protocol and part.

    A record in the place of a planned run, but made with other settings, names no protocol. A diverged run, which is
    not tested, is infinitely bad by every metric that some run of its task, scale and variant has.
    """
    runs = {run.record: run for stage in reversed(stages) for run in stage.runs}  # of several stages the first one's
    rows = []
    for record in records.all():
        run = runs.get(record.relative)
        mine = run if run is not None and records.of(run) is not None else None
        rows.append(row(record, mine))
    frame = pd.DataFrame(rows, columns=None if rows else list(COLUMNS))
    for (name, *_), same in frame.groupby(["task", "scale", "variant"]):
        for key in metric_keys(same):
            frame.loc[same.index[same["diverged"]], key] = metric(name, key).worst
    return frame.sort_values(["task", "scale", "variant", "arm", "trial", "seed"], ignore_index=True)


def metric_keys(rows: pd.DataFrame) -> list[str]:
    """The metrics that some of the rows have."""
    return [name for name in rows.columns if "/" in name and rows[name].notna().any()]


def curve(records: Sequence[Record], key: str) -> Mapping[int, list[float]]:
    """Step -> the runs' values of a metric there; runs that diverged are absent from then on."""
    found: dict[int, list[float]] = {}
    for record in records:
        for entry in record.history:
            value = entry.get(key)
            if isinstance(value, int | float) and math.isfinite(value):
                found.setdefault(int(entry["step"]), []).append(float(value))
    return dict(sorted(found.items()))
