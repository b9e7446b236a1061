"""What a text about the measurements is made of, written as Markdown and as data for the report. Imports no torch."""

from __future__ import annotations

import contextlib
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from matplotlib.figure import Figure

INK, MUTED = "#1f2429", "#8a9199"  # the report gives INK the colour of its text
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7")


@dataclass(frozen=True)
class Grid:
    """A table: texts under a header. A text in backticks is a name. `folded`: details, folded away on the page."""

    caption: str
    header: tuple[str, ...]
    rows: Sequence[Sequence[str]]
    folded: bool = False

    def markdown(self) -> str:
        lines = [self.header, ("---",) * len(self.header), *self.rows]
        return f"{self.caption}:\n\n" + "\n".join("| " + " | ".join(line) + " |" for line in lines)


@dataclass(frozen=True)
class Picture:
    """A figure beside the page, the name of its file, and what it shows, for who cannot see it."""

    name: str
    says: str
    draw: Callable[[], Figure]

    def markdown(self) -> str:
        return f"![{self.says}]({self.name}.png)"


Block = str | Grid | Picture


@dataclass(frozen=True)
class Part:
    """A section. `id`: of its heading on the page."""

    id: str
    title: str
    blocks: tuple[Block, ...]

    def markdown(self) -> str:
        return "\n\n".join([f"## {self.title}", *(b if isinstance(b, str) else b.markdown() for b in self.blocks)])


class Spread(NamedTuple):
    """Of one number over seeds."""

    mean: float
    least: float
    most: float

    def __str__(self) -> str:
        return f"{self.mean:.3g} [{self.least:.3g}, {self.most:.3g}]"

    def words(self) -> str:
        one, other = f"{self.least:.3g}", f"{self.most:.3g}"
        return one if one == other else f"{one} to {other}"


def spread(values: Sequence[float]) -> Spread:
    return Spread(statistics.fmean(values), min(values), max(values))


def of_ratios(values: Sequence[float]) -> Spread:
    """With the geometric mean."""
    return Spread(statistics.geometric_mean(values), min(values), max(values))


def listed(names: Sequence[str]) -> str:
    return ", ".join(names[:-1]) + " and " + names[-1] if len(names) > 1 else "".join(names) or "none"


# As the report's own drawings: text stays text, and the page gives it its font and ink.
_STYLE: dict[Any, Any] = {
    "font.size": 8.5, "axes.titlesize": 9, "axes.labelsize": 8.5, "xtick.labelsize": 8.5, "ytick.labelsize": 8.5,
    "legend.fontsize": 8.5, "font.family": "DejaVu Sans", "svg.fonttype": "none", "svg.hashsalt": "fadam",
    "axes.spines.top": False, "axes.spines.right": False, "axes.edgecolor": MUTED, "text.color": INK,
    "axes.labelcolor": INK, "axes.titlecolor": INK, "xtick.color": INK, "ytick.color": INK, "legend.frameon": False,
    "lines.linewidth": 1.6, "lines.markersize": 4.5, "axes.formatter.useoffset": False,
}  # fmt: skip


@contextlib.contextmanager
def style() -> Iterator[None]:
    """Figures are drawn and saved inside."""
    import matplotlib as mpl

    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(_STYLE)
        yield


def canvas(height: float, columns: int = 1, rows: int = 1) -> tuple[Figure, Any]:
    """A figure of panels 4.5 inches wide and `height` high, and its axes (rows, columns)."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.5 * columns, height * rows), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False)
