"""Encoded images to RGB pixels, strictly.

Six formats of Pillow and DICOM. Nothing is decoded before its declared size is known to be within the limits,
and what comes out carries pixels only: no comment, EXIF or header of the file. Messages name the file and
the reason, never what a library said, which may quote the file.
"""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from io import BytesIO

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from bmpeft.errors import ImageError
from bmpeft.images.dicom import is_dicom, read_dicom
from bmpeft.images.limits import Refused, check_size

FORMATS = ("PNG", "JPEG", "TIFF", "BMP", "WEBP", "GIF")
BACKGROUND = (255, 255, 255)
"""What shows through transparent pixels: the paper that figures are made for."""

# Modes of Pillow that have alpha, or may have it beside the pixels.
_WITH_ALPHA = ("RGBA", "LA", "PA", "RGBa", "La")
_SIXTEEN_BITS = ("I;16", "I;16L", "I;16B", "I;16N")
_PLAIN = ("1", "L", "P", "RGB", "RGBX", "CMYK", "YCbCr", "HSV")


def decode_image(data: bytes, name: str, *, row: int | None = None) -> Image.Image:
    """Decode an image file: the first frame, turned upright as its EXIF says, in mode RGB.

    Grey of 16 bits is scaled by its full range (65,535 becomes 255), transparent pixels show white, CMYK is
    converted without a colour profile.

    Args:
        data: the content of the file.
        name: of the file, for messages.
        row: of the file, from 1, for messages.

    Raises:
        ImageError: not one of the formats, damaged, empty, too large, too elongated, or a DICOM file that
            cannot be shown.
    """
    try:
        return Image.fromarray(read_dicom(data)).convert("RGB") if is_dicom(data) else _decode(data)
    except Refused as refused:
        raise ImageError(name, str(refused), row=row) from None


def from_array(pixels: np.ndarray, name: str) -> Image.Image:
    """An image of pixels [H, W] or [H, W, 3] uint8, in mode RGB.

    Raises:
        ImageError: an absurd size.
    """
    try:
        check_size(pixels.shape[1], pixels.shape[0])
    except Refused as refused:
        raise ImageError(name, str(refused)) from None
    return Image.fromarray(pixels).convert("RGB")


def _decode(data: bytes) -> Image.Image:
    if not data:
        raise Refused("an empty file")
    with warnings.catch_warnings():
        # Pillow's remarks on odd files are not for the user; that on size comes before the size is known here.
        warnings.simplefilter("ignore")
        try:
            with Image.open(BytesIO(data), formats=FORMATS) as image:
                check_size(*image.size)
                with _silent_libtiff() if any(tile[0] == "libtiff" for tile in image.tile) else nullcontext():
                    image.load()
                return _as_rgb(ImageOps.exif_transpose(image))
        except UnidentifiedImageError:
            raise Refused(f"not an image of a known kind ({', '.join(FORMATS)}, DICOM), or damaged") from None
        except Image.DecompressionBombError:
            raise Refused("an image of more pixels than are decoded") from None
        except Refused:
            raise
        except Exception:  # decoders raise whatever a damaged file makes them stumble over
            raise Refused("a damaged or truncated image") from None


@contextmanager
def _silent_libtiff() -> Iterator[None]:
    """Throw away what is written to stderr: libtiff writes there, past Python, whatever it dislikes in a file."""
    sys.stderr.flush()
    kept = os.dup(2)
    try:
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def _as_rgb(image: Image.Image) -> Image.Image:
    """Mode RGB without anything beside the pixels."""
    if image.mode in _SIXTEEN_BITS:
        # 65,535 / 255 = 257, rounded to the nearest. A transparent grey value is shown as it is.
        grey = (np.asarray(image).astype(np.uint32) + 128) // 257
        image = Image.fromarray(grey.astype(np.uint8))
    elif image.mode in _WITH_ALPHA or "transparency" in image.info:
        transparent = image.convert("RGBA")
        image = Image.new("RGBA", image.size, (*BACKGROUND, 255))
        image.alpha_composite(transparent)
    elif image.mode not in _PLAIN:
        raise Refused(f"pixels of kind {image.mode}, which have no fixed range: convert the image to 8 or 16 bits")
    image = image.convert("RGB")
    image.info.clear()
    return image
