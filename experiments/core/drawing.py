"""How every drawing of this project looks: on a page its text stays text, and takes the page's font and ink."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

INK, MUTED = "#1f2429", "#8a9199"  # a page gives INK the colour of its text
WIDTH = 4.5  # inches of one panel: 432 pixels of a page, of which a phone shows three quarters
STYLE: Any = {
    "font.size": 8.5, "axes.titlesize": 9, "axes.labelsize": 8.5, "xtick.labelsize": 8.5, "ytick.labelsize": 8.5,
    "legend.fontsize": 8.5, "font.family": "DejaVu Sans", "svg.fonttype": "none", "svg.hashsalt": "fadam",
    "axes.spines.top": False, "axes.spines.right": False, "axes.edgecolor": MUTED, "text.color": INK,
    "axes.labelcolor": INK, "axes.titlecolor": INK, "xtick.color": INK, "ytick.color": INK, "legend.frameon": False,
    "lines.linewidth": 1.6, "lines.markersize": 4.5, "axes.formatter.useoffset": False,
}  # fmt: skip


def canvas(height: float, columns: int = 1, rows: int = 1) -> tuple[Figure, Any]:
    """A figure of panels `WIDTH` wide and `height` inches high each, and its axes as (rows, columns)."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    mpl.rcParams.update(STYLE)
    figure = Figure(figsize=(WIDTH * columns, height * rows), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False)
