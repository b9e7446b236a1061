"""Image tiles in a memory map: decoded and cropped once, with a manifest and a fingerprint.

A store is a folder with `tiles.u8` (N, size, size, 3), `splits.u8` (N,), `images.u32` (N,), `sources.jsonl` (one file a
line, with the tiles cut from it) and `manifest.json`. All tiles of an image are in one split, and files that show the
same image are one image: `images.u32` numbers them.
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

VERSION = 2
SPLITS = ("train", "val", "test")
# Sources whose stores are called after them, see `made_by`.
NAMED = ("photographs", "samples", "cifar10", "imagenet")
UNUSED = 255  # a tile over the limit per image, or of a copy of another split's image
IMAGE = np.dtype("<u4")
FLAT = "flat-tile"
SAME = "same-image-again"
ELSEWHERE = "same-image-in-another-split"

# Correlation of two images' looks from which they are the same. Among the photographs of our packages, copies in
# another size reach 0.999 and different ones 0.951.
ALIKE = 0.995
MOST_COMPARED = 20_000
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
        short_side: "grid" scales down further, by the least whole factor that leaves the shorter side at most so many
            pixels: a tile then shows about as much of a large photograph as of a small one; 0: no limit.
        min_side: images with a shorter side than this are left out.
        flat: tiles are left out in which no channel has a standard deviation of this many levels; "grid" only.
    """

    size: int
    mode: str
    stride: int = 0
    shrink: int = 1
    short_side: int = 0
    min_side: int = 0
    flat: float = 0.0

    def __post_init__(self) -> None:
        if self.mode not in ("grid", "centre"):
            raise ConfigError(f"mode must be grid or centre, got {self.mode!r}")
        for name, least in (("size", 4), ("stride", 0), ("shrink", 1), ("short_side", 0), ("min_side", 0), ("flat", 0)):
            if getattr(self, name) < least:
                raise ConfigError(f"{name} must be at least {least}, got {getattr(self, name)}")
        if 0 < self.short_side < 2 * self.size:
            # Whole factors may leave hardly more than half of it.
            raise ConfigError(
                f"short_side must be 0 or at least {2 * self.size}, twice the size, got {self.short_side}"
            )

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
        factor = max(self.shrink, -(-min(height, width) // self.short_side) if self.short_side else 1)
        if factor > 1:
            image = image.reduce(factor)
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
        val, test: share of the different images.
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
    pixels: str = ""
    look: npt.NDArray[np.float32] | None = None
    tiles: npt.NDArray[np.uint8] | None = None
    flat: int = 0
    converted: tuple[str, ...] = ()
    problem: str = ""
    reason: str = ""


def look_of(pixels: Pixels) -> npt.NDArray[np.float32]:
    """An image scaled to 16x16, less its mean and of length 1: scaling and compressing an image hardly change it."""
    small = np.asarray(Image.fromarray(pixels).resize((16, 16), Image.Resampling.BOX), dtype=np.float32).ravel()
    small = small - small.mean()
    look: npt.NDArray[np.float32] = small / max(float(np.linalg.norm(small)), 1e-6)
    return look


def alike(looks: npt.NDArray[np.float32]) -> list[int]:
    """For each image the first image that looks the same, from their looks (n, 768); itself if there is no other."""
    same = list(range(len(looks)))
    for start in range(0, len(looks), 512):
        block = looks[start : start + 512] @ looks.T
        for i, j in np.argwhere(block > ALIKE):
            low, high = sorted((same[start + i], same[j]))
            if low != high:
                same = [low if first == high else first for first in same]
    return same


def divide(hashes: Sequence[str], division: Division) -> list[str]:
    """Split of each image, by a hash of it: not by its name or place.

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
        done.pixels = hashlib.sha256(f"{decoded.pixels.shape}".encode() + decoded.pixels.tobytes()).hexdigest()
        done.look = look_of(decoded.pixels)
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
    left_out: Iterable[tuple[str, str, str]] = (),
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
        left_out: what is left out unread, to be counted: (kind, name, reason).

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
        cuttings = _in_order(sources, cut, workers)
        manifest = _build(temporary, name, cuttings, cut, division, origin or {}, progress, left_out)
        for file, text in (attribution or {}).items():
            path = temporary / "attribution" / file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        if folder.exists():
            shutil.rmtree(folder)
        temporary.rename(folder)
    except OSError as error:  # of writing: an image that cannot be read is counted
        raise DataError(f"{folder} cannot be written: {error.strerror or error}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return manifest


@dataclass
class _Used:
    """A file that gave tiles."""

    name: str
    split: str
    first: int
    tiles: int
    sha256: str
    pixels: str
    look: npt.NDArray[np.float32] | None
    image: int = -1


@dataclass
class _Image:
    """An image with the files that show it."""

    files: list[_Used]
    split: str = ""


def _settle(used: Sequence[_Used], division: Division, problems: _Problems) -> list[_Image]:
    """Tell which files show the same image, and give each image its split.

    Files with equal pixels show the same image. So do those that look the same, where the store chooses the split (and
    the files are not too many to compare). Where the data name two splits for an image, the later one of train, val and
    test keeps it, and its files in the others are left out.
    """
    by_pixels: dict[str, list[_Used]] = {}
    for file in used:
        by_pixels.setdefault(file.pixels, []).append(file)
    images = [_Image(files) for files in by_pixels.values()]
    free = [image for image in images if not any(file.split for file in image.files)]
    looks = [image.files[0].look for image in free]
    if looks and all(value is not None for value in looks):
        for image, first in zip(free, alike(np.stack([v for v in looks if v is not None])), strict=True):
            if image is not free[first]:
                free[first].files += image.files
                image.files = []
        images = [image for image in images if image.files]
        free = [image for image in free if image.files]
    if free:
        # By content, so that neither names nor places matter.
        hashes = [min(file.sha256 for file in image.files) for image in free]
        for image, split in zip(free, divide(hashes, division), strict=True):
            image.split = split
    for number, image in enumerate(images):
        if not image.split:
            image.split = max((file.split for file in image.files if file.split), key=SPLITS.index)
        kept = [file for file in image.files if file.split in ("", image.split)]
        for file in image.files:
            file.image = number
            if file not in kept:
                problems.add(ELSEWHERE, file.name, f"as {kept[0].name} in {image.split}")
            elif file is not kept[0]:
                problems.add(SAME, file.name, f"as {kept[0].name}")
            file.split = image.split if file in kept else ""
        image.files = kept
    return images


def _build(
    folder: Path,
    name: str,
    cuttings: Iterable[_Cutting],
    cut: Cut,
    division: Division,
    origin: dict[str, Any],
    progress: Callable[[int, int], None] | None,
    left_out: Iterable[tuple[str, str, str]],
) -> dict[str, Any]:
    problems, digest, written = _Problems(), hashlib.sha256(), 0
    for kind, where, reason in left_out:
        problems.add(kind, where, reason)
    used: list[_Used] = []
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
            look = done.look if not done.split and len(used) < MOST_COMPARED else None
            used.append(_Used(done.name, done.split, written, len(done.tiles), done.sha256, done.pixels, look))
            written += len(done.tiles)
            if progress is not None and number % 50 == 0:
                progress(number, written)

    images = _settle(used, division, problems)
    splits, numbers = np.full(written, UNUSED, dtype=np.uint8), np.zeros(written, dtype=IMAGE)
    for number, image in enumerate(images):
        taken = np.concatenate([np.arange(f.first, f.first + f.tiles) for f in image.files])
        numbers[taken] = number
        if image.split != "train" and len(taken) > division.per_image:
            taken = taken[np.linspace(0, len(taken) - 1, division.per_image).round().astype(int)]
        splits[taken] = SPLITS.index(image.split)
    tiles = {split: int((splits == i).sum()) for i, split in enumerate(SPLITS)}
    for split, count in tiles.items():
        if count == 0:
            found = ", ".join(f"{n} {kind}" for kind, n in problems.counts.items())
            raise DataError(f"{name}: no tile for {split} in {len(images)} usable images ({found or 'no problems'})")
    digest.update(splits.tobytes() + numbers.tobytes() + f"{VERSION} {cut.size}".encode())
    (folder / "splits.u8").write_bytes(splits.tobytes())
    (folder / "images.u32").write_bytes(numbers.tobytes())
    with (folder / "sources.jsonl").open("w", encoding="utf-8") as text:
        for f in sorted(used, key=lambda f: f.first):
            line = {"name": f.name, "image": f.image, "split": f.split, "first": f.first, "tiles": f.tiles}
            text.write(json.dumps(line | {"sha256": f.sha256}) + "\n")
    manifest = {
        "version": VERSION,
        "name": name,
        "size": cut.size,
        "rows": written,
        "tiles": tiles,
        "sources": {split: sum(image.split == split for image in images) for split in SPLITS},
        "cut": {key: getattr(cut, key) for key in ("mode", "stride", "shrink", "short_side", "min_side", "flat")},
        "per_image": division.per_image,
        "sources_bytes": (folder / "sources.jsonl").stat().st_size,
        "origin": origin,
        "problems": dict(sorted(problems.counts.items())),
        "problem_names": problems.names,
        "fingerprint": f"sha256:{digest.hexdigest()}",
    }
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
    return manifest


def made_by(folder: Path) -> str:
    """The command that makes a store, which is called by its source and the size of its tiles."""
    source, _, size = folder.name.rpartition("-")
    if source in NAMED and size.isdecimal():
        options = ["--source", source, "--size", size]
    else:
        source, options = "folder", ["--source", "folder", "--folder", "<images>"]
    command = " ".join(["python", "-m", "scripts.prepare_images", *options, "--out", str(folder.parent)])
    return f"`make data-vqvae` or `{command}`" if source == "photographs" else f"`{command}`"


class Store:
    """A finished store, opened for reading.

    Attributes:
        tiles: (N, size, size, 3) uint8, memory-mapped.
        images: (N,) number of the image that each tile was cut from, memory-mapped.
        manifest: see `build`.

    Raises:
        DataError: there is none, or it is not whole.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        path = self.folder / "manifest.json"
        try:
            self.manifest: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            version = self.manifest["version"]
            if version != VERSION:
                raise DataError(f"{path} is of version {version}, this code reads {VERSION}: make the images anew")
            rows, size, lines = (int(self.manifest[key]) for key in ("rows", "size", "sources_bytes"))
            tiles = {split: int(self.manifest["tiles"][split]) for split in SPLITS}
            for key in ("name", "sources", "origin", "problems", "fingerprint"):
                self.manifest[key]
        except FileNotFoundError as error:
            raise DataError(
                f"no images at {self.folder}: make them with {made_by(self.folder)}, or name another store with "
                "data.root"
            ) from error
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(f"{path} cannot be read ({error}): make the images anew") from error
        for name, length in (
            ("tiles.u8", rows * size * size * 3),
            ("splits.u8", rows),
            ("images.u32", 4 * rows),
            ("sources.jsonl", lines),
        ):
            file = self.folder / name
            found = file.stat().st_size if file.is_file() else 0
            if found != length or not length:
                raise DataError(f"{file} has {found} bytes instead of {length}: make the images anew")
        self.tiles = np.memmap(self.folder / "tiles.u8", np.uint8, "r", shape=(rows, size, size, 3))
        self.images = np.memmap(self.folder / "images.u32", IMAGE, "r", shape=(rows,))
        self._splits = np.fromfile(self.folder / "splits.u8", np.uint8)
        for split, count in tiles.items():
            marked = int((self._splits == SPLITS.index(split)).sum())
            if marked != count or not count:
                raise DataError(
                    f"{self.folder / 'splits.u8'} marks {marked} {split} tiles instead of {count}: make the images anew"
                )

    @property
    def fingerprint(self) -> str:
        return str(self.manifest["fingerprint"])

    def rows(self, split: str) -> npt.NDArray[np.int64]:
        """Positions in `tiles` of one split, ascending."""
        return np.flatnonzero(self._splits == SPLITS.index(split))

    def names(self, images: Iterable[int]) -> dict[int, str]:
        """Of each image the name of the first file that shows it."""
        wanted, found = set(images), dict[int, str]()
        path = self.folder / "sources.jsonl"
        try:
            with path.open(encoding="utf-8") as file:
                for line in file:
                    source = json.loads(line)
                    if source["split"] and source["image"] in wanted:
                        found.setdefault(source["image"], source["name"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(f"{path} cannot be read ({error}): make the images anew") from error
        if missing := wanted - found.keys():
            raise DataError(f"{path} names no file of image {min(missing)}: make the images anew")
        return found
