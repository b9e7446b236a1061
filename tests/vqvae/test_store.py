"""From image files to a store: what is converted, what is left out and named, the division, the fingerprint."""

from __future__ import annotations

import gzip
import io
import json
import re
import struct
import zlib
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from PIL import Image

from experiments.core.errors import ConfigError, DataError
from experiments.vqvae import debian, sources
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
from experiments.vqvae.rcc import ResourceFile, UnreadableResource
from experiments.vqvae.store import ELSEWHERE, SAME, SPLITS, Cut, Division, Source, Store, build, divide
from scripts import prepare_images
from tests.vqvae.conftest import encoded, picture
from tests.vqvae.conftest import sources as made_up

# ---- decoding -------------------------------------------------------------------------------------------------------


def test_plain_rgb_is_untouched() -> None:
    image = picture(0)
    found = decode(encoded(image))
    assert np.array_equal(found.pixels, np.asarray(image))
    assert found.converted == ()


def test_greyscale_is_repeated_over_the_channels() -> None:
    grey = picture(0).convert("L")
    found = decode(encoded(grey))
    assert found.converted == (GREYSCALE,)
    assert np.array_equal(found.pixels, np.repeat(np.asarray(grey)[..., None], 3, axis=2))


def test_alpha_is_laid_over_white() -> None:
    pixels = np.zeros((4, 4, 4), np.uint8)
    pixels[..., 0], pixels[:2, :, 3], pixels[3, :, 3] = 200, 255, 128
    found = decode(encoded(Image.fromarray(pixels)))
    assert found.converted == (ALPHA,)
    assert found.pixels[0, 0].tolist() == [200, 0, 0]
    assert found.pixels[2, 0].tolist() == [255, 255, 255]
    assert found.pixels[3, 0] == pytest.approx([227, 127, 127], abs=1)


def test_opaque_alpha_is_no_conversion() -> None:
    assert decode(encoded(picture(0).convert("RGBA"))).converted == ()


def test_palette_with_transparency() -> None:
    image = Image.new("P", (4, 4), 1)
    image.putpalette([10, 20, 30, 200, 100, 50])
    image.info["transparency"] = 1
    assert decode(encoded(image)).converted == (ALPHA,)
    assert decode(encoded(image)).pixels[0, 0].tolist() == [255, 255, 255]


def test_sixteen_bits_are_scaled_not_clipped() -> None:
    values = np.array([[0, 257, 65535], [128 * 257, 129, 128]], dtype=np.uint16)
    found = decode(encoded(Image.fromarray(values)))
    assert found.converted == (DEEP, GREYSCALE)
    assert found.pixels[..., 0].tolist() == [[0, 1, 255], [128, 1, 0]]


def test_cmyk_becomes_rgb() -> None:
    assert decode(encoded(picture(0).convert("CMYK"), "JPEG")).pixels.shape == (40, 40, 3)


def test_turned_photographs_are_turned_back() -> None:
    image = picture(0, width=40, height=20)
    exif = Image.Exif()
    exif[0x0112] = 6
    assert decode(encoded(image)).pixels.shape == (20, 40, 3)
    file = io.BytesIO()
    image.save(file, "PNG", exif=exif)
    assert decode(file.getvalue()).pixels.shape == (40, 20, 3)


def damaged() -> bytes:
    content = bytearray(encoded(picture(0)))
    content[len(content) // 2] ^= 0xFF
    return bytes(content)


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (b"", NOT_AN_IMAGE),
        (b"These are words.\n", NOT_AN_IMAGE),
        (encoded(picture(0))[:200], UNREADABLE),
        (encoded(picture(0), "JPEG")[:400], UNREADABLE),
        (damaged(), UNREADABLE),
        (encoded(Image.fromarray(np.ones((4, 4), np.float32)), "TIFF"), UNSUPPORTED),
        (encoded(Image.fromarray(np.full((4, 4), 10**6, np.int32)), "TIFF"), UNSUPPORTED),
    ],
)
def test_bad_images_are_named(content: bytes, kind: str) -> None:
    with pytest.raises(BadImage) as error:
        decode(content)
    assert error.value.kind == kind
    assert str(error.value)


