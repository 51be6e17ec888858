"""MedMCQA: JSON lines (the files are named .json) or one array, with `question`, `opa` to `opd` and `cop`.

`cop` is the right option, counted from 1 in the original files and from 0 in the hub's copy. Nothing in a
row tells which, and a wrong guess trains on wrong answers without any sign, so the recipe must say it
(`data.cop_base`) and every file is checked against it.

Some official rows hold one text twice among their options (21 of the 4,183 of dev.json). They are read as
they are; an answer counts as right if its text is the right option's.

The test file's labels are hidden (`cop` absent, null or -1 in every row). Its rows are read without a
label, as split `hidden_test`; the official validation file, on which results are published, is then the
test split, and the validation split is taken from the training file. A file in which only some rows have
no label is refused.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from bmpeft.datasets.base import DatasetInfo, LoadedDataset
from bmpeft.datasets.multiple_choice import question_record
from bmpeft.datasets.reading import ALL, HIDDEN_TEST, Reading, Splits
from bmpeft.datasets.rows import Row
from bmpeft.errors import DataError

if TYPE_CHECKING:
    from bmpeft.records import Record

INFO = DatasetInfo(
    name="medmcqa",
    title="MedMCQA",
    task="question_answering",
    licence="MIT",
    files="a .json or .jsonl file, or a directory with train, dev and test files; and data.cop_base",
    source="github.com/medmcqa/medmcqa (cop_base 1) or the hub's openlifescienceai/medmcqa (cop_base 0)",
    reference="Pal et al. 2022, arXiv:2203.14371",
    options=("cop_base",),
)
OPTION_FIELDS = ("opa", "opb", "opc", "opd")
META_FIELDS = ("subject_name", "topic_name", "choice_type")
ENOUGH_ROWS_TO_TELL_THE_BASE = 50


def read(reading: Reading) -> LoadedDataset:
    """Read MedMCQA; see `bmpeft.datasets.base.Reader`."""
    base = reading.data.cop_base
    if base is None:
        raise DataError(
            reading.path, "data.cop_base must say whether `cop` counts from 0 (hub's copy) or 1 (original files)"
        )
    files = reading.split_files(".json", ".jsonl")
    splits = {split: _parse_file(reading, path, split, base) for split, path in files.items()}
    if ALL in splits and splits[ALL][0].label is None:
        raise DataError(reading.path, "the labels of all rows are hidden (no `cop`): no training, no evaluation")
    return reading.finish(*_official(splits))


def _official(splits: Splits) -> tuple[Splits, str]:
    """The splits that results are published on, and how they came about."""
    method = "official"
    if "test" in splits and splits["test"][0].label is None:
        splits[HIDDEN_TEST] = splits.pop("test")
    if "test" not in splits and "validation" in splits:
        splits["test"] = splits.pop("validation")
        method = "official validation as test, since the test labels are hidden"
    return splits, method


def _parse_file(reading: Reading, path: Path, split: str, base: int) -> tuple[Record, ...]:
    rows = tuple(reading.json_rows(path))
    hidden = [row for row in rows if row.values.get("cop") in (None, -1)]
    if hidden and len(hidden) < len(rows):
        raise hidden[0].error(
            f"the label is hidden (no `cop`), as in {len(hidden)} of {len(rows)} rows; leave them out"
        )
    if not hidden:
        _check_base(path, rows, base)
    return reading.some(reading.records(rows, partial(_record, reading, split, None if hidden else base)), path)


def _check_base(path: Path, rows: tuple[Row, ...], base: int) -> None:
    """Every `cop` must be in the base's range, and the value that only this base has must occur in a long file."""
    last = base + len(OPTION_FIELDS) - 1
    seen = set()
    for row in rows:
        cop = row.values["cop"]
        if isinstance(cop, bool) or not isinstance(cop, int):
            raise row.error("'cop' must be a whole number")
        if not base <= cop <= last:
            raise row.error(f"cop is {cop}, but data.cop_base={base} allows {base} to {last}; is it {1 - base}-based?")
        seen.add(cop)
    telling = base if base == 0 else last
    if telling not in seen and len(rows) > ENOUGH_ROWS_TO_TELL_THE_BASE:
        raise DataError(
            path,
            f"none of the {len(rows)} rows has cop {telling}, so the data look {1 - base}-based, "
            f"but data.cop_base={base}",
        )


def _record(reading: Reading, split: str, base: int | None, row: Row) -> Record:
    choices = tuple(row.text(field) for field in OPTION_FIELDS)
    meta = {key: row.values[key] for key in META_FIELDS if row.values.get(key) is not None}
    label = None if base is None else row.values["cop"] - base
    return question_record(reading, row, split, question=row.text("question"), choices=choices, label=label, meta=meta)
