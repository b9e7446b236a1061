"""The drawings. Each is made once, and saved as a PNG and as an SVG that stands in the page, with the same colours.

Signs of arms come from `experiments.core.catalogue`. Ink takes the colour of the page's text, so that a drawing reads
on light and on dark alike.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from experiments.analysis.bowls import Bowl
from experiments.analysis.comparisons import Compared, Ladder, Point
from experiments.analysis.frame import curve
from experiments.analysis.verdicts import word
from experiments.core.catalogue import Arm, Metric, arm, in_order, task, where
from experiments.core.drawing import INK, MUTED, WIDTH, canvas
from experiments.core.protocol import Protocol
from experiments.core.records import Record

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BAND = "#9aa3ab"
GOOD, BAD, SAME, OPEN = "#1a7f4b", "#c0392b", "#2b6cb0", "#8a9199"
WORDS = {"better": GOOD, "worse": BAD, "equivalent": SAME}


def png(figure: Figure) -> bytes:
    out = io.BytesIO()
    # No software version or date in the file: equal results give equal files.
    figure.savefig(out, format="png", dpi=150, facecolor="white", metadata={"Software": None})
    return out.getvalue()


def svg(figure: Figure, name: str, says: str) -> str:
    """The drawing for a page."""
    out = io.StringIO()
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    figure.savefig(out, format="svg", transparent=True, metadata=nothing)
    return inline(out.getvalue(), name, says)


def inches(drawn: str) -> float:
    """The width of an SVG."""
    found = re.search(r'<svg[^>]* width="([\d.]+)pt"', drawn)
    return float(found[1]) / 72 if found else WIDTH


def inline(drawn: str, name: str, says: str) -> str:
    """An SVG for a page: ids of its own, the page's ink and font, and a name for who cannot see it."""
    text = drawn[drawn.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.S)
    used = set(re.findall(r'(?:href="#|url\(#)([^")]+)', text))
    text = re.sub(r' id="([^"]+)"', lambda m: f' id="{name}-{m[1]}"' if m[1] in used else "", text)
    text = re.sub(r'(href="#|url\(#)', rf"\g<1>{name}-", text)
    text = text.replace(INK, "currentColor").replace("'DejaVu Sans'", "inherit")
    text = re.sub(r"font: ([\d.]+px)[^;\"]*", r"font-size: \1", text)
    head = f'<svg class="plot" role="img" aria-label="{says}"'
    return re.sub(r"<svg", head, text, count=1).strip()


def _sign(a: Arm) -> dict[str, Any]:
    return {"color": a.colour, "linestyle": a.dash, "marker": a.marker}


def forest(found: Sequence[Compared]) -> Figure | None:
    """Gains with their intervals in units of what matters; the band is what would not matter. None without data.

    Comparisons of the same arms stand below one heading. Zero and band are drawn row by row: no line runs through text.
    """
    shown = [c for c in found if c.verdict.pairs]
    groups: dict[str, list[Compared]] = {}
    for c in shown:
        one, other = (arm(name).label for name in (c.comparison.challenger, c.comparison.baseline))
        groups.setdefault(f"{one} against {other.removeprefix('FAdam, ')}", []).append(c)
    if not groups:
        return None
    figure, axes = canvas(0.7 + 0.27 * (len(shown) + len(groups)))
    ax: Axes = axes[0][0]
    reach = max([abs(v) / c.protocol.matters for c in shown for v in (c.verdict.interval or ())], default=0.0)
    limit = min(max(2.0, 1.1 * reach), 6.0)
    places, names, y = [], [], 0
    for heading, rows in groups.items():
        at: Any = {"xycoords": ("figure fraction", "data"), "va": "center", "weight": "bold"}
        ax.annotate(heading, (0.01, y), **at).set_in_layout(False)
        y -= 1
        for c in rows:
            v = c.verdict
            colour = WORDS.get(v.word, OPEN)
            ax.fill_between([-1, 1], y - 0.42, y + 0.42, color=BAND, alpha=0.28, linewidth=0)
            if v.interval is None or v.mean is None:
                ax.text(0, y, "runs diverged", ha="center", va="center", color=colour)
            else:
                ends = [x / c.protocol.matters for x in v.interval]
                low, high, mean = (float(np.clip(x, -limit, limit)) for x in (*ends, v.mean / c.protocol.matters))
                ax.plot([0, 0], [y - 0.42, y + 0.42], color=MUTED, linewidth=0.9)
                ax.plot([low, high], [y, y], color=colour, linewidth=2.2, solid_capstyle="butt")
                ax.plot([mean], [y], "o", color=colour, markersize=5.5)
                for end in (x for x in ends if abs(x) > limit):  # the interval goes on beyond the edge
                    ax.plot([math.copysign(limit, end)], [y], "<" if end < 0 else ">", color=colour, markersize=5)
            ax.text(1.02, y, word(c).replace("undecided after", "undecided,"), transform=ax.get_yaxis_transform(),
                    va="center", weight="bold")  # fmt: skip
            places.append(y)
            names.append(short(c.protocol))
            y -= 1
    ax.set_xlim(-limit, limit)
    ax.set_ylim(y + 0.4, 0.6)
    ax.set_yticks(places, names)
    ax.tick_params(axis="y", length=0)
    ax.spines["left"].set_visible(False)
    ax.set_xlabel("gain, in units of what would matter (band)\n← worse      better →")
    return figure