# ---- cutting --------------------------------------------------------------------------------------------------------


def test_grid_takes_every_tile_in_the_middle() -> None:
    pixels = np.arange(11 * 9 * 3, dtype=np.uint8).reshape(11, 9, 3)
    tiles, flat = Cut(4, "grid").tiles(pixels)
    assert flat == 0
    # 11 rows hold two tiles with 3 to spare, 9 columns two with 1 to spare.
    expected = [pixels[y : y + 4, x : x + 4] for y in (1, 5) for x in (0, 4)]
    assert np.array_equal(tiles, np.stack(expected))


def test_grid_with_stride_overlaps() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (10, 8, 3), dtype=np.uint8)
    tiles, _ = Cut(4, "grid", stride=3).tiles(pixels)
    expected = [pixels[y : y + 4, x : x + 4] for y in (0, 3, 6) for x in (0, 3)]
    assert np.array_equal(tiles, np.stack(expected))


def test_shrinking_takes_means() -> None:
    pixels = np.zeros((8, 8, 3), np.uint8)
    pixels[::2] = 100
    tiles, _ = Cut(4, "grid", shrink=2).tiles(pixels)
    assert (tiles == 50).all()


def test_large_photographs_are_scaled_to_about_the_same_side() -> None:
    cut = Cut(8, "grid", shrink=2, short_side=20)
    # 90 pixels become 18 with the factor 5, 40 become 20 with 2; a smaller image is halved all the same.
    for side, tiles in ((90, 4), (40, 4), (36, 4), (16, 1)):
        assert len(cut.tiles(np.asarray(picture(0, side, side)))[0]) == tiles


def test_flat_tiles_are_left_out_by_channel() -> None:
    pixels = np.zeros((4, 8, 3), np.uint8)
    pixels[:, :4] = (200, 30, 90)  # one colour: flat, however different its channels
    pixels[:2, 4:] = (0, 0, 60)
    tiles, flat = Cut(4, "grid", flat=10.0).tiles(pixels)
    assert flat == 1
    assert np.array_equal(tiles, pixels[None, :, 4:])


def test_centre_keeps_the_shape_of_things() -> None:
    image = Image.new("RGB", (60, 20), "red")
    image.paste("blue", (20, 0, 40, 20))
    tiles, _ = Cut(10, "centre").tiles(np.asarray(image))
    assert tiles.shape == (1, 10, 10, 3)
    assert tiles[0, 5, 5].tolist() == [0, 0, 255]
    exact = picture(1, 10, 10)
    assert np.array_equal(Cut(10, "centre").tiles(np.asarray(exact))[0][0], np.asarray(exact))


@pytest.mark.parametrize("cut", [Cut(16, "grid", shrink=2), Cut(32, "centre"), Cut(8, "grid", min_side=32)])
def test_pictures_smaller_than_the_crop(cut: Cut) -> None:
    with pytest.raises(BadImage, match="90x31 pixels; the shorter side must have 32") as error:
        cut.tiles(np.asarray(picture(0, 90, 31)))
    assert error.value.kind == TOO_SMALL


# ---- the store ------------------------------------------------------------------------------------------------------


def test_store_holds_the_tiles_and_the_problems(tmp_path: Path) -> None:
    good = made_up(12)
    bad = [
        Source("notes.txt", lambda: b"words"),
        Source("half.png", lambda: encoded(picture(99))[:200]),
        Source("tiny.png", lambda: encoded(picture(99, 5, 5))),
        Source("grey.png", lambda: encoded(picture(50).convert("L"))),
        Source("gone.png", (tmp_path / "gone.png").read_bytes),
    ]
    texts = {"README.txt": "By nobody.\n"}
    manifest = build(tmp_path / "store", "mixed", [*bad, *good], Cut(16, "grid"), attribution=texts, workers=3)
    assert manifest["problems"] == {
        GREYSCALE: 1, NOT_AN_IMAGE: 1, TOO_SMALL: 1, UNREADABLE: 1, "unreadable-file": 1
    }  # fmt: skip
    assert manifest["problem_names"][TOO_SMALL] == ["tiny.png: 5x5 pixels; the shorter side must have 16"]
    assert manifest["problem_names"]["unreadable-file"] == ["gone.png: No such file or directory"]
    store = Store(tmp_path / "store")
    assert store.tiles.shape == (13 * 4, 16, 16, 3)
    first = np.asarray(picture(0))[4:20, 4:20]
    assert np.array_equal(store.tiles[4], first)
    assert sum(len(store.rows(s)) for s in SPLITS) == sum(manifest["tiles"].values())
    assert (tmp_path / "store/attribution/README.txt").read_text() == "By nobody.\n"
    assert [p.name for p in tmp_path.iterdir()] == ["store"]


