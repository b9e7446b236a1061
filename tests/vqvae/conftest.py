"""Small made-up images for the tests of the VQ-VAE."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from experiments.vqvae.store import Cut, Division, Source, build


def picture(seed: int, width: int = 40, height: int = 40, noise: float = 8.0) -> Image.Image:
    """A coloured ramp with a little noise, different for each seed."""
    random = np.random.default_rng(seed)
    x, y = np.meshgrid(np.linspace(0, 1, width), np.linspace(0, 1, height))
    ramps = np.stack([a * x + b * y for a, b in random.uniform(-1, 1, (3, 2))], axis=-1)
    pixels = 128 + 90 * ramps + random.normal(0, noise, ramps.shape)
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def encoded(image: Image.Image, kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    image.save(file, kind)
    return file.getvalue()


def sources(count: int, width: int = 40, height: int = 40) -> list[Source]:
    contents = [encoded(picture(seed, width, height)) for seed in range(count)]
    return [Source(f"{i}.png", lambda c=c: c) for i, c in enumerate(contents)]


@pytest.fixture
def make_store(tmp_path: Path) -> Callable[..., Path]:
    """`make_store(size=8, count=20)`: the folder of a store of such tiles from so many images."""

    def make(size: int = 8, count: int = 20, folder: Path | None = None) -> Path:
        folder = folder or tmp_path / f"store-{size}"
        build(folder, "made-up", sources(count), Cut(size, "grid"), Division(val=0.1, test=0.1, per_image=9))
        return folder

    return make
