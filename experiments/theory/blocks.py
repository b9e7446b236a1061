"""What a text about the measurements is made of, written as Markdown and as data for the report. Imports no torch."""

from __future__ import annotations

import contextlib
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from experiments.core.table import Cell, Table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7")


@dataclass(frozen=True)
class Grid:
    """A table: texts under a header. A text in backticks is a name. `folded`: details, folded away on the page."""

    caption: str
    header: tuple[str, ...]
    rows: Sequence[Sequence[str]]
    folded: bool = False

    def markdown(self) -> str:
        table = Table(self.caption, self.header, tuple(tuple(map(Cell, row)) for row in self.rows))
        return f"{self.caption}:\n\n{table.markdown()}"


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


@contextlib.contextmanager
def style() -> Iterator[None]:
    """Figures are drawn and saved inside; what else draws is left as it was."""
    import matplotlib as mpl

    with mpl.rc_context():
        mpl.rcdefaults()
        yield