def lines_of(store: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (store / "sources.jsonl").read_text().splitlines()]


def test_no_image_lies_in_two_splits(tmp_path: Path) -> None:
    copies = [Source(f"copy-{s.name}", s.read) for s in made_up(30)[:10]]
    images = [*made_up(30), *copies]
    manifest = build(tmp_path / "store", "x", images, Cut(8, "grid"), Division(0.2, 0.2, per_image=6))
    assert manifest["sources"] == {"train": 18, "val": 6, "test": 6}
    assert manifest["problems"][SAME] == 10
    assert manifest["problem_names"][SAME][0] == "copy-0.png: as 0.png"
    splits: dict[str, set[str]] = {}
    own: dict[str, list[int]] = {}
    for line in lines_of(tmp_path / "store"):
        splits.setdefault(line["sha256"], set()).add(line["split"])
        own.setdefault(line["sha256"], []).extend(range(line["first"], line["first"] + line["tiles"]))
    assert all(len(s) == 1 for s in splits.values())
    store = Store(tmp_path / "store")
    for image, (split,) in splits.items():
        for other in SPLITS:
            shared = np.intersect1d(own[image], store.rows(other))
            assert len(shared) == (0 if other != split else len(own[image]) if split == "train" else 6)
        assert len(np.unique(store.images[own[image]])) == 1


def test_copies_in_another_size_or_format_stay_together(tmp_path: Path) -> None:
    large = [picture(seed, 120, 90, noise=15) for seed in range(30)]
    files = [Source(f"{i}.png", partial(encoded, image)) for i, image in enumerate(large)]
    small = [Source(f"{i}-small.png", partial(encoded, large[i].resize((80, 60)))) for i in range(5)]
    jpeg = [Source(f"{i}.jpg", partial(encoded, large[i], "JPEG")) for i in range(4, 8)]
    manifest = build(tmp_path / "store", "x", [*small, *files, *jpeg], Cut(8, "grid"), Division(0.3, 0.3))
    assert manifest["sources"] == {"train": 12, "val": 9, "test": 9}
    assert manifest["problems"][SAME] == 9
    by_number: dict[str, set[tuple[int, str]]] = {}
    for line in lines_of(tmp_path / "store"):
        number = line["name"].split(".")[0].removesuffix("-small")
        by_number.setdefault(number, set()).add((line["image"], line["split"]))
    assert all(len(found) == 1 for found in by_number.values())
    assert len({image for ((image, _),) in by_number.values()}) == 30


def test_an_image_of_two_named_splits_stays_in_the_later_one(tmp_path: Path) -> None:
    one, two, three, four = (partial(encoded, picture(seed)) for seed in range(4))
    bmp = partial(encoded, picture(1), "BMP")  # other bytes, the same pixels
    files = [
        Source("train/a.png", one, "train"),
        Source("train/b.bmp", bmp, "train"),
        Source("val/b.png", two, "val"),
        Source("val/c.png", three, "val"),
        Source("test/c.png", three, "test"),
        Source("test/d.png", four, "test"),
    ]
    manifest = build(tmp_path / "store", "x", files, Cut(40, "grid"))
    assert manifest["sources"] == {"train": 1, "val": 1, "test": 2}
    assert manifest["tiles"] == {"train": 1, "val": 1, "test": 2}
    assert manifest["problem_names"][ELSEWHERE] == [
        "train/b.bmp: as val/b.png in val",
        "val/c.png: as test/c.png in test",
    ]
    store = Store(tmp_path / "store")
    assert [store.rows(split).tolist() for split in SPLITS] == [[0], [2], [4, 5]]
    assert store.names(store.images[store.rows("test")].tolist()) == {2: "test/c.png", 3: "test/d.png"}


