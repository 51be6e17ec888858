"""PubMedQA, the expert-labelled part (PQA-L): yes, no or maybe about an abstract without its conclusion.

The directory holds `ori_pqal.json` (PMID -> row) and `test_ground_truth.json` (PMID -> answer), whose 500
PMIDs are the official test split. The other rows are the training half; its validation share is taken by
a seeded hash of the PMID (`data.split.validation`; `data.split.test` is not used).
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from bmpeft.datasets.base import DatasetInfo, LoadedDataset
from bmpeft.datasets.formats.json_rows import read_json
from bmpeft.datasets.reading import Reading
from bmpeft.datasets.rows import Row, json_type
from bmpeft.errors import DataError
from bmpeft.records import Record

INFO = DatasetInfo(
    name="pubmedqa",
    title="PubMedQA (PQA-L)",
    task="question_answering",
    licence="MIT",
    files="a directory with ori_pqal.json and test_ground_truth.json (or the path of ori_pqal.json beside it)",
    source="github.com/pubmedqa/pubmedqa (data/)",
    reference="Jin et al. 2019, arXiv:1909.06146",
    more_tasks=("text_understanding", "summarization"),
)
ANSWERS = ("yes", "no", "maybe")
PMID = "PMID"  # the key of a row, put among its values
ROWS_FILE, TEST_FILE = "ori_pqal.json", "test_ground_truth.json"


def read(reading: Reading) -> LoadedDataset:
    """Read PubMedQA; see `bmpeft.datasets.base.Reader`."""
    path = reading.path
    rows_file = reading.exists(path / ROWS_FILE if path.is_dir() else path)
    test_file = rows_file.parent / TEST_FILE
    if not test_file.exists():
        raise DataError(
            test_file, f"not found; {rows_file.name} needs it for the official test split; from {INFO.source}"
        )
    rows = [Row(rows_file, n, {**_row(rows_file, n, value), PMID: pmid}) for n, pmid, value in _items(rows_file)]
    test_ids = _test_ids(test_file, rows)
    divided = {
        "train": [row for row in rows if row.values[PMID] not in test_ids],
        "test": [row for row in rows if row.values[PMID] in test_ids],
    }
    return reading.finish({s: reading.records(part, partial(_record, reading, s)) for s, part in divided.items()})


def _items(path: Path) -> list[tuple[int, str, Any]]:
    return [(number, pmid, value) for number, (pmid, value) in enumerate(_object(path).items(), start=1)]


def _record(reading: Reading, split: str, row: Row) -> Record:
    """A question about the abstract; for summarization the abstract, whose conclusion is the summary."""
    decision, pmid = row.one_of("final_decision", ANSWERS), row.text(PMID)
    closed = reading.task != "summarization"
    return Record(
        id=pmid,
        task=reading.task,
        split=split,
        group=pmid,
        text=_abstract(row),
        question=row.text("QUESTION"),
        choices=ANSWERS if closed else None,
        answers=None if closed else (row.text("LONG_ANSWER"),),
        label=ANSWERS.index(decision) if closed else None,
        licence=INFO.licence,
    )


def _abstract(row: Row) -> str:
    """The sections of the abstract, each after its label, as PubMed prints them."""
    contexts, labels = _texts(row, "CONTEXTS"), _texts(row, "LABELS")
    if len(contexts) != len(labels):
        raise row.error(f"'CONTEXTS' has {len(contexts)} sections but 'LABELS' {len(labels)}")
    return " ".join(f"{label}: {context}" for label, context in zip(labels, contexts, strict=True))


def _texts(row: Row, key: str) -> list[str]:
    values = row.values.get(key)
    if not isinstance(values, list) or not values or not all(isinstance(v, str) and v.strip() for v in values):
        raise row.error(f"{key!r} must be an array of texts that are not empty")
    return [value.strip() for value in values]


def _test_ids(path: Path, rows: list[Row]) -> set[str]:
    truth, decisions = _object(path), {row.values[PMID]: row.values.get("final_decision") for row in rows}
    for pmid, answer in truth.items():
        if pmid not in decisions:
            raise DataError(path, f"the test question {pmid} is not in {ROWS_FILE}")
        if answer != decisions[pmid]:
            raise DataError(path, f"the answer to test question {pmid} differs from the one in {ROWS_FILE}")
    if len(truth) == len(decisions):
        raise DataError(path, f"names every question of {ROWS_FILE} as test; nothing is left to train on")
    return set(truth)


def _object(path: Path) -> dict[str, Any]:
    content = read_json(path, INFO)
    if not isinstance(content, dict) or not content:
        found = "an empty one" if content == {} else json_type(content)
        raise DataError(path, f"expected an object of PMIDs, not {found}")
    return content


def _row(path: Path, number: int, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise DataError(path, f"expected a JSON object, not {json_type(value)}", row=number)
    return value
