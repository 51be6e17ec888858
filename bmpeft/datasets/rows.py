"""One row of a data file, and the ids of a dataset's records.

Messages name keys, letters and ids, never the text of a row: a log must not hold rows of a dataset.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bmpeft.errors import DataError

OnBadRow = Callable[[DataError], None]


def refuse(error: DataError) -> None:
    """What is done about a bad row where none is allowed."""
    raise error


@dataclass(frozen=True, slots=True)
class Row:
    """One object of a data file and where it stands; its methods read fields and complain with file and row.

    `number` counts from 1: the line of a file of JSON lines, the item of a JSON array, the row of a table
    with its header as row 1. It is None where the file itself is the row.
    """

    path: Path
    number: int | None
    values: Mapping[str, Any]

    def error(self, problem: str) -> DataError:
        return DataError(self.path, problem, row=self.number)

    def text(self, key: str) -> str:
        """A field that must be there and hold text, without the white space around it."""
        if key not in self.values:
            raise self.error(f"the field {key!r} is missing")
        value = self.values[key]
        if not isinstance(value, str):
            raise self.error(f"{key!r} must be text, not {json_type(value)}")
        if not value.strip():
            raise self.error(f"{key!r} is empty")
        return value.strip()

    def check_texts(self) -> None:
        """Raises DataError for the first field with a `text_problem`."""
        for key, value in self.values.items():
            problem = text_problem(value)
            if problem is not None:
                raise self.error(f"{key!r} holds {problem}")

    def optional(self, key: str) -> str | None:
        """The text of a field, or None where it is absent, null or blank."""
        value = self.values.get(key)
        return None if value is None or value == "" or str(value).isspace() else self.text(key)

    def identity(self, key: str) -> str | None:
        """An optional id, text or a number."""
        value = self.values.get(key)
        if value is None or value == "":
            return None
        if isinstance(value, bool) or not isinstance(value, str | int) or not str(value).strip():
            raise self.error(f"{key!r} must be text or a whole number, not {json_type(value)}")
        return str(value).strip()

    def one_of(self, key: str, allowed: Mapping[str, Any] | tuple[str, ...]) -> str:
        """A field that must hold one of these texts."""
        value = self.text(key)
        if value not in allowed:
            raise self.error(f"{key!r} must be one of {', '.join(allowed)}")
        return value


class Identities:
    """Hands out the ids of a dataset's records and refuses one that was used before, in whatever file."""

    def __init__(self) -> None:
        self._used: dict[str, Row] = {}

    def stated(self, identity: str, row: Row) -> str:
        """The id that a row states."""
        if identity in self._used:
            first = self._used[identity]
            where = first.path.name if first.number is None else f"row {first.number}"
            if first.number is not None and first.path != row.path:
                where = f"{first.path.name}, {where}"
            raise row.error(f"the id {identity!r} is already that of {where}")
        self._used[identity] = row
        return identity

    def derived(self, content_hash: str, row: Row) -> str:
        """An id for a row that states none; equal rows are told apart by their order."""
        identity, repeat = content_hash, 1
        while identity in self._used:
            repeat += 1
            identity = f"{content_hash}-{repeat}"
        return self.stated(identity, row)


def text_problem(value: Any) -> str | None:
    """Why text cannot be read on, whatever list or object it stands in; None where nothing is wrong.

    A null character is what UTF-16, or a damaged file, looks like when it is read as UTF-8; half of a surrogate pair
    (JSON can spell it) has no UTF-8 at all.
    """
    if isinstance(value, str):
        if "\0" in value:
            return "a null character, which no text has"
        if not value.isprintable() and any("\ud800" <= character <= "\udfff" for character in value):
            return "half of a surrogate pair, which is no character"
        return None
    items = value.values() if isinstance(value, Mapping) else value if isinstance(value, list | tuple) else ()
    return next(filter(None, map(text_problem, items)), None)


def json_type(value: Any) -> str:
    """The JSON name of a value's type."""
    names: dict[type, str] = {
        dict: "an object",
        list: "an array",
        str: "text",
        bool: "true/false",
        int: "a number",
        float: "a number",
        type(None): "null",
    }
    return names.get(type(value), type(value).__name__)
