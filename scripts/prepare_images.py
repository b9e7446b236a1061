"""Decode and crop the images of the VQ-VAE task, once, into a memory map with a fingerprint.

    python -m scripts.prepare_images --out data/images                          # photographs from Debian packages
    python -m scripts.prepare_images --out data/images --source cifar10
    python -m scripts.prepare_images --out data/images --source imagenet --size 256 --path /data/imagenet
    python -m scripts.prepare_images --out data/images --source folder --folder ~/Pictures
    python -m scripts.prepare_images --out data/images --source samples         # seven photographs, for tests

Each makes the store <out>/<name>-<size>; configs/data/vqvae_*.yaml read them.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from experiments.core.errors import DataError, UserError
from experiments.core.files import data_dir
from experiments.vqvae import sources
from experiments.vqvae.store import NAMED, SPLITS, Cut, Division, Store, build

SOURCES = (*NAMED, "folder")


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="python -m scripts.prepare_images",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    out = data_dir() / "images"
    p.add_argument("--out", type=Path, default=out, help=f"folder of the stores (default: {out})")
    p.add_argument("--source", choices=SOURCES, default="photographs", help="default: photographs")
    p.add_argument("--folder", type=Path, help="with --source folder: where the images are")
    p.add_argument("--path", help="with cifar10 and imagenet: a local copy, or another name on the hub")
    p.add_argument("--name", help="name of the data set (default: that of the source)")
    p.add_argument("--size", type=int, default=32, help="edge of a tile in pixels (default: 32)")
    p.add_argument(
        "--mode", choices=("grid", "centre"), help="all tiles of a grid, or the middle of the scaled image "
        "(default: centre for cifar10 and imagenet, else grid)"
    )  # fmt: skip
    p.add_argument("--stride", type=int, help="grid: from tile to tile in pixels (default: 5/8 of the size)")
    p.add_argument("--shrink", type=int, default=2, help="grid: factor to scale down by before cutting (default: 2)")
    p.add_argument("--short-side", type=int, default=0, help="grid: scale down further, to about this shorter side")
    p.add_argument("--min-side", type=int, default=0, help="leave out images with a shorter side than this")
    p.add_argument("--workers", type=int, default=min(8, os.cpu_count() or 1), help="threads that decode")
    p.add_argument("--force", action="store_true", help="make the store anew even if it is there")
    return p


def collect(options: argparse.Namespace) -> sources.Collection:
    if options.source == "photographs":
        return sources.photographs(options.out / ".packages", lambda sentence: print(sentence, flush=True))
    if options.source == "samples":
        return sources.samples()
    if options.source == "folder":
        if options.folder is None:
            raise DataError("--source folder needs --folder DIR")
        return sources.folder(options.folder)
    return sources.hub(options.source, options.path)


def summary(manifest: dict[str, object]) -> str:
    tiles, images = manifest["tiles"], manifest["sources"]
    assert isinstance(tiles, dict)
    assert isinstance(images, dict)
    return ", ".join(f"{tiles[s]} {s} tiles of {images[s]} images" for s in SPLITS)


def _progress(images: int, tiles: int) -> None:
    print(f"{images} images, {tiles} tiles", end="\r", flush=True)


def main(argv: Sequence[str] | None = None) -> int:
    options = parser().parse_args(argv)
    hub = options.source in sources.HUB
    photographs = options.source == "photographs"
    try:
        name = options.name or (options.folder.resolve().name if options.folder else options.source)
        target = options.out / f"{name}-{options.size}"
        if not options.force and (target / "manifest.json").exists():
            try:
                print(f"{target} is there: {summary(Store(target).manifest)}. --force makes it anew.")
                return 0
            except DataError as error:  # of an older version, or damaged
                print(error, flush=True)
        cut = Cut(
            size=options.size,
            mode=options.mode or ("centre" if hub else "grid"),
            stride=options.size * 5 // 8 if options.stride is None else options.stride,
            shrink=options.shrink,
            # Wallpapers have up to 16 megapixels, GCompris's pictures down to 320x213; smaller ones are drawings.
            short_side=options.short_side or (540 if photographs else 0),
            min_side=options.min_side or (200 if photographs else 0),
            flat=6.0 if photographs else 0.0,
        )
        # An error over photographs needs photographs: three fifths of them are enough to learn from.
        division = Division(val=0.2, test=0.2, per_image=48) if photographs else Division()
        collection = collect(options)
        manifest = build(
            target,
            options.name or collection.name,
            collection.sources,
            cut,
            division,
            collection.attribution,
            collection.origin,
            options.workers,
            _progress if sys.stdout.isatty() else None,
            collection.problems,
        )
        print(f"{target}: {summary(manifest)}")
        for kind, count in manifest["problems"].items():
            names = manifest["problem_names"].get(kind, [])
            print(f"  {kind}: {count}{f', such as {names[0]}' if names else ''}")
        print(f"  {manifest['fingerprint']}")
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
