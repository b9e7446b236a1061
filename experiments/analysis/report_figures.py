"""The drawings of the report: matplotlib's SVG, made to stand inside the page and to follow its light or dark colours.

Every function takes numbers, not records, and returns one `<svg>` element: no date, no random ids, no network, colours
as CSS variables, text as text.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Any

from experiments.analysis.figures import look

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# What matplotlib draws with -> what the page calls it. The arms' colours are those of every other figure; the page has
# lighter ones of the same hue on a dark ground.
_INK, _MUTED, _LINE, _BAND = "#010101", "#020202", "#030303", "#040404"
_VARIABLES = {_INK: "--ink", _MUTED: "--muted", _LINE: "--line", _BAND: "--band"}
# Arms that the other figures have no look of their own for. Those of tier 3 never stand beside Adam or the update clip.
_LOOKS: dict[str, tuple[str, str, str]] = {
    "adamw_update_clip": ("#CC79A7", "D", ":"),
    "nadamw": ("#009E73", "v", "-."),
    "lion": ("#E69F00", "P", "--"),
    "muon": ("#CC79A7", "D", ":"),
    "schedule_free": ("#000000", "X", "-."),
}
# The same hues, light enough for a dark ground.
_DARK = {
    "#56B4E9": "#9AD4F7",
    "#0072B2": "#4BA3E3",
    "#D55E00": "#FF8B4D",
    "#009E73": "#3CCFA0",
    "#CC79A7": "#E8A6C9",
    "#E69F00": "#F5BC45",
    "#000000": "#F0F0F0",
}
WIDTH, HEIGHT = 4.1, 2.9  # inches: read at 330 px as at 400
_SIZE = 9.0  # points

Curve = Sequence[tuple[float, float, float]]  # place, mean, standard deviation


@dataclass(frozen=True)
class Line:
    """One arm's points.

    Attributes:
        points: (x, y), finite; joined in order of x if `joined`.
        bad: x of diverged runs, marked at the rim.
        chosen: the point with a ring around it.
        spread: half of the band around each point, if any.
        path: the points that the line joins, where these are not all.
    """

    arm: str
    points: Sequence[tuple[float, float]]
    bad: Sequence[float] = ()
    chosen: tuple[float, float] | None = None
    spread: Sequence[float] | None = None
    path: Sequence[tuple[float, float]] | None = None


@dataclass(frozen=True)
class Row:
    """One line of a forest plot: a gain with its interval; None where there is none yet, infinite for divergence."""

    label: str
    mean: float | None
    interval: tuple[float, float] | None
    arm: str = "fadam"
    values: Sequence[float] = ()


def arm_look(arm: str) -> tuple[str, str, Any]:
    """Colour, marker and dash of an arm."""
    if arm in _LOOKS:
        return _LOOKS[arm]
    return look("fadam" if arm.startswith("fadam") else arm, [arm])


def colour_variable(arm: str) -> str:
    """Name of the page's variable for the colour of an arm."""
    return _variable(arm_look(arm)[0])


def _variable(colour: str) -> str:
    return "--arm-" + colour.removeprefix("#").lower()


def palette(dark: bool = False) -> dict[str, str]:
    """All colours of arms: the page's variable -> the colour, on a light or on a dark ground."""
    arms = ("adamw", "adamw_clip", "fadam", "adam", *_LOOKS)
    colours = dict.fromkeys(arm_look(arm)[0] for arm in arms)
    return {_variable(colour): _DARK[colour] if dark else colour for colour in colours}


def _axes(height: float = HEIGHT, width: float = WIDTH) -> tuple[Figure, Axes]:
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasSVG(figure)
    axis = figure.subplots()
    axis.grid(True, color=_LINE, linewidth=0.6)
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)
    axis.spines[["bottom", "left"]].set_color(_MUTED)
    axis.tick_params(which="both", color=_MUTED, labelcolor=_INK, labelsize=_SIZE)
    return figure, axis


def _labels(axis: Axes, x: str, y: str) -> None:
    axis.set_xlabel(x, color=_INK, fontsize=_SIZE)
    axis.set_ylabel(y, color=_INK, fontsize=_SIZE)


def svg(figure: Figure, name: str, label: str) -> str:
    """The figure as an element of the page; `name` makes its ids its own, `label` is read to who cannot see it."""
    import matplotlib as mpl

    target = io.StringIO()
    with mpl.rc_context({"svg.hashsalt": name, "svg.fonttype": "none", "svg.image_inline": True}):
        figure.savefig(
            target,
            format="svg",
            transparent=True,
            metadata={"Date": None, "Creator": None, "Format": None, "Type": None},
        )
    text = target.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>\s*", "", text, flags=re.DOTALL)
    text = re.sub(r"<!--.*?-->\s*", "", text, flags=re.DOTALL)
    text = text.replace("xlink:href", "href")
    head = re.match(r"<svg[^>]*>", text)
    box = re.search(r'viewBox="([^"]+)"', text)
    assert head is not None
    assert box is not None
    body = text[head.end() :]
    # Groups are named for nobody; definitions are, and their names must be this drawing's alone.
    used = set(re.findall(r'(?:href="|url\()#([^")]+)', body))
    body = re.sub(r' id="([^"]+)"', lambda m: f' id="{name}-{m[1]}"' if m[1] in used else "", body)
    body = re.sub(r'(href="|url\()#', rf"\1#{name}-", body)
    for colour, variable in (*_VARIABLES.items(), *((c, v) for v, c in palette().items())):
        body = re.sub(re.escape(colour), f"var({variable})", body, flags=re.IGNORECASE)
    body = re.sub(r"font: ([\d.]+)px [^;\"]*", r"font-size: \1px", body)
    body = re.sub(r"\n\s*", "\n", body)
    return f'<svg class="plot" viewBox="{box[1]}" role="img" aria-label="{escape(label)}">{body.strip()}'


