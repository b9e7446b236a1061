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


# Tags of TIFF files.
_BITS, _PHOTOMETRIC, _SAMPLE_FORMAT = 258, 262, 339


def _first(tag: object) -> object:
    return tag[0] if isinstance(tag, tuple) and tag else tag


def _eight_bits(image: Image.Image, opened: Image.Image) -> Image.Image:
    """A greyscale image of 9 to 16 bits in 8 bits. Pillow clips such images instead of scaling them.

    Only in a TIFF file may a grey value have other than 16 bits: Pillow scales the other formats' values.
    """
    tags = getattr(opened, "tag_v2", {})
    bits = _first(tags.get(_BITS, 16))
    if _first(tags.get(_SAMPLE_FORMAT, 1)) not in (1, 4) or not isinstance(bits, int) or bits > 16:
        raise BadImage(UNSUPPORTED, f"grey values of {bits} bits or with a sign, which do not tell where white lies")
    white = 2**bits - 1
    values = np.asarray(image).astype(np.int64)
    if values.size and (values.min() < 0 or values.max() > white):
        raise BadImage(UNSUPPORTED, f"grey values from {values.min()} to {values.max()}, outside {bits} bits")
    if tags.get(_PHOTOMETRIC) == 0:  # white is 0, which Pillow heeds up to 8 bits
        values = white - values
    return Image.fromarray(((values * 255 + white // 2) // white).astype(np.uint8))


def _decode(content: bytes) -> Decoded:
    converted = []
    with warnings.catch_warnings():
        # Pillow warns of large pictures and of odd headers, and refuses pictures that are too large.
        warnings.simplefilter("ignore")
        opened = Image.open(io.BytesIO(content))
        opened.load()
        image = ImageOps.exif_transpose(opened)
        if image.mode.startswith("I"):
            image = _eight_bits(image, opened)
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


def decode(content: bytes) -> Decoded:
    """Decode an image file; the first frame, the right way up.

    Greyscale is repeated over the channels, transparency is laid over white, up to 16 bits are scaled to 8.

    Raises:
        BadImage: no image, a damaged one, or one whose pixels have no plain meaning as RGB.
    """
    try:
        return _decode(content)
    except BadImage:
        raise
    except UnidentifiedImageError as error:
        raise BadImage(NOT_AN_IMAGE, "no image format that Pillow knows") from error
    except Exception as error:  # on damaged files Pillow's forty readers raise whatever they stumble over
        raise BadImage(UNREADABLE, str(error) or type(error).__name__) from error
