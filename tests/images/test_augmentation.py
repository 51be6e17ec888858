"""Augmented images: a function of image and seed, moved and shaded within their limits, mirrored only if allowed."""

from __future__ import annotations

from io import BytesIO

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from bmpeft.images import BytesImage
from bmpeft.images.augmentation import Augmentation, AugmentedImage

NOTHING = Augmentation(shift=0.0, rotation=0.0, scale=0.0, brightness=0.0, contrast=0.0)
SIDE = 48


def encoded(pixels: np.ndarray) -> BytesImage:
    file = BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return BytesImage(file.getvalue())


def spot(row: int, column: int) -> BytesImage:
    """A bright disc on black."""
    rows, columns = np.mgrid[:SIDE, :SIDE]
    return encoded((((rows - row) ** 2 + (columns - column) ** 2 < 16) * 255).astype(np.uint8))


def changed(image: BytesImage, limits: Augmentation, seed: str, *, mirrored: bool = False) -> np.ndarray:
    return np.asarray(AugmentedImage(image, limits, SIDE, mirrored, seed).load(), np.float64)[..., 0]


def centre(pixels: np.ndarray) -> np.ndarray:
    """(row, column) of the centre of brightness."""
    total = pixels.sum()
    return np.array([(pixels.sum(1) * np.arange(SIDE)).sum(), (pixels.sum(0) * np.arange(SIDE)).sum()]) / total


def test_the_seed_decides_and_nothing_else() -> None:
    image = spot(20, 30)
    first, again, other = (changed(image, Augmentation(), seed) for seed in ("a", "a", "b"))
    assert np.array_equal(first, again) and not np.array_equal(first, other)
    one, same, two = (AugmentedImage(image, Augmentation(), SIDE, False, seed) for seed in ("a", "a", "b"))
    assert one == same and one.digest == same.digest != two.digest


def test_no_change_is_the_image_resized() -> None:
    image = spot(20, 30)
    assert np.array_equal(changed(image, NOTHING, "a"), np.asarray(image.load())[..., 0])
    assert AugmentedImage(image, NOTHING, 80, False, "a").load().size == (80, 80)


@given(seed=st.text(max_size=8), shift=st.floats(0.01, 0.2))
def test_a_shift_keeps_its_limit(seed: str, shift: float) -> None:
    limits = Augmentation(shift=shift, rotation=0.0, scale=0.0, brightness=0.0, contrast=0.0)
    moved = centre(changed(spot(24, 24), limits, seed)) - centre(changed(spot(24, 24), NOTHING, seed))
    assert np.all(np.abs(moved) <= shift * SIDE + 0.1)


@given(seed=st.text(max_size=8))
def test_rotation_and_scale_are_around_the_centre(seed: str) -> None:
    limits = Augmentation(shift=0.0, rotation=20.0, scale=0.2, brightness=0.0, contrast=0.0)
    middle = centre(changed(spot(24, 24), NOTHING, ""))
    assert np.abs(centre(changed(spot(24, 24), limits, seed)) - middle).max() < 1
    radius = np.hypot(*(centre(changed(spot(24, 36), limits, seed)) - middle))
    assert 12 * 0.8 - 1 <= radius <= 12 * 1.2 + 1


def test_mirroring_happens_where_it_is_allowed_and_only_there() -> None:
    def sides(mirrored: bool) -> set[bool]:
        images = (changed(spot(24, 8), NOTHING, str(n), mirrored=mirrored) for n in range(30))
        return {bool(centre(image)[1] > SIDE / 2) for image in images}

    assert sides(mirrored=False) == {False} and sides(mirrored=True) == {False, True}


@given(seed=st.text(max_size=8), value=st.integers(0, 255))
def test_brightness_and_contrast_stay_within_the_range(seed: str, value: int) -> None:
    limits = Augmentation(shift=0.0, rotation=0.0, scale=0.0, brightness=0.15, contrast=0.3)
    even = encoded(np.full((8, 8), value, np.uint8))
    result = np.asarray(AugmentedImage(even, limits, 8, False, seed).load(), np.float64)
    assert np.all(np.abs(result - value) <= 0.15 * 255 + 0.5) and len(np.unique(result)) == 1
