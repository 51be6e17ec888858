"""What every reader shares: the result it returns, its description, and strict reading of JSON files.

A reader turns files, as their owners distribute them, into records. It checks every row and raises a
`DataError` of one line that names file and row; it never guesses and never repairs. Messages name
keys, letters and ids, never the text of a question: a log must not hold rows of a dataset.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from bmpeft.datasets.contamination import find_contamination
from bmpeft.datasets.splits import split_digest
from bmpeft.errors import DataError

if TYPE_CHECKING:
    from bmpeft.recipe import DataSection
    from bmpeft.records import Record

SPLIT_NAMES = {"train": ("train",), "validation": ("dev", "val"), "test": ("test",)}


@dataclass(frozen=True, slots=True)
class DatasetInfo:
    """A dataset's description: what `bmpeft data list` shows and what errors refer to.

    Attributes:
        name: what a recipe writes into `data.dataset`.
        title: the published name.
        task: name of the task that its records are for.
        licence: of the data, as their owners state it.
        files: what `data.path` may point at.
        source: where the files come from.
        reference: the publication.
    """

    name: str
    title: str
    task: str
    licence: str
    files: str
    source: str
    reference: str


@dataclass(frozen=True)
class LoadedDataset:
    """A dataset in memory.

    Attributes:
        name: as in the registry; the synthetic set is told apart by its own name.
        licence: of the data.
        synthetic: whether the rows were written for this package instead of collected.
        splits: split -> records; "train", "validation", "test" and others such as "test_unknown".
        split_method: "official", or how the rows were divided.
        split_digests: split -> SHA-256, see `bmpeft.datasets.splits.split_digest`.
        contamination: split -> "official MedQA test" and the like where rows of it are in an official
            evaluation set; a split without any is absent.
        contamination_counts: split -> how many of its rows that are.
    """

    name: str
    licence: str
    synthetic: bool
    splits: Mapping[str, tuple[Record, ...]]
    split_method: str
    split_digests: Mapping[str, str]
    contamination: Mapping[str, str]
    contamination_counts: Mapping[str, int]


class Reader(Protocol):
    """A module of this package that reads one dataset."""

    INFO: DatasetInfo

    def read(self, data: DataSection) -> LoadedDataset:
        """Read `data.path`.

        Raises:
            DataError: a missing, empty or broken file, or a row that is not as documented.
        """


def assemble(
    info: DatasetInfo, splits: Mapping[str, tuple[Record, ...]], split_method: str, *, synthetic: bool = False
) -> LoadedDataset:
    """Finish a dataset: digests of its splits and which of them hold rows of official evaluation sets."""
    found = {split: find_contamination(records) for split, records in splits.items()}
    return LoadedDataset(
        name=info.name,
        licence=info.licence,
        synthetic=synthetic,
        splits=dict(splits),
        split_method=split_method,
        split_digests={split: split_digest(records) for split, records in splits.items()},
        contamination={split: result.name for split, result in found.items() if result is not None},
        contamination_counts={split: result.rows for split, result in found.items() if result is not None},
    )


@dataclass(frozen=True, slots=True)
class Row:
    """One object of a data file and where it stands; its methods read fields and complain with file and row."""

    path: Path
    number: int
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

    def identity(self, key: str) -> str | None:
        """An optional id, text or a number."""
        value = self.values.get(key)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, str | int) or not str(value).strip():
            raise self.error(f"{key!r} must be text or a whole number, not {json_type(value)}")
        return str(value).strip()


class Identities:
    """Hands out the ids of a dataset's records and refuses one that was used before, in whatever file."""

    def __init__(self) -> None:
        self._used: dict[str, Row] = {}

    def stated(self, identity: str, row: Row) -> str:
        """The id that a row states."""
        if identity in self._used:
            first = self._used[identity]
            where = f"row {first.number}" if first.path == row.path else f"{first.path.name}, row {first.number}"
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


