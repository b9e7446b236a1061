"""How large FAdam's f_t is beside the Fisher information of the three tasks' models, from results/fisher/tasks.json.

Numbers of several seeds are given as their mean (of ratios, the geometric one) and, in brackets, the least and the
greatest. Imports no torch.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from experiments.core.drawing import INK, MUTED, canvas
from experiments.theory.blocks import COLOURS, Grid, Spread, of_ratios, spread

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Record = Mapping[str, Any]
Row = Mapping[str, Any]
TASKS = {"asr": "speech", "llm": "language", "vqvae": "images"}


# ---- numbers ---------------------------------------------------------------------------------------------------------
def rows_of(record: Record, task: str, batch: int, step: int, layer: str = "all") -> list[Row]:
    """A row for each seed."""
    wanted = (task, batch, step, layer)
    return [r for r in record["rows"] if (r["task"], r["batch"], r["step"], r["layer"]) == wanted]


def layers_of(record: Record, task: str) -> list[str]:
    """In the order of the model."""
    return [n for n in dict.fromkeys(str(r["layer"]) for r in record["rows"] if r["task"] == task) if n != "all"]


def free(row: Row, beta2: float) -> Mapping[str, Mapping[str, float]]:
    """What was found of the average with that beta2, compared with the empirical and with the true one."""
    found: Mapping[str, Mapping[str, float]] = next(f for f in row["free"] if f["beta2"] == beta2)
    return found


@dataclass(frozen=True)
class Measure:
    """One task and batch size at one step, all layers together.

    Attributes:
        ratio: f_t, times the factor, over the empirical Fisher information; 1 if its size is right.
        bare: the same without the factor.
        predicted: what the mean gradient at these weights makes of `ratio`, mean over the seeds.
        rank, rank_true: rank correlation with the empirical and with the true one.
        ceiling: rank correlation of two true ones, mean over the seeds.
        empirical_true: ratio of the empirical to the true one.
    """

    task: str
    batch: int
    step: int
    ratio: Spread
    bare: Spread
    predicted: float
    rank: Spread
    rank_true: Spread
    ceiling: float
    empirical_true: Spread


def measured(rows: Sequence[Row], beta2: float) -> Measure:
    """Of the rows of all seeds."""
    ratios = [free(r, beta2)["empirical"]["ratio"] for r in rows]
    batch = int(rows[0]["batch"])
    return Measure(
        task=str(rows[0]["task"]), batch=batch, step=int(rows[0]["step"]),
        ratio=of_ratios(ratios), bare=of_ratios([ratio / batch for ratio in ratios]),
        predicted=statistics.fmean(1 + r["excess"] for r in rows),
        rank=spread([free(r, beta2)["empirical"]["rank"] for r in rows]),
        rank_true=spread([free(r, beta2)["true"]["rank"] for r in rows]),
        ceiling=statistics.fmean(r["ceiling"] for r in rows),
        empirical_true=of_ratios([r["empirical_true"]["ratio"] for r in rows]),
    )  # fmt: skip


def measures(record: Record, beta2: float) -> list[Measure]:
    """At the last step of every task and batch size."""
    step = max(record["settings"]["stages"])
    pairs = [(task, batch) for task in TASKS for batch in record["settings"]["batches"]]
    return [measured(rows, beta2) for task, batch in pairs if (rows := rows_of(record, task, batch, step))]


# ---- tables and words ------------------------------------------------------------------------------------------------
def _cells(m: Measure) -> list[str]:
    numbers = (str(m.ratio), f"{m.predicted:.3g}", str(m.rank), str(m.rank_true), f"{m.ceiling:.2f}")
    return [*numbers, str(m.empirical_true)]


_COLUMNS = (
    "free / empirical", "predicted", "rank corr. with empirical", "rank corr. with true", "of two true ones",
    "empirical / true",
)  # fmt: skip


def batches_grid(record: Record) -> Grid:
    settings = record["settings"]
    rows = [
        [TASKS[m.task], str(m.batch), f"{beta2:g}", *_cells(m)]
        for task in TASKS
        for beta2 in settings["betas2"]
        for m in measures(record, beta2)
        if m.task == task
    ]
    rows.sort(key=lambda row: (list(TASKS.values()).index(row[0]), int(row[1])))
    header = ("task", "batch", "beta2", *_COLUMNS)
    return Grid(f"Every batch size and beta2, after {max(settings['stages'])} steps", header, rows, folded=True)


def steps_grid(record: Record) -> Grid:
    settings = record["settings"]
    batch, beta2 = max(settings["batches"]), max(settings["betas2"])
    rows = [
        [TASKS[task], str(step), *_cells(measured(rows_of(record, task, batch, step), beta2))]
        for task in TASKS
        for step in settings["stages"]
    ]
    caption = f"Along the runs, batches of {batch}, beta2 {beta2:g}"
    return Grid(caption, ("task", "step", *_COLUMNS), rows, folded=True)


def layers_grid(record: Record) -> Grid:
    settings = record["settings"]
    batch, beta2, step = max(settings["batches"]), max(settings["betas2"]), max(settings["stages"])
    rows = []
    for task in TASKS:
        for layer in layers_of(record, task):
            found = rows_of(record, task, batch, step, layer)
            entries = str(found[0]["entries"])
            rows.append([TASKS[task], f"`{layer}`", entries, *_cells(measured(found, beta2))])
    caption = f"Layer by layer, batches of {batch}, beta2 {beta2:g}, after {step} steps"
    return Grid(caption, ("task", "layer", "entries", *_COLUMNS), rows, folded=True)


def sentences(record: Record) -> list[str]:
    """Whether the factor held at the end of each task's runs, a sentence a task."""
    settings = record["settings"]
    short, long = min(settings["betas2"]), max(settings["betas2"])
    found = []
    for task, name in TASKS.items():
        parts = []
        for m in measures(record, short):
            other = next(o for o in measures(record, long) if (o.task, o.batch) == (m.task, m.batch))
            if m.task == task:
                parts.append(f"{m.ratio} and {other.ratio} with batches of {m.batch} ({m.predicted:.2g} predicted)")
        text = "; ".join(parts)
        found.append(f"{name.capitalize()}, beta2 {short:g} and {long:g}: f_t times the factor is {text}.")
    return found