def curves(
    name: str,
    label: str,
    arms: Mapping[str, tuple[Curve, Sequence[Sequence[tuple[float, float]]]]],
    x: str,
    y: str,
    target: float | None = None,
    low_is_better: bool = True,
) -> str:
    """Mean and band of each arm, every seed thin, and the target as a dashed line.

    The first third of the training runs off the drawing, so that the end, where optimizers are ranked, can be read.

    Args:
        arms: arm -> (mean curve, curve of every seed).
    """
    figure, axis = _axes()
    for arm, (mean, seeds) in arms.items():
        colour, marker, dash = arm_look(arm)
        for points in seeds:
            axis.plot([a for a, _ in points], [b for _, b in points], color=colour, linewidth=0.6, alpha=0.4)
        places = [a for a, _, _ in mean]
        axis.plot(
            places, [m for _, m, _ in mean], color=colour, linestyle=dash, linewidth=1.8, marker=marker, markersize=3.5
        )
        if len(seeds) > 1:
            axis.fill_between(
                places, [m - d for _, m, d in mean], [m + d for _, m, d in mean], color=colour, alpha=0.15, linewidth=0
            )
    late = [v for mean, _ in arms.values() for place, m, d in mean if place >= mean[-1][0] / 3 for v in (m - d, m + d)]
    if late:
        late += [] if target is None else [target]
        room = 0.05 * (max(late) - min(late)) or 0.01
        axis.set_ylim(min(late) - room, max(late) + room)
    if target is not None:
        axis.axhline(target, color=_MUTED, linewidth=1, linestyle=(0, (4, 3)))
    _labels(axis, x, y)
    return svg(figure, name, label)


def lines(
    name: str, label: str, arms: Iterable[Line], x: str, y: str, log: bool = True, low_is_better: bool = True
) -> str:
    """A metric against one setting, arm by arm."""
    figure, axis = _axes()
    arms = list(arms)
    for place, line in enumerate(arms):
        colour, marker, dash = arm_look(line.arm)
        points = sorted(line.points)
        path = points if line.path is None else line.path
        axis.plot([a for a, _ in path], [b for _, b in path], color=colour, linestyle=dash, linewidth=1.5)
        axis.plot(
            [a for a, _ in points],
            [b for _, b in points],
            color=colour,
            marker=marker,
            markersize=4.5,
            linestyle="none",
        )
        if line.spread is not None:
            axis.errorbar(
                [a for a, _ in line.points],
                [b for _, b in line.points],
                yerr=line.spread,
                color=colour,
                fmt="none",
                elinewidth=1,
            )
        if line.chosen is not None:
            axis.plot(
                *line.chosen,
                marker="o",
                markersize=11,
                markerfacecolor="none",
                markeredgecolor=colour,
                markeredgewidth=1.2,
            )
        if line.bad:
            rim = 0.97 - 0.06 * place if low_is_better else 0.03 + 0.06 * place
            axis.plot(
                line.bad, [rim] * len(line.bad), color=colour, transform=axis.get_xaxis_transform(), marker="x",
                markeredgewidth=1.8, markersize=6, linestyle="none",
            )  # fmt: skip
    xs = sorted({a for line in arms for a in (*(p[0] for p in line.points), *line.bad)})
    if log and xs and xs[0] > 0:
        axis.set_xscale("log")
        axis.minorticks_off()
        axis.set_xticks(ticks(xs), [power_text(t) for t in ticks(xs)])
        edge = (xs[-1] / xs[0]) ** 0.05 if xs[-1] > xs[0] else 2.0
        axis.set_xlim(xs[0] / edge, xs[-1] * edge)
    _labels(axis, x, y)
    return svg(figure, name, label)


