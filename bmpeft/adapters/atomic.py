"""Files and directories that are there whole or not at all, also after a crash or a full disk.

Both are written beside their place, flushed to the disk and then renamed. Replacing a directory takes two
renames, because no file system swaps a full one in a single step:

    NAME -> .NAME.replaced ; .NAME.writing-* -> NAME ; .NAME.replaced is deleted

A crash between the renames leaves NAME missing and the previous one whole in ``.NAME.replaced``;
`interrupted` tells so, and the next write puts it back first.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path


def write_file(path: Path, content: bytes) -> None:
    """Write or replace one file.

    Raises:
        OSError: the disk is full, or the directory cannot be written; a file that was there is unchanged.
    """
    with writing_file(path) as temporary:
        temporary.write_bytes(content)


@contextmanager
def writing_file(path: Path) -> Iterator[Path]:
    """A temporary path that takes the place of `path` when the block ends without an exception."""
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.writing-", dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        _flush(temporary)
        temporary.chmod(0o666 & ~_umask())  # mkstemp makes files that only their owner reads
        temporary.replace(path)
        _flush(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def write_directory(directory: Path, files: Mapping[str, bytes]) -> None:
    """Write or replace a directory with these files.

    Of two processes that write the same directory at once, one fails and the other's is there whole.

    Raises:
        OSError: the disk is full, or the parent cannot be written; a directory that was there is unchanged.
    """
    directory.parent.mkdir(parents=True, exist_ok=True)
    repair(directory)
    _remove_leftovers(directory)
    temporary = Path(tempfile.mkdtemp(prefix=f".{directory.name}.writing-", dir=directory.parent))
    try:
        for name, content in files.items():
            (temporary / name).write_bytes(content)
            _flush(temporary / name)
        temporary.chmod(0o777 & ~_umask())
        _flush(temporary)
        _put_in_place(temporary, directory)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def interrupted(directory: Path) -> Path | None:
    """Where the previous version lies whole, if a crash interrupted its replacement; else None."""
    aside = _aside(directory)
    return aside if aside.is_dir() and not directory.exists() else None


def repair(directory: Path) -> None:
    """Put the previous version back after an interrupted replacement."""
    aside = interrupted(directory)
    if aside is not None:
        aside.rename(directory)
        _flush(directory.parent)


def _put_in_place(temporary: Path, directory: Path) -> None:
    aside = _aside(directory)
    if not directory.exists():
        temporary.rename(directory)
    else:
        directory.rename(aside)
        try:
            temporary.rename(directory)
        except BaseException:  # Ctrl-C too
            repair(directory)
            raise
    _flush(directory.parent)
    shutil.rmtree(aside, ignore_errors=True)


def _remove_leftovers(directory: Path) -> None:
    """What crashed writers of this directory left; the directory itself is whole at this point."""
    for leftover in directory.parent.glob(f".{directory.name}.writing-*"):
        shutil.rmtree(leftover, ignore_errors=True)
    if directory.exists():
        shutil.rmtree(_aside(directory), ignore_errors=True)


def _aside(directory: Path) -> Path:
    return directory.with_name(f".{directory.name}.replaced")


def _flush(path: Path) -> None:
    """Have the operating system put a file's content, or a directory's entries, on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current
