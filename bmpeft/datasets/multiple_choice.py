"""What the readers of multiple-choice questions share: one record from a row, and files to splits."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bmpeft.datasets.base import DatasetInfo, Identities, Row, find_split_files, missing
from bmpeft.datasets.splits import divide, group_of
from bmpeft.errors import DataError
from bmpeft.records import Record

if TYPE_CHECKING:
    from bmpeft.recipe import SplitSection

Splits = dict[str, tuple[Record, ...]]
ParseFile = Callable[[Path, str, Identities], tuple[Record, ...]]
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


def question_record(
    row: Row,
    split: str,
    identities: Identities,
    info: DatasetInfo,
    *,
    question: str,
    choices: Sequence[str],
    label: int | None,
    meta: Mapping[str, Any],
) -> Record:
    """A record for one question; its group is the question, so that rewordings of options stay in one split.

    Where the row states no id, the id is the hash of question and options.
    """
    stated = row.identity("id")
    content_hash = f"q-{group_of(question, *choices)}"
    identity = identities.stated(stated, row) if stated else identities.derived(content_hash, row)
    return Record(
        id=identity,
        task=info.task,
        split=split,
        group=group_of(question),
        question=question,
        choices=tuple(choices),
        label=label,
        licence=info.licence,
        meta=meta,
    )


def read_files(path: Path, info: DatasetInfo, suffixes: tuple[str, ...], parse: ParseFile) -> Splits:
    """The records of a directory's files by split, or of a single file under the name "all".

    Raises:
        DataError: nothing at this path, no usable file, or a bad row.
    """
    identities = Identities()
    if path.is_dir():
        files = find_split_files(path, suffixes, info)
    elif path.exists():
        files = {"all": path}
    else:
        raise missing(path, info)
    splits = {split: parse(file, split, identities) for split, file in files.items()}
    for split, records in splits.items():
        if not records:
            raise DataError(files[split], "holds no rows")
    return splits


def divide_all(records: Sequence[Record], split: SplitSection, path: Path) -> Splits:
    """Train, validation and test from rows without an official split."""
    return divide(records, {"validation": split.validation, "test": split.test}, split.seed, source=path)


def add_validation(splits: Splits, split: SplitSection, path: Path) -> Splits:
    """Take the validation split out of the training split, for distributions that have none of their own."""
    divided = divide(splits["train"], {"validation": split.validation}, split.seed, source=path)
    return {**divided, **{name: records for name, records in splits.items() if name != "train"}}
