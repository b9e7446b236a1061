"""Image tiles in a memory map: decoded and cropped once, with a manifest and a fingerprint.

A store is a folder with `tiles.u8` (N, size, size, 3), `splits.u8` (N,), `sources.jsonl` (one source image a line, with
the tiles cut from it) and `manifest.json`. All tiles of a source image are in one split.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from numpy.lib.stride_tricks import sliding_window_view
from PIL import Image

from experiments.core.errors import ConfigError, DataError
from experiments.vqvae.decode import TOO_SMALL, BadImage, Pixels, decode

VERSION = 1
SPLITS = ("train", "val", "test")
UNUSED = 255  # a tile of a validation or test image over the limit per image
FLAT = "flat-tile"

_NAMES_KEPT = 100


@dataclass(frozen=True)
class Source:
    """One image file, not read yet. `split` is "" where the store is to choose."""

    name: str
    read: Callable[[], bytes]
    split: str = ""


@dataclass(frozen=True)
class Cut:
    """How images become tiles.

    Attributes:
        size: edge of a tile in pixels.
        mode: "grid": all tiles of a regular grid; "centre": the image scaled to the tile's size and cut in the middle.
        stride: from one tile of the grid to the next, in pixels; `size` if 0.
        shrink: whole factor to scale down by before "grid" cuts, which removes traces of compression.
        min_side: images with a shorter side than this are left out.
        flat: tiles are left out in which no channel has a standard deviation of this many levels; "grid" only.
    """

    size: int
    mode: str
    stride: int = 0
    shrink: int = 1
    min_side: int = 0
    flat: float = 0.0

    def __post_init__(self) -> None:
        if self.mode not in ("grid", "centre"):
            raise ConfigError(f"mode must be grid or centre, got {self.mode!r}")
        for name, least in (("size", 4), ("stride", 0), ("shrink", 1), ("min_side", 0), ("flat", 0)):
            if getattr(self, name) < least:
                raise ConfigError(f"{name} must be at least {least}, got {getattr(self, name)}")

    def tiles(self, pixels: Pixels) -> tuple[npt.NDArray[np.uint8], int]:
        """Tiles (n, size, size, 3) of an image (H, W, 3), and the number of flat ones left out.

        Raises:
            BadImage: the image is too small for one tile.
        """
        height, width = pixels.shape[:2]
        least = max(self.min_side, self.size * (self.shrink if self.mode == "grid" else 1))
        if min(height, width) < least:
            raise BadImage(TOO_SMALL, f"{width}x{height} pixels; the shorter side must have {least}")
        if self.mode == "centre":
            return self._centre(pixels)[None], 0
        image = Image.fromarray(pixels)
        if self.shrink > 1:
            image = image.reduce(self.shrink)
        stride = self.stride or self.size
        rows, columns = (1 + (side - self.size) // stride for side in (image.height, image.width))
        # The grid in the middle of the image.
        top, left = (
            (side - self.size - (n - 1) * stride) // 2 for side, n in ((image.height, rows), (image.width, columns))
        )
        windows = sliding_window_view(np.asarray(image)[top:, left:], (self.size, self.size), axis=(0, 1))
        grid = windows[: rows * stride : stride, : columns * stride : stride]  # (rows, columns, 3, size, size)
        tiles = grid.reshape(-1, 3, self.size, self.size).transpose(0, 2, 3, 1)
        kept = tiles.std(axis=(1, 2)).max(axis=1) >= self.flat
        return tiles[kept], int((~kept).sum())

    def _centre(self, pixels: Pixels) -> Pixels:
        height, width = pixels.shape[:2]
        if (height, width) == (self.size, self.size):
            return pixels
        scale = self.size / min(height, width)
        w, h = max(self.size, round(width * scale)), max(self.size, round(height * scale))
        image = Image.fromarray(pixels).resize((w, h), Image.Resampling.LANCZOS, reducing_gap=3.0)
        left, top = (w - self.size) // 2, (h - self.size) // 2
        return np.asarray(image.crop((left, top, left + self.size, top + self.size)))


@dataclass(frozen=True)
class Division:
    """How images are divided where the data set does not say.

    Attributes:
        val, test: share of the images.
        per_image: most tiles of one image in validation and test, evenly spread over it, so that no image rules them.
    """

    val: float = 0.08
    test: float = 0.08
    per_image: int = 160

    def __post_init__(self) -> None:
        if not (0 < self.val < 1 and 0 < self.test < 1 and self.val + self.test < 1):
            raise ConfigError(f"val and test must be shares whose sum is below 1, got {self.val} and {self.test}")
        if self.per_image < 1:
            raise ConfigError(f"per_image must be at least 1, got {self.per_image}")


@dataclass
class _Cutting:
    """What became of one source."""

    name: str
    split: str
    sha256: str = ""
    tiles: npt.NDArray[np.uint8] | None = None
    flat: int = 0
    converted: tuple[str, ...] = ()
    problem: str = ""
    reason: str = ""


def divide(hashes: Sequence[str], division: Division) -> list[str]:
    """Split of each image, by the SHA-256 of its file: not by its name or place, so copies stay together.

    Raises:
        DataError: fewer than three different images.
    """
    order = sorted(set(hashes))
    if len(order) < 3:
        raise DataError(f"{len(order)} different images cannot be divided into train, val and test")
    n_val, n_test = (max(1, round(share * len(order))) for share in (division.val, division.test))
    split = {h: "val" if i < n_val else "test" if i < n_val + n_test else "train" for i, h in enumerate(order)}
    return [split[h] for h in hashes]


def _cut(source: Source, cut: Cut) -> _Cutting:
    done = _Cutting(source.name, source.split)
    try:
        content = source.read()
        done.sha256 = hashlib.sha256(content).hexdigest()
        decoded = decode(content)
        done.converted = decoded.converted
        done.tiles, done.flat = cut.tiles(decoded.pixels)
    except BadImage as error:
        done.problem, done.reason = error.kind, str(error)
    except OSError as error:
        done.problem, done.reason = "unreadable-file", error.strerror or str(error)
    return done


def _in_order(sources: Iterable[Source], cut: Cut, workers: int) -> Iterator[_Cutting]:
    if workers == 1:
        yield from (_cut(source, cut) for source in sources)
        return
    remaining = iter(sources)
    with ThreadPoolExecutor(workers) as pool:
        waiting: list[Future[_Cutting]] = [pool.submit(_cut, s, cut) for s in islice(remaining, 4 * workers)]
        while waiting:
            yield waiting.pop(0).result()
            waiting += [pool.submit(_cut, s, cut) for s in islice(remaining, 1)]


@dataclass
class _Problems:
    counts: Counter[str] = field(default_factory=Counter)
    names: dict[str, list[str]] = field(default_factory=dict)

    def add(self, kind: str, name: str, reason: str = "") -> None:
        self.counts[kind] += 1
        kept = self.names.setdefault(kind, [])
        if len(kept) < _NAMES_KEPT:
            kept.append(f"{name}: {reason}" if reason else name)


def build(
    folder: str | Path,
    name: str,
    sources: Iterable[Source],
    cut: Cut,
    division: Division | None = None,
    attribution: dict[str, str] | None = None,
    origin: dict[str, Any] | None = None,
    workers: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Make a store, whole or not at all.

    Args:
        folder: the store; an older one there is replaced.
        name: of the data set, for run records.
        sources: the images, in a fixed order.
        division: for sources that name no split.
        attribution: file name -> text, kept in the store's folder `attribution`.
        origin: where the images come from, for the manifest.
        workers: threads that decode.
        progress: called now and then with the numbers of images and tiles so far.

    Returns:
        The manifest.

    Raises:
        DataError: a split is left without a tile, or nothing can be written there.
    """
    folder, division = Path(folder), division or Division()
    if workers < 1:
        raise ConfigError(f"workers must be at least 1, got {workers}")
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    try:
        temporary.mkdir(parents=True)
    except OSError as error:
        raise DataError(f"{temporary.parent} cannot be written: {error.strerror}") from error
    try:
        manifest = _build(temporary, name, _in_order(sources, cut, workers), cut, division, origin or {}, progress)
        for file, text in (attribution or {}).items():
            path = temporary / "attribution" / file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        if folder.exists():
            shutil.rmtree(folder)
        temporary.rename(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return manifest


def _build(
    folder: Path,
    name: str,
    cuttings: Iterable[_Cutting],
    cut: Cut,
    division: Division,
    origin: dict[str, Any],
    progress: Callable[[int, int], None] | None,
) -> dict[str, Any]:
    problems, digest, written = _Problems(), hashlib.sha256(), 0
    used: list[dict[str, Any]] = []
    with (folder / "tiles.u8").open("wb") as file:
        for number, done in enumerate(cuttings, 1):
            if done.problem:
                problems.add(done.problem, done.name, done.reason)
                continue
            for kind in done.converted:
                problems.add(kind, done.name)
            if done.flat:
                problems.counts[FLAT] += done.flat
            assert done.tiles is not None
            if not len(done.tiles):
                continue
            content = done.tiles.tobytes()
            digest.update(content)
            file.write(content)
            used.append(
                {
                    "name": done.name,
                    "split": done.split,
                    "first": written,
                    "tiles": len(done.tiles),
                    "sha256": done.sha256,
                }
            )
            written += len(done.tiles)
            if progress is not None and number % 50 == 0:
                progress(number, written)

    unsettled = [source for source in used if not source["split"]]
    if unsettled:
        chosen = divide([s["sha256"] for s in unsettled], division)
        for source, split in zip(unsettled, chosen, strict=True):
            source["split"] = split
    splits = np.full(written, UNUSED, dtype=np.uint8)
    for source in used:
        first, count, split = source["first"], source["tiles"], source["split"]
        taken = np.arange(count)
        if split != "train" and count > division.per_image:
            taken = taken[np.linspace(0, count - 1, division.per_image).round().astype(int)]
        splits[first + taken] = SPLITS.index(split)
    tiles = {split: int((splits == i).sum()) for i, split in enumerate(SPLITS)}
    for split, count in tiles.items():
        if count == 0:
            found = ", ".join(f"{n} {kind}" for kind, n in problems.counts.items())
            raise DataError(f"{name}: no tile for {split} in {len(used)} usable images ({found or 'no problems'})")
    digest.update(splits.tobytes() + f"{VERSION} {cut.size}".encode())
    (folder / "splits.u8").write_bytes(splits.tobytes())
    with (folder / "sources.jsonl").open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(source) + "\n" for source in used)
    manifest = {
        "version": VERSION,
        "name": name,
        "size": cut.size,
        "rows": written,
        "tiles": tiles,
        "sources": {split: sum(s["split"] == split for s in used) for split in SPLITS},
        "cut": {key: getattr(cut, key) for key in ("mode", "stride", "shrink", "min_side", "flat")},
        "per_image": division.per_image,
        "origin": origin,
        "problems": dict(sorted(problems.counts.items())),
        "problem_names": problems.names,
        "fingerprint": f"sha256:{digest.hexdigest()}",
    }
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
    return manifest


