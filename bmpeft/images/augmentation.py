"""Images a little different in every reading, for training on few of them.

An augmented image is a reference like any other, a pure function of its image and a seed: shifted, rotated and
scaled around its centre, brighter or darker, with more or less contrast, and mirrored where its label allows it.
"""

from __future__ import annotations

import hashlib
import math
import random
from dataclasses import astuple, dataclass
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image
from PIL.Image import Resampling, Transform, Transpose

if TYPE_CHECKING:
    from bmpeft.records import ImageReference


@dataclass(frozen=True, slots=True)
class Augmentation:
    """How far an image may be changed; each change is drawn evenly between minus and plus its limit.

    Attributes:
        shift: to the side and downwards, as a share of the side.
        rotation: in degrees.
        scale: relative change of the size.
        brightness: change as a share of the range of values.
        contrast: relative change of the distance of each value to the image's mean.
    """

    shift: float = 0.1
    rotation: float = 12.0
    scale: float = 0.15
    brightness: float = 0.15
    contrast: float = 0.3


@dataclass(frozen=True, slots=True)
class AugmentedImage:
    """A square, changed copy of an image.

    Attributes:
        image: what is changed.
        augmentation: how far.
        side: of the square, in pixels; the image is resized to it first, so that a small one keeps its detail.
        mirrored: whether left and right may be exchanged, which happens every other time.
        seed: decides the changes, together with nothing else.
    """

    image: ImageReference
    augmentation: Augmentation
    side: int
    mirrored: bool
    seed: str

    @property
    def digest(self) -> str:
        """SHA-256 over the image's own digest and all settings."""
        settings = (self.image.digest, astuple(self.augmentation), self.side, self.mirrored, self.seed)
        return hashlib.sha256(repr(settings).encode()).hexdigest()

    def load(self) -> Image.Image:
        """See `ImageReference.load`."""
        limits, generator = self.augmentation, random.Random(self.seed)

        def draw(limit: float) -> float:
            return generator.uniform(-limit, limit)

        image = self.image.load().resize((self.side, self.side), Resampling.BICUBIC)
        mirror = generator.random() < 0.5
        if self.mirrored and mirror:
            image = image.transpose(Transpose.FLIP_LEFT_RIGHT)
        matrix = _inverse(
            angle=math.radians(draw(limits.rotation)),
            scale=1.0 + draw(limits.scale),
            right=draw(limits.shift) * self.side,
            down=draw(limits.shift) * self.side,
            centre=self.side / 2,
        )
        moved = image.transform((self.side, self.side), Transform.AFFINE, matrix, Resampling.BILINEAR)
        values = np.asarray(moved, np.float32)
        mean = values.mean()
        values = (values - mean) * (1.0 + draw(limits.contrast)) + mean + 255.0 * draw(limits.brightness)
        return Image.fromarray(np.clip(np.rint(values), 0, 255).astype(np.uint8))


def _inverse(*, angle: float, scale: float, right: float, down: float, centre: float) -> tuple[float, ...]:
    """Where a pixel (x, y) of the result comes from: x' = a x + b y + c, y' = d x + e y + f, as (a, b, c, d, e, f).

    The result is the image turned by `angle` and scaled around its centre, then shifted.
    """
    cosine, sine = math.cos(angle) / scale, math.sin(angle) / scale
    x, y = centre + right, centre + down  # where the centre goes
    return cosine, sine, centre - cosine * x - sine * y, -sine, cosine, centre + sine * x - cosine * y
