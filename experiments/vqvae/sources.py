"""Where images come from: photographs in Debian packages, a few in scikit-image, a folder, or a data set of the hub."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from importlib import metadata, util
from pathlib import Path
from typing import Any

from experiments.core.errors import ConfigError, DataError
from experiments.vqvae import debian
from experiments.vqvae.rcc import ResourceFile, UnreadableResource
from experiments.vqvae.store import Source

WALLPAPERS = "lomiri-wallpapers-16.04"
GCOMPRIS = "gcompris-qt-data"
# Activities of GCompris that are illustrated with photographs.
ACTIVITIES = (
    "categorization", "clickgame", "details", "erase", "explore_farm_animals", "explore_monuments",
    "explore_world_animals",
)  # fmt: skip
# Colour photographs that scikit-image's wheel carries.
SAMPLES = ("astronaut.png", "chelsea.png", "coffee.png", "hubble_deep_field.jpg", "motorcycle_left.png", "retina.jpg",
           "rocket.jpg")  # fmt: skip
_SUFFIXES = (".jpg", ".jpeg", ".webp", ".png")


@dataclass(frozen=True)
class Collection:
    """Images with where they come from and texts of attribution (file name -> text)."""

    name: str
    sources: Iterator[Source]
    origin: dict[str, Any] = field(default_factory=dict)
    attribution: dict[str, str] = field(default_factory=dict)


def _read_resource(file: ResourceFile, name: str) -> bytes:
    try:
        return file.read(name)
    except UnreadableResource as error:
        raise OSError(str(error)) from error


def photographs(cache: str | Path) -> Collection:
    """Photographs of two Debian packages, downloaded into `cache` unless they are there. No root needed.

    Raises:
        DataError: a package cannot be had, or holds other files than expected.
    """
    try:
        (wallpapers, version_w), (gcompris, version_g) = (
            debian.fetch(package, cache) for package in (WALLPAPERS, GCOMPRIS)
        )
    except debian.PackageUnavailable as error:
        raise DataError(
            f"the photographs come from the Debian packages {WALLPAPERS} and {GCOMPRIS}, which cannot be had here "
            f"({error}); the other choices are CIFAR-10 with `--source cifar10` and your own images with "
            "`--source folder --folder DIR`"
        ) from error
    pictures = sorted((wallpapers / "usr/share/backgrounds").glob("*.jpg"))
    if not pictures:
        raise DataError(f"{wallpapers}/usr/share/backgrounds holds no photographs; version {version_w}")
    sources = [Source(f"{WALLPAPERS}/{path.name}", path.read_bytes) for path in pictures]
    attribution = {}
    for package, folder in ((WALLPAPERS, wallpapers), (GCOMPRIS, gcompris)):
        notice = folder / "usr/share/doc" / package / "copyright"
        if notice.exists():
            attribution[f"{package}.copyright.txt"] = notice.read_text(encoding="utf-8", errors="replace")
    for activity in ACTIVITIES:
        resource = ResourceFile(gcompris / "usr/share/gcompris-qt/rcc" / f"{activity}.rcc")
        for name in resource.names():
            short = name.removeprefix("gcompris/src/activities/").replace("/resource/", "/")
            if name.lower().endswith(_SUFFIXES):
                sources.append(Source(f"{GCOMPRIS}/{short}", partial(_read_resource, resource, name)))
            elif name.rsplit("/", 1)[-1].startswith("README"):
                text = resource.read(name).decode("utf-8", errors="replace")
                attribution[f"{GCOMPRIS}/{short.replace('/', '-')}.txt"] = text
    attribution["README.txt"] = (
        f"The tiles are scaled crops of photographs from the Debian packages {WALLPAPERS} {version_w} and\n"
        f"{GCOMPRIS} {version_g}; ../sources.jsonl names the photograph of each tile. Their authors and licences\n"
        "(mostly CC-BY and CC-BY-SA) stand in the packages' copyright files and in the README files of GCompris's\n"
        "activities, copied into this folder.\n"
    )
    origin = {"packages": {WALLPAPERS: version_w, GCOMPRIS: version_g}}
    return Collection("photographs", iter(sources), origin, attribution)


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


def folder(path: str | Path) -> Collection:
    """All files in a folder and the folders in it, hidden ones excepted. Files under `train`, `val` and `test` keep
    that split.

    Raises:
        DataError: there is no such folder, or it has only some of the three folders.
    """
    path = Path(path)
    if not path.is_dir():
        raise DataError(f"{path} is no folder")
    files = sorted(
        file
        for file in path.rglob("*")
        if file.is_file() and not any(part.startswith(".") for part in file.relative_to(path).parts)
    )
    if not files:
        raise DataError(f"{path} holds no files")
    names = [file.relative_to(path) for file in files]
    splits = {name.parts[0] for name in names} & {"train", "val", "test"}
    if splits and len(splits) < 3:
        missing = sorted({"train", "val", "test"} - splits)
        raise DataError(f"{path} has a folder {sorted(splits)[0]} but none named {' and '.join(missing)}")
    sources = [
        Source(name.as_posix(), file.read_bytes, name.parts[0] if name.parts[0] in splits else "")
        for name, file in zip(names, files, strict=True)
    ]
    return Collection(path.resolve().name, iter(sources), {"folder": path.resolve().name})


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
