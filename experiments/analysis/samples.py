"""What the trained models make: pictures, transcripts and continuations of the two optimizers, side by side.

A run's picture is a grid of tiles whose layout stands in the PNG's text fields (`experiments.vqvae.pictures`): `tile`
and `gap` in pixels, `columns`, and `rows`, names from top to bottom.
"""

from __future__ import annotations

import base64
import difflib
import html
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiments.analysis.plain import BASELINE, CHALLENGER
from experiments.core.catalogue import arm
from experiments.core.errors import AnalysisError
from experiments.core.records import Record

if TYPE_CHECKING:
    from PIL import Image

ARMS = (BASELINE, CHALLENGER)
TILES, TRANSCRIPTS, CONTINUATIONS = 8, 9, 2


def pair(records: Sequence[Record], part: str) -> tuple[Record, Record] | None:
    """The runs of both optimizers with the lowest seed that both have, with `samples` or `artifacts`."""
    by_seed: dict[int, dict[str, Record]] = {}
    for r in records:
        if r.arm in ARMS and not r.diverged and getattr(r, part):
            by_seed.setdefault(r.seed, {})[r.arm] = r
    shared = [seed for seed, runs in by_seed.items() if len(runs) == 2]
    return None if not shared else (by_seed[min(shared)][BASELINE], by_seed[min(shared)][CHALLENGER])


# --- pictures


@dataclass(frozen=True)
class Strip:
    """A row of tiles side by side, without gaps."""

    label: str
    image: Image.Image

    def uri(self) -> str:
        out = io.BytesIO()
        self.image.save(out, "PNG", optimize=True)
        return "data:image/png;base64," + base64.b64encode(out.getvalue()).decode()


def read_grid(path: Path) -> tuple[dict[str, Image.Image], int]:
    """Take a run's picture apart: row name -> strip, and the size of a tile.

    Raises:
        AnalysisError: it cannot be read, or is not laid out as it says.
    """
    from PIL import Image

    try:
        with Image.open(path) as opened:
            text = dict(getattr(opened, "text", {}))
            image = opened.convert("RGB")
        tile, gap, columns = (int(text[key]) for key in ("tile", "gap", "columns"))
        rows = text["rows"].split(",")
    except KeyError as error:
        raise AnalysisError(f"{path}: the picture does not state its layout: {error} is missing") from None
    except (OSError, ValueError) as error:
        raise AnalysisError(f"{path}: the picture cannot be read: {error}") from None
    step = tile + gap
    expected = (columns * step - gap, len(rows) * step - gap)
    if min(tile, columns) < 1 or gap < 0 or image.size != expected:
        raise AnalysisError(f"{path}: the picture has {image.size} pixels, its layout says {expected}")
    strips = {}
    for r, name in enumerate(rows):
        strip = Image.new("RGB", (columns * tile, tile))
        for c in range(columns):
            strip.paste(image.crop((c * step, r * step, c * step + tile, r * step + tile)), (c * tile, 0))
        strips[name] = strip
    if not {"original", "reconstruction"} <= strips.keys():
        raise AnalysisError(f"{path}: must have rows original and reconstruction, has {', '.join(strips)}")
    return strips, tile


def pictures(records: Sequence[Record]) -> list[Strip]:
    """Originals and the two optimizers' reconstructions; empty where there are none.

    Raises:
        AnalysisError: the runs' originals differ, or a picture is missing or cannot be read.
    """
    found = pair(records, "artifacts")
    if found is None:
        return []
    strips: list[Strip] = []
    for record in found:
        name = f"{record.relative.stem}.png"
        if name not in record.artifacts:
            raise AnalysisError(f"{record.path}: names no picture {name} among its artifacts")
        rows, tile = read_grid(record.path.parent / name)
        box = (0, 0, min(TILES * tile, rows["original"].width), tile)
        original = rows["original"].crop(box)
        if not strips:
            strips.append(Strip("Original", original))
        elif strips[0].image.tobytes() != original.tobytes():
            raise AnalysisError(f"{found[0].path} and {record.path} show different originals")
        strips.append(Strip(arm(record.arm).label, rows["reconstruction"].crop(box)))
    return strips


