"""The bytes and lines of a file, compressed by gzip or not."""

from __future__ import annotations

import gzip
import io
import zlib
from collections.abc import Iterator
from pathlib import Path

from bmpeft.datasets.base import DatasetInfo, missing
from bmpeft.errors import DataError

BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_GZIP = b"\x1f\x8b"
LONGEST_LINE = 64 * 2**20
LARGEST_DECOMPRESSED = 8 * 2**30


def numbered_lines(path: Path, info: DatasetInfo, *, keep_mark: bool = False) -> Iterator[tuple[int, bytes]]:
    """The lines of a file with their numbers from 1 and their line ends; without a byte order mark unless asked for.

    Raises:
        DataError: no such file, an empty one, broken gzip, a line or a decompressed file beyond the limits.
    """
    number = total = 0
    file, compressed = _opened(path, info)
    with file:
        while line := _read(path, file, number + 1):
            number, total = number + 1, total + len(line)
            if compressed and total > LARGEST_DECOMPRESSED:
                raise DataError(path, f"holds more than {LARGEST_DECOMPRESSED >> 30} GiB when decompressed")
            yield number, line if number > 1 or keep_mark else line.removeprefix(BYTE_ORDER_MARK)


def whole_file(path: Path, info: DatasetInfo) -> bytes:
    """The content of a file, without a byte order mark. Raises DataError as `numbered_lines` does."""
    return b"".join(line for _, line in numbered_lines(path, info))


def is_compressed(path: Path) -> bool:
    """Whether a file that can be read is gzip, by its content."""
    with path.open("rb") as file:
        return file.read(2) == _GZIP


def first_byte(path: Path, info: DatasetInfo) -> bytes:
    """The first byte that is no white space.

    Raises:
        DataError: as `numbered_lines`, or nothing but white space.
    """
    for _, line in numbered_lines(path, info):
        if content := line.strip():
            return content[:1]
    raise DataError(path, "the file is empty")


def _opened(path: Path, info: DatasetInfo) -> tuple[io.BufferedIOBase, bool]:
    """The file, and whether it is decompressed on the way."""
    if not path.exists():
        raise missing(path, info)
    try:
        compressed = is_compressed(path)
        return (gzip.open(path, "rb") if compressed else path.open("rb")), compressed
    except OSError as error:
        raise DataError(path, f"cannot be read: {error.strerror}") from None


def _read(path: Path, file: io.BufferedIOBase, number: int) -> bytes:
    try:
        line = file.readline(LONGEST_LINE + 1)
    except (EOFError, zlib.error, gzip.BadGzipFile):
        raise DataError(path, "broken gzip: the file is damaged or cut off") from None
    except OSError as error:
        raise DataError(path, f"cannot be read: {error.strerror}") from None
    if len(line) > LONGEST_LINE:
        raise DataError(path, f"the line is longer than {LONGEST_LINE >> 20} MiB", row=number)
    return line
