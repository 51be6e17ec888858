"""Perceptual hashes: images that are almost equal although their bytes differ (scaled, re-encoded, brightened).

The hash is the sign of the 16 x 16 lowest cosine frequencies of the grey image at 32 x 32 pixels, relative to
their median (the "pHash" of Zauner 2010, with 256 bits instead of 64, since X-rays of one kind are alike). Two
images count as similar where at most `SIMILAR_BITS` of the 256 bits differ. Scaling, JPEG compression of quality
60 and 15 % more brightness change fewer bits; a crop by 2 % at each side changes more, and is not found.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from PIL.Image import Image

HASH_SIDE = 16
PIXELS = 32
BITS = HASH_SIDE * HASH_SIDE
SIMILAR_BITS = 12
_COMPARISONS_AT_ONCE = 4_000_000


def perceptual_hash(image: Image) -> npt.NDArray[np.uint64]:
    """The 256 bits of an image, as [4] uint64."""
    import numpy as np
    from PIL import Image as images

    small = image.convert("L").resize((PIXELS, PIXELS), images.Resampling.LANCZOS)
    transform = _cosines()
    frequencies = (transform @ np.asarray(small, dtype=np.float64) @ transform.T).ravel()
    return np.packbits(frequencies > np.median(frequencies[1:])).view(np.uint64)


def rows_with_similar(hashes: Sequence[npt.NDArray[np.uint64]], others: Sequence[npt.NDArray[np.uint64]]) -> list[bool]:
    """For each of `hashes` whether any of `others` differs in at most `SIMILAR_BITS` bits; memory is bounded."""
    import numpy as np

    if not hashes or not others:
        return [False] * len(hashes)
    known, found = np.stack(others), list[bool]()
    step = max(1, _COMPARISONS_AT_ONCE // len(known))
    for start in range(0, len(hashes), step):
        chunk = np.stack(hashes[start : start + step])
        distances = np.bitwise_count(chunk[:, None, :] ^ known[None, :, :]).sum(axis=2)  # [chunk, others]
        found.extend((distances.min(axis=1) <= SIMILAR_BITS).tolist())
    return found


def _cosines() -> npt.NDArray[np.float64]:
    """The first rows of the cosine transform (DCT-II) of `PIXELS` values. [HASH_SIDE, PIXELS]"""
    import numpy as np

    frequency = np.arange(HASH_SIDE)[:, None]
    position = np.arange(PIXELS)[None, :]
    return np.asarray(np.cos(math.pi / PIXELS * (position + 0.5) * frequency))