def factor_table(record: Record) -> str:
    """What the docstring of `fadam.fisher.diagonal_fim` says of the factor."""
    settings = record["settings"]
    short, long = min(settings["betas2"]), max(settings["betas2"])
    longer = {(m.task, m.batch): m for m in measures(record, long)}
    header = ["task", "B", f"beta2 {short:g}", f"beta2 {long:g}", "expected", f"rank, {short:g}", f"rank, {long:g}"]
    rows = []
    for m in measures(record, short):
        other = longer[m.task, m.batch]
        row = [TASKS[m.task], str(m.batch), str(m.ratio), str(other.ratio), f"{m.predicted:.2f}"]
        rows.append([*row, f"{m.rank_true.mean:.2f}", f"{other.rank_true.mean:.2f}"])
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    rule = ["=" * width for width in widths]
    lines = [rule, header, rule, *rows, rule]
    return "\n".join("  ".join(text.ljust(w) for text, w in zip(line, widths, strict=True)).rstrip() for line in lines)


def factor_sentences(record: Record) -> list[str]:
    """What the docstring says below the table, and of the pixels of an image."""
    settings = record["settings"]
    short, long, batch = min(settings["betas2"]), max(settings["betas2"]), max(settings["batches"])

    def shares(beta2: float) -> str:
        found = [m.ratio.mean / m.predicted for m in measures(record, beta2)]
        return f"{min(found):.2g} to {max(found):.2g}"

    layers = [(task, layer) for task in TASKS for layer in layers_of(record, task)]
    ratios = {of: measured(rows_of(record, of[0], batch, max(settings["stages"]), of[1]), long).ratio for of in layers}
    most = max(ratios, key=lambda of: ratios[of].mean)
    images = [m.empirical_true for m in measures(record, long) if m.task == "vqvae"]
    least, greatest = min(s.least for s in images), max(s.most for s in images)
    return [
        f"With {short:g} the ratio is {shares(short)} times the expected one, with {long:g} {shares(long)} times.",
        f"Single layers are off by more, with batches of {batch} and {long:g} by up to {ratios[most].mean:.2g} "
        f"({TASKS[most[0]]}, `{most[1]}`).",
        f"after those {max(settings['stages'])} steps their ratio is {least:.0f} to {greatest:.0f}",
    ]


