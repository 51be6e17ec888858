"""The control of shuffled images: the same rows, each with the image of another one."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Sequence

from bmpeft.records import Example, ImageReference, Record


def distinct_images(records: Sequence[Record]) -> int:
    """How many different images the rows have."""
    return len({record.image.digest for record in records if record.image is not None})


def with_shuffled_images(examples: Sequence[Example], *, seed: int) -> list[Example]:
    """The examples with images exchanged: rows of one image all get the same other image, no row keeps its own.

    The different images, shuffled, are passed on in a circle, so that each is used again. There must be two.
    """
    digests = [None if example.image is None else example.image.digest for example in examples]
    images: dict[str, ImageReference] = {}
    for example, digest in zip(examples, digests, strict=True):
        if example.image is not None and digest is not None:
            images.setdefault(digest, example.image)
    circle = sorted(images)
    random.Random(seed).shuffle(circle)
    following = dict(zip(circle, [*circle[1:], *circle[:1]], strict=True))
    return [
        example if digest is None else dataclasses.replace(example, image=images[following[digest]])
        for example, digest in zip(examples, digests, strict=True)
    ]
