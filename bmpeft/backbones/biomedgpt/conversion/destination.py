"""A new file or directory that is there whole or not at all: written beside its place, flushed, renamed."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from bmpeft.errors import BackboneError, UsageError


def check_is_free(path: Path) -> None:
    """Nothing is ever overwritten.

    Raises:
        UsageError: there is something at this path, or no place for it.
    """
    if path.exists() or path.is_symlink():
        raise UsageError(f"{path}: exists already; name a new destination or remove it")
    if path.name in ("", "..") or (path.parent.exists() and not path.parent.is_dir()):
        raise UsageError(f"{path}: no place for a new file or directory")


def check_fits(path: Path, num_bytes: int) -> None:
    """Say that a disk is too small before it is full.

    Raises:
        BackboneError: fewer bytes are free where `path` is to be.
    """
    existing = next(parent for parent in path.absolute().parents if parent.exists())
    free = shutil.disk_usage(existing).free
    if free < num_bytes:
        raise BackboneError(f"{path}: {num_bytes:,} bytes are needed, {free:,} are free")


@contextmanager
def new_destination(path: Path) -> Iterator[Path]:
    """A temporary path beside `path`, inside a directory of its own; what is there in the end becomes `path`.

    Raises:
        UsageError: something came to be at `path` meanwhile.
        BackboneError: the disk is full, or the place cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{path.name}.writing-", dir=path.parent) as directory:
            temporary = Path(directory) / path.name
            yield temporary
            for file in (temporary, *temporary.rglob("*")):
                _flush(file)
            check_is_free(path)
            temporary.rename(path)
            _flush(path.parent)
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise BackboneError(f"{path}: cannot be written: {reason}") from None


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