def forest(name: str, label: str, rows: Sequence[Row], matters: float, x: str) -> str:
    """Gains with their intervals, one under another, the band of what does not matter shaded."""
    height = 0.62 + 0.36 * max(len(rows), 1)
    figure, axis = _axes(height)
    axis.grid(False)
    axis.spines["left"].set_visible(False)
    axis.axvspan(-matters, matters, color=_BAND, linewidth=0)
    axis.axvline(0.0, color=_MUTED, linewidth=1)
    reach = [matters * 1.6]
    reach += [abs(v) for row in rows for v in (row.mean, *(row.interval or ())) if v is not None and math.isfinite(v)]
    limit = 1.12 * max(reach)
    for place, row in enumerate(rows):
        y = len(rows) - 1 - place
        colour, marker, _ = arm_look(row.arm)
        axis.text(-limit, y + 0.16, f" {row.label}", color=_INK, fontsize=_SIZE, va="bottom", ha="left")
        if row.mean is None:
            axis.text(limit, y - 0.1, "no runs yet ", color=_MUTED, fontsize=_SIZE - 1, va="center", ha="right")
            continue
        if not math.isfinite(row.mean):
            side = math.copysign(1.0, row.mean)
            axis.annotate(
                "", (side * limit, y - 0.1), (side * limit * 0.8, y - 0.1),
                arrowprops={"arrowstyle": "->", "color": colour, "linewidth": 2},
            )  # fmt: skip
            words = "diverged" if side < 0 else "the other diverged"
            axis.text(side * limit * 0.78, y - 0.1, words, color=_INK, fontsize=_SIZE - 1, va="center",
                      ha="right" if side > 0 else "left")  # fmt: skip
            continue
        if row.values:
            axis.plot(list(row.values), [y - 0.1] * len(row.values), color=colour, marker="|", markersize=6, alpha=0.55,
                      linestyle="none")  # fmt: skip
        if row.interval is not None:
            axis.plot(row.interval, [y - 0.1, y - 0.1], color=colour, linewidth=2, solid_capstyle="butt")
        axis.plot(row.mean, y - 0.1, color=colour, marker=marker, markersize=6)
    axis.set_xlim(-limit, limit)
    axis.set_ylim(-0.55, len(rows) - 0.4)
    axis.set_yticks([])
    axis.locator_params(axis="x", nbins=5)
    axis.set_xlabel(x, color=_INK, fontsize=_SIZE)
    return svg(figure, name, label)


def steps(name: str, label: str, arms: Mapping[str, Sequence[float]], x: str, y: str) -> str:
    """Empirical distributions: the share of values that are at most x."""
    figure, axis = _axes()
    finite = [v for values in arms.values() for v in values if math.isfinite(v)]
    end = max([1.0, *finite]) * 1.08
    for arm, values in arms.items():
        colour, _, dash = arm_look(arm)
        ordered = sorted(v for v in values if math.isfinite(v))
        xs = [0.0, *ordered, end]
        ys = [0.0, *((i + 1) / len(values) for i in range(len(ordered)))]
        axis.step(xs, [*ys, ys[-1]], where="post", color=colour, linestyle=dash, linewidth=1.8)
    axis.axvline(1.0, color=_MUTED, linewidth=1, linestyle=(0, (4, 3)))
    axis.set_xlim(0, end)
    axis.set_ylim(0, 1.03)
    _labels(axis, x, y)
    return svg(figure, name, label)


def ticks(places: Sequence[float]) -> list[float]:
    """Where a logarithmic axis is labelled: at 1, 2 and 5, at 1 and 3, or at powers of ten, as there is room."""
    low, high = math.log10(min(places)), math.log10(max(places))
    for digits, step in (((1, 2, 5), 1), ((1, 3), 1), ((1,), 1), ((1,), 2), ((1,), 5), ((1,), 10)):
        exponents = range(math.floor(low) - 1, math.ceil(high) + 1)
        found = [float(f"{d}e{e}") for e in exponents if e % step == 0 for d in digits]
        found = [t for t in found if low - 0.05 <= math.log10(t) <= high + 0.05]
        if len(found) <= 7:
            return found
    return [min(places), max(places)]


def power_text(value: float) -> str:
    """1e-08 as 10⁻⁸, others as they are."""
    if value > 0:
        exponent = round(math.log10(value))
        if abs(exponent) > 3 and math.isclose(value, 10.0**exponent):
            return "10" + str(exponent).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
    return f"{value:.4g}"


def swatch(arm: str) -> str:
    """The sign of an arm in a legend."""
    _, marker, dash = arm_look(arm)
    pattern = {"-": "", "--": "5 3", "-.": "6 2 1 2", ":": "1.5 2.5"}[dash]
    shapes = {
        "o": '<circle cx="14" cy="6" r="3.4"/>',
        "s": '<rect x="10.8" y="2.8" width="6.4" height="6.4"/>',
        "^": '<path d="M14 2 18 9.4H10Z"/>',
        "v": '<path d="M14 10 18 2.6H10Z"/>',
        "D": '<path d="M14 1.6 18.4 6 14 10.4 9.6 6Z"/>',
        "P": '<path d="M12.6 2h2.8v2.6H18v2.8h-2.6V10h-2.8V7.4H10V4.6h2.6Z"/>',
        "X": '<path d="M11 3 17 9M17 3 11 9" stroke-width="2.4"/>',
    }
    colour = f"var({colour_variable(arm)})"
    return (
        f'<svg class="swatch" viewBox="0 0 28 12" aria-hidden="true" fill="{colour}" stroke="{colour}">'
        f'<path d="M0 6H28" stroke-width="2" stroke-dasharray="{pattern}"/>{shapes[marker]}</svg>'
    )
