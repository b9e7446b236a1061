"""Rotten inputs of the image task: each is converted, counted under a name, or an error that names the file."""

from __future__ import annotations

import contextlib
import io
import json
import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from experiments.core.errors import DataError, UserError
from experiments.vqvae import sources
from experiments.vqvae.data import ImageData
from experiments.vqvae.decode import (
    ALPHA,
    DEEP,
    GREYSCALE,
    NOT_AN_IMAGE,
    TOO_SMALL,
    UNREADABLE,
    UNSUPPORTED,
    BadImage,
    decode,
)
from experiments.vqvae.rcc import ResourceFile
from experiments.vqvae.store import ELSEWHERE, FLAT, SAME, Cut, Division, Source, build
from tests.vqvae.conftest import encoded, picture
from tests.vqvae.conftest import sources as made_up

PNG, JPEG, WEBP, GIF, BMP = (encoded(picture(0), kind) for kind in ("PNG", "JPEG", "WEBP", "GIF", "BMP"))
GREY = np.linspace(0, 255, 1600).astype(np.uint8).reshape(40, 40)


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(width: int, height: int, depth: int, colour: int, rows: bytes) -> bytes:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def tiff(
    bits: int, data: bytes, *, photometric: int = 1, signed: bool = False, pages: int = 1, order: str = "<"
) -> bytes:
    """A greyscale TIFF of 40x40 pixels, written by hand: Pillow writes few depths."""
    form = 2 if signed else 1
    tags = [(256, 40), (257, 40), (258, bits), (259, 1), (262, photometric), (273, 8), (277, 1), (278, 40),
            (279, len(data)), (339, form)]  # fmt: skip
    at = 8 + len(data)
    out = (b"II" if order == "<" else b"MM") + struct.pack(order + "HI", 42, at) + data
    out += struct.pack(order + "H", len(tags))
    for tag, value in tags:
        out += struct.pack(order + "HHII", tag, 4, 1, value)
    return out + struct.pack(order + "I", at if pages > 1 else 0)  # the next page is the first one again


def damaged(content: bytes, at: float, count: int = 1) -> bytes:
    start = int(at * len(content))
    return content[:start] + bytes(255 - b for b in content[start : start + count]) + content[start + count :]


def with_exif(exif: bytes) -> bytes:
    file = io.BytesIO()
    picture(0).save(file, "JPEG", exif=exif)
    return file.getvalue()


