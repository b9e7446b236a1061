"""Where images come from: photographs in Debian packages, a few in scikit-image, a folder, or a data set of the hub."""

from __future__ import annotations

import gzip
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from fnmatch import fnmatch
from functools import partial
from importlib import metadata, util
from pathlib import Path
from typing import Any

from experiments.core.errors import ConfigError, DataError
from experiments.vqvae import debian
from experiments.vqvae.decode import BadImage
from experiments.vqvae.rcc import ResourceFile, UnreadableResource
from experiments.vqvae.store import SPLITS, Source

# Colour photographs that scikit-image's wheel carries.
SAMPLES = ("astronaut.png", "chelsea.png", "coffee.png", "hubble_deep_field.jpg", "motorcycle_left.png", "retina.jpg",
           "rocket.jpg")  # fmt: skip
# What is left out unread.
BROKEN_LINK = "broken-link"
LINK_LOOP = "link-loop"
NO_FILE = "no-regular-file"
OUTSIDE = "outside-the-splits"
UNREADABLE_FOLDER = "unreadable-folder"
MISSING = "missing-image"
_SUFFIXES = (".jpg", ".jpeg", ".webp", ".png")


@dataclass(frozen=True)
class Package:
    """A Debian package with photographs, which were told from drawings by eye.

    Attributes:
        name: of the package.
        folder: under usr/share in the package.
        pictures: patterns of the photographs in `folder`; in a folder of Qt resource files, names of those.
        omitted: patterns of paintings and drawings between the photographs of Qt resource files.
        notes: patterns under usr/share of further files that name authors and licences.
    """

    name: str
    folder: str
    pictures: tuple[str, ...]
    omitted: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


_PLASMA = ("Autumn", "BytheWater", "ColdRipple", "ColorfulCups", "DarkestHour", "EveningGlow", "FallenLeaf", "Grey",
           "Kite", "OneStandsOut", "Path", "summer_1am")  # fmt: skip
PACKAGES = (
    Package("lomiri-wallpapers-16.04", "backgrounds", ("*.jpg",)),
    Package("mate-backgrounds", "backgrounds/mate/nature", ("*.jpg",), notes=("doc/mate-backgrounds/AUTHORS*",)),
    Package(
        "lxqt-themes",
        "lxqt/wallpapers",
        ("Butterfly-Kenneth-Wimer.jpg", "Valendas.png", "after-the-rain.jpg", "appleflower.png", "beam.png",
         "butterfly.png", "cloud.png", "drop.png", "flowers.png", "fog.jpg", "this-is-not-windows.jpg"),
    ),
    Package(
        "plasma-workspace-wallpapers",
        "wallpapers",
        tuple(f"{name}/contents/images/2560x1600.jpg" for name in _PLASMA),
        notes=tuple(f"wallpapers/{name}/metadata.json" for name in _PLASMA),
    ),
    Package("palapeli-data", "palapeli/collection", ("*.jpg",), notes=("palapeli/collection/*.desktop",)),
    Package("gnome-taquin", "gnome-taquin/themes/cats", ("*.jpg",)),
    Package("puzzle-jigsaw", "puzzle-jigsaw/samples", ("*.jpg", "*.jpeg")),
    Package("tuxpaint-data", "tuxpaint/templates", ("*.jpg",), notes=("doc/tuxpaint-data/AUTHORS*",)),
    Package(
        "gcompris-qt-data",
        "gcompris-qt/rcc",
        ("categorization.rcc", "clickgame.rcc", "details.rcc", "erase.rcc", "explore_farm_animals.rcc",
         "explore_monuments.rcc", "explore_world_animals.rcc", "explore_world_music.rcc"),
        omitted=("*/alphabets/*", "*/numbers/*", "*/Eglise_dAuvers*", "*Gogh*", "*/PortraitOfPereTanguy*"),
    ),
)  # fmt: skip


@dataclass(frozen=True)
class Collection:
    """Images with where they come from and texts of attribution (file name -> text).

    `problems` names what is left out unread: (kind, name, reason).
    """

    name: str
    sources: Iterator[Source]
    origin: dict[str, Any] = field(default_factory=dict)
    attribution: dict[str, str] = field(default_factory=dict)
    problems: tuple[tuple[str, str, str], ...] = ()


def _read_resource(file: ResourceFile, name: str) -> bytes:
    try:
        return file.read(name)
    except UnreadableResource as error:
        raise OSError(str(error)) from error


def _text(path: Path) -> str:
    content = path.read_bytes()
    return (gzip.decompress(content) if path.suffix == ".gz" else content).decode("utf-8", errors="replace")


