"""DICOM to pixels, by pydicom (``pip install 'bmpeft[dicom]'``).

The first frame is shown as a viewer would: rescaled, windowed, MONOCHROME1 inverted. Nothing of the header leaves this
module, in no result and in no message: it holds the patient's name.
"""

from __future__ import annotations

import importlib
import importlib.util
import warnings
from io import BytesIO
from typing import TYPE_CHECKING, Any

import numpy as np

from bmpeft.images.limits import Refused, check_size

if TYPE_CHECKING:
    from pydicom import Dataset

EXTRA = "pip install 'bmpeft[dicom]'"
_DEFLATED = b"1.2.840.10008.1.2.1.99"
_GREY = ("MONOCHROME1", "MONOCHROME2")
_COLOUR = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT")


def is_dicom(data: bytes) -> bool:
    """Whether a file says that it is DICOM, after its preamble of 128 bytes."""
    return data[128:132] == b"DICM"


def read_dicom(data: bytes) -> np.ndarray:
    """The first frame as it is to be seen: [H, W] or [H, W, 3] uint8.

    Grey values go through the modality transform and the first window; without a window the frame's range (its
    padding apart) becomes 0 to 255, and 8 bits stay as they are.

    Raises:
        Refused: pydicom or a decoder is not installed, the file is damaged, declares burned-in annotations, holds
            no picture, or is too large.
    """
    if importlib.util.find_spec("pydicom") is None:
        raise Refused(f"a DICOM file, which needs pydicom: {EXTRA}")
    if _DEFLATED in data:  # pydicom would inflate all of it, however much that is
        raise Refused("a DICOM file of the deflated transfer syntax, which is not read")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # they quote the header
        try:
            return _shown(_parsed(data))
        except Refused:
            raise
        except Exception:  # whatever a damaged file leads to; its text may quote the header
            raise Refused("a damaged DICOM file, or one of an unusual kind") from None


def _parsed(data: bytes) -> Dataset:
    """The header, checked."""
    import pydicom

    dataset = pydicom.dcmread(BytesIO(data))
    if str(dataset.get("BurnedInAnnotation", "")).strip().upper() == "YES":
        raise Refused("a DICOM file that declares burned-in annotations (BurnedInAnnotation is YES)")
    if "PixelData" not in dataset or "Rows" not in dataset or "Columns" not in dataset:
        raise Refused("a DICOM file without a picture")
    check_size(int(dataset.Columns), int(dataset.Rows))
    return dataset


def _shown(dataset: Dataset) -> np.ndarray:
    kind = str(dataset.PhotometricInterpretation)
    if kind in _GREY:
        shown = _windowed(dataset, _frame(dataset))
        return _to_bytes(1.0 - shown if kind == "MONOCHROME1" else shown)
    if kind == "PALETTE COLOR":
        colours = _pixels().apply_color_lut(_frame(dataset), dataset)[..., :3]
        return _to_bytes(colours / np.iinfo(colours.dtype).max)
    if kind in _COLOUR:
        return _to_bytes(_frame(dataset) / (2.0 ** int(dataset.BitsStored) - 1))
    raise Refused("a DICOM file with colours of an unusual kind")


def _frame(dataset: Dataset) -> np.ndarray:
    """The first frame's stored values, colours as RGB."""
    syntax: Any = dataset.file_meta.TransferSyntaxUID
    try:
        available = not syntax.is_compressed or _pixels().get_decoder(syntax).is_available
    except NotImplementedError:
        available = False
    if not available:
        # The name comes from pydicom's dictionary: a private syntax is not known to be compressed, and fails above.
        raise Refused(f"a DICOM file compressed as {syntax.name}, for which no decoder is installed (docs/images.md)")
    try:
        return np.asarray(_pixels().pixel_array(dataset, index=0))
    except RuntimeError:  # every decoder failed: Pillow, for one, reads JPEG of 8 bits and not of 12
        if not syntax.is_compressed:
            raise
        raise Refused(
            f"a DICOM file compressed as {syntax.name}, which no installed decoder can read (docs/images.md), "
            "or a damaged one"
        ) from None


def _windowed(dataset: Dataset, stored: np.ndarray) -> np.ndarray:
    """Stored values to brightness, 0 to 1."""
    inside = _without_padding(dataset, stored)
    values = np.asarray(_pixels().apply_modality_lut(stored, dataset), np.float64)
    if "VOILUTSequence" in dataset:
        table: Any = dataset.VOILUTSequence[0]
        looked_up = _pixels().apply_voi_lut(np.rint(values).astype(np.int64), dataset)
        return np.asarray(looked_up / (2.0 ** int(table.LUTDescriptor[2]) - 1))
    if "WindowCenter" in dataset and "WindowWidth" in dataset:
        function = str(dataset.get("VOILUTFunction", "LINEAR")).strip().upper()
        return window(values, _first(dataset.WindowCenter), _first(dataset.WindowWidth), function)
    if int(dataset.BitsStored) == 8 and not int(dataset.PixelRepresentation):
        return stored / 255.0
    low, high = (values[inside].min(), values[inside].max()) if inside.any() else (0.0, 0.0)
    return np.clip((values - low) / max(high - low, 1e-12), 0.0, 1.0)


def window(values: np.ndarray, center: float, width: float, function: str) -> np.ndarray:
    """Brightness 0 to 1 of values under a window (DICOM PS3.3, C.11.2.1.2 and C.11.2.1.3).

    Args:
        values: after the modality transform.
        center: of the window.
        width: of the window; at least 1 for LINEAR, above 0 for the others.
        function: LINEAR, LINEAR_EXACT or SIGMOID.

    Raises:
        Refused: a width or function that the standard does not have.
    """
    if width < 1 if function == "LINEAR" else width <= 0:
        raise Refused("a DICOM file with an impossible window")
    if function == "LINEAR":
        # A step, where the width is 1.
        return np.clip((values - (center - 0.5)) / max(width - 1, 1e-12) + 0.5, 0.0, 1.0)
    if function == "LINEAR_EXACT":
        return np.clip((values - center) / width + 0.5, 0.0, 1.0)
    if function == "SIGMOID":
        return 1.0 / (1.0 + np.exp(np.clip(-4.0 * (values - center) / width, -700.0, 700.0)))
    raise Refused("a DICOM file with a window function that the standard does not have")


def _without_padding(dataset: Dataset, stored: np.ndarray) -> np.ndarray:
    """Which pixels are of the picture; those around it have a value of their own, or a range."""
    if "PixelPaddingValue" not in dataset:
        return np.ones(stored.shape, bool)
    first = int(dataset.PixelPaddingValue)
    last = int(dataset.get("PixelPaddingRangeLimit", first))
    return (stored < min(first, last)) | (stored > max(first, last))


def _first(value: Any) -> float:
    """Of several windows the first."""
    number = float(value[0] if hasattr(value, "__getitem__") else value)
    if not np.isfinite(number):
        raise Refused("a DICOM file with an impossible window")
    return number


def _pixels() -> Any:
    """pydicom's module of that name; imported when a DICOM file is there."""
    return importlib.import_module("pydicom.pixels")


def _to_bytes(brightness: np.ndarray) -> np.ndarray:
    return np.rint(np.clip(brightness, 0.0, 1.0) * 255.0).astype(np.uint8)