def short(p: Protocol) -> str:
    """A study in two words at most, for a narrow drawing."""
    place = task(p.task).phrase
    return f"{place}, {p.variant}" if p.variant == "gaussian" else place


def bowls(panels: Sequence[tuple[Protocol, Mapping[str, Bowl]]]) -> Figure | None:
    """What each learning rate gave, a panel a study: mean and range over the tuning seeds. None without data."""
    panels = [panel for panel in panels if panel[1]]
    if not panels:
        return None
    figure, axes = canvas(2.9, columns=len(panels))
    for ax, (p, found) in zip(axes[0], panels, strict=True):
        metric = task(p.task).metric(p.tuning.name)
        scale = 100 if metric.percent else 1
        lowest: list[float] = []
        for name in in_order(found):
            bowl, a = found[name], arm(name, found)
            kept = np.isfinite(bowl.values).all(axis=1)
            x, values = bowl.rates[kept], scale * bowl.values[kept]
            ax.plot(x, values.mean(axis=1), label=a.label, **_sign(a))
            ax.vlines(x, values.min(axis=1), values.max(axis=1), color=a.colour, alpha=0.45, linewidth=2.5)
            lowest += values.mean(axis=1).tolist()
            edge = scale * (bowl.best + p.matters * (1 if metric.mode == "min" else -1))
            ax.plot([x[0], x[-1]], [edge, edge], color=a.colour, linewidth=0.7, alpha=0.7)
        plain_log(ax, [float(r) for bowl in found.values() for r in bowl.rates])
        # Cliffs would flatten the bowls: what is far above the best is cut off.
        ends = sorted(lowest) if metric.mode == "min" else sorted(lowest, reverse=True)
        middle, best = ends[min(len(ends) - 1, math.ceil(0.75 * len(ends)))], ends[0]
        span = max(abs(middle - best), 4 * scale * p.matters)
        side = 1 if metric.mode == "min" else -1
        ax.set_ylim(*sorted((best - side * 0.1 * span, best + side * 1.35 * span)))
        ax.set_title(where(p.task, p.variant))
        ax.set_xlabel("learning rate")
        ax.set_ylabel(metric.title)
        ax.legend()
    return figure


def plain_log(ax: Axes, values: Sequence[float]) -> None:
    """A logarithmic axis whose numbers are written out: exponents would be too small to read on a phone."""
    decades = range(math.floor(math.log10(min(values))), math.ceil(math.log10(max(values))) + 1)
    ticks = [m * 10.0**d for d in decades for m in (1, 3) if min(values) * 0.9 <= m * 10.0**d <= max(values) * 1.1]
    ax.set_xscale("log")
    ax.set_xticks(ticks, [f"{t:g}" for t in ticks])
    ax.minorticks_off()


def curves(by_arm: Mapping[str, Sequence[Record]], metric: Metric) -> Figure | None:
    """Mean over seeds against steps, with the standard deviation. None without data."""
    figure, axes = canvas(2.7)
    ax: Axes = axes[0][0]
    scale, drawn = (100 if metric.percent else 1), False
    for name in in_order(by_arm):
        found = curve(by_arm[name], metric.key)
        if found:
            drawn = True
            a = arm(name, by_arm)
            steps = np.array(list(found))
            means = scale * np.array([np.mean(v) for v in found.values()])
            sds = scale * np.array([np.std(v, ddof=1) if len(v) > 1 else 0.0 for v in found.values()])
            ax.plot(steps, means, label=a.label, **_sign(a))
            ax.fill_between(steps, means - sds, means + sds, color=a.colour, alpha=0.2, linewidth=0)
    ax.set_xlabel("step")
    ax.set_ylabel(metric.title)
    if drawn:
        ax.legend()
    return figure if drawn else None


def grid(points: Sequence[Point], metric: Metric, matters: float) -> Figure | None:
    """Epsilon against the scale of the gradients, a panel an arm and precision; colour and number: the gain."""
    kinds = list(dict.fromkeys((q.arm, q.weights) for q in points))
    if not kinds:
        return None
    columns = 2 if len(kinds) > 1 else 1
    figure, axes = canvas(2.2, columns, math.ceil(len(kinds) / columns))
    eps = sorted({q.eps for q in points}, reverse=True)
    scales = sorted({q.scale for q in points})
    for ax, (name, weights) in zip(axes.flat, kinds, strict=False):
        for q in (q for q in points if (q.arm, q.weights) == (name, weights)):
            strength = min(abs(q.gain) / matters / 3, 1.0) if math.isfinite(q.gain) else 1.0
            x, y = eps.index(q.eps), scales.index(q.scale)
            # Translucent: the ink reads on light and on dark.
            ax.add_patch(_rectangle(x, y, GOOD if q.gain > 0 else BAD, 0.55 * strength))
            ax.text(x, y, q.text(metric).replace(" ", "\n"), ha="center", va="center")
        ax.set_xlim(-0.5, len(eps) - 0.5)
        ax.set_ylim(-0.5, len(scales) - 0.5)
        ax.set_xticks(range(len(eps)), [f"{e:g}" for e in eps])
        ax.set_yticks(range(len(scales)), [_power(s) for s in scales])
        ax.set_xlabel("epsilon")
        ax.set_ylabel("gradients times")
        ax.set_title(f"{arm(name).label}, {weights}")
    for ax in list(axes.flat)[len(kinds) :]:
        ax.set_visible(False)
    return figure


