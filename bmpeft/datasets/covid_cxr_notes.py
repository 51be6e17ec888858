"""Chest X-rays with clinical notes, of the covid-chestxray-dataset: the note as the image's caption.

The owners' `metadata.csv` beside `images`, or JSON lines of the same content with the image's name in `image`.
Each image has a licence of its own. Several images of a patient often share a note; the patient is the group.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

from bmpeft.datasets.base import DatasetInfo, LoadedDataset
from bmpeft.datasets.reading import ALL, Reading
from bmpeft.datasets.rows import Row
from bmpeft.records import Record

INFO = DatasetInfo(
    name="covid_cxr_notes",
    title="covid-chestxray-dataset (clinical notes)",
    task="captioning",
    licence="per image; as a whole CC BY-NC-SA 4.0",
    files="metadata.csv or a .jsonl file, or the directory with it and the images",
    source="github.com/ieee8023/covid-chestxray-dataset",
    reference="Cohen et al. 2020, arXiv:2006.11988",
    group="patient",
    options=("images",),
)


def read(reading: Reading) -> LoadedDataset:
    """Read the notes; see `bmpeft.datasets.base.Reader`."""
    path = _file(reading)
    if path.suffix == ".csv":
        rows = reading.table_rows(path, columns=("patientid", "license", "clinical_notes", "filename"))
    else:
        rows = reading.json_rows(path)
    images = reading.image_directory(path.parent, "images")
    records = reading.records(rows, partial(_record, reading, images))
    return reading.finish({ALL: records})


def _file(reading: Reading) -> Path:
    path = reading.exists(reading.path)
    if not path.is_dir():
        return path
    lines = path / "records.jsonl"
    return lines if lines.is_file() else reading.exists(path / "metadata.csv")


def _record(reading: Reading, images: Path, row: Row) -> Record | None:
    note, licence = row.optional("clinical_notes"), row.optional("license")
    if note is None or licence is None:
        reading.leave_out("images without a note or a licence")
        return None
    name = row.text("filename" if "filename" in row.values else "image")
    return Record(
        id=reading.identity(row, name, ""),
        task=reading.task,
        split=ALL,
        group=row.identity("patientid") or name,
        image=reading.image(row, images, name),
        answers=(note,),
        licence=licence,
        meta={"view": row.optional("view"), "finding": row.optional("finding")},
    )
