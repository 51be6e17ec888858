"""MeQSum: a consumer's health question to a short one.

The authors' workbook (columns `File`, `CHQ`, `Summary`), or BiomedGPT's division of the same 1,000 rows into
train.tsv, val.tsv and test.tsv (question, tab, summary; no header).
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

from bmpeft.datasets.base import DatasetInfo, LoadedDataset
from bmpeft.datasets.reading import ALL, Reading
from bmpeft.datasets.rows import Row
from bmpeft.datasets.splits import group_of
from bmpeft.records import Record

INFO = DatasetInfo(
    name="meqsum",
    title="MeQSum",
    task="summarization",
    licence="CC BY 4.0",
    files="the .xlsx file, or a directory with it or with BiomedGPT's train.tsv, val.tsv and test.tsv",
    source="github.com/abachaa/MeQSum; the .tsv files from github.com/taokz/BiomedGPT",
    reference="Ben Abacha & Demner-Fushman 2019, ACL",
)
SOURCE, SUMMARY = "CHQ", "Summary"


def read(reading: Reading) -> LoadedDataset:
    """Read MeQSum; see `bmpeft.datasets.base.Reader`."""
    return reading.finish(reading.by_file(_files(reading), partial(_rows, reading), partial(_record, reading)))


def _files(reading: Reading) -> dict[str, Path]:
    path = reading.path
    workbooks = sorted(path.glob("*.xlsx")) if path.is_dir() else []
    return {ALL: workbooks[0]} if len(workbooks) == 1 else reading.split_files(".tsv")


def _rows(reading: Reading, path: Path) -> Iterator[Row]:
    if path.suffix == ".xlsx":
        return reading.table_rows(path, columns=("File", SOURCE, SUMMARY))
    return reading.tabbed_rows(path, (SOURCE, SUMMARY))


def _record(reading: Reading, split: str, row: Row) -> Record:
    source, summary = row.text(SOURCE), row.text(SUMMARY)
    return Record(
        id=reading.identity(row, row.optional("File"), f"q-{group_of(source, summary)}"),
        task=reading.task,
        split=split,
        group=group_of(source),
        text=source,
        answers=(summary,),
        licence=INFO.licence,
    )
