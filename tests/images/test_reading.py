"""Image files of every kind: what is shown of the good ones, and how the bad ones are refused."""

from __future__ import annotations

import contextlib
import struct
import warnings
import zlib
from io import BytesIO
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from bmpeft.errors import ImageError
from bmpeft.images.reading import FORMATS, decode_image

GRADIENT = np.arange(0, 240, dtype=np.uint8).reshape(12, 20)
COLOURS = np.random.default_rng(0).integers(0, 256, (12, 20, 3), np.uint8)


def encoded(image: Image.Image | np.ndarray, kind: str = "PNG", **options: Any) -> bytes:
    buffer = BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(buffer, kind, **options)
    return buffer.getvalue()


def shown(data: bytes) -> np.ndarray:
    image = decode_image(data, "scan.png")
    assert image.mode == "RGB" and not image.info and not image.getexif()
    return np.asarray(image)


def png(width: int, height: int, depth: int, colour: int, rows: bytes) -> bytes:
    """A PNG with a header of choice."""
    chunks = [
        (b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)),
        (b"IDAT", zlib.compress(rows)),
        (b"IEND", b""),
    ]
    parts = [struct.pack(">I", len(c)) + n + c + struct.pack(">I", zlib.crc32(n + c)) for n, c in chunks]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


@pytest.mark.parametrize(
    ("kind", "options"),
    [("PNG", {}), ("BMP", {}), ("TIFF", {}), ("TIFF", {"compression": "tiff_lzw"}), ("WEBP", {"lossless": True})],
)
def test_lossless_formats_show_their_pixels(kind: str, options: dict[str, Any]) -> None:
    assert np.array_equal(shown(encoded(COLOURS, kind, **options)), COLOURS)
    assert np.array_equal(shown(encoded(GRADIENT, kind, **options)), np.stack([GRADIENT] * 3, axis=-1))


def test_jpeg_and_gif_are_read() -> None:
    assert np.abs(shown(encoded(GRADIENT, "JPEG", quality=95)).astype(int) - GRADIENT[..., None]).max() < 12
    assert np.array_equal(shown(encoded(GRADIENT, "GIF"))[..., 0], GRADIENT)


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_16_bits_are_scaled_by_their_full_range(kind: str) -> None:
    values = np.linspace(0, 65535, 240).round().astype(np.uint16).reshape(12, 20)
    grey = shown(encoded(values, kind))
    assert np.array_equal(grey[..., 0], np.rint(values / 65535 * 255))
    assert grey.min() == 0 and grey.max() == 255


def test_16_bits_a_channel_are_scaled_not_clipped() -> None:
    pixels = np.linspace(0, 65535, 12 * 20 * 3).astype(">u2").reshape(12, 20, 3)
    rows = b"".join(b"\0" + row.tobytes() for row in pixels)
    assert np.abs(shown(png(20, 12, 16, 2, rows)).astype(float) - pixels / 257).max() <= 1


def test_palette_and_bilevel_images_show_their_colours() -> None:
    image = Image.fromarray(COLOURS).quantize(16)
    assert np.array_equal(shown(encoded(image)), np.asarray(image.convert("RGB")))
    assert set(np.unique(shown(encoded(Image.fromarray(GRADIENT > 100))))) == {0, 255}


def test_what_is_transparent_shows_white() -> None:
    alpha = np.full((12, 20), 255, np.uint8)
    alpha[0], alpha[1] = 0, 51
    pixels = shown(encoded(np.dstack([COLOURS, alpha])))
    assert np.array_equal(pixels[2:], COLOURS[2:])
    assert (pixels[0] == 255).all()
    assert np.abs(pixels[1] - (0.2 * COLOURS[1] + 0.8 * 255)).max() <= 1
    assert (shown(encoded(np.dstack([GRADIENT, alpha])))[0] == 255).all()


def test_a_transparent_palette_entry_shows_white() -> None:
    image = Image.fromarray(COLOURS).quantize(16)
    pixels = shown(encoded(image, transparency=3))
    hidden = np.asarray(image) == 3
    assert hidden.any() and (pixels[hidden] == 255).all()
    assert np.array_equal(pixels[~hidden], np.asarray(image.convert("RGB"))[~hidden])


@pytest.mark.parametrize(("orientation", "turned"), [(3, (2, 0)), (6, (3, 0)), (8, (1, 0)), (2, (0, 1))])
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF"])
def test_exif_turns_the_image_upright(kind: str, orientation: int, turned: tuple[int, int]) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    quarter_turns, mirrored = turned
    expected = np.rot90(GRADIENT[:, ::-1] if mirrored else GRADIENT, quarter_turns)
    pixels = shown(encoded(GRADIENT, kind, exif=exif))[..., 0]
    assert pixels.shape == expected.shape
    assert np.abs(pixels.astype(int) - expected).max() < 30