def _power(scale: float) -> str:
    two = math.log2(scale)
    return "1" if scale == 1 else f"2^{two:.0f}" if two == round(two) else f"{scale:g}"


def _rectangle(x: int, y: int, colour: str, alpha: float) -> Any:
    from matplotlib.colors import to_rgba
    from matplotlib.patches import Rectangle

    return Rectangle((x - 0.48, y - 0.47), 0.96, 0.94, facecolor=to_rgba(colour, alpha), edgecolor=MUTED, linewidth=0.5)


def ladder(found: Ladder) -> Figure | None:
    """The gain at each size with its interval, and the line through the seeds' slopes."""
    rows = [(size, c) for size, c in found.looked_at if c.verdict.interval is not None]
    if not rows:
        return None
    figure, axes = canvas(2.7)
    ax: Axes = axes[0][0]
    a = arm("fadam")
    matters = rows[0][1].protocol.matters
    ax.axhspan(-matters, matters, color=BAND, alpha=0.28, linewidth=0)
    ax.axhline(0, color=MUTED, linewidth=0.9)
    sizes, means = [size for size, _ in rows], [float(c.verdict.mean or 0) for _, c in rows]
    ends = [c.verdict.interval or (0.0, 0.0) for _, c in rows]
    ax.vlines(sizes, [e[0] for e in ends], [e[1] for e in ends], color=a.colour, linewidth=2.2)
    ax.plot(sizes, means, "o", color=a.colour)
    if found.slope is not None:
        x = np.log10(sizes)
        ax.plot(sizes, np.mean(means) + found.slope[0] * (x - x.mean()), color=a.colour, linestyle="--", linewidth=1.2)
    ax.set_xscale("log")
    ax.set_xticks(sizes, [f"{size:g}" for size in sizes])
    ax.minorticks_off()
    ax.set_xlabel("millions of parameters")
    ax.set_ylabel("FAdam's gain (bits per byte)")
    return figure


THEORY_TITLES = {
    "categorical": "categorical",
    "gaussian": "Gaussian, sigma of the noise",
    "squared_error": "Gaussian, sigma 1 (squared error)",
}


def theory(content: Mapping[str, Any]) -> Figure:
    """Median ratio (band: quartiles) and correlation of the logarithms against batch size; a column a likelihood."""
    cases = content["cases"]
    likelihoods, stages = (list(dict.fromkeys(str(c[key]) for c in cases)) for key in ("likelihood", "stage"))
    figure, axes = canvas(2.6, len(likelihoods), 2)
    for column, likelihood in enumerate(likelihoods):
        upper, lower = axes[0][column], axes[1][column]
        batches: list[int] = []
        for stage, colour, marker in zip(stages, ("#2b83ba", "#e06c00", "#3f9b3f"), "osv", strict=False):
            cases = [c for c in content["cases"] if (c["likelihood"], c["stage"]) == (likelihood, stage)]
            cases.sort(key=lambda c: int(c["batch"]))
            batches = [c["batch"] for c in cases]
            moment, true = ([c[key] for c in cases] for key in ("moment_empirical", "empirical_true"))
            style = {"color": colour, "marker": marker}
            upper.plot(batches, [m["ratio"] for m in moment], label=f"step {cases[0]['step']}", **style)
            low, high = ([m[key] for m in moment] for key in ("low", "high"))
            upper.fill_between(batches, low, high, color=colour, alpha=0.15, linewidth=0)
            upper.plot(batches, [t["ratio"] for t in true], linestyle=":", alpha=0.8, **style)
            lower.plot(batches, [m["correlation"] for m in moment], **style)
            lower.plot(batches, [t["correlation"] for t in true], linestyle=":", alpha=0.8, **style)
        upper.plot(batches, [1 / b for b in batches], color=MUTED, linewidth=1, linestyle="--", label="1 / batch")
        upper.set_title(THEORY_TITLES.get(likelihood, likelihood))
        upper.set_yscale("log")
        upper.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        lower.set_ylim(top=1.01)
        for ax in (upper, lower):
            ax.set_xscale("log", base=2)
            ax.set_xticks(batches, [str(b) for b in batches])
            ax.set_xlabel("batch size")
    axes[0][0].set_ylabel("median ratio")
    axes[1][0].set_ylabel("correlation of logarithms")
    axes[0][0].legend(title="solid: Adam's v / empirical FIM\ndotted: empirical / true FIM")
    return figure