def test_division_depends_on_content_alone() -> None:
    hashes = [f"{i:064x}" for i in np.random.default_rng(0).permutation(40)]
    split = dict(zip(hashes, divide(hashes, Division()), strict=True))
    assert divide(hashes[::-1], Division()) == [split[h] for h in hashes[::-1]]
    with pytest.raises(DataError, match="2 different images cannot be divided"):
        divide(["a", "b", "a"], Division())


def test_splits_that_the_data_bring_are_kept(tmp_path: Path) -> None:
    named = [Source(s.name, s.read, ("train", "test", "val")[i % 3]) for i, s in enumerate(made_up(6))]
    manifest = build(tmp_path / "store", "x", named, Cut(40, "grid"))
    assert manifest["tiles"] == {"train": 2, "val": 2, "test": 2}
    assert Store(tmp_path / "store").rows("val").tolist() == [2, 5]


def test_fingerprint_is_of_the_pixels_and_splits(tmp_path: Path) -> None:
    def fingerprint(name: str, images: list[Source], **options: object) -> str:
        return str(build(tmp_path / name, name, images, Cut(8, "grid"), **options)["fingerprint"])  # type: ignore[arg-type]

    images = made_up(10)
    one = fingerprint("a", images)
    assert re.fullmatch(r"sha256:[0-9a-f]{64}", one)
    assert fingerprint("b", images, workers=4) == one
    assert fingerprint("a", images) == one  # over the older one
    renamed = [Source(f"other-{s.name}", s.read) for s in images]
    assert fingerprint("c", renamed) == one
    assert fingerprint("d", images[:-1]) != one
    assert fingerprint("e", images, division=Division(0.3, 0.3)) != one


def test_a_store_must_be_whole(tmp_path: Path, make_store) -> None:
    with pytest.raises(
        DataError, match=r"no images at .*nowhere: make them with `python -m scripts\.prepare_images --source"
    ):
        Store(tmp_path / "nowhere")
    folder = make_store()
    tiles = (folder / "tiles.u8").read_bytes()
    (folder / "tiles.u8").write_bytes(tiles[:-1])
    with pytest.raises(DataError, match=f"tiles.u8 has {len(tiles) - 1} bytes instead of {len(tiles)}"):
        Store(folder)
    (folder / "manifest.json").write_text("{")
    with pytest.raises(DataError, match=r"manifest.json cannot be read"):
        Store(folder)


def test_a_store_that_fails_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"x: no tile for train in 0 usable images \(2 not-an-image\)"):
        build(tmp_path / "store", "x", [Source(n, lambda: b"?") for n in "ab"], Cut(8, "grid"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Cut(2, "grid"), "size must be at least 4, got 2"),
        (lambda: Cut(8, "random"), "mode must be grid or centre, got 'random'"),
        (lambda: Cut(8, "grid", shrink=0), "shrink must be at least 1, got 0"),
        (lambda: Cut(8, "grid", short_side=9), "short_side must be 0 or at least 16, twice the size, got 9"),
        (lambda: Division(val=0.6, test=0.5), "val and test must be shares whose sum is below 1, got 0.6 and 0.5"),
        (lambda: Division(per_image=0), "per_image must be at least 1, got 0"),
    ],
)
def test_options_out_of_range_are_named(make, words: str) -> None:
    with pytest.raises(ConfigError, match=f"^{words}$"):
        make()


# ---- Qt resources ---------------------------------------------------------------------------------------------------


def resource(files: dict[str, tuple[int, bytes]], version: int = 3, folder: str = "d") -> bytes:
    """A resource file with one folder; `files`: name -> (flags, content as stored)."""
    names, offsets, data = b"", {}, b""
    for name in (folder, *files):
        offsets[name] = len(names)
        names += struct.pack(">HI", len(name), 0) + name.encode("utf-16-be")
    end = b"" if version == 1 else b"\0" * 8
    tree = struct.pack(">IHII", 0, 2, 1, 1) + end
    tree += struct.pack(">IHII", offsets[folder], 2, len(files), 2) + end
    for name, (flags, content) in files.items():
        tree += struct.pack(">IHHHI", offsets[name], flags, 0, 0, len(data)) + end
        data += struct.pack(">I", len(content)) + content
    header = 20 + (4 if version == 3 else 0)
    at = [header, header + len(tree), header + len(tree) + len(data)]
    return b"qres" + struct.pack(">4I", version, *at) + b"\0" * (header - 20) + tree + data + names


