"""The documents in a .tgz archive. Nothing is unpacked to the disk."""

from __future__ import annotations

import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from bmpeft.errors import DataError

MOST_MEMBERS = 200_000
LARGEST_MEMBER = 32 * 2**20
LARGEST_ARCHIVE = 4 * 2**30


def archived_files(path: Path, suffix: str) -> Iterator[tuple[Path, bytes]]:
    """Name and content of each file in a tar archive whose name has this suffix.

    Names are returned below the archive's own, for messages: `reports.tgz/ecgen-radiology/1.xml`.

    Raises:
        DataError: no archive, a damaged one, a name that leads out of it, or more than the limits allow.
    """
    total = 0
    try:
        with tarfile.open(path, "r|*") as archive:
            for count, member in enumerate(archive, start=1):
                name = PurePosixPath(member.name)
                if name.is_absolute() or ".." in name.parts:
                    raise DataError(path, "holds a name that leads out of the archive; refused")
                total += member.size
                if count > MOST_MEMBERS or member.size > LARGEST_MEMBER or total > LARGEST_ARCHIVE:
                    raise DataError(path, f"member {count} goes beyond the limits for archives of reports; refused")
                if member.isfile() and name.suffix == suffix:
                    file = archive.extractfile(member)
                    if file is not None:
                        yield path / name, file.read()
    except (tarfile.TarError, EOFError, zlib.error):
        raise DataError(path, "no .tgz archive, or a damaged one") from None
    except OSError as error:
        raise DataError(path, f"cannot be read: {error.strerror or error}") from None
