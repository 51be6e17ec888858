"""BiomedGPT's own tables for fine-tuning: no header, cells apart by tabs, images as base64.

The recipe's task decides what the columns are. A path is one file, or a directory with train, val and test
.tsv files. Images stay in the file; a record knows where its image begins.

VQA tables do not say which questions are closed: those whose answer is yes or no count as such. Where several
answers are given, the most certain comes first.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from bmpeft.datasets.base import ANY_TASK, DatasetInfo, LoadedDataset
from bmpeft.datasets.formats.tables import Span
from bmpeft.datasets.labels import Labels, yes_or_no
from bmpeft.datasets.reading import Reading
from bmpeft.datasets.rows import Row
from bmpeft.datasets.splits import group_of
from bmpeft.errors import UsageError
from bmpeft.records import ImageReference, Record

INFO = DatasetInfo(
    name="biomedgpt_tsv",
    title="BiomedGPT's tables",
    task=ANY_TASK,
    licence="that of the dataset that was converted",
    files="a .tsv file, or a directory with train.tsv, val.tsv and test.tsv",
    source="the preprocessing scripts of github.com/taokz/BiomedGPT",
    reference="Zhang et al. 2024, Nature Medicine 30:3129",
    group="row",
    options=("label_names", "licence"),
)
IMAGE = "image"
COLUMNS = {
    "visual_question_answering": ("question_id", "image_id", "question", "answers", "objects", IMAGE),
    "captioning": ("id", "image_id", "captions", "labels", IMAGE),
    "image_classification": (IMAGE, "label", "label name"),
    "summarization": ("source", "target"),
    "text_understanding": ("first sentence", "second sentence", "label", "genre"),
}


MakeRecord = Callable[[Reading, Labels, str, Row], Record]


def read(reading: Reading) -> LoadedDataset:
    """Read BiomedGPT's tables; see `bmpeft.datasets.base.Reader`."""
    if reading.task not in COLUMNS:
        raise UsageError(f"task.name: BiomedGPT has no tables for {reading.task}; those it has: {', '.join(COLUMNS)}")
    columns, labels = COLUMNS[reading.task], Labels(reading)
    rows_of = partial(reading.tabbed_rows, names=columns, spans=(IMAGE,) if IMAGE in columns else ())
    make = partial(MAKERS[reading.task], reading, labels)
    return reading.finish(labels.apply(reading.by_file(reading.split_files(".tsv"), rows_of, make)))


def _question(reading: Reading, labels: Labels, split: str, row: Row) -> Record:
    answers = _answers(row)
    choices, label = yes_or_no(answers[0])
    objects = row.optional("objects")
    return Record(
        id=reading.identity(row, f"{split}-{row.text('question_id')}", ""),
        task=reading.task,
        split=split,
        group=row.text("image_id"),
        question=row.text("question"),
        image=_image(row),
        choices=choices,
        answers=answers,
        label=label,
        licence=_licence(reading),
        meta={
            "answer_type": "open" if choices is None else "closed",
            **({"objects": " ".join(objects.split("&&"))} if objects else {}),
        },
    )


def _answers(row: Row) -> tuple[str, ...]:
    """The answers of `0.6|!+no&&1.0|!+yes`, the most certain first."""
    found: list[tuple[float, str]] = []
    for part in row.text("answers").split("&&"):
        confidence, separator, answer = part.partition("|!+")
        try:
            certainty = float(confidence)
        except ValueError:
            separator = ""
            certainty = 0.0
        if not separator or not answer.strip():
            raise row.error("the answers must be written as 1.0|!+answer, and several with && between them")
        found.append((certainty, answer.strip()))
    return tuple(answer for _, answer in sorted(found, key=lambda pair: -pair[0]))


def _caption(reading: Reading, labels: Labels, split: str, row: Row) -> Record:
    captions = tuple(caption.strip() for caption in row.text("captions").split("&&") if caption.strip())
    if not captions:
        raise row.error("'captions' is empty")
    return Record(
        id=reading.identity(row, f"{split}-{row.text('id')}", ""),
        task=reading.task,
        split=split,
        group=row.text("image_id"),
        image=_image(row),
        answers=captions,
        licence=_licence(reading),
    )


def _classification(reading: Reading, labels: Labels, split: str, row: Row) -> Record:
    label, name, identity = row.text("label"), row.text("label name"), f"{split}-{row.number}"
    if not label.isdecimal():
        raise row.error("the second column must be the number of the label")
    return Record(
        id=reading.identity(row, identity, ""),
        task=reading.task,
        split=split,
        group=identity,
        image=_image(row),
        label=labels.index(row, label, name),
        licence=_licence(reading),
    )


def _summary(reading: Reading, labels: Labels, split: str, row: Row) -> Record:
    source, target = row.text("source"), row.text("target")
    return Record(
        id=reading.identity(row, None, f"s-{group_of(source, target)}"),
        task=reading.task,
        split=split,
        group=group_of(source),
        text=source,
        answers=(target,),
        licence=_licence(reading),
    )


def _entailment(reading: Reading, labels: Labels, split: str, row: Row) -> Record:
    first, second, label = row.text("first sentence"), row.text("second sentence"), row.text("label")
    if label.isdecimal() and reading.data.label_names is None:
        raise UsageError(
            f"{row.path}: its labels are numbers; data.label_names must say what they mean, "
            "for MedNLI {0: neutral, 1: entailment, 2: contradiction}"
        )
    return Record(
        id=reading.identity(row, None, f"e-{group_of(first, second)}"),
        task=reading.task,
        split=split,
        group=group_of(first),
        text=first,
        question=second,
        label=labels.index(row, label),
        licence=_licence(reading),
    )


MAKERS: dict[str, MakeRecord] = {
    "visual_question_answering": _question,
    "captioning": _caption,
    "image_classification": _classification,
    "summarization": _summary,
    "text_understanding": _entailment,
}


def _image(row: Row) -> ImageReference:
    from bmpeft.images import Base64Image

    span: Span = row.values[IMAGE]
    if span.length == 0:
        raise row.error("the image is empty")
    return Base64Image(row.path, span.offset, span.length, row.number)


def _licence(reading: Reading) -> str:
    return reading.data.licence or INFO.licence
