"""The directory of a run's log and checkpoints: room on its disk, and what becomes of the run before."""

from __future__ import annotations

import shutil
from pathlib import Path

from bmpeft.errors import BmpeftError

MEBIBYTE = 2**20


def require_room(directory: Path, needed: int) -> None:
    """Check that the disk of a directory, which need not exist yet, has room.

    Raises:
        BmpeftError: it has not; names the directory and both figures.
    """
    existing = next(path for path in (directory.absolute(), *directory.absolute().parents) if path.exists())
    free = shutil.disk_usage(existing).free
    if free < needed:
        raise BmpeftError(
            f"{directory}: the disk has {free / MEBIBYTE:,.0f} MiB left, this run needs {needed / MEBIBYTE:,.0f} MiB"
        )


def set_aside(run_directory: Path) -> None:
    """Keep the logs and checkpoints of the last run of this name as NAME.previous; older ones are deleted."""
    if run_directory.exists():
        previous = run_directory.with_name(f"{run_directory.name}.previous")
        shutil.rmtree(previous, ignore_errors=True)
        run_directory.rename(previous)
