"""JSON lines and JSON arrays."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bmpeft.datasets.base import DatasetInfo
from bmpeft.datasets.formats.lines import first_byte, numbered_lines, whole_file
from bmpeft.datasets.rows import OnBadRow, Row, json_type, refuse
from bmpeft.errors import DataError


def read_rows(path: Path, info: DatasetInfo, on_bad: OnBadRow = refuse) -> Iterator[Row]:
    """The objects of a file of JSON lines or of one JSON array; the content decides which, not the name.

    Blank lines are skipped but counted, so that a row's number is its line. A bad line or item (a key that an
    object has twice, too) is handed to `on_bad`; an array that is broken anywhere is an error as a whole.

    Raises:
        DataError: no such file, an empty one, text that is not UTF-8, broken JSON, or an item that is no object.
    """
    items: Iterator[tuple[int, Any]] = _line_items(path, info, on_bad)
    if first_byte(path, info) == b"[":
        items = enumerate(_parse_file(path, info), start=1)
    for number, value in items:
        if isinstance(value, dict):
            yield Row(path, number, value)
        else:
            on_bad(DataError(path, f"expected a JSON object, not {json_type(value)}", row=number))


def read_json(path: Path, info: DatasetInfo) -> Any:
    """The content of one JSON file; a key that an object has twice is an error.

    Raises:
        DataError: no such file, an empty one, text that is not UTF-8, broken JSON, a repeated key.
    """
    first_byte(path, info)
    return _parse_file(path, info)


def _line_items(path: Path, info: DatasetInfo, on_bad: OnBadRow) -> Iterator[tuple[int, Any]]:
    for number, line in numbered_lines(path, info):
        try:
            text = line.decode("utf-8").strip()
            if text:
                yield number, json.loads(text, object_pairs_hook=lambda pairs: _object(path, pairs))
        except UnicodeDecodeError:
            on_bad(DataError(path, "not UTF-8 text", row=number))
        except json.JSONDecodeError as error:
            on_bad(DataError(path, f"broken JSON at character {error.pos + 1}: {error.msg}", row=number))
        except DataError as error:
            on_bad(DataError(path, error.problem, row=number))
        except (RecursionError, ValueError) as error:
            on_bad(DataError(path, f"broken JSON: {_excess(error)}", row=number))


def _parse_file(path: Path, info: DatasetInfo) -> Any:
    content = whole_file(path, info)
    try:
        return json.loads(content.decode("utf-8"), object_pairs_hook=lambda pairs: _object(path, pairs))
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise DataError(path, f"line {line}: not UTF-8 text") from None
    except json.JSONDecodeError as error:
        raise DataError(path, f"line {error.lineno}: broken JSON at character {error.colno}: {error.msg}") from None
    except (RecursionError, ValueError) as error:
        raise DataError(path, f"broken JSON: {_excess(error)}") from None


def _excess(error: Exception) -> str:
    """What Python's reader gives up on besides syntax: depth, and numbers of thousands of digits."""
    return "nested too deeply" if isinstance(error, RecursionError) else "a number with too many digits"


def _object(path: Path, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content: dict[str, Any] = {}
    for key, value in pairs:
        if key in content:
            raise DataError(path, f"the key {key!r} appears twice in one object")
        content[key] = value
    return content