# ---- the figure ------------------------------------------------------------------------------------------------------
def figure(record: Record) -> Figure:
    """A column a task. Above, ratio and rank correlation along the runs with the largest batch (thin: single layers,
    the longest average); below, at the last step against the batch size. Bands: all seeds."""
    from matplotlib.ticker import LogLocator

    settings = record["settings"]
    stages, batches, betas2 = settings["stages"], settings["batches"], settings["betas2"]
    whole, axes = canvas(2.6, len(TASKS), 4)
    get_ratio: Callable[[Measure], Spread] = lambda m: m.ratio  # noqa: E731
    get_rank: Callable[[Measure], Spread] = lambda m: m.rank_true  # noqa: E731
    for column, (task, name) in enumerate(TASKS.items()):
        for layer in layers_of(record, task):
            found = [measured(rows_of(record, task, max(batches), s, layer), max(betas2)) for s in stages]
            for row, get in ((0, get_ratio), (1, get_rank)):
                axes[row][column].plot(stages, [get(m).mean for m in found], color=MUTED, linewidth=0.6, alpha=0.7)
        for beta2, colour in zip(betas2, COLOURS, strict=False):
            along = [measured(rows_of(record, task, max(batches), s), beta2) for s in stages]
            last = [measured(rows_of(record, task, b, max(stages)), beta2) for b in batches]
            for rows, x, found in (((0, 1), stages, along), ((2, 3), batches, last)):
                for row, get in zip(rows, (get_ratio, get_rank), strict=True):
                    _line(axes[row][column], x, [get(m) for m in found], colour, f"beta2 {beta2:g}")
        for rows, x, found in (((0, 1), stages, along), ((2, 3), batches, last)):
            style: Any = {"color": INK, "linewidth": 1, "linestyle": "--"}
            axes[rows[0]][column].plot(
                x, [m.predicted for m in found], label="predicted; below: two true ones", **style
            )
            axes[rows[1]][column].plot(x, [m.ceiling for m in found], **style)
        axes[0][column].set_title(f"{name}, batches of {max(batches)}")
        axes[2][column].set_title(f"{name}, step {max(stages)}")
        for row, axis in enumerate(axes[:, column]):
            axis.set_xscale("log")
            axis.set_xticks(*((stages, [str(s) for s in stages]) if row < 2 else (batches, [str(b) for b in batches])))
            axis.minorticks_off()
            axis.set_xlabel("optimizer step" if row < 2 else "batch")
            if row % 2 == 0:
                axis.set_yscale("log")
                axis.axhline(1.0, color=MUTED, linewidth=0.8)
                axis.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
                axis.yaxis.set_major_formatter("{x:g}")
                axis.minorticks_off()
    for row in range(4):
        axes[row][0].set_ylabel("rank correlation with true" if row % 2 else "times the factor / empirical")
    axes[0][0].legend()
    return whole


def _line(axis: Axes, x: Sequence[int], found: Sequence[Spread], colour: str, label: str) -> None:
    axis.plot(x, [s.mean for s in found], color=colour, marker="o", label=label)
    axis.fill_between(x, [s.least for s in found], [s.most for s in found], color=colour, alpha=0.18, linewidth=0)
