"""The user's own images, a directory for each class: `class/image.png`, or `train/class/image.png` and so on.

A directory within a class is a group: name it by the patient, and the patient's images stay in one split.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

from bmpeft.datasets.base import DatasetInfo, LoadedDataset
from bmpeft.datasets.labels import Labels
from bmpeft.datasets.reading import ALL, Reading
from bmpeft.datasets.rows import Row
from bmpeft.datasets.splits import split_name
from bmpeft.errors import DataError
from bmpeft.records import Record

INFO = DatasetInfo(
    name="image_folder",
    title="your own images",
    task="image_classification",
    licence="not stated",
    files="a directory with one directory of images for each class, or with train, validation and test of those",
    source="you",
    reference="docs/adding_a_dataset.md",
    group="image or patient",
    options=("label_names", "licence"),
)
NO_IMAGES = ("thumbs.db", "desktop.ini")  # what systems leave behind; names that begin with a dot, too


def read(reading: Reading) -> LoadedDataset:
    """Read a directory of images; see `bmpeft.datasets.base.Reader`."""
    path = reading.exists(reading.path)
    if not path.is_dir():
        raise DataError(path, f"is no directory; {INFO.title} need {INFO.files}")
    labels = Labels(reading)
    splits = reading.by_file(_split_directories(path), _images, partial(_record, reading, labels))
    return reading.finish(labels.apply(splits))


def _split_directories(path: Path) -> dict[str, Path]:
    """Split -> directory; "all" -> the directory itself, unless every directory in it is named like a split."""
    names = {directory: split_name(directory.name) for directory in _directories(path)}
    if not names:
        raise DataError(path, f"holds no directories; {INFO.title} need {INFO.files}")
    if not all(names.values()):
        return {ALL: path}
    found: dict[str, Path] = {}
    for directory, split in names.items():
        if split in found:
            raise DataError(path, f"{found[split].name} and {directory.name} could both be the {split} split")
        found[str(split)] = directory
    return found


def _images(directory: Path) -> Iterator[Row]:
    for label in _directories(directory):
        for file in sorted(label.rglob("*")):
            if file.is_file() and not file.name.startswith(".") and file.name.lower() not in NO_IMAGES:
                yield Row(file, None, {"directory": directory, "label": label})


def _record(reading: Reading, labels: Labels, split: str, row: Row) -> Record:
    directory: Path = row.values["directory"]
    label: Path = row.values["label"]
    name, below = row.path.relative_to(directory), row.path.relative_to(label).parent
    place = f"{split}/{name.as_posix()}"
    image = name.as_posix() if split == ALL else place
    return Record(
        id=reading.identity(row, place, ""),
        task=reading.task,
        split=split,
        # A patient is the same one in every split; an image that is 1.png in two of them is two images.
        group=image if below == Path(".") else below.as_posix(),
        image=reading.image(row, row.path.parent, row.path.name),
        label=labels.index(row, label.name),
        licence=reading.data.licence or INFO.licence,
    )


def _directories(path: Path) -> list[Path]:
    return sorted(entry for entry in path.iterdir() if entry.is_dir() and not entry.name.startswith("."))
