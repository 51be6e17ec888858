"""What every reader shares: a dataset's description, and the dataset itself once it is read.

A reader turns files, as their owners distribute them, into records. It checks every row and raises a
`DataError` of one line that names file and row; it never guesses and never repairs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from bmpeft.datasets.contamination import find_contamination
from bmpeft.datasets.splits import split_digest
from bmpeft.errors import DataError

if TYPE_CHECKING:
    from bmpeft.datasets.reading import Reading
    from bmpeft.records import Record

TASKS = (
    "image_classification",
    "text_understanding",
    "summarization",
    "question_answering",
    "visual_question_answering",
    "captioning",
)
ANY_TASK = "any"


@dataclass(frozen=True, slots=True)
class DatasetInfo:
    """A dataset's description: what `bmpeft data list` shows and what errors refer to.

    Attributes:
        name: what a recipe writes into `data.dataset`.
        title: the published name.
        task: name of the task that its records are for; "any" where the recipe's task decides.
        licence: of the data, as their owners state it.
        files: what `data.path` may point at.
        source: where the files come from.
        reference: the publication.
        group: what must not straddle a split, in one word: question, patient, image ...
        more_tasks: further tasks that its records can be for, if the recipe says so.
        variants: what `data.variant` may be, the default first; empty where there is nothing to choose.
        options: the optional keys of the recipe's `data` section that this reader uses.
    """

    name: str
    title: str
    task: str
    licence: str
    files: str
    source: str
    reference: str
    group: str = "question"
    more_tasks: tuple[str, ...] = ()
    variants: tuple[str, ...] = ()
    options: tuple[str, ...] = ()

    @property
    def tasks(self) -> tuple[str, ...]:
        """All tasks that its records can be for; the first is the default."""
        return TASKS if self.task == ANY_TASK else (self.task, *self.more_tasks)


@dataclass(frozen=True)
class LoadedDataset:
    """A dataset in memory.

    Attributes:
        name: as in the registry; the synthetic set is told apart by its own name.
        licence: of the data.
        synthetic: whether the rows were written for this package instead of collected.
        splits: split -> records; "train", "validation", "test" and others such as "test_unknown".
        split_method: "official", or how the rows were divided.
        split_digests: split -> SHA-256, see `bmpeft.datasets.splits.split_digest`.
        contamination: split -> "official MedQA test" and the like where rows of it are in an official
            evaluation set; a split without any is absent.
        contamination_counts: split -> how many of its rows that are.
        bad_rows: the problem of each row that `data.skip_bad_rows` allowed to leave out; names paths of this
            machine, so that only their number may go into an artifact.
        notes: what else a user should know of the reading, such as how many reports have no findings.
    """

    name: str
    licence: str
    synthetic: bool
    splits: Mapping[str, tuple[Record, ...]]
    split_method: str
    split_digests: Mapping[str, str]
    contamination: Mapping[str, str]
    contamination_counts: Mapping[str, int]
    bad_rows: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def skipped_rows(self) -> int:
        """How many rows are left out because they are bad."""
        return len(self.bad_rows)


class Reader(Protocol):
    """A module of this package that reads one dataset."""

    INFO: DatasetInfo

    def read(self, reading: Reading) -> LoadedDataset:
        """Read `reading.path`.

        Raises:
            DataError: a missing, empty or broken file, or a row that is not as documented.
        """


def assemble(
    info: DatasetInfo,
    splits: Mapping[str, tuple[Record, ...]],
    split_method: str,
    *,
    synthetic: bool = False,
    licence: str | None = None,
    bad_rows: tuple[str, ...] = (),
    notes: tuple[str, ...] = (),
) -> LoadedDataset:
    """Finish a dataset: digests of its splits and which of them hold rows of official evaluation sets."""
    found = {split: find_contamination(records) for split, records in splits.items()}
    return LoadedDataset(
        name=info.name,
        licence=licence or info.licence,
        synthetic=synthetic,
        splits=dict(splits),
        split_method=split_method,
        split_digests={split: split_digest(records) for split, records in splits.items()},
        contamination={split: result.name for split, result in found.items() if result is not None},
        contamination_counts={split: result.rows for split, result in found.items() if result is not None},
        bad_rows=bad_rows,
        notes=notes,
    )


def missing(path: Path, info: DatasetInfo) -> DataError:
    """The error for a path that is not there: says what belongs there and where it comes from."""
    return DataError(path, f"not found; {info.title} needs {info.files}, from {info.source}")
