"""Files of questions: every kind of row, every kind of mistake."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from bmpeft.adapters.predict_file import predict_file, read_questions
from bmpeft.adapters.runtime import load_backbone
from bmpeft.errors import BmpeftError, DataError, UsageError
from bmpeft.progress import Progress
from bmpeft.recipe import BackboneSection
from tests.adapters.conftest import Stored
from tests.training.small import records

QUIET = Progress(quiet=True)
OPTIONS = {"A": "red", "B": "green and blue"}


def write(path: Path, *rows: Any) -> Path:
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows) + "\n")
    return path


def answers(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def answer(stored: Stored, questions: Path, output: Path) -> int:
    section = BackboneSection(name=str(stored.backbone), attention="eager")
    return predict_file(stored.first, questions, output, backbone=section, progress=QUIET, batch_size=2)


def test_every_question_is_answered_in_its_order(stored: Stored, tmp_path: Path) -> None:
    questions = write(
        tmp_path / "questions.jsonl",
        {"id": "b", "question": "What colour?", "options": OPTIONS},
        "",
        {"question": "Which of these is a very long question indeed?", "options": ["one", "two", "three"]},
        {"id": 7, "question": "What colour?", "options": OPTIONS, "text": "unused by this prompt"},
    )
    assert answer(stored, questions, tmp_path / "answers.jsonl") == 3
    first, second, third = answers(tmp_path / "answers.jsonl")
    assert [first["id"], second["id"], third["id"]] == ["b", "3", "7"]
    assert first["answer"] == OPTIONS[first["choice"]]
    assert first["scores"].keys() == first["normalized_scores"].keys() == OPTIONS.keys()
    assert first["choice"] == max(first["scores"], key=first["scores"].__getitem__)
    assert second["scores"].keys() == {"0", "1", "2"}
    assert third["scores"] == pytest.approx(first["scores"], rel=1e-5)


def test_answers_are_those_of_predict(stored: Stored, tmp_path: Path) -> None:
    rows = records(5)
    lines = [{"id": r.id, "question": r.question, "options": list(r.choices or ())} for r in rows]
    answer(stored, write(tmp_path / "q.jsonl", *lines), tmp_path / "a.jsonl")
    backbone = load_backbone(str(stored.backbone), attention="eager")
    backbone.load_adapter(stored.first)
    for row, prediction in zip(answers(tmp_path / "a.jsonl"), backbone.predict(rows, adapter="first"), strict=True):
        assert row["answer"] == prediction.text
        assert list(row["scores"].values()) == pytest.approx(prediction.choice_scores, rel=1e-5)
        assert list(row["normalized_scores"].values()) == pytest.approx(prediction.normalized_scores, rel=1e-5)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("{", "not JSON: Expecting property name enclosed in double quotes"),
        ([], "expected a JSON object"),
        ({"question": "?", "option": OPTIONS}, "unknown key 'option'; did you mean 'options'?"),
        ({"question": " ", "options": OPTIONS}, "question: expected text that is not empty"),
        ({"options": OPTIONS}, "question: expected text that is not empty"),
        ({"question": "?", "options": {"A": "red"}}, "options: expected a mapping or a list of at least two"),
        ({"question": "?", "options": "red or blue"}, "options: expected a mapping or a list of at least two"),
        ({"question": "?", "options": {"A": "red", "B": ""}}, "options: 'B' is not text, or empty"),
        ({"question": "?", "options": ["red", 7]}, "options: '1' is not text, or empty"),
        ({"question": "?", "options": OPTIONS, "id": 1.5}, "id: expected text or a whole number"),
        ({"question": "?", "options": OPTIONS, "text": 3}, "text: expected text that is not empty"),
        ({"question": "?\0", "options": OPTIONS}, "question: holds a null character, which no text has"),
        (
            '{"question": "?", "options": ["a", "\\ud800"]}',
            "options: holds half of a surrogate pair, which is no character",
        ),
        ('{"id": ' + "9" * 5000 + "}", "not JSON: nested too deeply, or a number with too many digits"),
    ],
)
def test_a_wrong_row_is_named(stored: Stored, tmp_path: Path, row: Any, message: str) -> None:
    questions = write(tmp_path / "q.jsonl", {"question": "fine?", "options": OPTIONS}, "", row)
    output = write(tmp_path / "a.jsonl", "what was there")
    with pytest.raises(DataError) as caught:
        answer(stored, questions, output)
    assert str(caught.value) == f"{questions}, row 3: {message}"
    assert output.read_text() == "what was there\n"


@pytest.mark.parametrize("task", ["text_understanding", "summarization"])
def test_what_is_about_a_text_needs_the_text_and_no_question(tmp_path: Path, task: str) -> None:
    (row,) = read_questions(write(tmp_path / "q.jsonl", {"text": "Findings: none."}), task=task)
    assert (row.record.text, row.record.question) == ("Findings: none.", None)
    with pytest.raises(DataError, match=r"q\.jsonl, row 1: text: expected text that is not empty"):
        read_questions(write(tmp_path / "q.jsonl", {"question": "Findings?"}), task=task)


def test_the_labels_are_the_options_of_rows_that_have_none(tmp_path: Path) -> None:
    path = write(
        tmp_path / "q.jsonl", {"text": "x", "question": "y"}, {"text": "x", "question": "y", "options": OPTIONS}
    )
    labels = {"0": "normal", "1": "pneumonia"}
    first, second = read_questions(path, task="text_understanding", labels=labels)
    assert (first.names, first.record.choices) == (("0", "1"), ("normal", "pneumonia"))
    assert second.record.choices == tuple(OPTIONS.values())
    assert read_questions(path)[0].record.choices is None


@pytest.mark.parametrize(
    ("place", "labels", "expected"),
    [
        ("recipe.data.label_names", {"0": "no", "1": "yes"}, {("no", "0"), ("yes", "1")}),
        ("data.choices", ["no", "yes"], {("no", "no"), ("yes", "yes")}),
    ],
)
def test_the_labels_are_those_that_the_adapter_was_trained_with(
    copy: Path,
    stored: Stored,
    tmp_path: Path,
    edit_json: Any,
    place: str,
    labels: Any,
    expected: set[tuple[str, str]],
) -> None:
    edit_json(copy / "bmpeft.json", {"task.name": "text_understanding", "task.prompt": " {text}", place: labels})
    section = BackboneSection(name=str(stored.backbone), attention="eager")
    output = tmp_path / "a.jsonl"
    predict_file(copy, write(tmp_path / "q.jsonl", {"text": "fine"}), output, backbone=section, progress=QUIET)
    (found,) = answers(output)
    assert (found["answer"], found["choice"]) in expected


def test_wrong_files_are_named(stored: Stored, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none\.jsonl: No such file"):
        read_questions(tmp_path / "none.jsonl")
    (tmp_path / "empty.jsonl").write_text("\n\n")
    with pytest.raises(DataError, match=r"empty\.jsonl: holds no questions"):
        read_questions(tmp_path / "empty.jsonl")
    (tmp_path / "latin.jsonl").write_bytes('{"question": "é"}'.encode("latin-1"))
    with pytest.raises(DataError, match=r"latin\.jsonl, row 1: not UTF-8"):
        read_questions(tmp_path / "latin.jsonl")
    twice = write(tmp_path / "twice.jsonl", {"id": "x", "question": "?"}, {"id": "x", "question": "?"})
    with pytest.raises(DataError, match=r"twice\.jsonl: the id 'x' occurs twice"):
        read_questions(twice)


def test_the_input_is_never_overwritten(stored: Stored, tmp_path: Path) -> None:
    questions = write(tmp_path / "q.jsonl", {"question": "?", "options": OPTIONS})
    (tmp_path / "link.jsonl").symlink_to(questions)
    for output in (questions, tmp_path / "link.jsonl", tmp_path / "." / "q.jsonl"):
        with pytest.raises(UsageError, match="is the input too"):
            answer(stored, questions, output)
    with pytest.raises(UsageError, match="no such directory for the output"):
        answer(stored, questions, tmp_path / "none" / "a.jsonl")


def test_closed_answers_need_options(stored: Stored, tmp_path: Path) -> None:
    questions = write(tmp_path / "q.jsonl", {"id": "x", "question": "What colour?"})
    with pytest.raises(BmpeftError, match=r"q\.jsonl: record 'x' has no options, and the adapter"):
        answer(stored, questions, tmp_path / "a.jsonl")
    assert not (tmp_path / "a.jsonl").exists()


def test_a_backbone_directory_must_be_said_where_it_is_not(
    stored: Stored, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    questions = write(tmp_path / "q.jsonl", {"question": "What colour?", "options": OPTIONS})
    with pytest.raises(UsageError, match=r"backbone directory named 'tiny-backbone', which is not here: say where"):
        predict_file(stored.first, questions, tmp_path / "a.jsonl", progress=QUIET)
    monkeypatch.chdir(stored.root)
    assert predict_file(stored.first, questions, tmp_path / "a.jsonl", progress=QUIET) == 1