def test_cmyk_is_converted() -> None:
    image = Image.fromarray(COLOURS).convert("CMYK")
    assert np.abs(shown(encoded(image, "TIFF")).astype(int) - COLOURS).max() <= 2
    assert shown(encoded(Image.new("CMYK", (8, 8), (0, 0, 0, 0)), "JPEG")).min() > 250


@pytest.mark.parametrize("kind", ["GIF", "PNG", "TIFF", "WEBP"])
def test_of_several_frames_the_first_is_shown(kind: str) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("#ff0000", "#00ff00")]
    pixels = shown(encoded(frames[0], kind, save_all=True, append_images=frames[1:]))
    assert (pixels[..., 0] > 240).all() and (pixels[..., 1] < 10).all()


def huge(kind: str) -> bytes:
    """A small file that declares 30,000 x 30,000 pixels."""
    data = encoded(np.zeros((8, 8), np.uint8), kind)
    if kind == "PNG":
        return png(30_000, 30_000, 8, 0, b"")
    if kind == "GIF":
        return data[:6] + struct.pack("<HH", 30_000, 30_000) + data[10:]
    return data[:18] + struct.pack("<ii", 30_000, 30_000) + data[26:]  # BMP


@pytest.mark.parametrize("kind", ["PNG", "GIF", "BMP"])
def test_a_decompression_bomb_is_refused_before_it_is_decoded(kind: str) -> None:
    with pytest.raises(ImageError, match=r"^scan\.png: an image of .*pixels"):
        decode_image(huge(kind), "scan.png")


def test_a_compressed_text_in_a_png_cannot_blow_up() -> None:
    text = b"comment\0\0" + zlib.compress(b"a" * 80_000_000)
    chunk = struct.pack(">I", len(text)) + b"zTXt" + text + struct.pack(">I", zlib.crc32(b"zTXt" + text))
    data = encoded(GRADIENT)
    with pytest.raises(ImageError, match="damaged or truncated"):
        decode_image(data[:33] + chunk + data[33:], "scan.png")


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (b"", "an empty file"),
        (b"hello, this is no image", r"not an image of a known kind \(PNG, JPEG, TIFF, BMP, WEBP, GIF, DICOM\)"),
        (encoded(COLOURS, "PPM"), "not an image of a known kind"),
        (png(0, 5, 8, 0, b""), "not an image of a known kind|nothing to show|damaged"),
        (png(5000, 3, 8, 0, b"\0" * 15003), "5000 x 3 pixels; one side is more than 32 times the other"),
        (encoded(np.zeros((8, 8), np.float32), "TIFF"), "pixels of kind F, which have no fixed range"),
        (encoded(np.zeros((8, 8), np.int32), "TIFF"), "pixels of kind I, which have no fixed range"),
    ],
    ids=["empty", "text", "another-format", "zero-size", "elongated", "float", "32-bit"],
)
def test_what_cannot_be_shown_is_refused_by_name(data: bytes, problem: str) -> None:
    with pytest.raises(ImageError, match=rf"^scan\.png, row 7: .*({problem})") as caught:
        decode_image(data, "scan.png", row=7)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", FORMATS)
def test_a_truncated_file_is_refused(kind: str) -> None:
    data = encoded(COLOURS, kind)
    for length in (12, len(data) // 3, len(data) * 2 // 3):
        with pytest.raises(ImageError, match=r"^scan\.png: "):
            decode_image(data[:length], "scan.png")


@settings(max_examples=120, deadline=None)
@given(data=st.data())
def test_damage_never_ends_in_another_error_or_in_a_warning(data: st.DataObject) -> None:
    kind = data.draw(st.sampled_from(FORMATS))
    content = bytearray(encoded(COLOURS, kind))
    for position in data.draw(st.lists(st.integers(0, len(content) - 1), min_size=1, max_size=6)):
        content[position] = data.draw(st.integers(0, 255))
    with warnings.catch_warnings(), contextlib.suppress(ImageError):
        warnings.simplefilter("error")
        assert decode_image(bytes(content), "scan.png").mode == "RGB"


def test_nothing_that_the_file_says_besides_its_pixels_is_kept_or_quoted(
    capfd: pytest.CaptureFixture[str],
) -> None:
    secret = "Erika Mustermann"
    exif = Image.Exif()
    exif[0x010E] = secret
    for kind in ("JPEG", "TIFF", "PNG", "WEBP"):
        data = encoded(COLOURS, kind, exif=exif)
        image = decode_image(data, "scan")
        assert secret not in repr(vars(image))
        with pytest.raises(ImageError) as caught:
            decode_image(data[: len(data) * 3 // 5], "scan")
        assert secret not in str(caught.value)
    damaged = bytearray(encoded(COLOURS, "TIFF", compression="tiff_lzw"))
    damaged[200:260] = b"\xff" * 60
    with pytest.raises(ImageError):
        decode_image(bytes(damaged), "scan")
    assert capfd.readouterr() == ("", "")
