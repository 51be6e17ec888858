"""What the readers of multiple-choice questions share: one record from a row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from bmpeft.datasets.rows import Row
from bmpeft.datasets.splits import group_of
from bmpeft.records import Record

if TYPE_CHECKING:
    from bmpeft.datasets.reading import Reading

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


def question_record(
    reading: Reading,
    row: Row,
    split: str,
    *,
    question: str,
    choices: Sequence[str],
    label: int | None,
    meta: Mapping[str, Any],
) -> Record:
    """A record for one question; its group is the question, so that rewordings of options stay in one split.

    Where the row states no id, the id is the hash of question and options.
    """
    return Record(
        id=reading.identity(row, row.identity("id"), f"q-{group_of(question, *choices)}"),
        task=reading.task,
        split=split,
        group=group_of(question),
        question=question,
        choices=tuple(choices),
        label=label,
        licence=reading.info.licence,
        meta=meta,
    )
