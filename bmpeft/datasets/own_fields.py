"""The user's own data: which column holds which field of a record, as the recipe's `data.fields` says.

    fields: {text: report, answers: summary, group: patient}

Without `fields`, a column that has a field's name holds that field; with it, only the columns that it names
are read. What the task needs must be there.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from bmpeft.datasets.base import LoadedDataset
from bmpeft.datasets.labels import Labels, yes_or_no
from bmpeft.datasets.multiple_choice import LETTERS
from bmpeft.datasets.reading import ALL, Reading, Splits
from bmpeft.datasets.rows import Row, json_type
from bmpeft.datasets.splits import SPLIT_NAMES, group_of, split_name
from bmpeft.errors import DataError, UsageError, did_you_mean
from bmpeft.records import ImageReference, Record

FIELDS = (
    "id", "group", "split", "licence", "text", "question", "image", "choices", "answers", "label", "answer_type",
)  # fmt: skip
NEEDED = {
    "image_classification": ("image", "label"),
    "text_understanding": ("text", "label"),
    "summarization": ("text", "answers"),
    "question_answering": ("question",),
    "visual_question_answering": ("image", "question"),
    "captioning": ("image", "answers"),
}
ANSWERED = ("question_answering", "visual_question_answering")  # need answers, or a label
OWN_OPTIONS = ("fields", "label_names", "label_base", "licence", "images")
MakeImage = Callable[[Row, Any], ImageReference]


def read_own(reading: Reading, sources: Mapping[str, Iterable[Row]], image_of: MakeImage) -> LoadedDataset:
    """A dataset from the user's own rows.

    Args:
        reading: of the dataset.
        sources: split -> rows.
        image_of: the image of a row, from what stands in its column.

    Raises:
        UsageError: `data.fields` names a field that does not exist, or lacks one that the task needs.
        DataError: a bad file, or a bad row that may not be skipped.
    """
    fields = Fields(reading, image_of)
    if reading.data.fields is not None and "split" in reading.data.fields and ALL not in sources:
        raise UsageError("data.fields: the files' names say the splits already; leave out split")
    splits = {split: reading.records(rows, partial(fields.record, split)) for split, rows in sources.items()}
    fields.check_columns()
    if fields.states_splits:
        splits = _by_stated_split(reading.path, splits[ALL])
    return reading.finish(fields.labels.apply(splits), "official")


def needed_columns(reading: Reading) -> tuple[str, ...]:
    """The columns that a table must have."""
    mapping = reading.data.fields
    if mapping is None:
        return NEEDED[reading.task]
    return tuple(column for columns in mapping.values() for column in _listed(columns))


class Fields:
    """Makes records of rows."""

    def __init__(self, reading: Reading, image_of: MakeImage) -> None:
        """Raises UsageError as `read_own` does."""
        self.labels = Labels(reading)
        self.states_splits = False
        self._reading, self._image_of = reading, image_of
        self._met: set[str] = set()
        self._mapping = None if reading.data.fields is None else {f: _listed(c) for f, c in reading.data.fields.items()}
        if self._mapping is not None:
            self._check(self._mapping)

    def _check(self, mapping: Mapping[str, tuple[str, ...]]) -> None:
        for field in mapping:
            if field not in FIELDS:
                raise UsageError(f"data.fields: a record has no field {field!r}{did_you_mean(field, FIELDS)}")
        task = self._reading.task
        for field in NEEDED[task]:
            if not mapping.get(field):
                raise UsageError(f"data.fields: {task} needs {field}: say which column holds it")
        if task in ANSWERED and not (mapping.get("answers") or mapping.get("label")):
            raise UsageError(f"data.fields: {task} needs answers, or label: say which column holds them")

    def check_columns(self) -> None:
        """Raises DataError for a column of `data.fields` that no row had, which would be left out in silence."""
        for field, columns in (self._mapping or {}).items():
            for column in columns:
                if column not in self._met:
                    hint = did_you_mean(column, self._met)
                    raise DataError(self._reading.path, f"data.fields.{field}: no row has {column!r}{hint}")

    def columns(self, field: str) -> tuple[str, ...]:
        """The columns that hold a field."""
        return (field,) if self._mapping is None else self._mapping.get(field, ())

    def record(self, split: str, row: Row) -> Record:
        """The record of a row. Raises DataError for a bad one."""
        task = self._reading.task
        self._met.update(row.values)
        text, question = self._text(row, "text", task), self._text(row, "question", task)
        image, image_name = self._image(row, task)
        answers = self._answers(row) if "label" not in NEEDED[task] else None
        choices, label = (
            self._closed(row, answers) if task != "summarization" and task != "captioning" else (None, None)
        )
        if task in ANSWERED and answers is None and label is None:
            raise row.error("has neither answers nor a label")
        content = group_of(image_name or "", question or "", text or "")
        stated = self._single(row, "split")
        return Record(
            id=self._reading.identity(row, self._single(row, "id"), f"r-{content}"),
            task=task,
            split=self._split(row, stated) if stated and split == ALL else split,
            group=self._group(row) or group_of(image_name or question or text or ""),
            text=text,
            question=question,
            image=image,
            choices=choices,
            answers=answers,
            label=label,
            licence=self._single(row, "licence") or self._reading.data.licence or self._reading.info.licence,
            meta=self._meta(row, answers) if task == "visual_question_answering" else {},
        )

    def _text(self, row: Row, field: str, task: str) -> str | None:
        """The text of a field's columns, one below the other."""
        parts = []
        for column in self.columns(field):
            value = row.values.get(column)
            if isinstance(value, list):
                parts += [part for item in value if (part := _plain(row, column, item))]
            elif value is not None and (part := _plain(row, column, value)):
                parts.append(part)
        if not parts and field in NEEDED[task]:
            raise self._absent(row, field)
        return "\n".join(parts) or None

    def _image(self, row: Row, task: str) -> tuple[ImageReference | None, str | None]:
        if "image" not in NEEDED[task]:
            return None, None
        value = next((row.values[column] for column in self.columns("image") if row.values.get(column)), None)
        if value is None:
            raise self._absent(row, "image")
        image = self._image_of(row, value)
        return image, value if isinstance(value, str) else image.digest

    def _answers(self, row: Row) -> tuple[str, ...] | None:
        found: list[str] = []
        for column in self.columns("answers"):
            value = row.values.get(column)
            for item in value if isinstance(value, list) else [value]:
                if item is not None and (answer := _plain(row, column, item)):
                    found.append(answer)
        if not found and "answers" in NEEDED[self._reading.task]:
            raise self._absent(row, "answers")
        return tuple(found) or None

    def _closed(self, row: Row, answers: tuple[str, ...] | None) -> tuple[tuple[str, ...] | None, int | None]:
        """Choices and label of a row; choices that all rows share come at the end, by `Labels.apply`."""
        label, choices = self._single(row, "label"), self._choices(row)
        if choices is not None:
            if label is None and answers is None:
                raise self._absent(row, "label")
            return choices, self._place(row, choices, label if label is not None else (answers or ("",))[0])
        if label is not None:
            return None, self.labels.index(row, label)
        if "label" in NEEDED[self._reading.task]:
            raise self._absent(row, "label")
        if (
            self._reading.task == "visual_question_answering"
            and answers
            and self._answer_type(row, answers) == "closed"
        ):
            return yes_or_no(answers[0])
        return None, None

    def _choices(self, row: Row) -> tuple[str, ...] | None:
        columns = self.columns("choices")
        values = [row.values[column] for column in columns if row.values.get(column) not in (None, "")]
        if not values:
            return None
        if len(columns) == 1:
            value = values[0]
            if not isinstance(value, list | dict):
                raise row.error(
                    f"{columns[0]!r} must be an array of choices or an object of letters and choices; "
                    "choices that stand in several columns are named as a list"
                )
            values = [value[letter] for letter in sorted(value)] if isinstance(value, dict) else value
        choices = tuple(_plain(row, columns[0], value) for value in values)
        if len(choices) < 2 or not all(choices):
            raise row.error("needs at least two choices, none of them empty")
        return choices

    def _place(self, row: Row, choices: tuple[str, ...], label: str) -> int:
        """Which choice a label means: its number if the recipe says from where to count, its text, or its letter."""
        base = self._reading.data.label_base
        if base is not None:
            if not label.isdecimal() or len(label) > 9 or not base <= int(label) < len(choices) + base:
                raise row.error(
                    f"the label must be a number from {base} to {len(choices) + base - 1} (data.label_base)"
                )
            return int(label) - base
        if label in choices:
            return choices.index(label)
        if len(label) == 1 and label in LETTERS[: len(choices)]:
            return LETTERS.index(label)
        if label.isdecimal():
            raise row.error("the label is a number: data.label_base must say whether it counts from 0 or from 1")
        raise row.error("the label is neither the text of a choice nor its letter")

    def _answer_type(self, row: Row, answers: tuple[str, ...]) -> str:
        stated = self._single(row, "answer_type")
        if stated is None:
            return "open" if yes_or_no(answers[0])[0] is None else "closed"
        if stated.casefold() not in ("open", "closed"):
            raise row.error("the answer_type must be open or closed")
        return stated.casefold()

    def _meta(self, row: Row, answers: tuple[str, ...] | None) -> dict[str, str]:
        return {"answer_type": self._answer_type(row, answers) if answers else "closed"}

    def _single(self, row: Row, field: str) -> str | None:
        """A field of one short value; numbers and true/false count as their text."""
        for column in self.columns(field):
            value = row.values.get(column)
            if value is not None:
                return _plain(row, column, value) or None
        return None

    def _group(self, row: Row) -> str | None:
        """The group that a row states; where some state one, none may be without."""
        group = self._single(row, "group")
        if group is None and (self._mapping is not None or "group" in row.values) and self.columns("group"):
            raise self._absent(row, "group")
        return group

    def _split(self, row: Row, stated: str) -> str:
        split = split_name(stated)
        if split is None:
            raise row.error(f"the split must be {', '.join(SPLIT_NAMES)}, or begin with test")
        self.states_splits = True
        return split

    def _absent(self, row: Row, field: str) -> DataError:
        """The error for a field that is needed and not there, with what the row has."""
        columns = self.columns(field)
        if any(column in row.values for column in columns):
            return row.error(f"{' and '.join(map(repr, columns))} ({field}) is empty")
        names = [str(name)[:40] for name in list(row.values)[:20]]
        return row.error(f"there is no {' or '.join(map(repr, columns))} ({field}){did_you_mean(columns[0], names)}")


def _by_stated_split(path: Path, records: tuple[Record, ...]) -> Splits:
    """The records by the split that each states. Raises DataError if some state none."""
    names = {record.split for record in records}
    if ALL in names:
        raise DataError(path, "the column of splits is empty in some rows and not in others")
    ordered = [name for name in SPLIT_NAMES if name in names] + sorted(names - set(SPLIT_NAMES))
    return {name: tuple(record for record in records if record.split == name) for name in ordered}


def _plain(row: Row, column: str, value: Any) -> str:
    """A value as text without the white space around it."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float) and not math.isfinite(value):
        raise row.error(f"{column!r} holds {value} instead of text or a number; an empty one is null")
    if isinstance(value, int | float):
        return str(value)
    if not isinstance(value, str):
        raise row.error(f"{column!r} must be text or a number, not {json_type(value)}")
    return value.strip()


def _listed(columns: str | tuple[str, ...]) -> tuple[str, ...]:
    return (columns,) if isinstance(columns, str) else columns
