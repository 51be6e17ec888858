"""The errors that a user sees as one line on stderr.

Exit codes of the command line: 2 for `UsageError` (a wrong recipe, option or name: nothing was
started), 1 for any other `BmpeftError` (a failure at run time); 128 + its number for a signal.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from pathlib import Path


class BmpeftError(Exception):
    """Something that could not be done; the message is one line that names what and why."""

    exit_code = 1


class UsageError(BmpeftError):
    """A wrong option, name or combination; nothing was started."""

    exit_code = 2


class RecipeError(UsageError):
    """A recipe that cannot work; names file, key and what was expected."""


class DataError(BmpeftError):
    """A data file that cannot be read; names file, row and what was expected."""

    def __init__(self, path: str | Path, problem: str, *, row: int | None = None) -> None:
        """`row` is 1-based and counts the lines (JSON lines) or items (JSON) of the file."""
        self.path, self.row, self.problem = Path(path), row, problem
        where = str(path) if row is None else f"{path}, row {row}"
        super().__init__(f"{where}: {problem}")


class ImageError(DataError):
    """An image that is missing, damaged, of an unknown kind or refused; names its file, never its content."""

    def named_in(self, place: str) -> ImageError:
        """The same error, its message ending with where the image's name stands: "table.csv, row 7"."""
        error = ImageError(self.path, self.problem, row=self.row)
        error.args = (f"{self} (named in {place})",)
        return error


class BackboneError(BmpeftError):
    """A backbone that cannot be loaded."""


class ArtifactError(BmpeftError):
    """An adapter artifact that is missing, damaged, foreign or for another backbone."""


class Interrupted(BmpeftError):
    """A run that a signal ended in order; the exit code is the shell's for that signal, 130 or 143."""

    def __init__(self, message: str, *, signal_number: int) -> None:
        super().__init__(message)
        self.exit_code = 128 + signal_number


def did_you_mean(wrong: str, valid: Iterable[str]) -> str:
    """Return ``"; did you mean 'x'?"`` for the nearest of `valid`, or the list of all where none is near."""
    names = sorted(valid)
    near = difflib.get_close_matches(wrong, names, n=1, cutoff=0.55)
    if near:
        return f"; did you mean {near[0]!r}?"
    return f"; valid: {', '.join(names)}" if names else ""
