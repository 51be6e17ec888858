"""MedQA (USMLE): JSON lines, each with `question`, `options` (letter -> text) and `answer_idx` (a letter).

`answer` must equal the right option where it is given; `id` is optional; further fields are ignored.
Paths: one file (divided by `data.split`), a directory with train, dev and test files, or `embedded`,
the synthetic set that comes with the package.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from bmpeft.datasets.base import DatasetInfo, LoadedDataset, assemble
from bmpeft.datasets.multiple_choice import LETTERS, question_record
from bmpeft.datasets.reading import Reading
from bmpeft.datasets.rows import Row, json_type

if TYPE_CHECKING:
    from bmpeft.records import Record

INFO = DatasetInfo(
    name="medqa",
    title="MedQA (USMLE)",
    task="question_answering",
    licence="MIT",
    files="a .jsonl file, a directory with train, dev and test .jsonl files, or `embedded`",
    source="github.com/jind11/MedQA (questions/US or questions/US/4_options)",
    reference="Jin et al. 2021, arXiv:2009.13081",
)
EMBEDDED = "embedded"
EMBEDDED_INFO = replace(
    INFO,
    name="medqa-embedded",
    title="embedded questions in MedQA's format (synthetic)",
    licence="Apache-2.0",
    source="this package",
    reference="docs/embedded_medqa.md",
)
META_FIELDS = ("meta_info", "fact", "wording", "relation")


def read(reading: Reading) -> LoadedDataset:
    """Read MedQA or the embedded set; see `bmpeft.datasets.base.Reader`."""
    if reading.data.path == EMBEDDED:
        return _read_embedded(reading)
    files = reading.split_files(".jsonl")
    return reading.finish(reading.by_file(files, reading.json_rows, partial(_record, reading)))


def _record(reading: Reading, split: str, row: Row) -> Record:
    question, options = row.text("question"), _options(row)
    letter = row.text("answer_idx")
    if letter not in options:
        raise row.error(f"answer_idx {letter!r} is not among the options {', '.join(options)}")
    if row.values.get("answer") is not None and row.text("answer") != options[letter]:
        raise row.error(f"'answer' is not the text of option {letter}, which 'answer_idx' names")
    meta = {key: row.values[key] for key in META_FIELDS if key in row.values}
    return question_record(
        reading,
        row,
        split,
        question=question,
        choices=tuple(options.values()),
        label=list(options).index(letter),
        meta=meta,
    )


def _options(row: Row) -> dict[str, str]:
    """Letter -> text, in the order of the letters."""
    options = row.values.get("options")
    if options is None:
        raise row.error("the field 'options' is missing")
    if not isinstance(options, dict):
        raise row.error(f"'options' must be an object of letters and texts, not {json_type(options)}")
    if not 2 <= len(options) <= len(LETTERS):
        raise row.error(f"'options' must hold 2 to {len(LETTERS)} options, not {len(options)}")
    texts: dict[str, str] = {}
    for letter in sorted(options):
        text = options[letter]
        if letter not in LETTERS or len(letter) != 1:
            raise row.error(f"option {letter!r} must be named by one letter A to Z")
        if not isinstance(text, str) or not text.strip():
            raise row.error(f"option {letter} must be text that is not empty")
        equal = next((other for other, seen in texts.items() if seen == text.strip()), None)
        if equal is not None:
            raise row.error(f"options {equal} and {letter} are the same text")
        texts[letter] = text.strip()
    return texts


def _read_embedded(reading: Reading) -> LoadedDataset:
    from bmpeft.datasets import embedded

    synthetic = Reading(EMBEDDED_INFO, reading.data)
    splits = {}
    for split in embedded.SPLITS:
        numbered = enumerate(embedded.rows(split), start=1)
        rows = (Row(Path(EMBEDDED) / split, number, row) for number, row in numbered)
        splits[split] = synthetic.records(rows, partial(_record, synthetic, split))
    return assemble(EMBEDDED_INFO, splits, "by fact and wording, as the package ships it", synthetic=True)