def read_rows(path: Path, info: DatasetInfo) -> Iterator[Row]:
    """The objects of a file of JSON lines or of one JSON array; the content decides which, not the name.

    Blank lines are skipped but counted, so that a row's number is its line.

    Raises:
        DataError: no such file, an empty one, text that is not UTF-8, broken JSON, or an item that is no object.
    """
    start = _first_byte(path, info)
    items = _array_items(path) if start == b"[" else _line_items(path)
    for number, value in items:
        if not isinstance(value, dict):
            raise DataError(path, f"expected a JSON object, not {json_type(value)}", row=number)
        yield Row(path, number, value)


def read_json(path: Path, info: DatasetInfo) -> Any:
    """The content of one JSON file; a key that an object has twice is an error.

    Raises:
        DataError: no such file, an empty one, text that is not UTF-8, broken JSON, a repeated key.
    """
    _first_byte(path, info)
    return _parse_file(path)


def missing(path: Path, info: DatasetInfo) -> DataError:
    """The error for a path that is not there: says what belongs there and where it comes from."""
    return DataError(path, f"not found; {info.title} needs {info.files}, from {info.source}")


def find_split_files(directory: Path, suffixes: tuple[str, ...], info: DatasetInfo) -> dict[str, Path]:
    """The files of a directory whose names say train, dev or val(idation), or test.

    Raises:
        DataError: no such file, or two for one split.
    """
    files = sorted(file for file in directory.iterdir() if file.is_file() and file.suffix in suffixes)
    found: dict[str, Path] = {}
    for split, words in SPLIT_NAMES.items():
        matches = [file for file in files if any(word in file.stem.lower() for word in words)]
        if len(matches) > 1:
            names = " and ".join(file.name for file in matches)
            raise DataError(directory, f"{names} could both be the {split} file; keep one of them here")
        if matches:
            found[split] = matches[0]
    if not found:
        expected = f"{info.title} needs {info.files}, from {info.source}"
        raise DataError(directory, f"no file here is named train, dev or test; {expected}")
    return found


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
    return names[type(value)]


def _first_byte(path: Path, info: DatasetInfo) -> bytes:
    if not path.exists():
        raise missing(path, info)
    try:
        with path.open("rb") as file:
            for line in file:
                content = line.removeprefix(b"\xef\xbb\xbf").strip()
                if content:
                    return content[:1]
    except OSError as error:
        raise DataError(path, f"cannot be read: {error.strerror}") from None
    raise DataError(path, "the file is empty")


def _line_items(path: Path) -> Iterator[tuple[int, Any]]:
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                text = line.decode("utf-8-sig" if number == 1 else "utf-8").strip()
                if text:
                    yield number, json.loads(text)
            except UnicodeDecodeError:
                raise DataError(path, "not UTF-8 text", row=number) from None
            except json.JSONDecodeError as error:
                raise DataError(path, f"broken JSON at character {error.pos + 1}: {error.msg}", row=number) from None
            except RecursionError:
                raise DataError(path, "broken JSON: nested too deeply", row=number) from None


def _array_items(path: Path) -> Iterator[tuple[int, Any]]:
    yield from enumerate(_parse_file(path), start=1)


def _parse_file(path: Path) -> Any:
    content = path.read_bytes()
    try:
        return json.loads(content.decode("utf-8-sig"), object_pairs_hook=lambda pairs: _object(path, pairs))
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise DataError(path, f"line {line}: not UTF-8 text") from None
    except json.JSONDecodeError as error:
        raise DataError(path, f"line {error.lineno}: broken JSON at character {error.colno}: {error.msg}") from None
    except RecursionError:
        raise DataError(path, "broken JSON: nested too deeply") from None


def _object(path: Path, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content: dict[str, Any] = {}
    for key, value in pairs:
        if key in content:
            raise DataError(path, f"the key {key!r} appears twice in one object")
        content[key] = value
    return content