def _of_package(package: Package, unpacked: Path, version: str) -> tuple[list[Source], dict[str, str]]:
    """The photographs of a package, and its texts of attribution."""
    share = unpacked / "usr/share"
    sources: list[Source] = []
    attribution: dict[str, str] = {}
    for pattern in package.pictures:
        found = sorted((share / package.folder).glob(pattern))
        if not found:
            raise DataError(f"{share / package.folder} holds no {pattern}: {package.name} {version} is not as expected")
        for path in found:
            if path.suffix != ".rcc":
                name = path.relative_to(share / package.folder).as_posix()
                sources.append(Source(f"{package.name}/{name}", path.read_bytes))
                continue
            resource = ResourceFile(path)
            for name in resource.names():
                short = name.removeprefix("gcompris/src/activities/").replace("/resource/", "/")
                if name.lower().endswith(_SUFFIXES):
                    if any(fnmatch(name, pattern) for pattern in package.omitted):
                        continue
                    sources.append(Source(f"{package.name}/{short}", partial(_read_resource, resource, name)))
                elif name.rsplit("/", 1)[-1].startswith("README"):
                    text = resource.read(name).decode("utf-8", errors="replace")
                    attribution[f"{package.name}/{short.replace('/', '-')}.txt"] = text
    notice = share / "doc" / package.name / "copyright"
    if notice.exists():
        attribution[f"{package.name}.copyright.txt"] = _text(notice)
    for pattern in package.notes:
        for path in sorted(share.glob(pattern)):
            name = path.relative_to(share).as_posix().replace("/", "-")
            attribution[f"{package.name}/{name.removesuffix('.gz')}.txt"] = _text(path)
    return sources, attribution


def photographs(cache: str | Path, say: Callable[[str], None] = lambda _: None) -> Collection:
    """Photographs of nine Debian packages, downloaded into `cache` unless they are there. No root needed.

    Raises:
        DataError: a package cannot be had, or holds other files than expected.
    """
    try:
        fetched = debian.fetch([package.name for package in PACKAGES], cache, say)
    except debian.PackageUnavailable as error:
        raise DataError(
            f"the photographs come from Debian packages: {error}; the other choices are CIFAR-10 with "
            "`--source cifar10` and your own images with `--source folder --folder DIR`"
        ) from error
    sources: list[Source] = []
    attribution: dict[str, str] = {}
    versions = {package: version for package, (_, version) in fetched.items()}
    for package in PACKAGES:
        found, texts = _of_package(package, *fetched[package.name])
        sources += found
        attribution |= texts
    attribution["README.txt"] = (
        "The tiles are scaled crops of photographs from these Debian packages:\n"
        + "".join(f"  {package} {version}\n" for package, version in versions.items())
        + "../sources.jsonl names the photograph of each tile. Authors and licences (mostly CC-BY, CC-BY-SA and GPL)\n"
        "stand in the packages' copyright files, in the notes beside the photographs and in the README files of\n"
        "GCompris's activities, all copied into this folder.\n"
    )
    return Collection("photographs", iter(sources), {"packages": versions}, attribution)


def samples() -> Collection:
    """Seven photographs that the Python package scikit-image carries: for tests, too few to learn from.

    Raises:
        DataError: scikit-image is not installed.
    """
    spec = util.find_spec("skimage")
    if spec is None or spec.origin is None:
        raise DataError("the sample photographs come from the Python package scikit-image: `pip install scikit-image`")
    folder = Path(spec.origin).parent / "data"
    sources = [Source(f"scikit-image/{name}", (folder / name).read_bytes) for name in SAMPLES]
    version = metadata.version("scikit-image")
    attribution = {"README.txt": f"Crops of photographs from scikit-image {version}; see its data/README.txt.\n"}
    notice = folder / "README.txt"
    if notice.exists():
        attribution["scikit-image.txt"] = notice.read_text(encoding="utf-8", errors="replace")
    return Collection("samples", iter(sources), {"packages": {"scikit-image": version}}, attribution)


def _walk(
    path: Path, within: tuple[str, ...], above: frozenset[str], problems: list[tuple[str, str, str]]
) -> Iterator[tuple[tuple[str, ...], Path]]:
    """All files under a folder with their names in parts, links followed; hidden ones are passed over."""
    try:
        entries = sorted(path.iterdir())
    except OSError as error:
        problems.append((UNREADABLE_FOLDER, _shown(within), error.strerror or str(error)))
        return
    for entry in entries:
        if entry.name.startswith("."):
            continue
        parts = (*within, entry.name)
        try:
            target = str(entry.resolve(strict=True))
        except (OSError, RuntimeError):
            problems.append(
                (BROKEN_LINK, _shown(parts), f"leads to {os.readlink(entry)}" if entry.is_symlink() else "")
            )
            continue
        if entry.is_dir():
            if target in above:
                problems.append((LINK_LOOP, _shown(parts), f"leads back to {target}"))
            else:
                yield from _walk(entry, parts, above | {target}, problems)
        elif entry.is_file():
            yield parts, entry
        else:
            problems.append((NO_FILE, _shown(parts), "a device, socket or pipe"))


