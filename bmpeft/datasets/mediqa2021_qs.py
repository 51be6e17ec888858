"""MEDIQA 2021, task 1: a consumer's health question to a short one; workbooks for validation and test.

There is no training file (the authors point at MeQSum): `data.split_by: group` divides the 150 rows anew.
"""

from __future__ import annotations

from functools import partial

from bmpeft.datasets.base import DatasetInfo, LoadedDataset
from bmpeft.datasets.reading import Reading
from bmpeft.datasets.rows import Row
from bmpeft.datasets.splits import group_of
from bmpeft.records import Record

INFO = DatasetInfo(
    name="mediqa2021_qs",
    title="MEDIQA 2021 task 1 (question summarization)",
    task="summarization",
    licence="CC BY 4.0",
    files="one of the .xlsx files, or the directory Task1 with both",
    source="github.com/abachaa/MEDIQA2021 (Task1)",
    reference="Ben Abacha et al. 2021, BioNLP",
)
COLUMNS = ("q_id", "NLM Question", "Summary")
META = {"question_type": "Question Type"}


def read(reading: Reading) -> LoadedDataset:
    """Read MEDIQA-QS; see `bmpeft.datasets.base.Reader`."""
    files = reading.split_files(".xlsx", words={"validation": ("validation",), "test": ("testset",)})
    rows_of = partial(reading.table_rows, columns=COLUMNS)
    return reading.finish(reading.by_file(files, rows_of, partial(_record, reading)))


def _record(reading: Reading, split: str, row: Row) -> Record:
    question = row.text("NLM Question")
    meta = {key: row.text(name) for key, name in META.items() if row.optional(name)}
    return Record(
        id=reading.identity(row, f"{split}-{row.text('q_id')}", ""),
        task=reading.task,
        split=split,
        group=group_of(question),
        text=question,
        answers=(row.text("Summary"),),
        licence=INFO.licence,
        meta=meta,
    )
