"""What `bmpeft data show` and `bmpeft data check` find out about a dataset. Figures only, unless rows are asked for."""

from __future__ import annotations

import statistics
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from bmpeft.datasets.base import LoadedDataset
from bmpeft.datasets.leakage import find_leakage
from bmpeft.datasets.registry import dataset_info, dataset_names, read_dataset
from bmpeft.errors import UsageError, did_you_mean
from bmpeft.recipe import DataSection, load_recipe
from bmpeft.recipe_file import check_content
from bmpeft.recipe_section import Section
from bmpeft.recipe_store import resolve_recipe
from bmpeft.records import Record

FIELDS = ("image", "text", "question", "choices", "answers", "label")
TEXTS: dict[str, Callable[[Record], str | None]] = {
    "text": lambda record: record.text,
    "question": lambda record: record.question,
    "answers": lambda record: record.answers[0] if record.answers else None,
}


class _DataOnly(Section):
    """What overrides may change when there is no recipe."""

    data: DataSection


@dataclass(frozen=True, slots=True)
class Lengths:
    """Words (apart by white space) of a field where it is there; of several answers, the first."""

    median: float
    longest: int


@dataclass(frozen=True, slots=True)
class SplitOverview:
    """Figures of one split.

    Attributes:
        rows: how many.
        groups: how many patients, questions or whatever else must not straddle a split.
        groups_in_train: how many of them the training split has, too.
        fields: field of a record -> rows that have it.
        words: field -> lengths.
        labels: name of a label -> rows, where all rows that have choices have the same; else None.
        licences: licence -> rows.
        digest: of the split, as score cards name it.
    """

    rows: int
    groups: int
    groups_in_train: int
    fields: dict[str, int]
    words: dict[str, Lengths]
    labels: dict[str, int] | None
    licences: dict[str, int]
    digest: str


@dataclass(frozen=True, slots=True)
class Overview:
    """Figures of a dataset."""

    dataset: str
    title: str
    task: str
    licence: str
    synthetic: bool
    group: str
    split_method: str
    contamination: dict[str, str]
    skipped_rows: int
    notes: tuple[str, ...]
    splits: dict[str, SplitOverview]


@dataclass(frozen=True, slots=True)
class CheckReport:
    """What reading every row and decoding every image found. `problems` name files and rows of this machine."""

    dataset: str
    rows: int
    images: int
    problems: tuple[str, ...]
    notes: tuple[str, ...]


def requested_data(
    target: str, *, path: str | None, task: str | None, overrides: Sequence[str]
) -> tuple[DataSection, str | None]:
    """The data section and the task that a command line means.

    Args:
        target: a dataset's name, or a recipe (file or shipped name).
        path: instead of the recipe's `data.path`; required with a dataset's name.
        task: instead of the recipe's, or of the dataset's own.
        overrides: ``data.key=value``.

    Raises:
        UsageError: no such dataset or recipe, no path, a wrong override.
    """
    changes = [*overrides, *([f"data.path={path}"] if path is not None else [])]
    if target in dataset_names():
        if path is None and not any(change.startswith("data.path=") for change in changes):
            raise UsageError(f"{target}: --path must say where the files are: {dataset_info(target).files}")
        content = {"data": {"dataset": target}}
        return check_content(content, _DataOnly, source="the command line", overrides=changes).data, task
    try:
        file = resolve_recipe(target)
    except UsageError as error:
        raise UsageError(f"{error}; nor is it a dataset{did_you_mean(target, dataset_names())}") from None
    recipe = load_recipe(file, changes)
    return recipe.data, recipe.task.name if task is None else task


def overview(data: DataSection, task: str | None) -> tuple[Overview, LoadedDataset]:
    """Read a dataset and count. Raises BmpeftError as `read_dataset` does."""
    dataset, info = read_dataset(data, task), dataset_info(data.dataset)
    return (
        Overview(
            dataset=dataset.name,
            title=info.title,
            task=next(records[0].task for records in dataset.splits.values()),
            licence=dataset.licence,
            synthetic=dataset.synthetic,
            group=info.group,
            split_method=dataset.split_method,
            contamination=dict(dataset.contamination),
            skipped_rows=dataset.skipped_rows,
            notes=dataset.notes,
            splits={name: _split(dataset, name) for name in dataset.splits},
        ),
        dataset,
    )


def check(data: DataSection, task: str | None) -> CheckReport:
    """Read every row and decode every image, and go on after a bad one.

    Raises:
        BmpeftError: no row can be read: a missing or broken file, a wrong column.
    """
    dataset = read_dataset(data.model_copy(update={"skip_bad_rows": sys.maxsize}), task)
    records = [record for rows in dataset.splits.values() for record in rows]
    return CheckReport(
        dataset=dataset.name,
        rows=len(records),
        images=sum(record.image is not None for record in records),
        problems=dataset.bad_rows,
        notes=(*dataset.notes, *_overlaps(dataset)),
    )


def _overlaps(dataset: LoadedDataset) -> Iterator[str]:
    """What the other splits share with the training rows, and what training would say to it."""
    others = {split: records for split, records in dataset.splits.items() if split != "train"}
    if "train" in dataset.splits:
        leakage = find_leakage(dataset.splits["train"], others, scored=[s for s in others if s != "validation"])
        yield from (f"overlap with training rows: {line}" for line in leakage.lines())
        if leakage.leaks:
            yield "training on these rows and scoring that split needs data.accept_leakage=true, or data.split_by"


def shown_rows(dataset: LoadedDataset, split: str, n: int) -> list[dict[str, Any]]:
    """The first `n` rows of a split, with their text; an image as its size in pixels.

    Raises:
        UsageError: no such split.
    """
    if split not in dataset.splits:
        raise UsageError(f"--split: {dataset.name} has no split {split!r}{did_you_mean(split, dataset.splits)}")
    return [_shown(record) for record in dataset.splits[split][:n]]


def _split(dataset: LoadedDataset, name: str) -> SplitOverview:
    records = dataset.splits[name]
    groups = {record.group for record in records}
    trained = {record.group for record in dataset.splits.get("train", ())} if name != "train" else set()
    choices = {record.choices for record in records if record.choices}
    names = next(iter(choices)) if len(choices) == 1 else None
    counts = Counter(record.label for record in records)
    words = {field: _words([text for record in records if (text := get(record))]) for field, get in TEXTS.items()}
    return SplitOverview(
        rows=len(records),
        groups=len(groups),
        groups_in_train=len(groups & trained),
        fields={field: sum(getattr(record, field) is not None for record in records) for field in FIELDS},
        words={field: lengths for field, lengths in words.items() if lengths is not None},
        labels=None if names is None else {choice: counts[place] for place, choice in enumerate(names)},
        licences=dict(Counter(record.licence for record in records)),
        digest=dataset.split_digests[name],
    )


def _words(texts: Sequence[str]) -> Lengths | None:
    lengths = [len(text.split()) for text in texts]
    return Lengths(statistics.median(lengths), max(lengths)) if lengths else None


def _shown(record: Record) -> dict[str, Any]:
    content = {
        "id": record.id,
        "group": record.group,
        "image": None if record.image is None else "{} x {}".format(*record.image.load().size),
        "text": record.text,
        "question": record.question,
        "choices": record.choices,
        "label": record.label,
        "answers": record.answers,
        "meta": dict(record.meta) or None,
    }
    return {key: value for key, value in content.items() if value is not None}
