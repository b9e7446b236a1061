"""What the four uses of `examples.fisher` gave, from their records in results/fisher. Imports no torch."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from experiments.core.drawing import INK, MUTED, canvas
from experiments.theory.blocks import COLOURS, Grid

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Record = Mapping[str, Any]
Records = Mapping[str, Record]
USES = {
    "merging": "merging two checkpoints",
    "consolidation": "elastic weight consolidation",
    "pruning": "pruning",
    "laplace": "diagonal Laplace",
}
MEASURES = {
    "merging": "test loss of both domains, nats a character",
    "consolidation": "test loss of both domains after learning one after the other, nats a character",
    "pruning": "test loss, mean over the sparsities, nats a character",
    "laplace": "test loss of the averaged prediction, nats a character",
}
METHODS = ("free", "empirical", "true")
BETTER, WORSE, SAME = "better", "worse", "no difference seen"


def values(record: Record, optimizer: str, method: str, key: str = "value") -> dict[int, float]:
    """By seed."""
    rows = [r for r in record["rows"] if (r["optimizer"], r["method"]) == (optimizer, method)]
    return {int(r["seed"]): float(r[key]) for r in rows if key in r}


def interval(found: Sequence[float]) -> tuple[float, float, float]:
    """Mean, and the ends of its 95 % interval by Student's t; infinitely wide for fewer than two."""
    from scipy.stats import t  # type: ignore[import-untyped,unused-ignore]

    n, mean = len(found), statistics.fmean(found)
    if n < 2:
        return mean, -math.inf, math.inf
    half = float(t.ppf(0.975, n - 1)) * statistics.stdev(found) / math.sqrt(n)
    return mean, mean - half, mean + half


def against(record: Record, optimizer: str, one: str, other: str) -> tuple[float, float, float]:
    """Method `one` minus method `other`, seed by seed."""
    a, b = values(record, optimizer, one), values(record, optimizer, other)
    return interval([a[seed] - b[seed] for seed in sorted(a.keys() & b.keys())])


def word(low: float, high: float) -> str:
    """What an interval of a difference in loss says."""
    return BETTER if high < 0 else WORSE if low > 0 else SAME


def shown(found: tuple[float, float, float], sign: str = "+") -> str:
    mean, low, high = found
    return f"{mean:{sign}.4f} [{low:{sign}.4f}, {high:{sign}.4f}]"


def optimizers(record: Record) -> list[str]:
    return list(dict.fromkeys(str(row["optimizer"]) for row in record["rows"]))


def grid(records: Records) -> Grid:
    """The one table: a row for each use and optimizer."""
    rows = []
    for use, title in USES.items():
        record = records[use]
        for optimizer in optimizers(record):
            cells = [title, optimizer]
            for method in ("none", "identity"):
                cells.append(f"{statistics.fmean(values(record, optimizer, method).values()):.4f}")
            cells += [shown(against(record, optimizer, method, "identity")) for method in METHODS]
            free = against(record, optimizer, "free", "true")
            rows.append([*cells, shown(free), word(*free[1:])])
    header = (
        "use", "trained with", "without", "identity", *(f"{m} - identity" for m in METHODS), "free - true",
        "free against true",
    )  # fmt: skip
    return Grid("Test losses, and their differences", header, rows)


def details_grid(records: Records) -> Grid:
    """What is forgotten, how far predictions vary, how well they are calibrated."""
    methods = ("none", "identity", *METHODS)
    rows = []
    for use, key, title in (
        ("consolidation", "forgotten", "forgetting: what the loss of the first domain rises by"),
        ("laplace", "deviation", "Laplace: standard deviation of the right character's probability"),
        ("laplace", "calibration", "Laplace: calibration error"),
    ):
        for optimizer in optimizers(records[use]):
            found = [list(values(records[use], optimizer, method, key).values()) for method in methods]
            rows.append([title, optimizer, *(shown(interval(v), "") if v else "–" for v in found)])
    header = ("measure", "trained with", "without", *methods[1:])
    return Grid(
        "Forgetting, predictive deviation and calibration, means with 95 % intervals", header, rows, folded=True
    )


def words(records: Records, one: str, other: str) -> dict[str, list[str]]:
    """Uses by what the difference of two methods says, with the optimizers where it is not the same for all."""
    found: dict[str, list[str]] = {BETTER: [], WORSE: [], SAME: []}
    for use, title in USES.items():
        record = records[use]
        said = {o: word(*against(record, o, one, other)[1:]) for o in optimizers(record)}
        for said_, names in found.items():
            of = [o for o in said if said[o] == said_]
            if of:
                names.append(title if len(of) == len(said) else f"{title} ({', '.join(of)})")
    return found


def strengths(record: Record) -> str:
    """Of elastic weight consolidation, as chosen for each optimizer and method."""
    parts = []
    for optimizer in optimizers(record):
        chosen = {m: values(record, optimizer, m, "strength").values() for m in ("identity", *METHODS)}
        parts.append(f"{optimizer} " + ", ".join(f"{m} {next(iter(v)):g}" for m, v in chosen.items() if v))
    return "; ".join(parts)


def edges(records: Records) -> list[str]:
    """What was chosen at an end of the values that were tried, where a better one may lie outside."""
    found: list[str] = []
    for use, key in (("consolidation", "strength"), ("laplace", "precision")):
        tried = records[use]["settings"].get({"strength": "strengths", "precision": "precisions"}[key], [])
        for row in records[use]["rows"]:
            if row["method"] != "none" and tried and row.get(key) in (min(tried), max(tried)):
                found.append(f"{USES[use]} ({row['optimizer']}, {row['method']}: {row[key]:g})")
    return list(dict.fromkeys(found))


def pruning_figure(record: Record) -> Figure:
    """Test loss over sparsity, mean over seeds; a column an optimizer."""
    found = optimizers(record)
    figure, axes = canvas(3.0, len(found), 1)
    sparsities = record["settings"]["sparsities"]
    for axis, optimizer in zip(axes[0], found, strict=True):
        for method, colour in zip(("identity", *METHODS), (INK, *COLOURS), strict=False):
            rows = [r for r in record["rows"] if (r["optimizer"], r["method"]) == (optimizer, method)]
            curves = [interval(c) for c in zip(*(r["curve"] for r in rows), strict=True)]
            label = "magnitude (identity)" if method == "identity" else method
            axis.plot(sparsities, [m for m, _, _ in curves], color=colour, marker="o", label=label)
            if len(rows) > 1:
                low, high = [a for _, a, _ in curves], [b for _, _, b in curves]
                axis.fill_between(sparsities, low, high, color=colour, alpha=0.15, linewidth=0)
        axis.axhline(statistics.fmean(values(record, optimizer, "none").values()), color=MUTED, linewidth=0.8)
        axis.set_title(f"trained with {optimizer}")
        axis.set_xlabel("share of the matrices' weights set to 0")
    axes[0][0].set_ylabel("test loss (nats a character)")
    axes[0][0].legend()
    return figure