def converted(mode: str, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    picture(0).convert(mode).save(file, kind, **options)
    return file.getvalue()


def frames(kind: str) -> bytes:
    file = io.BytesIO()
    picture(0).save(file, kind, save_all=True, append_images=[picture(1), picture(2)])
    return file.getvalue()


def deep(values: Any, kind: str = "PNG") -> bytes:
    return encoded(Image.fromarray(np.asarray(values)), kind)


def see_through() -> bytes:
    image = picture(0).quantize(8)
    colour = image.getpixel((0, 0))
    file = io.BytesIO()
    image.save(file, "PNG", transparency=colour)
    return file.getvalue()


LEVELS = GREY.astype(np.int64)
# What an image file holds -> the problem that leaves it out, or what was converted.
FILES: dict[str, tuple[Callable[[], bytes], str | tuple[str, ...]]] = {
    "empty": (lambda: b"", NOT_AN_IMAGE),
    "one byte": (lambda: b"\xff", NOT_AN_IMAGE),
    "zeros": (lambda: bytes(5000), NOT_AN_IMAGE),
    "words": (lambda: b"These are words.\n" * 50, NOT_AN_IMAGE),
    "html of an error page": (lambda: b"<!DOCTYPE html><html><body>404 Not Found</body></html>", NOT_AN_IMAGE),
    "pointer of Git LFS": (lambda: b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", NOT_AN_IMAGE),
    "vector graphics": (lambda: b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>', NOT_AN_IMAGE),
    "PDF": (lambda: b"%PDF-1.7\n1 0 obj\n<<>>\nendobj\n", NOT_AN_IMAGE),
    "zip": (lambda: b"PK\x03\x04" + bytes(100), NOT_AN_IMAGE),
    "UTF-16 words": (lambda: "words".encode("utf-16"), NOT_AN_IMAGE),
    "double": (lambda: tiff(64, bytes(8 * 1600)), NOT_AN_IMAGE),
    "PNG signature alone": (lambda: PNG[:8], NOT_AN_IMAGE),
    "PNG cut in its header": (lambda: PNG[:20], UNREADABLE),
    "PNG cut in its pixels": (lambda: PNG[: len(PNG) // 2], UNREADABLE),
    "PNG without its end": (lambda: PNG[:-12], ()),
    "PNG damaged in its pixels": (lambda: damaged(PNG, 0.5), UNREADABLE),
    "PNG whose pixels have a wrong length": (lambda: PNG[:33] + b"\xff\xff\xff\xff" + PNG[37:], ()),
    "PNG with words for pixels": (lambda: PNG[:33] + chunk(b"IDAT", b"words") + chunk(b"IEND", b""), UNREADABLE),
    "PNG without width": (lambda: png(0, 40, 8, 2, b""), NOT_AN_IMAGE),
    "PNG of an unknown colour type": (lambda: png(40, 40, 8, 9, bytes(1640)), NOT_AN_IMAGE),
    "PNG of 2^30 pixels": (lambda: png(2**15, 2**15, 8, 0, b"\0"), UNREADABLE),
    "PNG of 2^62 pixels": (lambda: png(2**31 - 1, 2**31 - 1, 8, 0, b"\0"), UNREADABLE),
    "PNG with words after it": (lambda: PNG + b"words", ()),
    "PNG of 1 bit": (lambda: converted("1", "PNG"), (GREYSCALE,)),
    "PNG of 2 bits": (lambda: png(40, 40, 2, 0, (b"\0" + b"\x1b" * 10) * 40), (GREYSCALE,)),
    "PNG with grey and alpha": (lambda: deep(np.dstack([GREY, GREY])), (GREYSCALE, ALPHA)),
    "PNG with a palette": (lambda: converted("P", "PNG"), ()),
    "PNG with a transparent colour": (see_through, (ALPHA,)),
    "PNG all transparent": (lambda: deep(np.zeros((40, 40, 4), np.uint8)), FLAT),
    "PNG of 16 bits": (lambda: deep((LEVELS * 257).astype(np.uint16)), (DEEP, GREYSCALE)),
    "PNG of one row": (lambda: encoded(picture(0, 40, 1)), TOO_SMALL),
    "PNG of one column": (lambda: encoded(picture(0, 1, 4000)), TOO_SMALL),
    "PNG of one colour": (lambda: encoded(Image.new("RGB", (40, 40), "red")), FLAT),
    "PNG with a broken profile": (lambda: converted("RGB", "PNG", icc_profile=b"no profile"), ()),
    "JPEG cut after its start": (lambda: JPEG[:2], NOT_AN_IMAGE),
    "JPEG cut in its tables": (lambda: JPEG[:100], UNREADABLE),
    "JPEG cut in its pixels": (lambda: JPEG[: len(JPEG) * 9 // 10], UNREADABLE),
    "JPEG without its end": (lambda: JPEG[:-2], UNREADABLE),
    "JPEG with words before it": (lambda: b"words" + JPEG, NOT_AN_IMAGE),
    "JPEG of four inks": (lambda: converted("CMYK", "JPEG"), ()),
    "JPEG in grey": (lambda: converted("L", "JPEG"), (GREYSCALE,)),
    "JPEG with words for EXIF": (lambda: with_exif(b"Exif\0\0words and more words"), ()),
    "JPEG with EXIF cut": (lambda: with_exif(b"Exif\0\0MM\0*\0\0\0\x08\0\x05\x01\x12"), ()),
    "JPEG turned by an unknown angle": (
        lambda: with_exif(b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x63\0\0\0\0\0\0"), ()
    ),
    "GIF cut": (lambda: GIF[:60], NOT_AN_IMAGE),
    "GIF signature alone": (lambda: GIF[:6], NOT_AN_IMAGE),
    "GIF with frames": (lambda: frames("GIF"), ()),
    "WEBP cut": (lambda: WEBP[:60], UNREADABLE),
    "WEBP with a wrong length": (lambda: WEBP[:4] + b"\xff\xff\xff\x7f" + WEBP[8:], UNREADABLE),
    "WEBP with frames": (lambda: frames("WEBP"), ()),
    "BMP cut": (lambda: BMP[:100], UNREADABLE),
    "BMP header alone": (lambda: BMP[:20], UNREADABLE),
    "PPM without pixels": (lambda: b"P6\n40 40\n255\n", UNREADABLE),
    "PPM with words for a width": (lambda: b"P6\nwide 40\n255\n" + bytes(4800), UNREADABLE),
    "PGM of 16 bits": (lambda: deep((LEVELS * 257).astype(np.uint16), "PPM"), (DEEP, GREYSCALE)),
    "icon": (lambda: encoded(picture(0), "ICO"), ()),
    "JPEG 2000 cut": (lambda: encoded(picture(0), "JPEG2000")[:200], UNREADABLE),
    "TIFF header alone": (lambda: b"II*\0\x08\0\0\0", NOT_AN_IMAGE),
    "TIFF whose directory lies outside": (lambda: b"II*\0\xff\xff\xff\x7f" + bytes(50), NOT_AN_IMAGE),
    "TIFF cut in its pixels": (lambda: encoded(picture(0), "TIFF")[:1000], UNREADABLE),
    "TIFF whose pages go in circles": (lambda: tiff(8, GREY.tobytes(), pages=2), (GREYSCALE,)),
    "TIFF of 16 bits": (lambda: tiff(16, (LEVELS * 257).astype("<u2").tobytes()), (DEEP, GREYSCALE)),
    "TIFF of 16 bits, big-endian": (
        lambda: tiff(16, (LEVELS * 257).astype(">u2").tobytes(), order=">"), (DEEP, GREYSCALE)
    ),
    "TIFF of 16 bits, white is 0": (
        lambda: tiff(16, (65535 - LEVELS * 257).astype("<u2").tobytes(), photometric=0), (DEEP, GREYSCALE)
    ),
    "TIFF of 16 bits with a sign": (lambda: tiff(16, LEVELS.astype("<i2").tobytes(), signed=True), UNSUPPORTED),
    "TIFF of 32 bits, up to 255": (lambda: tiff(32, LEVELS.astype("<u4").tobytes()), UNSUPPORTED),
    "TIFF of 32 bits, up to 65535": (lambda: tiff(32, (LEVELS * 257).astype("<u4").tobytes()), UNSUPPORTED),
    "TIFF of 32 bits, all of them": (lambda: tiff(32, (LEVELS * 16843009).astype("<u4").tobytes()), UNSUPPORTED),
    "TIFF of floats": (lambda: deep(GREY.astype(np.float32), "TIFF"), UNSUPPORTED),
    "TIFF of floats without numbers": (lambda: deep(np.full((40, 40), np.nan, np.float32), "TIFF"), UNSUPPORTED),
    "TIFF of lightness and colour": (
        lambda: encoded(Image.merge("LAB", [Image.fromarray(GREY)] * 3), "TIFF"), ()
    ),
}  # fmt: skip


def outcome(content: bytes, tmp_path: Path) -> str | tuple[str, ...]:
    """The problem that the store counts for such a file among good ones, or what it counts as converted."""
    good = [Source(s.name, s.read) for s in made_up(12)[1:]]
    rotten = Source("rotten", lambda: content)
    manifest = build(tmp_path / "store", "x", [*good, rotten], Cut(32, "grid", flat=2.0), Division(0.2, 0.2))
    problems = manifest["problems"]
    for kind in (NOT_AN_IMAGE, UNREADABLE, UNSUPPORTED, TOO_SMALL):
        if kind in problems:
            assert problems == {kind: 1}
            assert manifest["problem_names"][kind][0].startswith("rotten: ")
            assert sum(manifest["sources"].values()) == 11
            return kind
    if FLAT in problems:
        return FLAT
    assert sum(manifest["sources"].values()) == 12
    return tuple(kind for kind in (DEEP, GREYSCALE, ALPHA) if kind in problems)


@pytest.mark.parametrize("name", FILES)
def test_rotten_files_are_counted_or_converted(name: str, tmp_path: Path) -> None:
    make, expected = FILES[name]
    assert outcome(make(), tmp_path) == expected


@pytest.mark.parametrize(
    "name", [n for n, (_, expected) in FILES.items() if isinstance(expected, tuple) and DEEP in expected]
)
def test_deep_images_keep_their_brightness(name: str) -> None:
    assert np.array_equal(decode(FILES[name][0]()).pixels[..., 0], GREY)


def test_twelve_bits_reach_white() -> None:
    pairs = np.full((40, 20, 3), 0xFF, np.uint8)  # two pixels of 12 bits in three bytes
    found = decode(tiff(12, pairs.tobytes()))
    assert (found.pixels == 255).all()


@pytest.mark.parametrize("seed", range(4))
def test_no_damage_ends_in_a_traceback(seed: int) -> None:
    random = np.random.default_rng(seed)
    for content in (PNG, JPEG, WEBP, GIF, BMP, encoded(picture(0), "TIFF"), encoded(picture(0), "JPEG2000")):
        for _ in range(25):
            rotten = bytearray(content[: random.integers(1, len(content) + 1)])
            for at in random.integers(0, len(rotten), random.integers(1, 9)):
                rotten[at] = random.integers(256)
            with contextlib.suppress(BadImage):
                assert decode(bytes(rotten)).pixels.dtype == np.uint8


# ---- folders --------------------------------------------------------------------------------------------------------


def put(folder: Path, *seeds: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for seed in seeds:
        picture(seed).save(folder / f"{seed}.png")


def broken_link(root: Path) -> None:
    put(root, *range(9))
    (root / "gone.png").symlink_to(root / "nowhere.png")


def link_to_a_folder(root: Path) -> None:
    put(root.parent / "elsewhere", 3, 4)
    put(root, 0, 1, 2)
    (root / "more").symlink_to(root.parent / "elsewhere")


def link_to_a_file(root: Path) -> None:
    put(root.parent / "elsewhere", 3)
    put(root, 0, 1, 2)
    (root / "3.png").symlink_to(root.parent / "elsewhere/3.png")


def link_to_itself(root: Path) -> None:
    put(root, 0, 1, 2)
    (root / "self").symlink_to(root / "self")


def link_above(root: Path) -> None:
    put(root / "in", 0, 1, 2)
    (root / "in/again").symlink_to(root)


def links_in_a_circle(root: Path) -> None:
    put(root / "a", 0, 1)
    put(root / "b", 2)
    (root / "a/b").symlink_to(root / "b")
    (root / "b/a").symlink_to(root / "a")


def pipe(root: Path) -> None:
    put(root, 0, 1, 2)
    os.mkfifo(root / "pipe.png")


def hidden(root: Path) -> None:
    put(root, 0, 1, 2)
    (root / "._0.png").write_bytes(b"resource fork")
    put(root / ".thumbnails", 0)


def odd_names(root: Path) -> None:
    put(root, 0, 1)
    picture(2).save(root / "new\nline.png")
    (root / os.fsdecode(b"latin\xe9.png")).write_bytes(PNG[:-1] + PNG[-1:])


def folder_named_as_a_file(root: Path) -> None:
    put(root / "photo.png", 0, 1, 2)


def capitals(root: Path) -> None:
    for split, seeds in (("Train", (0, 1)), ("VAL", (2,)), ("Test", (3,))):
        put(root / split, *seeds)


def files_beside_the_splits(root: Path) -> None:
    capitals(root)
    put(root, 7)
    put(root / "extra", 8)


def copies_in_two_splits(root: Path) -> None:
    capitals(root)
    (root / "Train/copy.bmp").write_bytes(encoded(picture(3), "BMP"))


def copies(root: Path) -> None:
    put(root, *range(9))
    (root / "copy.png").write_bytes((root / "0.png").read_bytes())


def directory_unreadable_file(root: Path) -> None:
    put(root, *range(9))
    (root / "empty.jpg").touch()


# Tree -> images in train, val and test, and the problems.
TREES: dict[Callable[[Path], None], tuple[tuple[int, int, int], dict[str, int]]] = {
    broken_link: ((7, 1, 1), {sources.BROKEN_LINK: 1}),
    link_to_a_folder: ((3, 1, 1), {}),
    link_to_a_file: ((2, 1, 1), {}),
    link_to_itself: ((1, 1, 1), {sources.BROKEN_LINK: 1}),
    link_above: ((1, 1, 1), {sources.LINK_LOOP: 1}),
    links_in_a_circle: ((1, 1, 1), {sources.LINK_LOOP: 2, SAME: 3}),
    pipe: ((1, 1, 1), {sources.NO_FILE: 1}),
    hidden: ((1, 1, 1), {}),
    odd_names: ((1, 1, 1), {SAME: 1}),
    folder_named_as_a_file: ((1, 1, 1), {}),
    capitals: ((2, 1, 1), {}),
    files_beside_the_splits: ((2, 1, 1), {sources.OUTSIDE: 2}),
    copies_in_two_splits: ((2, 1, 1), {ELSEWHERE: 1}),
    copies: ((7, 1, 1), {SAME: 1}),
    directory_unreadable_file: ((7, 1, 1), {NOT_AN_IMAGE: 1}),
}


@pytest.mark.parametrize("make", TREES, ids=lambda make: make.__name__)
def test_rotten_folders_are_counted(make: Callable[[Path], None], tmp_path: Path) -> None:
    root = tmp_path / "root"
    make(root)
    found = sources.folder(root)
    manifest = build(
        tmp_path / "store", "x", found.sources, Cut(40, "grid"), Division(0.1, 0.1), left_out=found.problems
    )
    images, problems = TREES[make]
    assert tuple(manifest["sources"].values()) == images
    assert manifest["problems"] == problems
    assert all(manifest["problem_names"][kind] for kind in problems)
    json.dumps(manifest)
    for names in manifest["problem_names"].values():
        "".join(names).encode()  # can be printed


def two_of_one_split(root: Path) -> None:
    capitals(root)
    put(root / "train", 9)


def split_without_files(root: Path) -> None:
    capitals(root)
    (root / "VAL/2.png").unlink()


def only_broken_links(root: Path) -> None:
    root.mkdir()
    (root / "a.png").symlink_to(root / "nowhere")


def nothing_but_words(root: Path) -> None:
    root.mkdir()
    (root / "a.txt").write_text("words")


def one_image(root: Path) -> None:
    put(root, 0)


def image_as_a_folder(root: Path) -> None:
    root.write_bytes(PNG)


# Tree -> words of the error.
REFUSED: dict[Callable[[Path], None], str] = {
    two_of_one_split: "root has 2 folders for train: Train and train",
    split_without_files: "root has a folder test but none with files named val",
    only_broken_links: "root holds no files; broken-link: a.png",
    nothing_but_words: r"no tile for train in 0 usable images \(1 not-an-image\)",
    one_image: "1 different images cannot be divided",
    image_as_a_folder: "root is no folder",
}


@pytest.mark.parametrize("make", REFUSED, ids=lambda make: make.__name__)
def test_folders_that_cannot_be_used_are_refused(make: Callable[[Path], None], tmp_path: Path) -> None:
    make(tmp_path / "root")
    with pytest.raises(DataError, match=REFUSED[make]):
        build(tmp_path / "store", "x", sources.folder(tmp_path / "root").sources, Cut(40, "grid"))
    assert not (tmp_path / "store").exists()


# ---- stores ---------------------------------------------------------------------------------------------------------


def rewrite(name: str, change: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    return lambda store: (store / name).write_bytes(change((store / name).read_bytes())) and None


def manifest_with(**changes: Any) -> Callable[[Path], None]:
    def change(content: bytes) -> bytes:
        manifest = json.loads(content) | changes
        return json.dumps({key: value for key, value in manifest.items() if value is not ...}).encode()

    return rewrite("manifest.json", change)


# What happened to a store -> the file that the error names.
STORES: dict[str, tuple[Callable[[Path], None], str]] = {
    "manifest empty": (rewrite("manifest.json", lambda _: b""), "manifest.json cannot be read"),
    "manifest cut": (rewrite("manifest.json", lambda c: c[:50]), "manifest.json cannot be read"),
    "manifest a list": (rewrite("manifest.json", lambda _: b"[1]"), "manifest.json cannot be read"),
    "manifest null": (rewrite("manifest.json", lambda _: b"null"), "manifest.json cannot be read"),
    "manifest no text": (rewrite("manifest.json", lambda _: b"\xff\xfe"), "manifest.json cannot be read"),
    "manifest without fingerprint": (manifest_with(fingerprint=...), "manifest.json cannot be read"),
    "manifest without tiles": (manifest_with(tiles=...), "manifest.json cannot be read"),
    "manifest with tiles of one split": (manifest_with(tiles={"train": 3}), "manifest.json cannot be read"),
    "manifest with words for rows": (manifest_with(rows="many"), "manifest.json cannot be read"),
    "older version": (manifest_with(version=1), "manifest.json is of version 1"),
    "no rows": (manifest_with(rows=0), "tiles.u8 has .* instead of 0"),
    "other size": (manifest_with(size=9), "tiles.u8 has"),
    "tiles cut": (rewrite("tiles.u8", lambda c: c[:-1]), "tiles.u8 has"),
    "tiles empty": (rewrite("tiles.u8", lambda _: b""), "tiles.u8 has 0 bytes"),
    "tiles gone": (lambda store: (store / "tiles.u8").unlink(), "tiles.u8 has 0 bytes"),
    "splits cut": (rewrite("splits.u8", lambda c: c[1:]), "splits.u8 has"),
    "splits all unused": (rewrite("splits.u8", lambda c: b"\xff" * len(c)), "splits.u8 marks 0 train tiles"),
    "images too long": (rewrite("images.u32", lambda c: c + b"\0"), "images.u32 has"),
    "images unknown": (rewrite("images.u32", lambda c: b"\xee" * len(c)), "sources.jsonl names no file of image"),
    "sources cut": (rewrite("sources.jsonl", lambda c: c[:-9]), "sources.jsonl has"),
    "sources gone": (lambda store: (store / "sources.jsonl").unlink(), "sources.jsonl has 0 bytes"),
    "sources all spaces": (rewrite("sources.jsonl", lambda c: b" " * len(c)), "sources.jsonl cannot be read"),
}


@pytest.mark.parametrize("name", STORES)
def test_rotten_stores_are_named(name: str, make_store: Callable[..., Path]) -> None:
    folder = make_store()
    ImageData(str(folder), 4).prepare_data()
    change, words = STORES[name]
    change(folder)
    with pytest.raises(DataError, match=f"{folder}.*{words}"):
        ImageData(str(folder), 4).prepare_data()


def test_a_store_where_nothing_can_be_written_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="cannot be written: Not a directory"):
        build(tmp_path / "file/store", "x", made_up(9), Cut(8, "grid"))

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(DataError, match="store cannot be written: No space left on device"):
        build(tmp_path / "store", "x", made_up(9), Cut(8, "grid"))
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_rows_of_a_data_set_without_an_image_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    columns = datasets.Features({"img": datasets.Image()})
    copy = tmp_path / "copy/plain"
    copy.mkdir(parents=True)
    for split, images in (("train", [None, *(picture(i) for i in range(6))]), ("test", [picture(9), None])):
        rows = datasets.Dataset.from_dict({"img": images}, features=columns)
        rows.to_parquet(copy / f"{split}-00000-of-00001.parquet")
    manifest = build(tmp_path / "store", "x", sources.hub("cifar10", str(copy.parent)).sources, Cut(8, "centre"))
    assert manifest["problems"] == {sources.MISSING: 2}
    assert manifest["problem_names"][sources.MISSING] == ["train/0: row 0 has no image", "test/1: row 1 has no image"]


def test_a_resource_whose_folders_go_in_circles_is_named(tmp_path: Path) -> None:
    header = b"qres" + struct.pack(">4I", 1, 20, 20 + 3 * 14, 20 + 3 * 14)
    name = struct.pack(">HI", 1, 0) + "d".encode("utf-16-be")
    nodes = b"".join(struct.pack(">IHII", 0, 2, 2, 1) for _ in range(3))
    (tmp_path / "a.rcc").write_bytes(header + nodes + name)
    with pytest.raises(UserError, match=r"a.rcc is a damaged Qt resource file: an entry is in two folders"):
        ResourceFile(tmp_path / "a.rcc")
