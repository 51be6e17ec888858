"""The one form of a benchmark's rows."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bmpeft.errors import BmpeftError
from bmpeft.machine import describe_machine, package_versions

COLUMNS = (
    "benchmark",
    "case",
    "backend",
    "dtype",
    "pass",
    "batch",
    "length",
    "heads",
    "head_dim",
    "metric",
    "unit",
    "p20",
    "p50",
    "p80",
    "n",
    "device",
    "versions",
)


def device_columns() -> dict[str, str]:
    """The columns device and versions for what runs here."""
    versions = " ".join(f"{name} {version}" for name, version in package_versions("torch").items())
    return {"device": describe_machine(), "versions": versions}


def make_row(*parts: Mapping[str, Any]) -> dict[str, Any]:
    """One row of these parts, with the columns in their order; what none of them says is None."""
    content = {name: value for part in parts for name, value in part.items()}
    unknown = content.keys() - set(COLUMNS)
    if unknown:
        raise ValueError(f"no columns: {', '.join(sorted(unknown))}")
    return {name: content.get(name) for name in COLUMNS}


def write_csv(file: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows with the columns of `COLUMNS`.

    Raises:
        BmpeftError: the file cannot be written.
    """
    try:
        with file.open("w", encoding="utf-8", newline="") as stream:
            writer = csv.DictWriter(stream, COLUMNS)
            writer.writeheader()
            writer.writerows(rows)
    except OSError as error:
        raise BmpeftError(f"{file}: cannot be written: {error.strerror}") from None
