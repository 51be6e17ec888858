"""References to images: where one lies, until somebody wants its pixels.

All are frozen, hashable and cheap to make; a file is opened by `digest` and `load` only.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from bmpeft.errors import ImageError
from bmpeft.images.limits import MAX_ENCODED_BYTES
from bmpeft.images.npz import read_row
from bmpeft.images.reading import decode_image, from_array

if TYPE_CHECKING:
    from PIL.Image import Image

_URL_SAFE = bytes.maketrans(b"-_", b"+/")


@dataclass(frozen=True, slots=True)
class ImageFile:
    """A file of its own: PNG, JPEG, DICOM ...; which one is decided by its content, not by its name.

    Attributes:
        path: of the file.
        named_in: where its name stands, such as "table.csv, row 7"; only for messages.
    """

    path: Path
    named_in: str | None = field(default=None, compare=False)

    @property
    def digest(self) -> str:
        """SHA-256 of the file."""
        with self._place():
            return hashlib.sha256(_read(self.path)).hexdigest()

    def load(self) -> Image:
        """See `ImageReference.load`."""
        with self._place():
            return decode_image(_read(self.path), str(self.path))

    @contextmanager
    def _place(self) -> Iterator[None]:
        try:
            yield
        except ImageError as error:
            raise (error if self.named_in is None else error.named_in(self.named_in)) from None


@dataclass(frozen=True, slots=True)
class NpzImage:
    """One row of an array [N, H, W] or [N, H, W, 3] uint8 in an ``.npz`` file.

    Attributes:
        path: of the file.
        key: name of the array in it.
        row: index of the image, from 0.
    """

    path: Path
    key: str
    row: int

    @property
    def digest(self) -> str:
        """SHA-256 of the image's shape, as text, and bytes."""
        pixels = read_row(self.path, self.key, self.row)
        return hashlib.sha256(repr(pixels.shape).encode() + pixels.tobytes()).hexdigest()

    def load(self) -> Image:
        """See `ImageReference.load`."""
        return from_array(read_row(self.path, self.key, self.row), f"{self.path}, {self.key}[{self.row}]")


@dataclass(frozen=True, slots=True)
class Base64Image:
    """An encoded image as base64 text within a file, as in the tables of BiomedGPT; either alphabet.

    Attributes:
        path: of the file.
        offset: where the text begins, in bytes.
        length: of the text, in bytes.
        row: of the file, from 1; only for messages.
    """

    path: Path
    offset: int
    length: int
    row: int | None = field(default=None, compare=False)

    @property
    def digest(self) -> str:
        """SHA-256 of the encoded image, without its base64."""
        return hashlib.sha256(self._encoded()).hexdigest()

    def load(self) -> Image:
        """See `ImageReference.load`."""
        return decode_image(self._encoded(), str(self.path), row=self.row)

    def _encoded(self) -> bytes:
        text = _read(self.path, self.offset, self.length)
        if len(text) < self.length:
            raise ImageError(self.path, f"ends before its image at byte {self.offset} does", row=self.row)
        text = text.strip().translate(_URL_SAFE)
        try:
            return base64.b64decode(text + b"=" * (-len(text) % 4), validate=True)
        except binascii.Error:
            raise ImageError(self.path, "the image is not base64 text", row=self.row) from None


@dataclass(frozen=True, slots=True)
class BytesImage:
    """An encoded image in memory.

    Attributes:
        data: the content of an image file.
        name: where it came from, for messages.
    """

    data: bytes = field(repr=False)
    name: str = field(default="image in memory", compare=False)

    @property
    def digest(self) -> str:
        """SHA-256 of the data."""
        return hashlib.sha256(self.data).hexdigest()

    def load(self) -> Image:
        """See `ImageReference.load`."""
        return decode_image(self.data, self.name)


def _read(path: Path, offset: int = 0, length: int | None = None) -> bytes:
    """A regular file, or a part of it; what is no file (a pipe would never end) or too large is refused."""
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise ImageError(path, "is not a file")
        if (status.st_size if length is None else length) > MAX_ENCODED_BYTES:
            raise ImageError(path, f"an image file of more than {MAX_ENCODED_BYTES >> 20} MiB")
        with path.open("rb") as file:
            file.seek(offset)
            return file.read(MAX_ENCODED_BYTES if length is None else length)
    except (OSError, ValueError) as error:  # ValueError: a null character in the name
        raise ImageError(path, getattr(error, "strerror", None) or "cannot be read") from None
