"""Reading only some patches of each image while a model trains, as BiomedGPT was pretrained."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from bmpeft.backbones.base import EncodedExample, FrozenBackbone
from bmpeft.errors import UsageError


@contextmanager
def patch_sampling(backbone: FrozenBackbone, count: int | None) -> Iterator[None]:
    """In training mode, let the encoder read `count` randomly drawn patches of each image; None: all."""
    encoder: Any = backbone.model.encoder if count is not None else None
    if encoder is not None:
        encoder.sample_patch_num = count
    try:
        yield
    finally:
        if encoder is not None:
            encoder.sample_patch_num = None


def check_patch_sampling(count: int | None, rows: Sequence[EncodedExample]) -> None:
    """Whether `training.sample_patch_num` does anything to these training rows.

    Raises:
        UsageError: no row has an image, or images have no more patches than that.
    """
    if count is None:
        return
    patches = max((row.image_patches for row in rows), default=0)
    if patches == 0:
        raise UsageError("training.sample_patch_num: no training row has an image")
    if count >= patches:
        raise UsageError(
            f"training.sample_patch_num={count}: an image has {patches} patches (backbone.image_size); give fewer, "
            "or leave it out"
        )
