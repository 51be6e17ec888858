"""Rows of arrays in ``.npz`` files, without reading an array twice or holding it in memory.

MedMNIST's files are compressed, so that a row cannot be reached without all rows before it. An array is
therefore unpacked once for each process into a temporary file without a name, which is mapped into memory and
goes away with the process. Pickled arrays are refused.
"""

from __future__ import annotations

import functools
import math
import mmap
import tempfile
import zipfile
import zlib
from pathlib import Path
from tokenize import TokenError
from typing import IO

import numpy as np

from bmpeft.errors import ImageError

MAX_ARRAY_BYTES = 1 << 35
"""32 GiB; the largest array of MedMNIST (PathMNIST's training images at 224 pixels) has 13 GiB."""
_OPEN_ARRAYS = 16
_CHUNK = 1 << 22


def read_row(path: Path, key: str, row: int) -> np.ndarray:
    """One image of an array: [H, W] or [H, W, 3] uint8, a copy.

    Raises:
        ImageError: the file, the array or the row is missing, damaged, or of another shape or type.
    """
    array = open_array(path, key)
    if not 0 <= row < len(array):
        raise ImageError(path, f"{key} has {len(array)} images, and image {row} was asked for (from 0)")
    return np.array(array[row])


def open_array(path: Path, key: str) -> np.ndarray:
    """The array [N, H, W] or [N, H, W, 3] uint8, mapped read-only.

    Raises:
        ImageError: the file or the array is missing, damaged, or of another shape or type.
    """
    try:
        status = path.stat()
    except (OSError, ValueError) as error:
        raise ImageError(path, getattr(error, "strerror", None) or "cannot be read") from None
    return _unpacked(path, key, status.st_mtime_ns, status.st_size)


@functools.lru_cache(maxsize=_OPEN_ARRAYS)
def _unpacked(path: Path, key: str, modified: int, size: int) -> np.ndarray:
    """`modified` and `size` are there for the cache: a file that changed is read again."""
    try:
        with zipfile.ZipFile(path) as archive:
            try:
                info = archive.getinfo(f"{key}.npy")
            except KeyError:
                raise ImageError(path, f"has no array {key!r}") from None
            with archive.open(info) as source:
                shape = _header(path, key, source)
                if info.file_size > MAX_ARRAY_BYTES:
                    raise ImageError(path, f"{key} has more than {MAX_ARRAY_BYTES >> 30} GiB")
                return _mapped(path, key, source, shape)
    except (zipfile.BadZipFile, zlib.error, EOFError, ValueError, NotImplementedError, RuntimeError):
        raise ImageError(path, "not an npz file, or damaged") from None
    except (TokenError, SyntaxError):  # from numpy's reading of a damaged header
        raise ImageError(path, "not an npz file, or damaged") from None
    except OSError as error:
        raise ImageError(path, f"cannot be unpacked: {error.strerror or 'unknown reason'}") from None


def _header(path: Path, key: str, source: IO[bytes]) -> tuple[int, ...]:
    """The shape of an array of images."""
    version = np.lib.format.read_magic(source)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran_order, dtype = read(source)
    images = len(shape) == 3 or (len(shape) == 4 and shape[3] == 3)
    if not images or dtype != np.uint8 or fortran_order or 0 in shape[1:]:
        raise ImageError(path, f"{key}: expected uint8 of shape [N, H, W] or [N, H, W, 3] in C order")
    return shape


def _mapped(path: Path, key: str, source: IO[bytes], shape: tuple[int, ...]) -> np.ndarray:
    """The rest of `source` in a file without a name, as an array of this shape."""
    size, found = math.prod(shape), 0
    with tempfile.TemporaryFile() as file:
        while chunk := source.read(_CHUNK):
            found += len(chunk)
            if found > size:
                break
            file.write(chunk)
        if found != size:
            raise ImageError(path, f"{key}: the array is not as long as its shape says")
        file.flush()
        if size == 0:
            return np.zeros(shape, np.uint8)
        content = mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ)
    return np.frombuffer(content, np.uint8).reshape(shape)
