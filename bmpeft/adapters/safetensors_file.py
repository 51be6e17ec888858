"""Reading a safetensors file without torch, trusting nothing in it.

The format (https://huggingface.co/docs/safetensors): eight bytes with the header's length (little-endian),
a JSON header {name: {dtype, shape, data_offsets}}, the tensors' bytes one after the other without gaps.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from bmpeft.errors import ArtifactError
from bmpeft.strict_json import parse_object

_ITEM_SIZES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}
# An adapter has some thousand tensors, each with a line of some hundred bytes; the library would read 100 MB.
_MAX_HEADER_BYTES = 10_000_000


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """One tensor of a file: dtype as the format names it, and where its bytes are, counted from the file's start."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


def read_header(path: Path) -> Mapping[str, TensorEntry]:
    """The tensors of a file by name; reads the header only.

    Raises:
        ArtifactError: the file is missing, truncated or no safetensors file.
    """
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            length = int.from_bytes(file.read(8), "little")
            if size < 8 or length > min(size - 8, _MAX_HEADER_BYTES):
                raise ArtifactError(f"{path}: no safetensors file, or truncated ({size:,} bytes)")
            header = file.read(length)
    except OSError as error:
        raise ArtifactError(f"{path}: {error.strerror or error}") from None
    return MappingProxyType(_entries(path, header, data_start=8 + length, size=size))


def _entries(path: Path, header: bytes, *, data_start: int, size: int) -> dict[str, TensorEntry]:
    try:
        content = parse_object(header)
    except ValueError as error:
        raise ArtifactError(f"{path}: the safetensors header is {error}") from None
    content.pop("__metadata__", None)
    entries = {name: _entry(path, name, value, data_start) for name, value in content.items()}
    end = data_start
    for entry in sorted(entries.values(), key=lambda entry: (entry.begin, entry.end)):
        if entry.begin != end:
            raise ArtifactError(f"{path}: the tensors overlap or leave gaps")
        end = entry.end
    if end != size:
        raise ArtifactError(f"{path}: {size:,} bytes, but its header describes {end:,}: truncated or extended")
    return entries


def _entry(path: Path, name: str, value: Any, data_start: int) -> TensorEntry:
    try:
        dtype, shape, (begin, end) = value["dtype"], value["shape"], value["data_offsets"]
        numbers = (*shape, begin, end)
        if any(type(number) is not int or number < 0 for number in numbers):
            raise ValueError
        if end - begin != _ITEM_SIZES[dtype] * math.prod(shape):
            raise ValueError
    except (KeyError, TypeError, ValueError):
        raise ArtifactError(f"{path}: the entry of tensor {name[:100]!r} is malformed") from None
    return TensorEntry(dtype, tuple(shape), data_start + begin, data_start + end)
