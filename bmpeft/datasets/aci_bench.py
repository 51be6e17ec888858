"""ACI-bench: the whole conversation of a visit to the clinical note; sources of thousands of tokens.

CSV with `dataset`, `encounter_id`, `dialogue` and `note`; the three official test files are test1 to test3.
"""

from __future__ import annotations

from functools import partial

from bmpeft.datasets.base import DatasetInfo, LoadedDataset
from bmpeft.datasets.reading import Reading
from bmpeft.datasets.rows import Row
from bmpeft.records import Record

INFO = DatasetInfo(
    name="aci_bench",
    title="ACI-bench",
    task="summarization",
    licence="CC BY 4.0",
    files="one of the .csv files, or the directory challenge_data with all of them",
    source="github.com/wyim/aci-bench (data/challenge_data)",
    reference="Yim et al. 2023, arXiv:2306.02022",
    group="encounter",
)
COLUMNS = ("dataset", "encounter_id", "dialogue", "note")
WORDS = {"train": ("train",), "validation": ("valid",), **{f"test{n}": (f"test{n}",) for n in (1, 2, 3)}}


def read(reading: Reading) -> LoadedDataset:
    """Read ACI-bench; see `bmpeft.datasets.base.Reader`."""
    files = reading.split_files(".csv", words=WORDS, without="metadata")
    rows_of = partial(reading.table_rows, columns=COLUMNS)
    return reading.finish(reading.by_file(files, rows_of, partial(_record, reading)))


def _record(reading: Reading, split: str, row: Row) -> Record:
    encounter = row.text("encounter_id")
    return Record(
        id=reading.identity(row, encounter, ""),
        task=reading.task,
        split=split,
        group=encounter,
        text=row.text("dialogue"),
        answers=(row.text("note"),),
        licence=INFO.licence,
        meta={"recording": row.text("dataset")},
    )
