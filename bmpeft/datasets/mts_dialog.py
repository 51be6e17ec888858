"""MTS-Dialog: a conversation of doctor and patient to a section of the note, or to the section's kind.

CSV with `ID`, `section_header`, `section_text` and `dialogue`; two official test files, of the MEDIQA-Chat
(test1) and MEDIQA-Sum (test2) challenges of 2023.
"""

from __future__ import annotations

from functools import partial

from bmpeft.datasets.base import DatasetInfo, LoadedDataset
from bmpeft.datasets.labels import Labels
from bmpeft.datasets.reading import Reading
from bmpeft.datasets.rows import Row
from bmpeft.datasets.splits import group_of
from bmpeft.records import Record

INFO = DatasetInfo(
    name="mts_dialog",
    title="MTS-Dialog",
    task="summarization",
    licence="CC BY 4.0",
    files="one of the .csv files, or the directory Main-Dataset with all of them",
    source="github.com/abachaa/MTS-Dialog (Main-Dataset)",
    reference="Ben Abacha et al. 2023, EACL",
    group="dialogue",
    more_tasks=("text_understanding",),
    options=("label_names",),
)
COLUMNS = ("ID", "section_header", "section_text", "dialogue")
WORDS = {"train": ("train",), "validation": ("val",), "test1": ("testset-1",), "test2": ("testset-2",)}


def read(reading: Reading) -> LoadedDataset:
    """Read MTS-Dialog; see `bmpeft.datasets.base.Reader`."""
    files, labels = reading.split_files(".csv", words=WORDS), Labels(reading)
    rows_of = partial(reading.table_rows, columns=COLUMNS)
    return reading.finish(labels.apply(reading.by_file(files, rows_of, partial(_record, reading, labels))))


def _record(reading: Reading, labels: Labels, split: str, row: Row) -> Record:
    header, section, dialogue = row.text("section_header"), row.text("section_text"), row.text("dialogue")
    summary = reading.task == "summarization"
    return Record(
        id=reading.identity(row, f"{split}-{row.text('ID')}", ""),
        task=reading.task,
        split=split,
        group=group_of(dialogue),
        text=dialogue,
        answers=(section,) if summary else None,
        label=None if summary else labels.index(row, header),
        licence=INFO.licence,
        meta={"section": header},
    )
