"""MMLU: four options and a letter, CSV without header: question, A, B, C, D, answer.

The files are named subject_dev.csv, subject_val.csv and subject_test.csv. The dev rows (five a subject, meant
as examples in a prompt) are the only ones that may be trained on: they are the training split. To measure the
medical subjects, put only their files into the directory.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

from bmpeft.datasets.base import DatasetInfo, LoadedDataset
from bmpeft.datasets.formats.tables import read_table
from bmpeft.datasets.multiple_choice import question_record
from bmpeft.datasets.reading import ALL, Reading, Splits
from bmpeft.datasets.rows import Row
from bmpeft.errors import DataError
from bmpeft.records import Record

INFO = DatasetInfo(
    name="mmlu",
    title="MMLU",
    task="question_answering",
    licence="MIT",
    files="a .csv file, or a directory with subject_dev.csv, subject_val.csv and subject_test.csv, also below it",
    source="github.com/hendrycks/test (data.tar)",
    reference="Hendrycks et al. 2021, arXiv:2009.03300",
)
COLUMNS = ("question", "A", "B", "C", "D", "answer")
OPTIONS = COLUMNS[1:5]
SPLITS = {"dev": "train", "val": "validation", "test": "test"}


def read(reading: Reading) -> LoadedDataset:
    """Read MMLU; see `bmpeft.datasets.base.Reader`."""
    path = reading.exists(reading.path)
    if path.is_file():
        return reading.finish({ALL: _file(reading, path, ALL)})
    splits: Splits = {}
    for file in sorted(path.rglob("*.csv")):
        split = SPLITS.get(file.stem.rpartition("_")[2])
        if split is not None:
            splits[split] = splits.get(split, ()) + _file(reading, file, split)
    if not splits:
        raise DataError(path, f"holds no subject_dev.csv, subject_val.csv or subject_test.csv; from {INFO.source}")
    return reading.finish(splits)


def _file(reading: Reading, path: Path, split: str) -> tuple[Record, ...]:
    rows = read_table(path, INFO, reading.bad, names=COLUMNS)
    subject = path.stem.rpartition("_")[0] or path.stem
    return reading.records(rows, partial(_record, reading, split, subject))


def _record(reading: Reading, split: str, subject: str, row: Row) -> Record:
    letter = row.one_of("answer", OPTIONS)
    return question_record(
        reading,
        row,
        split,
        question=row.text("question"),
        choices=tuple(row.text(option) for option in OPTIONS),
        label=OPTIONS.index(letter),
        meta={"subject": subject},
    )
