"""MEDIQA 2021, task 2: several answers to a question, to one summary.

Each of the directories Validation and Test holds the questions and two kinds of summaries (`id||text`) and a
workbook of answers. The source is the question and its answers. There is no training file: `data.split_by:
group` divides the 130 questions anew.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

from bmpeft.datasets.base import DatasetInfo, LoadedDataset
from bmpeft.datasets.formats.lines import first_byte, numbered_lines
from bmpeft.datasets.reading import Reading, Splits
from bmpeft.datasets.rows import Row
from bmpeft.errors import DataError
from bmpeft.records import Record

INFO = DatasetInfo(
    name="mediqa2021_mas",
    title="MEDIQA 2021 task 2 (multi-answer summarization)",
    task="summarization",
    licence="CC BY 4.0",
    files="the directory Task2 with Validation and Test",
    source="github.com/abachaa/MEDIQA2021 (Task2)",
    reference="Ben Abacha et al. 2021, BioNLP",
    variants=("abstractive", "extractive"),
)
DIRECTORIES = {"validation": "Validation", "test": "Test"}
# The published files' names, misspelt as they are.
SUMMARIES = {"abstractive": "*MultiAbst*Summaries.txt", "extractive": "*MultiExtractiveSummaries.txt"}
QUESTION, SUMMARY, ANSWERS = "question", "summary", "answers"


def read(reading: Reading) -> LoadedDataset:
    """Read MEDIQA-MAS; see `bmpeft.datasets.base.Reader`."""
    path = reading.exists(reading.path)
    directories = {split: path / name for split, name in DIRECTORIES.items() if (path / name).is_dir()}
    if not directories:
        raise DataError(path, f"has no directory Validation or Test; {INFO.title} needs {INFO.files}")
    splits: Splits = {}
    for split, directory in directories.items():
        splits[split] = reading.records(_questions(reading, directory), partial(_record, reading, split))
    return reading.finish(splits)


def _questions(reading: Reading, directory: Path) -> Iterator[Row]:
    """The questions of a directory with their summaries and answers, numbered as in the file of questions."""
    summaries = {key: text for _, key, text in _keyed_lines(reading, _only(directory, SUMMARIES[reading.variant]))}
    answers: dict[str, list[str]] = {}
    for row in reading.table_rows(_only(directory, "*Answers.xlsx")):
        try:
            key = row.text("question_id" if "question_id" in row.values else "QuestionID")
            answers.setdefault(key, []).append(row.text("Answer"))
        except DataError as error:
            reading.bad(error)
    path = _only(directory, "*hortQuestions.txt")
    for number, key, question in _keyed_lines(reading, path):
        values = {"id": key, QUESTION: question, SUMMARY: summaries.get(key), ANSWERS: answers.get(key)}
        yield Row(path, number, values)


def _record(reading: Reading, split: str, row: Row) -> Record:
    key, answers = row.text("id"), row.values[ANSWERS]
    if not answers:
        raise row.error(f"question {key} has no answers in the workbook")
    if row.values[SUMMARY] is None:
        raise row.error(f"question {key} has no {reading.variant} summary")
    return Record(
        id=reading.identity(row, f"{split}-{key}", ""),
        task=reading.task,
        split=split,
        group=f"{split}-{key}",
        text="\n".join((row.text(QUESTION), *answers)),
        answers=(row.text(SUMMARY),),
        licence=INFO.licence,
        meta={"answers": len(answers)},
    )


def _only(directory: Path, pattern: str) -> Path:
    """The one file of a directory whose name fits."""
    files = sorted(directory.glob(pattern))
    if len(files) != 1:
        raise DataError(directory, f"expected one file {pattern}, found {len(files)}; from {INFO.source}")
    return files[0]


def _keyed_lines(reading: Reading, path: Path) -> Iterator[tuple[int, str, str]]:
    """Number, key and text of each line `key||text`."""
    first_byte(path, INFO)
    for number, line in numbered_lines(path, INFO):
        try:
            key, separator, text = line.decode("utf-8").strip().partition("||")
        except UnicodeDecodeError:
            reading.bad(DataError(path, "not UTF-8 text", row=number))
            continue
        if separator and key.strip() and text.strip():
            yield number, key.strip(), text.strip()
        elif key.strip() or separator:
            reading.bad(DataError(path, "expected a key, two bars and a text", row=number))
