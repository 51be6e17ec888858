"""Medical abstracts: which of five kinds of disease a PubMed abstract is about.

CSV with `condition_label` (1 to 5) and `medical_abstract`. Some abstracts stand in the files several times
with different labels; rows of one abstract are one group.
"""

from __future__ import annotations

from functools import partial

from bmpeft.datasets.base import DatasetInfo, LoadedDataset
from bmpeft.datasets.labels import published_names
from bmpeft.datasets.reading import Reading
from bmpeft.datasets.rows import Row
from bmpeft.datasets.splits import group_of
from bmpeft.records import Record

INFO = DatasetInfo(
    name="medical_abstracts",
    title="Medical Abstracts",
    task="text_understanding",
    licence="CC BY-SA 3.0",
    files="medical_tc_train.csv or medical_tc_test.csv, or a directory with both",
    source="github.com/sebischair/Medical-Abstracts-TC-Corpus",
    reference="Schopf et al. 2022, arXiv:2211.16285",
    group="abstract",
    options=("label_names",),
)
LABELS = {
    "1": "neoplasms",
    "2": "digestive system diseases",
    "3": "nervous system diseases",
    "4": "cardiovascular diseases",
    "5": "general pathological conditions",
}


def read(reading: Reading) -> LoadedDataset:
    """Read the abstracts; see `bmpeft.datasets.base.Reader`."""
    names = published_names(reading, LABELS)
    rows_of = partial(reading.table_rows, columns=("condition_label", "medical_abstract"))
    return reading.finish(reading.by_file(reading.split_files(".csv"), rows_of, partial(_record, reading, names)))


def _record(reading: Reading, names: dict[str, str], split: str, row: Row) -> Record:
    label, text = row.one_of("condition_label", names), row.text("medical_abstract")
    return Record(
        id=reading.identity(row, None, f"a-{group_of(label, text)}"),
        task=reading.task,
        split=split,
        group=group_of(text),
        text=text,
        choices=tuple(names.values()),
        label=list(names).index(label),
        licence=INFO.licence,
    )
