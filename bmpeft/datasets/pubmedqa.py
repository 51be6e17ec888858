"""PubMedQA, the expert-labelled part (PQA-L): yes, no or maybe about an abstract without its conclusion.

The directory holds `ori_pqal.json` (PMID -> row) and `test_ground_truth.json` (PMID -> answer), whose 500
PMIDs are the official test split. The other rows are the training half; its validation share is taken by
a seeded hash of the PMID (`data.split.validation`; `data.split.test` is not used).
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from bmpeft.datasets.base import DatasetInfo, LoadedDataset, Row, assemble, json_type, missing, read_json
from bmpeft.datasets.splits import describe_validation, divide
from bmpeft.errors import DataError
from bmpeft.records import Record

if TYPE_CHECKING:
    from bmpeft.recipe import DataSection

INFO = DatasetInfo(
    name="pubmedqa",
    title="PubMedQA (PQA-L)",
    task="question_answering",
    licence="MIT",
    files="a directory with ori_pqal.json and test_ground_truth.json (or the path of ori_pqal.json beside it)",
    source="github.com/pubmedqa/pubmedqa (data/)",
    reference="Jin et al. 2019, arXiv:1909.06146",
)
ANSWERS = ("yes", "no", "maybe")
ROWS_FILE, TEST_FILE = "ori_pqal.json", "test_ground_truth.json"


def read(data: DataSection) -> LoadedDataset:
    """Read PubMedQA; see `bmpeft.datasets.base.Reader`."""
    path = Path(data.path).expanduser()
    rows_file = path / ROWS_FILE if path.is_dir() else path
    if not rows_file.exists():
        raise missing(rows_file, INFO)
    test_file = rows_file.parent / TEST_FILE
    if not test_file.exists():
        raise DataError(
            test_file, f"not found; {rows_file.name} needs it for the official test split; from {INFO.source}"
        )
    records = {record.id: record for record in _records(rows_file)}
    test_ids = _test_ids(test_file, records)
    test = tuple(record for record in records.values() if record.id in test_ids)
    others = tuple(record for record in records.values() if record.id not in test_ids)
    splits = divide(others, {"validation": data.split.validation}, data.split.seed, source=rows_file)
    return assemble(INFO, {**splits, "test": test}, f"official test; {describe_validation(data.split)}")


def _records(path: Path) -> list[Record]:
    rows = enumerate(_object(path).items(), start=1)
    return [_record(Row(path, number, _row(path, number, value)), pmid) for number, (pmid, value) in rows]


def _record(row: Row, pmid: str) -> Record:
    decision = row.text("final_decision")
    if decision not in ANSWERS:
        raise row.error(f"final_decision must be one of {', '.join(ANSWERS)}")
    return Record(
        id=pmid,
        task=INFO.task,
        split="test",
        group=pmid,
        text=_abstract(row),
        question=row.text("QUESTION"),
        choices=ANSWERS,
        label=ANSWERS.index(decision),
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


def _test_ids(path: Path, records: dict[str, Record]) -> set[str]:
    truth = _object(path)
    for pmid, answer in truth.items():
        if pmid not in records:
            raise DataError(path, f"the test question {pmid} is not in {ROWS_FILE}")
        label = records[pmid].label
        if label is None or answer != ANSWERS[label]:
            raise DataError(path, f"the answer to test question {pmid} differs from the one in {ROWS_FILE}")
    if len(truth) == len(records):
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
