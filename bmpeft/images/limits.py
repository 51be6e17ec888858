"""What is too large or too odd to be an image."""

from __future__ import annotations

MAX_ENCODED_BYTES = 1 << 29
"""512 MiB of an image file."""
MAX_PIXELS = 1 << 26
"""8,192 x 8,192; the largest mammograms have about half of that."""
MAX_ASPECT = 32


class Refused(Exception):
    """Why an image cannot be shown; whoever knows its file puts the name in front."""


def check_size(width: int, height: int) -> None:
    """Whether an image of this declared size may be decoded. Raises Refused."""
    if width < 1 or height < 1:
        raise Refused(f"an image of {width} x {height} pixels has nothing to show")
    if width * height > MAX_PIXELS:
        raise Refused(f"an image of {width} x {height} pixels; at most {MAX_PIXELS // 10**6} million are decoded")
    if max(width, height) > MAX_ASPECT * min(width, height):
        raise Refused(f"an image of {width} x {height} pixels; one side is more than {MAX_ASPECT} times the other")
