"""Drawings: the same to the byte for the same records, legible on light and dark, and nothing where nothing is."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from xml.etree import ElementTree

import numpy as np
import pytest

from experiments.analysis import figures
from experiments.analysis.comparisons import Point, Study
from experiments.analysis.pages import Drawing, Pages, _flat
from experiments.core.catalogue import task
from experiments.core.drawing import INK


def drawings(pages: Pages) -> list[Drawing]:
    sections = [s for name in ("llm", "asr", "vqvae") for s in pages.task_sections(name)]
    sections += [*pages.verdict_sections(), *pages.theory_sections()]
    blocks = _flat([*pages.pictures(), *(b for s in sections for b in s.blocks)])
    return [b for b in blocks if isinstance(b, Drawing)]


@pytest.fixture(scope="module")
def drawn(pages: Pages) -> list[Drawing]:
    return drawings(pages)


def test_every_drawing_has_a_name_of_its_own(drawn: list[Drawing]) -> None:
    names = [d.name for d in drawn]
    assert len(set(names)) == len(names)
    assert {"answer", "bowls", "llm-forest", "llm-epsilon", "sizes", "theory", "vqvae_gaussian-bowls"} <= set(names)


def test_svg_stands_in_a_page(drawn: list[Drawing]) -> None:
    ids: list[str] = []
    for d in drawn:
        text = figures.svg(d.figure, d.name, d.says)
        ElementTree.fromstring(text)
        assert 'role="img"' in text
        assert INK not in text
        assert "currentColor" in text
        assert not re.search(r"<(metadata|script)|http://(?!www.w3.org)", text)
        ids += re.findall(r' id="([^"]+)"', text)
    assert len(set(ids)) == len(ids)


def test_the_same_to_the_byte(study: Study) -> None:
    made = [figures.forest(study.comparisons) for _ in range(2)]
    assert made[0] is not None
    assert made[1] is not None
    assert figures.png(made[0]) == figures.png(made[1])
    assert figures.svg(made[0], "a", "b") == figures.svg(made[1], "a", "b")


def test_no_line_runs_through_a_label(study: Study) -> None:
    """Zero and band end before the headings between the rows."""
    figure = figures.forest(study.comparisons)
    assert figure is not None
    ax = figure.axes[0]
    headings = [float(t.xy[1]) for t in ax.texts if hasattr(t, "xy")]
    assert headings
    for line in ax.lines:
        ends = np.asarray(line.get_ydata(), dtype=float)
        assert not any(ends.min() <= y <= ends.max() for y in headings)


def test_nothing_is_drawn_without_records(empty: Pages) -> None:
    assert {d.name for d in drawings(empty)} == {"theory"}
    assert figures.curves({}, task("llm").metric("val/loss")) is None
    assert figures.bowls([]) is None


def test_a_comparison_whose_runs_diverged_has_its_row(study: Study) -> None:
    c = study.comparisons[0]
    lost = replace(c, verdict=replace(c.verdict, word="better", mean=math.inf, sd=None, interval=None))
    figure = figures.forest([c, lost])
    assert figure is not None
    texts = [text.get_text() for text in figure.axes[0].texts]
    assert texts.count("runs diverged") == 1
    assert len(figure.axes[0].get_yticks()) == 2
    assert figures.forest([lost]) is not None


@pytest.mark.parametrize("gains", [[math.inf, -math.inf], [math.inf, 0.0], [-math.inf, -math.inf]])
def test_a_grid_whose_runs_diverged_is_drawn(gains: list[float]) -> None:
    point = Point("fadam", "32-true", 1e-4, 1.0, np.array(gains))
    figure = figures.grid([point], task("llm").metric("test/bits_per_byte"), 0.01)
    assert figure is not None
    assert "diverged" in figure.axes[0].texts[0].get_text()


def test_gains_are_drawn_in_units_of_what_matters(study: Study) -> None:
    c = study.comparisons[0]
    figure = figures.forest([c])
    assert figure is not None
    dots = [line for line in figure.axes[0].lines if line.get_marker() == "o"]
    assert c.verdict.mean is not None
    assert np.allclose(dots[0].get_xdata(), [c.verdict.mean / c.protocol.matters])
