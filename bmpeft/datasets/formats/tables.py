"""Tables in text: CSV with quotes (RFC 4180), and BiomedGPT's tab-separated lines without any."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from bmpeft.datasets.base import DatasetInfo
from bmpeft.datasets.formats.lines import BYTE_ORDER_MARK, first_byte, is_compressed, numbered_lines
from bmpeft.datasets.rows import OnBadRow, Row, refuse
from bmpeft.errors import DataError, did_you_mean

TAB_SUFFIXES = (".tsv", ".tab")
_LONGEST_NAME = 60  # of a column, in a message; what is longer is no name but a text


def read_table(
    path: Path,
    info: DatasetInfo,
    on_bad: OnBadRow = refuse,
    *,
    columns: tuple[str, ...] = (),
    delimiter: str | None = None,
    names: tuple[str, ...] | None = None,
) -> Iterator[Row]:
    """The rows of a CSV file below its header; a cell may be quoted and then hold line breaks.

    Blank lines are skipped but counted, so that a row's number is the one that a spreadsheet shows.

    Args:
        path: the file, perhaps compressed by gzip.
        info: of the dataset, for messages.
        on_bad: gets each row that is not CSV, not UTF-8 or has another number of cells than the header.
        columns: must be among those of the header.
        delimiter: between cells; default: a tab for .tsv and .tab, else a comma.
        names: of the columns of a file that has no header.

    Raises:
        DataError: no such file, an empty one, a wrong header.
    """
    first_byte(path, info)
    delimiter = delimiter or ("\t" if path.name.removesuffix(".gz").endswith(TAB_SUFFIXES) else ",")
    rows = _cells(path, info, on_bad, delimiter)
    header: Sequence[str] = names or ()
    if names is None:
        hint = _delimiter_hint(path, info, delimiter)
        header = check_header(path, next(rows, (1, []))[1], columns, hint=hint)
    for number, cells in rows:
        if len(cells) != len(header):
            expected = "the header" if names is None else "a row must have"
            on_bad(DataError(path, f"has {len(cells)} cells, but {expected} {len(header)}", row=number))
        else:
            yield Row(path, number, {name: cell for name, cell in zip(header, cells, strict=True) if name})


@dataclass(frozen=True, slots=True)
class Span:
    """Where a cell stands in its file, for cells that are too large to keep: bytes."""

    offset: int
    length: int


def read_tabbed(
    path: Path, info: DatasetInfo, names: tuple[str, ...], on_bad: OnBadRow = refuse, *, spans: tuple[str, ...] = ()
) -> Iterator[Row]:
    """The lines of a table without header or quotes, its cells apart by tabs; blank lines are skipped.

    Args:
        path: the file.
        info: of the dataset, for messages.
        names: of the columns.
        on_bad: gets each line that has another number of cells, or is not UTF-8.
        spans: the columns of which a row gets the `Span` instead of the text.

    Raises:
        DataError: no such file, an empty one, or a compressed one with columns to be found again by their place.
    """
    if first_byte(path, info) and spans and is_compressed(path):
        raise DataError(path, "is compressed, so that its images cannot be reached; decompress it")
    end = 0
    for number, line in numbered_lines(path, info, keep_mark=True):
        start, end = end, end + len(line)
        cells = line.rstrip(b"\r\n").removeprefix(BYTE_ORDER_MARK if number == 1 else b"").split(b"\t")
        if not line.strip():
            continue
        if len(cells) != len(names):
            on_bad(DataError(path, f"has {len(cells)} cells between tabs, expected {len(names)}", row=number))
            continue
        cell_end, values = start + len(line.rstrip(b"\r\n")) + 1, {}
        try:
            for name, cell in reversed(list(zip(names, cells, strict=True))):
                cell_end -= len(cell) + 1
                values[name] = Span(cell_end, len(cell)) if name in spans else cell.decode("utf-8")
        except UnicodeDecodeError:
            on_bad(DataError(path, "not UTF-8 text", row=number))
        else:
            yield Row(path, number, values)


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
            wrong(f"the header names {_shown(name)} twice")
    # A table without a header begins with a row, and no message holds the text of one.
    header = all(len(name) <= _LONGEST_NAME for name in given)
    for column in columns:
        if column not in given:
            valid = did_you_mean(column, given) if header else "; is the first row a header?"
            wrong(f"there is no column {column!r}{valid}")
    return names


def _shown(name: str) -> str:
    return repr(name) if len(name) <= _LONGEST_NAME else "a column"


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
                raise DataError(path, f"not a table in CSV: {_problem(error)}", row=1) from None
            on_bad(DataError(path, f"not a row of CSV: {_problem(error)}", row=number))
            continue
        if not all(map(_is_text, cells)) and number > 1:
            on_bad(DataError(path, "not UTF-8 text", row=number))
        elif cells:
            yield number, cells


def _problem(error: csv.Error) -> str:
    """What the reader says; of one case it speaks to programmers."""
    text = str(error)
    return "a carriage return without a line feed, outside quotes" if text.startswith("new-line") else text


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
