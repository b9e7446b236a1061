"""From an image file's bytes to 8-bit RGB: every kind of file that people have is either converted or named."""

from __future__ import annotations

import io
import warnings
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError

Pixels = npt.NDArray[np.uint8]

# Left out.
NOT_AN_IMAGE = "not-an-image"
UNREADABLE = "unreadable-image"
TOO_SMALL = "smaller-than-crop"
UNSUPPORTED = "unsupported-pixels"
# Converted and kept.
GREYSCALE = "greyscale-to-rgb"
ALPHA = "alpha-over-white"
DEEP = "16-bit-to-8-bit"


class BadImage(ValueError):
    """An image that is left out; `kind` is counted in the run record's problems."""

    def __init__(self, kind: str, reason: str) -> None:
        super().__init__(reason)
        self.kind = kind


@dataclass(frozen=True)
class Decoded:
    """An image, and what had to be converted. `pixels`: (H, W, 3) uint8."""

    pixels: Pixels
    converted: tuple[str, ...] = ()


def _eight_bits(image: Image.Image) -> Image.Image:
    """A 16-bit greyscale image in 8 bits. Pillow clips such images instead of scaling them."""
    values = np.asarray(image).astype(np.int64)
    if values.size and (values.min() < 0 or values.max() > 65535):
        raise BadImage(UNSUPPORTED, f"grey values from {values.min()} to {values.max()}, outside 16 bits")
    return Image.fromarray(((values + 128) // 257).astype(np.uint8))


def decode(content: bytes) -> Decoded:
    """Decode an image file; the first frame, the right way up.

    Greyscale is repeated over the channels, transparency is laid over white, 16 bits are scaled to 8.

    Raises:
        BadImage: no image, a damaged one, or one whose pixels have no plain meaning as RGB.
    """
    converted = []
    try:
        with warnings.catch_warnings():
            # A picture of more than about 90 megapixels: Pillow warns, and refuses twice that.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            opened = Image.open(io.BytesIO(content))
            opened.load()
            image = ImageOps.exif_transpose(opened)
    except UnidentifiedImageError as error:
        raise BadImage(NOT_AN_IMAGE, "no image format that Pillow knows") from error
    except (OSError, ValueError, SyntaxError, EOFError, IndexError, Image.DecompressionBombError) as error:
        raise BadImage(UNREADABLE, str(error) or type(error).__name__) from error

    if image.mode.startswith("I"):
        image = _eight_bits(image)
        converted.append(DEEP)
    if image.mode == "F":
        raise BadImage(UNSUPPORTED, "floating-point pixels")
    if image.mode in ("1", "L", "LA"):
        converted.append(GREYSCALE)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        if np.asarray(image.getchannel("A")).min() < 255:
            white = Image.new("RGBA", image.size, "white")
            image = Image.alpha_composite(white, image)
            converted.append(ALPHA)
    return Decoded(np.asarray(image.convert("RGB")), tuple(converted))
