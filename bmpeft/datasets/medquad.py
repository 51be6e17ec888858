"""MedQuAD: questions about diseases and drugs with long answers from the sites of the US National Institutes of Health.

The authors' XML documents, in a directory with one directory for each source, or JSON lines of the same
content with `source`, `id`, `focus`, `question` and `answer`. A document's questions are about one focus; the
focus is the group. Three sources come without answers, which their owners withdrew: those rows are left out.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

from bmpeft.datasets.base import DatasetInfo, LoadedDataset
from bmpeft.datasets.formats.xml_files import parse_xml, text_of
from bmpeft.datasets.reading import ALL, Reading
from bmpeft.datasets.rows import Row
from bmpeft.datasets.splits import group_of
from bmpeft.errors import DataError
from bmpeft.records import Record

INFO = DatasetInfo(
    name="medquad",
    title="MedQuAD",
    task="question_answering",
    licence="CC BY 4.0",
    files="the directory with 1_CancerGov_QA and the others, or a .jsonl file",
    source="github.com/abachaa/MedQuAD",
    reference="Ben Abacha & Demner-Fushman 2019, BMC Bioinformatics 20:511",
    group="focus",
)


def read(reading: Reading) -> LoadedDataset:
    """Read MedQuAD; see `bmpeft.datasets.base.Reader`."""
    path = reading.exists(reading.path)
    rows = _documents(reading, path) if path.is_dir() else reading.json_rows(path)
    records = reading.records(rows, partial(_record, reading))
    return reading.finish({ALL: records})


def _documents(reading: Reading, directory: Path) -> Iterator[Row]:
    """The questions of all XML documents, numbered within each."""
    files = sorted(directory.rglob("*.xml"))
    if not files:
        raise DataError(directory, f"holds no XML documents; {INFO.title} needs {INFO.files}, from {INFO.source}")
    for file in files:
        try:
            root = parse_xml(file, file.read_bytes())
        except DataError as error:
            reading.bad(error)
            continue
        focus = text_of(root.find("Focus"))
        for number, pair in enumerate(root.iter("QAPair"), start=1):
            question = pair.find("Question")
            values = {
                "id": None if question is None else question.get("qid"),
                "qtype": None if question is None else question.get("qtype"),
                "source": file.parent.name,
                "focus": focus,
                "question": text_of(question),
                "answer": text_of(pair.find("Answer")),
            }
            yield Row(file, number, values)


def _record(reading: Reading, row: Row) -> Record | None:
    question, source = row.text("question"), row.text("source")
    answer, stated = row.optional("answer"), row.identity("id")
    if answer is None:
        reading.leave_out("questions without an answer")
        return None
    return Record(
        # An id is given twice in a few documents, so it is never taken as it stands.
        id=reading.identity(row, None, f"{source}-{stated or group_of(question)}"),
        task=reading.task,
        split=ALL,
        group=group_of(row.optional("focus") or question),
        question=question,
        answers=(answer,),
        licence=INFO.licence,
        meta={"source": source, "question_type": row.optional("qtype")},
    )