def sheet(strips: Sequence[Strip], enlarged: int = 2) -> bytes:
    """The strips below one another as a PNG, originals first; pixels stay pixels."""
    from PIL import Image

    gap = 4
    sizes = [(s.image.width * enlarged, s.image.height * enlarged) for s in strips]
    canvas = Image.new("RGB", (sizes[0][0], sum(h + gap for _, h in sizes) - gap), "white")
    top = 0
    for strip, size in zip(strips, sizes, strict=True):
        canvas.paste(strip.image.resize(size, Image.Resampling.NEAREST), (0, top))
        top += size[1] + gap
    out = io.BytesIO()
    canvas.save(out, "PNG", optimize=True)
    return out.getvalue()


# --- words


@dataclass(frozen=True)
class Sample:
    """What was given, and what each optimizer's model made of it: (label, parts), parts as `word_differences` gives."""

    title: str
    given: str
    made: tuple[tuple[str, tuple[tuple[str, str], ...]], ...]

    def markdown(self) -> str:
        """A list; wrong words in bold, missing ones struck through."""
        marks = {"same": "", "wrong": "**", "missing": "~~"}
        lines = [f"{self.title}: {' '.join(self.given.split())}"]
        for label, parts in self.made:
            text = " ".join(f"{marks[kind]}{words}{marks[kind]}" for kind, words in parts if words)
            lines.append(f"  - {label}: {' '.join(text.split())}")
        return "\n".join([f"- {lines[0]}", *lines[1:]])

    def html(self) -> str:
        tags = {"same": "{}", "wrong": "<ins>{}</ins>", "missing": "<del>{}</del>"}
        rows = [(self.title, html.escape(self.given))]
        for label, parts in self.made:
            rows.append((label, " ".join(tags[kind].format(html.escape(words)) for kind, words in parts if words)))
        return "".join(f'<p><span class="who">{html.escape(who)}</span><span>{text}</span></p>' for who, text in rows)


def word_differences(reference: str, hypothesis: str) -> tuple[tuple[str, str], ...]:
    """A hypothesis in runs of words: ("same" | "wrong" | "missing", words)."""
    a, b = reference.split(), hypothesis.split()
    parts = []
    for tag, a0, a1, b0, b1 in difflib.SequenceMatcher(a=a, b=b, autojunk=False).get_opcodes():
        if tag == "equal":
            parts.append(("same", " ".join(b[b0:b1])))
        else:
            parts += [("missing", " ".join(a[a0:a1]))] if tag == "delete" else [("wrong", " ".join(b[b0:b1]))]
    return tuple(parts)


def _both(found: tuple[Record, Record], wanted: Sequence[Mapping[str, Any]], transcripts: bool) -> list[Sample]:
    samples = []
    for s in wanted:
        key, reference = (s.get("split"), s.get("id")), str(s.get("reference", ""))
        made = []
        for record in found:
            mine = next((t for t in record.samples if (t.get("split"), t.get("id")) == key), None)
            if mine is not None:
                text = str(mine.get("hypothesis", ""))
                parts = word_differences(reference, text) if transcripts else (("same", text.strip()),)
                made.append((arm(record.arm).label, parts))
        title = f"{key[0]}, {key[1]}" if transcripts else str(key[1]).replace("-", " ")
        samples.append(Sample(title, reference if transcripts else str(s.get("prompt", "")).strip(), tuple(made)))
    return samples


def transcripts(records: Sequence[Record]) -> list[Sample]:
    """A few utterances of every split."""
    found = pair(records, "samples")
    if found is None:
        return []
    by_split: dict[str, list[Mapping[str, Any]]] = {}
    for s in found[0].samples:
        by_split.setdefault(str(s.get("split", "")), []).append(s)
    each = max(1, TRANSCRIPTS // max(1, len(by_split)))
    return _both(found, [s for of_split in by_split.values() for s in of_split[:each]], True)


def continuations(records: Sequence[Record]) -> list[Sample]:
    """How the language models go on from a few prompts."""
    found = pair(records, "samples")
    return [] if found is None else _both(found, found[0].samples[:CONTINUATIONS], False)