class Store:
    """A finished store, opened for reading.

    Attributes:
        tiles: (N, size, size, 3) uint8, memory-mapped.
        manifest: see `build`.

    Raises:
        DataError: there is none, or it is not whole.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        path = self.folder / "manifest.json"
        try:
            self.manifest: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            rows, size = int(self.manifest["rows"]), int(self.manifest["size"])
            version = self.manifest["version"]
        except FileNotFoundError as error:
            raise DataError(
                f"no images at {self.folder}: make them with `make data-vqvae` or `python -m scripts.prepare_images`, "
                "or name another store with data.root"
            ) from error
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(f"{path} cannot be read ({error}): make the images anew") from error
        if version != VERSION:
            raise DataError(f"{path} is of version {version}, this code reads {VERSION}: make the images anew")
        for file, length in (("tiles.u8", rows * size * size * 3), ("splits.u8", rows)):
            found = (self.folder / file).stat().st_size if (self.folder / file).exists() else 0
            if found != length:
                raise DataError(f"{self.folder / file} has {found} bytes instead of {length}: make the images anew")
        self.tiles = np.memmap(self.folder / "tiles.u8", np.uint8, "r", shape=(rows, size, size, 3))
        self._splits = np.fromfile(self.folder / "splits.u8", np.uint8)

    @property
    def fingerprint(self) -> str:
        return str(self.manifest["fingerprint"])

    def rows(self, split: str) -> npt.NDArray[np.int64]:
        """Positions in `tiles` of one split, ascending."""
        return np.flatnonzero(self._splits == SPLITS.index(split))