@pytest.mark.parametrize("version", [1, 2, 3])
def test_resource_files_are_read(tmp_path: Path, version: int) -> None:
    packed = struct.pack(">I", 5) + zlib.compress(b"hello")
    path = tmp_path / "a.rcc"
    path.write_bytes(
        resource({"ä.txt": (0, b"plain"), "b.txt": (1, packed), "c": (4, b"?"), "e": (1, b"1234?")}, version)
    )
    found = ResourceFile(path)
    assert found.names() == ["d/b.txt", "d/c", "d/e", "d/ä.txt"]
    assert found.read("d/ä.txt") == b"plain"
    assert found.read("d/b.txt") == b"hello"
    with pytest.raises(UnreadableResource, match="compressed with Zstandard"):
        found.read("d/c")
    with pytest.raises(UnreadableResource, match="is damaged"):
        found.read("d/e")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"PK\3\4", "is no Qt resource file"),
        (b"qres" + struct.pack(">4I", 9, 0, 0, 0), "of version 9"),
        (b"qres" + struct.pack(">4I", 3, 10**6, 0, 0), "is a damaged Qt resource file"),
        (resource({"a": (0, b"x")})[:40], "is a damaged Qt resource file"),
    ],
)
def test_damaged_resource_files_are_named(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "a.rcc"
    path.write_bytes(content)
    with pytest.raises(DataError, match=f"a.rcc.*{words}"):
        ResourceFile(path)


def test_content_outside_the_resource_is_refused(tmp_path: Path) -> None:
    content = resource({"a": (0, b"x" * 50)})
    (tmp_path / "a.rcc").write_bytes(content.replace(struct.pack(">I", 50), struct.pack(">I", 10**6)))
    with pytest.raises(UnreadableResource, match=r"d/a lies outside"):
        ResourceFile(tmp_path / "a.rcc").read("d/a")


# ---- where images come from -----------------------------------------------------------------------------------------


def packages(cache: Path) -> int:
    """The packages as if they had been fetched; the number of their photographs."""
    seed = 0
    for package in sources.PACKAGES:
        unpacked = cache / f"{package.name}_1_all"
        share = unpacked / "usr/share"
        (share / "doc" / package.name).mkdir(parents=True)
        (share / "doc" / package.name / "copyright").write_text(f"License of {package.name}")
        (cache / f"{unpacked.name}.deb").touch()
        for pattern in package.pictures:
            seed += 1
            image = picture(seed, 300, 260, noise=30)
            path = share / package.folder / pattern.replace("*", "one")
            path.parent.mkdir(parents=True, exist_ok=True)
            if path.suffix == ".rcc":
                files = {"p.webp": (0, encoded(image, "WEBP")), "README": (0, b"by N."), "x.svg": (0, b"<svg/>")}
                files["Gogh.webp"] = (0, encoded(picture(1000 + seed, 300, 260), "WEBP"))
                path.write_bytes(resource(files, folder=path.stem))
            else:
                image.save(path)
    (share.parent.parent.parent / "mate-backgrounds_1_all/usr/share/doc/mate-backgrounds/AUTHORS.gz").write_bytes(
        gzip.compress(b"By M.")
    )
    return seed


def test_photographs_of_the_packages(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    count = packages(tmp_path / ".packages")
    assert prepare_images.main(["--out", str(tmp_path)]) == 0
    store = Store(tmp_path / "photographs-32")
    assert store.manifest["origin"] == {"packages": {package.name: "1" for package in sources.PACKAGES}}
    assert sum(store.manifest["sources"].values()) == count
    assert all(store.manifest["sources"][split] == round(0.2 * count) for split in ("val", "test"))
    notices = {
        p.relative_to(store.folder / "attribution").as_posix() for p in (store.folder / "attribution").rglob("*.txt")
    }
    assert {f"{package.name}.copyright.txt" for package in sources.PACKAGES} <= notices
    assert sum("README" in n for n in notices) == 1 + 8
    assert (store.folder / "attribution/mate-backgrounds/doc-mate-backgrounds-AUTHORS.txt").read_text() == "By M."
    capsys.readouterr()
    assert prepare_images.main(["--out", str(tmp_path)]) == 0
    assert "is there" in capsys.readouterr().out
    # One of an older version is made anew, and says so.
    path = store.folder / "manifest.json"
    path.write_text(path.read_text().replace('"version": 2', '"version": 1'))
    assert prepare_images.main(["--out", str(tmp_path)]) == 0
    assert "manifest.json is of version 1, this code reads 2: make the images anew\n" in capsys.readouterr().out
    assert Store(store.folder).fingerprint == store.fingerprint


def test_a_package_with_other_files_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    packages(tmp_path / ".packages")
    next((tmp_path / ".packages").rglob("fog.jpg")).unlink()
    assert prepare_images.main(["--out", str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert "lxqt/wallpapers holds no fog.jpg: lxqt-themes 1 is not as expected" in said


def test_without_the_packages_one_sentence_names_the_other_choices(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert prepare_images.main(["--out", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "apt-get is not installed here" in said
    assert "--source cifar10" in said
    assert "--source folder" in said


class Apt:
    """Stands for `apt-get` and `dpkg`. `lists`: the machine has package lists; `fails`: packages that cannot be had."""

    def __init__(self, lists: bool = True, fails: tuple[str, ...] = ()) -> None:
        self.lists, self.fails, self.calls = lists, fails, list[str]()

    def __call__(self, command: Sequence[str], cwd: Path) -> str:
        own = "own " if "-o" in command else ""
        self.calls.append("update" if "update" in command else f"{own}{command[0]} {Path(command[-1]).name}")
        if "download" in command:
            if not (self.lists or own) or command[-1] in self.fails:
                (cwd / f"{command[-1]}_1_all.deb.part").touch()
                raise debian.PackageUnavailable("no network")
            (cwd / f"{command[-1]}_1_all.deb").touch()
        if command[0] == "dpkg":
            Path(command[-1]).mkdir()
        return ""


@pytest.fixture
def apt(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Apt]:
    def stand_in(**options: Any) -> Apt:
        found = Apt(**options)
        monkeypatch.setattr(debian, "_run", found)
        monkeypatch.setattr(debian.shutil, "which", lambda name: name)
        return found

    return stand_in


def test_package_lists_of_our_own_where_the_machine_has_none(tmp_path: Path, apt: Callable[..., Apt]) -> None:
    machine, said = apt(lists=False), list[str]()
    found = debian.fetch(["p", "q"], tmp_path / "cache", said.append)
    assert {name: (folder.name, version) for name, (folder, version) in found.items()} == {
        "p": ("p_1_all", "1"), "q": ("q_1_all", "1")
    }  # fmt: skip
    assert all(folder.is_dir() for folder, _ in found.values())
    # The lists are fetched once, not once a package.
    assert machine.calls[:4] == ["apt-get p", "update", "own apt-get p", "own apt-get q"]
    assert said == ["fetching the Debian package p (1 of 2)", "fetching the Debian package q (2 of 2)"]
    before = len(machine.calls)
    debian.fetch(["p", "q"], tmp_path / "cache", said.append)
    assert (len(machine.calls), len(said)) == (before, 2)


def test_an_interrupted_fetch_goes_on_with_what_is_missing(tmp_path: Path, apt: Callable[..., Apt]) -> None:
    apt(fails=("q",))
    with pytest.raises(
        debian.PackageUnavailable, match=r"^q, r cannot be had here \(no network\); .* download q r`"
    ) as e:
        debian.fetch(["p", "q", "r"], tmp_path)
    assert str(tmp_path) in str(e.value)
    assert [p.name for p in tmp_path.glob("*.deb")] == ["p_1_all.deb"]
    machine = apt()
    debian.fetch(["p", "q", "r"], tmp_path)
    assert machine.calls[:2] == ["apt-get q", "apt-get r"]


def test_a_package_that_cannot_be_unpacked_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "p_1_all.deb").write_bytes(b"no package")

    def fail(command: Sequence[str], cwd: Path) -> str:
        raise debian.PackageUnavailable("dpkg failed: not a Debian format archive")

    monkeypatch.setattr(debian, "_run", fail)
    with pytest.raises(
        debian.PackageUnavailable, match=r"p_1_all\.deb cannot be unpacked \(dpkg failed: .*remove it and run"
    ):
        debian.fetch(["p"], tmp_path)


def test_folder_of_images(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pictures = tmp_path / "pictures"
    (pictures / "sub").mkdir(parents=True)
    (pictures / ".hidden").mkdir()
    for i in range(8):
        picture(i, 80, 80).save(pictures / ("sub" if i % 2 else "") / f"{i}.png")
    (pictures / "notes.txt").write_text("no image")
    (pictures / ".hidden/x.png").write_bytes(b"not looked at")
    command = ["--out", str(tmp_path / "out"), "--source", "folder", "--folder", str(pictures), "--size", "16"]
    assert prepare_images.main(command) == 0
    assert "not-an-image: 1, such as notes.txt" in capsys.readouterr().out
    store = Store(tmp_path / "out/pictures-16")
    assert store.manifest["name"] == "pictures"
    assert store.manifest["sources"] == {"train": 6, "val": 1, "test": 1}


def test_folder_with_splits_must_have_all_three(tmp_path: Path) -> None:
    for split in ("train", "test"):
        (tmp_path / split).mkdir()
        picture(0).save(tmp_path / split / "a.png")
    with pytest.raises(DataError, match="has a folder test but none with files named val"):
        sources.folder(tmp_path)
    (tmp_path / "val").mkdir()
    picture(1).save(tmp_path / "val/a.png")
    assert {s.name: s.split for s in sources.folder(tmp_path).sources} == {
        "test/a.png": "test", "train/a.png": "train", "val/a.png": "val"
    }  # fmt: skip


def test_bad_folders_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(DataError, match="nowhere is no folder"):
        sources.folder(tmp_path / "nowhere")
    with pytest.raises(DataError, match="holds no files"):
        sources.folder(tmp_path)
    assert prepare_images.main(["--source", "folder", "--out", str(tmp_path)]) == 2
    assert "needs --folder DIR" in capsys.readouterr().err


def test_samples_of_scikit_image(tmp_path: Path) -> None:
    pytest.importorskip("skimage", reason="the sample photographs are in scikit-image, which is optional")
    assert prepare_images.main(["--out", str(tmp_path), "--source", "samples"]) == 0
    store = Store(tmp_path / "samples-32")
    assert store.manifest["sources"] == {"train": 5, "val": 1, "test": 1}


def test_data_set_of_the_hub_from_a_local_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    columns = datasets.Features({"img": datasets.Image(), "label": datasets.Value("int64")})
    copy = tmp_path / "copy/plain"
    copy.mkdir(parents=True)
    for split, count in (("train", 30), ("test", 4)):
        rows = {"img": [picture(i, 32, 32) for i in range(count)], "label": [0] * count}
        datasets.Dataset.from_dict(rows, features=columns).to_parquet(copy / f"{split}-00000-of-00001.parquet")
    found = sources.hub("cifar10", str(copy))
    splits = [s.split for s in found.sources]
    assert [splits.count(s) for s in SPLITS] == [15, 15, 4]
    command = ["--out", str(tmp_path), "--source", "cifar10", "--path", str(copy)]
    assert prepare_images.main(command) == 0
    store = Store(tmp_path / "cifar10-32")
    assert store.manifest["origin"] == {"hub": "uoft-cs/cifar10"}
    assert np.array_equal(store.tiles[store.rows("test")[2]], np.asarray(picture(2, 32, 32)))


def test_data_set_that_cannot_be_had_names_the_other_choices(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"cannot be loaded .*--path.*--source photographs"):
        sources.hub("cifar10", str(tmp_path / "nowhere"))
    with pytest.raises(ConfigError, match="one of cifar10, imagenet, got 'mnist'"):
        sources.hub("mnist")
