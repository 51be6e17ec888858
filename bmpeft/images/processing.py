"""RGB images to the pixels that a backbone was trained on.

Resized to a square by Pillow's bicubic filter (which, when it shrinks, averages over all pixels and not over the
nearest sixteen), divided by 255, normalised: the published preprocessing of OFA and BiomedGPT, in numpy.
"""

from __future__ import annotations

import hashlib
import json
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
from PIL.Image import Resampling

from bmpeft.errors import BackboneError

if TYPE_CHECKING:
    from PIL.Image import Image

    from bmpeft.records import ImageReference

PROCESSOR_FILE = "preprocessor_config.json"
MeanStdName = Literal["half", "imagenet"]
Channels = tuple[float, float, float]
MEAN_STD: Mapping[MeanStdName, tuple[Channels, Channels]] = MappingProxyType(
    {
        "half": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
        "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    }
)
"""Mean and standard deviation of the red, green and blue channel, of values between 0 and 1."""


@dataclass(frozen=True, slots=True)
class ImageProcessor:
    """How an image becomes pixels.

    Attributes:
        image_size: width and height of the square that it is resized to, whatever its aspect.
        image_mean_std: what is subtracted and divided by, see `MEAN_STD`.
    """

    image_size: int
    image_mean_std: MeanStdName = "half"

    @property
    def digest(self) -> str:
        """SHA-256 of all settings."""
        return hashlib.sha256(json.dumps(self.content(), sort_keys=True).encode()).hexdigest()

    def resized(self, image: Image) -> np.ndarray:
        """An RGB image as [S, S, 3] uint8."""
        return np.asarray(image.resize((self.image_size, self.image_size), Resampling.BICUBIC))

    def normalized(self, resized: np.ndarray) -> np.ndarray:
        """[S, S, 3] uint8 to [3, S, S] float32, around zero."""
        mean, std = (np.array(values, np.float32) for values in MEAN_STD[self.image_mean_std])
        return np.ascontiguousarray(((resized.astype(np.float32) / np.float32(255) - mean) / std).transpose(2, 0, 1))

    def content(self) -> dict[str, Any]:
        """The settings in the words of transformers, whose `AutoImageProcessor` does the same with them."""
        mean, std = MEAN_STD[self.image_mean_std]
        return {
            "image_processor_type": "ViTImageProcessor",
            "do_convert_rgb": True,
            "do_resize": True,
            "size": {"height": self.image_size, "width": self.image_size},
            "resample": int(Resampling.BICUBIC),
            "do_rescale": True,
            "rescale_factor": 1 / 255,
            "do_normalize": True,
            "image_mean": list(mean),
            "image_std": list(std),
        }


def read_processor(directory: Path) -> ImageProcessor | None:
    """The processor that a backbone directory describes in `PROCESSOR_FILE`; None where there is no such file.

    Raises:
        BackboneError: the file is damaged, or asks for something else than `ImageProcessor` does.
    """
    path = directory / PROCESSOR_FILE
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError):
        raise BackboneError(f"{path}: cannot be read, or is not JSON") from None
    size = content.get("size") if isinstance(content, dict) else None
    side = size.get("height") if isinstance(size, dict) else None
    if type(side) is int and side > 0:
        for name in get_args(MeanStdName):
            processor = ImageProcessor(side, name)
            # Absent keys are taken as right; which class of transformers wrote the file does not matter.
            expected = processor.content() | {"image_processor_type": content.get("image_processor_type")}
            if all(content.get(key, value) == value for key, value in expected.items()):
                return processor
    raise BackboneError(
        f"{path}: expected a bicubic resize to a square (size, resample 3), rescale_factor 1/255, and image_mean and "
        "image_std that are all 0.5 or ImageNet's"
    )


class ImageLoader:
    """The pixels of references; the latest images stay in memory as resized bytes, up to a limit.

    Args:
        processor: makes the pixels.
        cache_bytes: how much may stay; an image takes 3 * image_size ** 2.
    """

    def __init__(self, processor: ImageProcessor, *, cache_bytes: int = 1 << 28) -> None:
        self.processor = processor
        self._room = cache_bytes // (3 * processor.image_size**2)
        self._resized: OrderedDict[ImageReference, np.ndarray] = OrderedDict()

    def pixels(self, reference: ImageReference) -> np.ndarray:
        """[3, S, S] float32.

        Raises:
            ImageError: the image cannot be read; names its file.
        """
        resized = self._resized.get(reference)
        if resized is None:
            resized = self.processor.resized(reference.load())
            self._resized[reference] = resized
        self._resized.move_to_end(reference)
        while len(self._resized) > self._room:
            self._resized.popitem(last=False)
        return self.processor.normalized(resized)
