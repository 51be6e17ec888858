"""From RGB to pixels: the published preprocessing, number by number, and a memory that stays within its limit."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from bmpeft.errors import BackboneError
from bmpeft.images.processing import PROCESSOR_FILE, ImageLoader, ImageProcessor, read_processor

FINE = np.random.default_rng(0).integers(0, 256, (50, 70, 3), np.uint8)


def pixels_of(array: np.ndarray, processor: ImageProcessor) -> np.ndarray:
    return processor.normalized(processor.resized(Image.fromarray(array)))


@dataclass(frozen=True)
class Counted:
    """A reference that counts how often it is loaded."""

    name: str
    loads: list[str] = field(default_factory=list, compare=False)

    @property
    def digest(self) -> str:
        raise NotImplementedError

    def load(self) -> Image.Image:
        self.loads.append(self.name)
        return Image.fromarray(FINE)


def test_a_row_of_pixels_computed_by_hand() -> None:
    """Two columns, 0 and 255, become sixteen by Keys' cubic convolution with a = -0.5.

    Column i of the result lies at (i + 0.5) / 8 - 0.5 of the source. Its two weights are those of the kernel at the
    distance to each source column, divided by their sum, because the kernel ends at the border.
    """

    def kernel(x: float) -> float:
        x = abs(x)
        if x < 1:
            return 1.5 * x**3 - 2.5 * x**2 + 1
        return -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2 if x < 2 else 0.0

    column = np.array([[0, 255], [0, 255]], np.uint8)
    grey = []
    for i in range(16):
        at = (i + 0.5) / 8 - 0.5
        left, right = kernel(at - 0), kernel(at - 1)
        grey.append(min(max(round(255 * right / (left + right)), 0), 255))
    made = pixels_of(np.stack([column] * 3, axis=-1), ImageProcessor(16, "imagenet"))
    assert made.shape == (3, 16, 16) and made.dtype == np.float32
    for channel, (mean, std) in enumerate([(0.485, 0.229), (0.456, 0.224), (0.406, 0.225)]):
        assert made[channel, 5] == pytest.approx((np.array(grey) / 255 - mean) / std, abs=1e-6)


def test_it_equals_what_transformers_makes_of_the_same_settings(tmp_path: Path) -> None:
    from transformers import AutoImageProcessor

    for name in ("half", "imagenet"):
        processor = ImageProcessor(64, name)
        (tmp_path / PROCESSOR_FILE).write_text(json.dumps(processor.content()))
        theirs = AutoImageProcessor.from_pretrained(tmp_path)(Image.fromarray(FINE), return_tensors="np")
        assert np.allclose(pixels_of(FINE, processor), theirs["pixel_values"][0], atol=1e-6)


def test_half_maps_black_and_white_to_minus_one_and_one() -> None:
    for value, expected in ((0, -1.0), (255, 1.0)):
        assert (pixels_of(np.full((9, 30, 3), value, np.uint8), ImageProcessor(32)) == expected).all()


def test_every_setting_changes_the_digest() -> None:
    processors = [ImageProcessor(size, name) for size in (256, 384) for name in ("half", "imagenet")]
    assert len({processor.digest for processor in processors}) == 4
    assert ImageProcessor(256).digest == ImageProcessor(256, "half").digest


@settings(max_examples=20)
@given(names=st.lists(st.sampled_from("abcdefg"), max_size=40), room=st.integers(0, 4))
def test_the_latest_images_stay_in_memory_and_never_more(names: list[str], room: int) -> None:
    loader = ImageLoader(ImageProcessor(16), cache_bytes=room * 3 * 16 * 16)
    loads: list[str] = []
    latest: list[str] = []
    for name in names:
        before = len(loads)
        assert np.array_equal(loader.pixels(Counted(name, loads)), pixels_of(FINE, loader.processor))
        assert (len(loads) == before) == (name in latest[-room:] if room else False)
        latest = [other for other in latest if other != name] + [name]
        assert len(loader._resized) <= room


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("{", "not JSON"),
        ("[]", "expected a bicubic resize"),
        (json.dumps(ImageProcessor(64).content() | {"resample": 2}), "expected a bicubic resize to a square"),
        (json.dumps(ImageProcessor(64).content() | {"size": {"height": 64, "width": 32}}), "to a square"),
        (json.dumps(ImageProcessor(64).content() | {"image_mean": [0.4, 0.4, 0.4]}), "all 0.5 or ImageNet's"),
    ],
    ids=["broken", "list", "bilinear", "oblong", "mean"],
)
def test_another_preprocessing_is_refused(tmp_path: Path, content: str, problem: str) -> None:
    (tmp_path / PROCESSOR_FILE).write_text(content)
    with pytest.raises(BackboneError, match=rf"{PROCESSOR_FILE}: .*{problem}"):
        read_processor(tmp_path)


def test_a_processor_comes_back_from_its_file(tmp_path: Path) -> None:
    assert read_processor(tmp_path) is None
    for processor in (ImageProcessor(64, "imagenet"), ImageProcessor(480)):
        (tmp_path / PROCESSOR_FILE).write_text(json.dumps(processor.content()))
        assert read_processor(tmp_path) == processor
