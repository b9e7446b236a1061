"""One picture from the runs' own: originals, and each optimizer's reconstructions of them, in rows.

    python -m experiments.analysis.pictures vqvae [--runs results/runs] [--out results/figures]

A run's picture is a grid of tiles whose layout stands in the PNG's text fields: `tile` and `gap` in pixels, `columns`,
and `rows`, names from top to bottom, "original" and "reconstruction" among them.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from experiments.analysis.records import (
    COMPARED,
    SCALES,
    AnalysisError,
    Record,
    by_arm,
    check_one_kind,
    evaluation,
    load_records,
    one_line_warnings,
    sections,
    select,
)
from experiments.analysis.tasks import arm_label, opponents, task_spec

TASKS = ("vqvae",)
LABEL_WIDTH, TITLE_HEIGHT, MARGIN, GAP = 170, 30, 12, 3
TILE = 64  # what small tiles are enlarged to, by a whole factor


@dataclass(frozen=True)
class Grid:
    """A run's picture, taken apart: row name -> strip of tiles side by side, without gaps."""

    strips: dict[str, Image.Image]
    tile: int
    columns: int


def read_grid(path: Path) -> Grid:
    """Take a run's picture apart.

    Raises:
        AnalysisError: it cannot be read, or is not laid out as it says.
    """
    try:
        with Image.open(path) as opened:
            text = dict(getattr(opened, "text", {}))
            image = opened.convert("RGB")
        tile, gap, columns = (int(text[key]) for key in ("tile", "gap", "columns"))
        rows = text["rows"].split(",")
    except KeyError as error:
        raise AnalysisError(f"{path}: the picture does not state its layout: {error} is missing") from error
    except (OSError, ValueError) as error:
        raise AnalysisError(f"{path}: the picture cannot be read: {error}") from error
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
    return Grid(strips, tile, columns)


def picture_of(record: Record) -> Path | None:
    """The run's grid: the artifact that is named like the record."""
    name = f"{record.relative.stem}.png"
    return record.path.parent / name if name in record.artifacts else None


def rows_of(records: Sequence[Record]) -> tuple[int, list[tuple[str, Image.Image]], Grid] | None:
    """Seed, rows (label and strip) and layout for one table's records: the lowest seed that all arms finished, or None.

    Raises:
        AnalysisError: the runs' originals differ, or a picture is missing or cannot be read.
    """
    arms = by_arm(records)
    order = [*opponents(list(arms)), *(["fadam"] if "fadam" in arms else [])]
    shared = set.intersection(*({r.seed for r in runs if not r.diverged} for runs in arms.values()))
    if not shared:
        return None
    chosen = {arm: next(r for r in arms[arm] if r.seed == min(shared)) for arm in order}
    rows: list[tuple[str, Image.Image]] = []
    first: tuple[Path, Grid] | None = None
    for arm, record in chosen.items():
        path = picture_of(record)
        if path is None:
            raise AnalysisError(f"{record.path}: names no picture {record.relative.stem}.png among its artifacts")
        grid = read_grid(path)
        if not {"original", "reconstruction"} <= grid.strips.keys():
            raise AnalysisError(f"{path}: must have rows original and reconstruction, has {', '.join(grid.strips)}")
        if first is None:
            first = path, grid
            rows.append(("Original", grid.strips["original"]))
        elif grid.strips["original"].tobytes() != first[1].strips["original"].tobytes():
            raise AnalysisError(f"{first[0]} and {path} show different originals")
        rows.append((arm_label(arm), grid.strips["reconstruction"]))
    assert first is not None
    return min(shared), rows, first[1]


def _font(size: int) -> ImageFont.ImageFont | ImageFont.FreeTypeFont:
    return ImageFont.load_default(size)


def compose(records: Sequence[Record], task: str) -> Image.Image | None:
    """One block of rows for each scale and variant; None if there are no runs to show."""
    blocks = []
    for scale, variant in sections(records):
        mine = select(records, variant=variant)
        mine = [r for r in mine if r.scale == scale]
        what = f"the picture of {task}"
        check_one_kind(mine, what)
        found = rows_of(mine)
        if found is not None:
            title = ", ".join(
                part for part in (variant.replace("_", " "), f"scale {scale}", f"seed {found[0]}") if part
            )
            blocks.append((title, found[1], found[2]))
    if not blocks:
        return None

    def enlarged(grid: Grid) -> int:
        return grid.tile * max(1, TILE // grid.tile)

    width = max(LABEL_WIDTH + grid.columns * (enlarged(grid) + GAP) for _, _, grid in blocks) + MARGIN
    height = sum(TITLE_HEIGHT + len(rows) * (enlarged(grid) + GAP) + MARGIN for _, rows, grid in blocks)
    canvas = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(canvas)
    top = 0
    for title, rows, grid in blocks:
        size = enlarged(grid)
        draw.text((MARGIN, top + 8), title, fill="black", font=_font(15))
        top += TITLE_HEIGHT
        for label, strip in rows:
            draw.text((MARGIN, top + size // 2), label, fill="black", font=_font(15), anchor="lm")
            for c in range(grid.columns):
                tile = strip.crop((c * grid.tile, 0, (c + 1) * grid.tile, grid.tile))
                # Pixels stay pixels: smoothing would hide what is compared.
                tile = tile.resize((size, size), Image.Resampling.NEAREST)
                canvas.paste(tile, (LABEL_WIDTH + c * (size + GAP), top))
            top += size + GAP
        top += MARGIN
    return canvas


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m experiments.analysis.pictures", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("tasks", nargs="*", metavar="task", help="vqvae, the only one with pictures (default)")
    parser.add_argument("--runs", default="results/runs", help="root of the records (default: results/runs)")
    parser.add_argument("--out", default="results/figures", help="folder of the pictures (default: results/figures)")
    parser.add_argument("--scale", choices=SCALES, help="show this scale only")
    options = parser.parse_args(argv)
    one_line_warnings()
    try:
        for task in options.tasks:
            if task not in TASKS:
                raise AnalysisError(f"no pictures for task {task!r}; choose from {', '.join(TASKS)}")
        records = evaluation(load_records(options.runs))
        for task in options.tasks or TASKS:
            mine = select(records, task=task_spec(task).name, scale=options.scale)
            picture = compose([r for r in mine if r.scale in COMPARED], task)
            if picture is None:
                print(f"{task}: no runs to show pictures of")
                continue
            path = Path(options.out) / f"{task}_reconstructions.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
            picture.save(temporary, "PNG", optimize=True)
            os.replace(temporary, path)
            print(f"wrote {path}")
    except AnalysisError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