def _shown(parts: tuple[str, ...]) -> str:
    """A name that can be written anywhere, whatever bytes the file system has."""
    return "/".join(parts).encode("utf-8", "backslashreplace").decode()


def folder(path: str | Path) -> Collection:
    """All files in a folder and the folders in it, hidden ones excepted; links are followed. Files under `train`, `val`
    and `test`, in any case, keep that split; files beside those folders are left out.

    Raises:
        DataError: there is no such folder, or it has only some of the three folders, or one of them twice.
    """
    path = Path(path)
    if not path.is_dir():
        raise DataError(f"{path} is no folder")
    problems: list[tuple[str, str, str]] = []
    files = list(_walk(path, (), frozenset({str(path.resolve())}), problems))
    if not files:
        left_out = "".join(f"; {kind}: {name}" for kind, name, _ in problems[:3])
        raise DataError(f"{path} holds no files{left_out}")
    folders: dict[str, set[str]] = {}
    for parts, _ in files:
        if len(parts) > 1 and parts[0].lower() in SPLITS:
            folders.setdefault(parts[0].lower(), set()).add(parts[0])
    for split, names in folders.items():
        if len(names) > 1:
            raise DataError(f"{path} has {len(names)} folders for {split}: {' and '.join(sorted(names))}")
    if folders and len(folders) < 3:
        missing = sorted(set(SPLITS) - set(folders))
        raise DataError(f"{path} has a folder {sorted(folders)[0]} but none with files named {' and '.join(missing)}")
    sources = []
    for parts, file in files:
        split = parts[0].lower() if folders and len(parts) > 1 else ""
        if folders and split not in SPLITS:
            problems.append((OUTSIDE, _shown(parts), "beside the folders train, val and test"))
        else:
            sources.append(Source(_shown(parts), file.read_bytes, split))
    name = _shown((path.resolve().name,))
    return Collection(name, iter(sources), {"folder": name}, problems=tuple(problems))


@dataclass(frozen=True)
class HubSet:
    """A data set for `datasets`. `held_out`: images of the training split that become our validation split."""

    path: str
    column: str
    train: str
    test: str
    held_out: int


HUB = {
    "cifar10": HubSet("uoft-cs/cifar10", "img", "train", "test", 5_000),
    # Its test split has hidden labels but no use here; its validation split is what is reported everywhere.
    "imagenet": HubSet("ILSVRC/imagenet-1k", "image", "train", "validation", 10_000),
}


def hub(name: str, path: str | None = None) -> Collection:
    """CIFAR-10 or ImageNet, through `datasets`.

    Args:
        name: "cifar10" or "imagenet".
        path: a local copy, or another name on the hub, with the same splits and columns.

    Raises:
        DataError: it can neither be downloaded nor read.
    """
    if name not in HUB:
        raise ConfigError(f"the data set must be one of {', '.join(HUB)}, got {name!r}")
    import datasets

    spec = HUB[name]
    try:
        loaded = datasets.load_dataset(path or spec.path)
        train, test = (
            loaded[s].cast_column(spec.column, datasets.Image(decode=False)) for s in (spec.train, spec.test)
        )
    except Exception as error:  # whatever the hub's client, the network and the file readers raise
        said = str(error).strip().splitlines()
        raise DataError(
            f"{path or spec.path} cannot be loaded ({type(error).__name__}: {said[0] if said else 'no message'}); "
            "name a local copy with --path, or take the embedded photographs with `--source photographs`"
        ) from error

    def read(split: Any, index: int) -> bytes:
        image = split[index][spec.column]
        if image is None or (image["bytes"] is None and not image["path"]):
            raise BadImage(MISSING, f"row {index} has no image")
        content: bytes = image["bytes"] if image["bytes"] is not None else Path(image["path"]).read_bytes()
        return content

    def sources() -> Iterator[Source]:
        # The images held out are spread evenly: some sets are sorted by class.
        every = max(2, len(train) // spec.held_out)
        for i in range(len(train)):
            split = "val" if i % every == every - 1 else "train"
            yield Source(f"{spec.train}/{i}", partial(read, train, i), split)
        for i in range(len(test)):
            yield Source(f"{spec.test}/{i}", partial(read, test, i), "test")

    return Collection(name, sources(), {"hub": spec.path})
