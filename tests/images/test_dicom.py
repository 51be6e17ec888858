"""DICOM: what a viewer would show, and nothing of the header."""

from __future__ import annotations

import importlib.util
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bmpeft.errors import ImageError
from bmpeft.images.dicom import window
from bmpeft.images.limits import Refused
from bmpeft.images.reading import decode_image

pydicom = pytest.importorskip("pydicom", reason="needs pydicom (pip install 'bmpeft[dicom]')")

PATIENT = "Mustermann^Erika"
VALUES = np.arange(0, 4096, 34, dtype=np.uint16)[:120].reshape(10, 12)  # 12 bits


def dicom(pixels: np.ndarray = VALUES, syntax: str = "1.2.840.10008.1.2.1", **fields: Any) -> bytes:
    """A DICOM file of these stored values; `fields` override or add elements, None leaves one out."""
    from pydicom.dataset import Dataset, FileMetaDataset

    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = syntax
    dataset.SOPClassUID, dataset.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.7", "1.2.3"
    content = {
        "PatientName": PATIENT,
        "Rows": pixels.shape[-2] if pixels.ndim == 2 else pixels.shape[-3],
        "Columns": pixels.shape[-1] if pixels.ndim == 2 else pixels.shape[-2],
        "SamplesPerPixel": 1 if pixels.ndim == 2 else 3,
        "PhotometricInterpretation": "MONOCHROME2" if pixels.ndim == 2 else "RGB",
        "BitsAllocated": pixels.itemsize * 8,
        "BitsStored": 12 if pixels.itemsize == 2 else 8,
        "HighBit": 11 if pixels.itemsize == 2 else 7,
        "PixelRepresentation": int(pixels.dtype.kind == "i"),
        "PixelData": pixels.tobytes(),
        **({"PlanarConfiguration": 0} if pixels.ndim > 2 else {}),
        **fields,
    }
    for name, value in content.items():
        if value is not None:
            setattr(dataset, name, value)
    dataset["PixelData"].VR = "OW" if pixels.itemsize == 2 else "OB"
    buffer = BytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def shown(data: bytes) -> np.ndarray:
    pixels = np.asarray(decode_image(data, "scan.dcm"))
    assert (pixels == pixels[..., :1]).all()
    return pixels[..., 0]


def test_a_window_in_rescaled_units_by_hand() -> None:
    """The standard's own formula, PS3.3 C.11.2.1.2: centre 40, width 400, values minus 1024."""
    data = dicom(RescaleSlope=1, RescaleIntercept=-1024, WindowCenter=40, WindowWidth=400)
    units = VALUES.astype(float) - 1024
    expected = ((units - 39.5) / 399 + 0.5) * 255
    expected[units <= 39.5 - 399 / 2] = 0
    expected[units > 39.5 + 399 / 2] = 255
    assert np.abs(shown(data) - expected).max() <= 0.5
    assert set(np.unique(shown(data))) >= {0, 255}


def test_monochrome1_is_the_negative_of_monochrome2() -> None:
    fields = {"WindowCenter": 2000, "WindowWidth": 1000}
    negative = shown(dicom(PhotometricInterpretation="MONOCHROME1", **fields))
    assert np.abs(255 - negative.astype(int) - shown(dicom(**fields))).max() <= 1


def test_of_several_windows_the_first_counts() -> None:
    several = dicom(WindowCenter=[2000, 50], WindowWidth=[1000, 80])
    assert np.array_equal(shown(several), shown(dicom(WindowCenter=2000, WindowWidth=1000)))


def test_without_a_window_the_range_apart_from_the_padding_is_shown() -> None:
    pixels = VALUES.copy()
    pixels[pixels < 500] = 1000
    pixels[0] = 0
    grey = shown(dicom(pixels, PixelPaddingValue=0))
    assert grey[1:].min() == 0 and grey[1:].max() == 255
    assert shown(dicom(pixels))[1:].min() > 25
    assert (shown(dicom(np.full((8, 8), 7, np.uint16))) == 0).all(), "nothing to see is no division by zero"


def test_8_bits_without_a_window_and_signed_values() -> None:
    pixels = np.arange(100, 220, dtype=np.uint8).reshape(10, 12)
    assert np.array_equal(shown(dicom(pixels)), pixels)
    signed = VALUES.astype(np.int16) - 2000
    units = shown(dicom(signed, WindowCenter=0.5, WindowWidth=4001, RescaleSlope=1, RescaleIntercept=0))
    assert np.abs(units - np.clip(signed / 4000 + 0.5, 0, 1) * 255).max() <= 0.5


def test_colours_are_shown_as_they_are() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (10, 12, 3), np.uint8)
    assert np.array_equal(np.asarray(decode_image(dicom(pixels), "scan.dcm")), pixels)


