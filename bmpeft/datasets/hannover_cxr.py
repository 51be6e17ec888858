"""Chest radiographs of COVID-19 patients of Hannover Medical School, with what is known about each image.

`data.csv` beside the directory `png` (or `images`). Variants: `projection` of the image (ap or pa), or `icu`,
whether the image was taken during a stay in intensive care: days count from the image, so that a stay from -3
to 10 covers it. An image without any known stay counts as "no".
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

from bmpeft.datasets.base import DatasetInfo, LoadedDataset
from bmpeft.datasets.labels import YES_NO, published_names
from bmpeft.datasets.reading import ALL, Reading
from bmpeft.datasets.rows import Row
from bmpeft.records import Record

INFO = DatasetInfo(
    name="hannover_cxr",
    title="COVID-19 Image Repository (Hannover Medical School)",
    task="image_classification",
    licence="CC BY 3.0",
    files="data.csv, or the directory with it and its images",
    source="github.com/ml-workgroup/covid-19-image-repository",
    reference="Winther et al. 2020, doi:10.6084/m9.figshare.12275009",
    group="patient",
    variants=("projection", "icu"),
    options=("images", "label_names"),
)
COLUMNS = ("patient_id", "image_id", "projection", "icu_admission_offset", "icu_release_offset")
LABELS = {"projection": ("ap", "pa"), "icu": YES_NO}
SUFFIXES = (".png", ".jpg", ".jpeg")


def read(reading: Reading) -> LoadedDataset:
    """Read the repository; see `bmpeft.datasets.base.Reader`."""
    path = reading.path / "data.csv" if reading.path.is_dir() else reading.path
    names = published_names(reading, {label: label for label in LABELS[reading.variant]})
    images = reading.image_directory(path.parent, "png", "images")
    rows = reading.table_rows(reading.exists(path), columns=COLUMNS)
    records = reading.records(rows, partial(_record, reading, names, images))
    return reading.finish({ALL: records})


def _record(reading: Reading, names: dict[str, str], images: Path, row: Row) -> Record:
    identity = row.text("image_id")
    label = row.one_of("projection", names) if reading.variant == "projection" else _in_intensive_care(row)
    suffix = next((suffix for suffix in SUFFIXES if (images / f"{identity}{suffix}").is_file()), SUFFIXES[0])
    return Record(
        id=reading.identity(row, identity, ""),
        task=reading.task,
        split=ALL,
        group=row.text("patient_id"),
        image=reading.image(row, images, f"{identity}{suffix}"),
        choices=tuple(names.values()),
        label=list(names).index(label),
        licence=INFO.licence,
    )


def _in_intensive_care(row: Row) -> str:
    admission, release = _days(row, "icu_admission_offset"), _days(row, "icu_release_offset")
    if admission is None:
        return "no"
    return "yes" if admission <= 0 and (release is None or release >= 0) else "no"


def _days(row: Row, column: str) -> float | None:
    value = row.optional(column)
    try:
        return None if value is None else float(value)
    except ValueError:
        raise row.error(f"{column!r} must be a number of days") from None
