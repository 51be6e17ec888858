"""VQA-RAD: clinicians' questions about radiological images, with short answers.

Either the division of 3,064 training and 451 test questions that most publications use (trainset.json and
testset.json beside `images`), or the authors' own file (`VQA_RAD Dataset Public.json` beside `VQA_RAD Image
Folder`), where `phrase_type` tells the test questions; it holds each question once, so that its training split
is smaller. Every test image is a training image, too: `data.split_by: image` divides the questions anew.

Answers that are numbers are read as text. `answer_type` is published with stray spaces and in both cases.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

from bmpeft.datasets.base import DatasetInfo, LoadedDataset
from bmpeft.datasets.labels import yes_or_no
from bmpeft.datasets.reading import ALL, Reading, Splits
from bmpeft.datasets.rows import Row, json_type
from bmpeft.records import Record

INFO = DatasetInfo(
    name="vqa_rad",
    title="VQA-RAD",
    task="visual_question_answering",
    licence="CC0 1.0",
    files="a directory with trainset.json, testset.json and images, or `VQA_RAD Dataset Public.json` and its images",
    source="osf.io/89kps",
    reference="Lau et al. 2018, Scientific Data 5:180251",
    group="image",
    options=("images",),
)
PUBLIC_FILE = "VQA_RAD Dataset Public.json"
FILES = {"train": "trainset.json", "test": "testset.json"}
IMAGE_DIRECTORIES = ("images", "VQA_RAD Image Folder")
ANSWER_TYPES = {"OPEN": "open", "CLOSED": "closed"}


def read(reading: Reading) -> LoadedDataset:
    """Read VQA-RAD; see `bmpeft.datasets.base.Reader`."""
    path = reading.exists(reading.path)
    directory = path if path.is_dir() else path.parent
    images = reading.image_directory(directory, *IMAGE_DIRECTORIES)
    files = {split: path / name for split, name in FILES.items() if (path / name).is_file()}
    if files:
        return reading.finish(reading.by_file(files, reading.json_rows, partial(_record, reading, images)))
    return reading.finish(_public(reading, reading.exists(path / PUBLIC_FILE if path.is_dir() else path), images))


def _public(reading: Reading, path: Path, images: Path) -> Splits:
    records = reading.records(reading.json_rows(path), partial(_record, reading, images, "train"))
    test = tuple(record for record in records if str(record.meta["phrase_type"]).startswith("test"))
    if not test:
        return {ALL: records}
    others = tuple(record for record in records if not str(record.meta["phrase_type"]).startswith("test"))
    return {"train": others, "test": test} if others else {"test": test}


def _record(reading: Reading, images: Path, split: str, row: Row) -> Record:
    answer, name = _answer(row), row.text("image_name")
    answer_type = ANSWER_TYPES.get(row.text("answer_type").upper())
    if answer_type is None:
        raise row.error("'answer_type' must be OPEN or CLOSED")
    choices, label = yes_or_no(answer) if answer_type == "closed" else (None, None)
    return Record(
        id=reading.identity(row, row.identity("qid"), f"{split}-row-{row.number}"),
        task=reading.task,
        split=split,
        group=name,
        question=row.text("question"),
        image=reading.image(row, images, name),
        choices=choices,
        answers=(answer,),
        label=label,
        licence=INFO.licence,
        meta={
            "answer_type": answer_type,
            "organ": row.optional("image_organ"),
            "question_type": row.optional("question_type"),
            "phrase_type": row.optional("phrase_type"),
        },
    )


def _answer(row: Row) -> str:
    answer = row.values.get("answer")
    if isinstance(answer, int | float) and not isinstance(answer, bool):
        return str(answer)
    if answer is not None and not isinstance(answer, str):
        raise row.error(f"'answer' must be text or a number, not {json_type(answer)}")
    return row.text("answer")
