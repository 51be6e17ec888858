"""The first worksheet of an .xlsx file (ISO/IEC 29500), transitional or Strict Open XML.

Libraries read the strict form as a workbook without sheets; a table needs little of the format, so it is
read here: shared and inline text, numbers as they are written, no formulas, no dates.
"""

from __future__ import annotations

import re
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from xml.etree.ElementTree import Element

from bmpeft.datasets.base import DatasetInfo, missing
from bmpeft.datasets.formats.tables import check_header
from bmpeft.datasets.formats.xml_files import elements, local_name, parse_xml
from bmpeft.datasets.rows import OnBadRow, Row, refuse
from bmpeft.errors import DataError

LARGEST_PART = 256 * 2**20
HIGHEST_RATIO = 200  # of a part's size to its compressed size; worksheets reach about 20
_MOST_DIGITS = 10
_CELL = re.compile(r"([A-Z]{1,3})([0-9]+)")
_ESCAPE = re.compile(r"_x(?![dD][89a-fA-F])([0-9A-Fa-f]{4})_")  # no surrogates


def read_sheet(
    path: Path, info: DatasetInfo, on_bad: OnBadRow = refuse, *, columns: tuple[str, ...] = ()
) -> Iterator[Row]:
    """The rows of a workbook's first sheet below its header; every cell is text, an empty one is "".

    Raises:
        DataError: no such file, no workbook, one with a part beyond the limits or with XML entities, a
            header without one of `columns`; a row with an error value goes to `on_bad`.
    """
    if not path.exists():
        raise missing(path, info)
    try:
        with zipfile.ZipFile(path) as archive:
            yield from _rows(path, archive, on_bad, columns)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError):
        raise DataError(path, "no .xlsx workbook, or a damaged one") from None
    except OSError as error:
        raise DataError(path, f"cannot be read: {error.strerror}") from None


def _rows(path: Path, archive: zipfile.ZipFile, on_bad: OnBadRow, columns: tuple[str, ...]) -> Iterator[Row]:
    shared = _shared_texts(path, archive)
    names: list[str] | None = None
    with archive.open(_part(path, archive, _first_sheet(path, archive))) as file:
        for count, element in enumerate(elements(path, file, "row"), start=1):
            number = _number(element.get("r", "")) or count
            try:
                cells = _cells(path, number, element, shared)
            except DataError as error:
                on_bad(error)
                continue
            if names is None:
                if cells:
                    width = max(cells) + 1
                    names = check_header(path, [cells.get(i, "") for i in range(width)], columns)
            elif any(text.strip() for text in cells.values()):
                yield Row(path, number, {name: cells.get(i, "") for i, name in enumerate(names) if name})
    if names is None:
        raise DataError(path, "the first sheet is empty")


def _cells(path: Path, number: int, row: Element, shared: list[str]) -> dict[int, str]:
    """Column, from 0 -> text, of the cells that are not empty."""
    cells: dict[int, str] = {}
    for position, cell in enumerate(element for element in row if local_name(element) == "c"):
        reference = _CELL.fullmatch(cell.get("r") or "")
        column = _column(reference[1]) if reference else position
        text = _text(path, number, cell, shared)
        if text:
            cells[column] = text
    return cells


def _text(path: Path, number: int, cell: Element, shared: list[str]) -> str:
    kind = cell.get("t", "n")
    if kind == "inlineStr":
        return "".join(_string(part) for part in cell if local_name(part) == "is")
    value = next((part.text or "" for part in cell if local_name(part) == "v"), "")
    if kind == "e":
        raise DataError(path, "a cell holds an error value instead of text", row=number)
    if kind == "s" and value:
        place = _number(value)
        if place is None or place >= len(shared):
            raise DataError(path, "a cell refers to a text that the workbook does not hold", row=number)
        return shared[place]
    return _unescaped(value) if kind == "str" else value


def _shared_texts(path: Path, archive: zipfile.ZipFile) -> list[str]:
    name = "xl/sharedStrings.xml"
    if name not in archive.namelist():
        return []
    with archive.open(_part(path, archive, name)) as file:
        return [_string(element) for element in elements(path, file, "si")]


def _string(element: Element) -> str:
    """The text of a string: its own or that of its formatted runs, without phonetic hints."""
    parts = []
    for child in element:
        if local_name(child) == "t":
            parts.append(child.text or "")
        elif local_name(child) == "r":
            parts += [run.text or "" for run in child if local_name(run) == "t"]
    return _unescaped("".join(parts))


def _unescaped(text: str) -> str:
    """Control characters are written as _x000D_ and the like."""
    return _ESCAPE.sub(lambda match: chr(int(match[1], 16)), text)


def _first_sheet(path: Path, archive: zipfile.ZipFile) -> str:
    """The name of the part that holds the first sheet."""
    workbook = _parse(path, archive, "xl/workbook.xml")
    sheets = [element for element in workbook.iter() if local_name(element) == "sheet"]
    if not sheets:
        raise DataError(path, "the workbook has no sheet")
    relation = next((value for key, value in sheets[0].attrib.items() if key.endswith("relationships}id")), None)
    for element in _parse(path, archive, "xl/_rels/workbook.xml.rels"):
        if element.get("Id") == relation:
            target = element.get("Target", "")
            return target.lstrip("/") if target.startswith("/") else str(PurePosixPath("xl", target))
    raise DataError(path, "the workbook does not say where its first sheet is")


def _parse(path: Path, archive: zipfile.ZipFile, name: str) -> Element:
    return parse_xml(path, archive.read(_part(path, archive, name)))


def _part(path: Path, archive: zipfile.ZipFile, name: str) -> str:
    """The name of a part that is there and not larger than a worksheet can be."""
    try:
        part = archive.getinfo(name)
    except KeyError:
        raise DataError(path, f"no .xlsx workbook: it has no {name}") from None
    if part.file_size > LARGEST_PART or part.file_size > HIGHEST_RATIO * max(part.compress_size, 1024):
        raise DataError(path, f"{name} would become {part.file_size >> 20} MiB when decompressed; refused")
    return name


def _number(text: str) -> int | None:
    """A number as workbooks have them: rows, and places of shared texts, of at most ten digits."""
    return int(text) if text.isdecimal() and len(text) <= _MOST_DIGITS else None


def _column(letters: str) -> int:
    number = 0
    for letter in letters:
        number = 26 * number + ord(letter) - ord("A") + 1
    return number - 1
