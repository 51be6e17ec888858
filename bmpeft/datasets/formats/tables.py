"""Tables in text: CSV with quotes (RFC 4180), and BiomedGPT's tab-separated lines without any."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

from bmpeft.datasets.base import DatasetInfo
from bmpeft.datasets.formats.lines import first_byte, numbered_lines
from bmpeft.datasets.rows import OnBadRow, Row, refuse
from bmpeft.errors import DataError, did_you_mean

TAB_SUFFIXES = (".tsv", ".tab")


def read_table(
    path: Path,
    info: DatasetInfo,
    on_bad: OnBadRow = refuse,
    *,
    columns: tuple[str, ...] = (),
    delimiter: str | None = None,
) -> Iterator[Row]:
    """The rows of a CSV file below its header; a cell may be quoted and then hold line breaks.

    Blank lines are skipped but counted, so that a row's number is the one that a spreadsheet shows.

    Args:
        path: the file, perhaps compressed by gzip.
        info: of the dataset, for messages.
        on_bad: gets each row that is not CSV, not UTF-8 or has another number of cells than the header.
        columns: must be among those of the header.
        delimiter: between cells; default: a tab for .tsv and .tab, else a comma.

    Raises:
        DataError: no such file, an empty one, a wrong header.
    """
    first_byte(path, info)
    delimiter = delimiter or ("\t" if path.name.removesuffix(".gz").endswith(TAB_SUFFIXES) else ",")
    rows = _cells(path, info, on_bad, delimiter)
    names = check_header(path, next(rows, (1, []))[1], columns, hint=_delimiter_hint(path, info, delimiter))
    for number, cells in rows:
        if len(cells) != len(names):
            on_bad(DataError(path, f"has {len(cells)} cells, but the header {len(names)}", row=number))
        else:
            yield Row(path, number, {name: cell for name, cell in zip(names, cells, strict=True) if name})


def read_headless(path: Path, info: DatasetInfo, columns: int, on_bad: OnBadRow = refuse) -> Iterator[HeadlessRow]:
    """The lines of a table without header or quotes, its cells apart by tabs; blank lines are skipped.

    Raises:
        DataError: no such file, or an empty one; a line with another number of cells goes to `on_bad`.
    """
    first_byte(path, info)
    start = 0
    for number, line in numbered_lines(path, info):
        start, here = start + len(line), start
        content = line.rstrip(b"\r\n")
        if not content.strip():
            continue
        cells = content.split(b"\t")
        if len(cells) != columns:
            on_bad(DataError(path, f"has {len(cells)} cells between tabs, expected {columns}", row=number))
            continue
        yield HeadlessRow(path, number, here, tuple(cells))


class HeadlessRow:
    """A line of a table without header; its cells are decoded when they are asked for."""

    def __init__(self, path: Path, number: int, offset: int, cells: tuple[bytes, ...]) -> None:
        self.row, self.offset, self.cells = Row(path, number, {}), offset, cells

    def text(self, column: int, name: str) -> str:
        """A cell that must hold text, without the white space around it."""
        value = self.optional(column, name)
        if value is None:
            raise self.row.error(f"column {column + 1} ({name}) is empty")
        return value

    def optional(self, column: int, name: str) -> str | None:
        """A cell's text, or None where it is blank."""
        try:
            return self.cells[column].decode("utf-8").strip() or None
        except UnicodeDecodeError:
            raise self.row.error(f"column {column + 1} ({name}) is not UTF-8 text") from None

    def span(self, column: int) -> tuple[int, int]:
        """Offset in the file and length of a cell, in bytes."""
        return self.offset + sum(len(cell) + 1 for cell in self.cells[:column]), len(self.cells[column])


def check_header(path: Path, names: list[str], columns: tuple[str, ...], *, hint: str = "") -> list[str]:
    """The names of a table's columns without white space around them.

    Raises:
        DataError: not UTF-8, no names, one name twice, or one of `columns` is missing; ends with `hint`.
    """

    def wrong(problem: str) -> NoReturn:
        raise DataError(path, f"{problem}{hint}", row=1)

    names = [name.strip() for name in names]
    if not all(_is_text(name) for name in names):
        raise DataError(path, "not UTF-8 text", row=1)
    given = [name for name in names if name]
    if not given:
        wrong("the header names no column")
    for name in given:
        if given.count(name) > 1:
            wrong(f"the header names {name!r} twice")
    for column in columns:
        if column not in given:
            wrong(f"there is no column {column!r}{did_you_mean(column, given)}")
    return names


def _cells(path: Path, info: DatasetInfo, on_bad: OnBadRow, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    # Undecodable bytes go through the CSV reader as lone surrogates, so that the row that they stand in is known.
    lines = (line.decode("utf-8", "surrogateescape") for _, line in numbered_lines(path, info))
    reader, number = csv.reader(lines, delimiter=delimiter, strict=True), 0
    while True:
        number += 1
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            if number == 1:
                raise DataError(path, f"not a table in CSV: {error}", row=1) from None
            on_bad(DataError(path, f"not a row of CSV: {error}", row=number))
            continue
        if number > 1 and not all(map(_is_text, cells)):
            on_bad(DataError(path, "not UTF-8 text", row=number))
        elif cells:
            yield number, cells


def _is_text(value: str) -> bool:
    return value.isprintable() or not any("\ud800" <= character <= "\udfff" for character in value)


def _delimiter_hint(path: Path, info: DatasetInfo, delimiter: str) -> str:
    """A question to the user where the header would make more sense with another delimiter."""
    if "delimiter" not in info.options:
        return ""
    header = next(numbered_lines(path, info))[1].decode("utf-8", "replace")
    if delimiter in header:
        return ""
    other = next((other for other in (";", "\t", "|", ",") if other in header), None)
    return f"; are the cells apart by {other!r}? Then say data.delimiter={other!r}" if other else ""
