"""IU X-ray (Open-i): reports of chest X-rays as XML, and their images.

The archive of reports (NLMCXR_reports.tgz, read without unpacking it) or a directory of its XML files. For
summarization the findings are the source and the impression is the summary, without the images. For captioning
every image of a report (a PNG by the id that the report states, in `NLMCXR_png` or `data.images`) has the
impression and the findings as its caption, as bioCaption publishes them. Reports that lack what the task needs
are left out and counted. There is no official split; a report's images stay together.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

from bmpeft.datasets.base import DatasetInfo, LoadedDataset
from bmpeft.datasets.formats.archives import archived_files
from bmpeft.datasets.formats.xml_files import parse_xml, text_of
from bmpeft.datasets.reading import ALL, Reading
from bmpeft.datasets.rows import Row
from bmpeft.errors import DataError
from bmpeft.records import Record

INFO = DatasetInfo(
    name="iu_xray",
    title="IU X-ray (Open-i)",
    task="summarization",
    licence="CC BY-NC-ND 4.0",
    files="NLMCXR_reports.tgz, or a directory of its .xml files; for captioning also the images of NLMCXR_png.tgz",
    source="openi.nlm.nih.gov (NLMCXR_reports.tgz, NLMCXR_png.tgz)",
    reference="Demner-Fushman et al. 2016, JAMIA 23:304",
    group="report",
    more_tasks=("captioning",),
    options=("images",),
)
FINDINGS, IMPRESSION = "FINDINGS", "IMPRESSION"


def read(reading: Reading) -> LoadedDataset:
    """Read the reports; see `bmpeft.datasets.base.Reader`."""
    path = reading.exists(reading.path)
    rows = _reports(reading, path)
    if reading.task == "captioning":
        images = reading.image_directory(path if path.is_dir() else path.parent, "NLMCXR_png", "images")
        records = reading.records(_views(reading, rows), partial(_caption, reading, images))
    else:
        records = reading.records(rows, partial(_summary, reading))
    return reading.finish({ALL: records})


def _summary(reading: Reading, row: Row) -> Record | None:
    findings, impression = row.optional(FINDINGS), row.optional(IMPRESSION)
    if findings is None or impression is None:
        reading.leave_out("reports without findings or impression")
        return None
    return Record(
        id=reading.identity(row, row.text("id"), ""),
        task=reading.task,
        split=ALL,
        group=row.text("id"),
        text=findings,
        answers=(impression,),
        licence=INFO.licence,
    )


def _caption(reading: Reading, images: Path, row: Row) -> Record:
    image, report = row.text("image"), row.text("id")
    parts = (row.optional(IMPRESSION), row.optional(FINDINGS))
    return Record(
        id=reading.identity(row, image, ""),
        task=reading.task,
        split=ALL,
        group=report,
        image=reading.image(row, images, f"{image}.png"),
        answers=(" ".join(part for part in parts if part),),
        licence=INFO.licence,
    )


def _views(reading: Reading, reports: Iterator[Row]) -> Iterator[Row]:
    """A row for each image of a report that says anything."""
    for report in reports:
        images = report.values["images"]
        if not (report.values[FINDINGS] or report.values[IMPRESSION]):
            reading.leave_out("reports without findings and impression")
        elif not images:
            reading.leave_out("reports without an image")
        else:
            yield from (Row(report.path, None, {**report.values, "image": image}) for image in images)


def _reports(reading: Reading, path: Path) -> Iterator[Row]:
    for file, content in _documents(path):
        try:
            root = parse_xml(file, content)
            identity = root.find("uId")
            if identity is None or not identity.get("id"):
                raise DataError(file, "is no report: it has no uId")
        except DataError as error:
            reading.bad(error)
            continue
        sections = {part.get("Label"): text_of(part) for part in root.iter("AbstractText")}
        values = {
            "id": identity.get("id"),
            FINDINGS: sections.get(FINDINGS, ""),
            IMPRESSION: sections.get(IMPRESSION, ""),
            "images": [image.get("id") for image in root.iter("parentImage")],
        }
        yield Row(file, None, values)


def _documents(path: Path) -> Iterator[tuple[Path, bytes]]:
    if path.is_file():
        yield from archived_files(path, ".xml")
        return
    files = sorted(path.rglob("*.xml"))
    if not files:
        raise DataError(path, f"holds no .xml reports; {INFO.title} needs {INFO.files}, from {INFO.source}")
    for file in files:
        try:
            yield file, file.read_bytes()
        except OSError as error:
            raise DataError(file, f"cannot be read: {error.strerror}") from None
