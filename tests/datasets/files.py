"""Small files in the formats of published datasets, whole and broken."""

from __future__ import annotations

import csv
import io
import json
import tarfile
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

import numpy as np
from PIL import Image

from bmpeft.datasets import LoadedDataset, read_dataset
from bmpeft.recipe import DataSection

TRANSITIONAL = "http://schemas.openxmlformats.org/{}"
STRICT = "http://purl.oclc.org/ooxml/{}"
BOMB = (
    '<?xml version="1.0"?><!DOCTYPE x [<!ENTITY a "ha"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;">'
    '<!ENTITY c "&b;&b;&b;&b;&b;&b;&b;&b;">]><x>&c;</x>'
)


def load(dataset: str, path: Path, task: str | None = None, **options: Any) -> LoadedDataset:
    return read_dataset(DataSection.model_validate({"dataset": dataset, "path": str(path), **options}), task)


def records(loaded: LoadedDataset) -> list[Any]:
    return [record for rows in loaded.splits.values() for record in rows]


def write_lines(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def write_csv(path: Path, rows: Sequence[Sequence[str]], delimiter: str = ",") -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, delimiter=delimiter).writerows(rows)
    return path


def png(value: int = 0, size: int = 12) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (size, size), (value % 256, 40, 90)).save(buffer, "PNG")
    return buffer.getvalue()


def write_xlsx(
    path: Path,
    rows: Sequence[Sequence[str]],
    *,
    form: str = TRANSITIONAL,
    parts: Mapping[str, str | bytes] | None = None,
) -> Path:
    """A workbook whose first cell of each row is shared text, the others inline; `parts` replaces parts."""
    main, relations = form.format("spreadsheetml/2006/main"), form.format("officeDocument/2006/relationships")
    if form == STRICT:
        main, relations = form.format("spreadsheetml/main"), form.format("officeDocument/relationships")
    shared = "".join(f"<si><t xml:space='preserve'>{escape(row[0])}</t></si>" for row in rows)
    cells = (
        f'<row r="{n}"><c r="A{n}" t="s"><v>{n - 1}</v></c>'
        + "".join(
            f'<c r="{chr(66 + i)}{n}" t="inlineStr"><is><t>{escape(text)}</t></is></c>'
            for i, text in enumerate(row[1:])
            if text
        )
        + "</row>"
        for n, row in enumerate(rows, start=1)
    )
    content: dict[str, str | bytes] = {
        "xl/workbook.xml": f'<workbook xmlns="{main}" xmlns:r="{relations}"><sheets>'
        '<sheet name="S" sheetId="1" r:id="rId7"/></sheets></workbook>',
        "xl/_rels/workbook.xml.rels": '<Relationships xmlns="x"><Relationship Id="rId7" Target="worksheets/a.xml"/>'
        "</Relationships>",
        "xl/sharedStrings.xml": f'<sst xmlns="{main}">{shared}</sst>',
        "xl/worksheets/a.xml": f'<worksheet xmlns="{main}"><sheetData>{"".join(cells)}</sheetData></worksheet>',
        **(parts or {}),
    }
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, part in content.items():
            archive.writestr(name, part)
    return path


def write_tgz(path: Path, members: Mapping[str, str]) -> Path:
    with tarfile.open(path, "w:gz") as archive:
        for name, text in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(text.encode())
            archive.addfile(info, io.BytesIO(text.encode()))
    return path


def write_medmnist(path: Path, *, channels: int | None = None, **changes: Any) -> Path:
    """Arrays of 8, 3 and 4 images of 28 pixels with labels 0 and 1."""
    arrays: dict[str, Any] = {}
    for split, n in (("train", 8), ("val", 3), ("test", 4)):
        shape = (n, 28, 28) if channels is None else (n, 28, 28, channels)
        images = np.arange(np.prod(shape)).reshape(shape).astype(np.uint8)
        arrays |= {f"{split}_images": images, f"{split}_labels": (np.arange(n) % 2).astype(np.uint8)[:, None]}
    np.savez_compressed(path, **{key: array for key, array in {**arrays, **changes}.items() if array is not ...})
    return path


def report(number: int, *, findings: str | None = "Clear.", impression: str | None = "Normal.", images: int = 2) -> str:
    sections = {"COMPARISON": "None.", "FINDINGS": findings, "IMPRESSION": impression}
    texts = "".join(f'<AbstractText Label="{k}">{escape(v or "")}</AbstractText>' for k, v in sections.items())
    views = "".join(f'<parentImage id="CXR{number}_{i}"><caption>PA</caption></parentImage>' for i in range(images))
    return f'<eCitation><uId id="CXR{number}"/><Abstract>{texts}</Abstract>{views}</eCitation>'
