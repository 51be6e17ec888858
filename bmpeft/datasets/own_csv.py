"""The user's own tables: CSV, or the first sheet of a workbook; `data.fields` says which column holds what."""

from __future__ import annotations

from bmpeft.datasets.base import ANY_TASK, DatasetInfo, LoadedDataset
from bmpeft.datasets.own_fields import OWN_OPTIONS, needed_columns, read_own
from bmpeft.datasets.reading import Reading

INFO = DatasetInfo(
    name="csv",
    title="your own table",
    task=ANY_TASK,
    licence="not stated",
    files="a .csv, .tsv or .xlsx file, or a directory with train, dev and test files; images as paths from there",
    source="you",
    reference="docs/adding_a_dataset.md",
    group="group",
    options=(*OWN_OPTIONS, "delimiter"),
)


def read(reading: Reading) -> LoadedDataset:
    """Read a table; see `bmpeft.datasets.base.Reader`."""
    files, columns = reading.split_files(".csv", ".tsv", ".tab", ".xlsx"), needed_columns(reading)
    sources = {split: reading.table_rows(file, columns=columns) for split, file in files.items()}
    return read_own(reading, sources, reading.own_image)