def test_of_several_frames_the_first_is_shown() -> None:
    frames = np.stack([np.full((8, 8), 9, np.uint8), np.full((8, 8), 200, np.uint8)])
    data = dicom(frames[0], NumberOfFrames=2, PixelData=frames.tobytes())
    assert (shown(data) == 9).all()


def test_run_length_compression_is_read() -> None:
    dataset = pydicom.dcmread(BytesIO(dicom(WindowCenter=2000, WindowWidth=1000)))
    dataset.compress(pydicom.uid.RLELossless)
    buffer = BytesIO()
    dataset.save_as(buffer)
    assert np.array_equal(shown(buffer.getvalue()), shown(dicom(WindowCenter=2000, WindowWidth=1000)))


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (dicom(BurnedInAnnotation="YES"), r"declares burned-in annotations \(BurnedInAnnotation is YES\)"),
        (dicom(Rows=60000, Columns=60000), "an image of 60000 x 60000 pixels"),
        (dicom(Rows=None), "without a picture"),
        (dicom(WindowCenter=1, WindowWidth=0), "impossible window"),
        (dicom(WindowCenter=1, WindowWidth=9, VOILUTFunction="CUBIC"), "window function that the standard"),
        (dicom(PhotometricInterpretation="HSV"), "colours of an unusual kind"),
        (dicom(PixelData=b"\0" * 8), "a damaged DICOM file"),
        (dicom()[:200], "a damaged DICOM file|without a picture"),
        (dicom() + b"1.2.840.10008.1.2.1.99", "deflated"),
    ],
    ids=["burned-in", "huge", "no-size", "width", "function", "colours", "short", "truncated", "deflated"],
)
def test_what_cannot_be_shown_is_refused_and_nobody_is_named(
    data: bytes, problem: str, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ImageError, match=rf"^scan\.dcm: .*({problem})") as caught:
        decode_image(data, "scan.dcm")
    assert "Mustermann" not in str(caught.value) and caught.value.__suppress_context__
    assert capfd.readouterr() == ("", "")


def test_a_compression_without_a_decoder_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    from pydicom.pixels.decoders import JPEGLosslessSV1Decoder

    if JPEGLosslessSV1Decoder.is_available:
        pytest.skip("a decoder of lossless JPEG is installed here")
    dataset = pydicom.dcmread(BytesIO(dicom()))
    dataset.file_meta.TransferSyntaxUID = pydicom.uid.JPEGLosslessSV1
    dataset.PixelData = pydicom.encaps.encapsulate([b"\xff\xd8\xff\xd9"])
    dataset["PixelData"].VR = "OB"
    buffer = BytesIO()
    dataset.save_as(buffer)
    with pytest.raises(ImageError, match=r"compressed as JPEG Lossless.*no decoder is installed \(docs/images\.md\)"):
        decode_image(buffer.getvalue(), "scan.dcm")


def test_a_compression_that_its_decoder_cannot_read_is_named() -> None:
    """Pillow is a decoder of the extended process, but of its 8 bits only."""
    data = Path(pydicom.data.get_testdata_file("JPGExtended.dcm", download=False)).read_bytes()
    with pytest.raises(ImageError, match=r"compressed as JPEG Extended .*no installed decoder can read") as caught:
        decode_image(data, "scan.dcm")
    assert caught.value.__suppress_context__


def test_nothing_of_the_header_is_in_the_image() -> None:
    image = decode_image(dicom(), "scan.dcm")
    assert "Mustermann" not in repr(vars(image)) and not image.info


def test_without_the_extra_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(
        ImageError, match=r"^scan\.dcm: a DICOM file, which needs pydicom: pip install 'bmpeft\[dicom\]'$"
    ):
        decode_image(dicom(), "scan.dcm")


def test_the_standards_three_window_functions() -> None:
    """Brightness at the centre, at the edges and beyond, for centre 2048 and width 4096 (the standard's example)."""
    values = np.array([-100.0, 0.0, 2048.0, 4095.0, 5000.0])
    assert window(values, 2048, 4096, "LINEAR") == pytest.approx([0, 0, 0.5001, 1, 1], abs=1e-4)
    assert window(values, 2048, 4096, "LINEAR_EXACT") == pytest.approx([0, 0, 0.5, 0.9998, 1], abs=1e-4)
    sigmoid = window(values, 2048, 4096, "SIGMOID")
    assert sigmoid == pytest.approx(1 / (1 + np.exp(-4 * (values - 2048) / 4096)))
    assert window(np.array([6.0, 7.0]), 7, 1, "LINEAR").tolist() == [0.0, 1.0], "width 1 is a step"
    with pytest.raises(Refused):
        window(values, 0, 0.5, "LINEAR")
