"""The arrays of an .npz file by their headers, so that a large one is described without being read."""

from __future__ import annotations

import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from tokenize import TokenError
from typing import IO, TYPE_CHECKING, Any

from bmpeft.datasets.base import DatasetInfo, missing
from bmpeft.errors import DataError

if TYPE_CHECKING:
    import numpy

LARGEST_SMALL_ARRAY = 64 * 2**20


@dataclass(frozen=True, slots=True)
class ArrayHeader:
    """Shape and type of an array, as its header states them and its size confirms."""

    shape: tuple[int, ...]
    dtype: str


def array_headers(path: Path, info: DatasetInfo) -> dict[str, ArrayHeader]:
    """Key -> header of all arrays in the file.

    Raises:
        DataError: no such file, no .npz, a damaged one, or an array of pickled objects.
    """
    if not path.exists():
        raise missing(path, info)
    try:
        with zipfile.ZipFile(path) as archive:
            return {
                member.filename.removesuffix(".npy"): _header(path, archive, member)
                for member in archive.infolist()
                if member.filename.endswith(".npy")
            }
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError):
        raise DataError(path, "no .npz file, or a damaged one") from None
    except OSError as error:
        raise DataError(path, f"cannot be read: {error.strerror}") from None


def read_small_array(path: Path, key: str) -> numpy.ndarray[Any, Any]:
    """One array of at most 64 MiB, such as labels. Raises DataError for a larger or damaged one."""
    import numpy

    try:
        with zipfile.ZipFile(path) as archive, archive.open(f"{key}.npy") as file:
            if archive.getinfo(f"{key}.npy").file_size > LARGEST_SMALL_ARRAY:
                raise DataError(path, f"{key} is larger than {LARGEST_SMALL_ARRAY >> 20} MiB")
            array: numpy.ndarray[Any, Any] = numpy.lib.format.read_array(file, allow_pickle=False)
    except (zipfile.BadZipFile, zlib.error, EOFError, ValueError, KeyError, TokenError, SyntaxError):
        raise DataError(path, f"{key} is damaged") from None
    return array


def _header(path: Path, archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> ArrayHeader:
    key = member.filename.removesuffix(".npy")
    with archive.open(member) as file:
        try:
            shape, dtype = _read_header(file)
        except (ValueError, TokenError, SyntaxError):  # the latter from numpy's reading of a damaged header
            raise DataError(path, f"{key} is no array of numpy's format") from None
        if dtype.hasobject:
            raise DataError(path, f"{key} holds pickled objects, which could run code; refused")
        size = dtype.itemsize
        for length in shape:
            size *= length
        if size != member.file_size - file.tell():
            raise DataError(path, f"{key} is cut off or too long for its shape")
    return ArrayHeader(shape, str(dtype))


def _read_header(file: IO[bytes]) -> tuple[tuple[int, ...], numpy.dtype[Any]]:
    from numpy.lib import format as npy

    version = npy.read_magic(file)
    reader = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
    shape, _, dtype = reader(file)
    return shape, dtype
