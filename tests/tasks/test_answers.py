"""The answers of a trie: from the training rows alone, spelled out once, never shown in a message."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from bmpeft.errors import RecipeError, UsageError
from bmpeft.recipe import parse_recipe
from bmpeft.recipe_decoding import MixedDecoding, TrieDecoding, trie_of, without_answers
from bmpeft.recipe_task import TaskSection
from bmpeft.records import Example, Record
from bmpeft.tasks import Task, make_task, predict_examples, spell_out_answers
from bmpeft.tasks import answers as module
from tests.fakes import FakeBackbone, FakeModel
from tests.test_recipe import MINIMAL


def row(number: int, answer: str, choices: tuple[str, ...] | None = None) -> Record:
    return Record(
        id=f"r{number}",
        task="question_answering",
        split="train",
        group=f"g{number}",
        question="which one?",
        choices=choices,
        answers=None if choices else (answer,),
        label=choices.index(answer) if choices else None,
    )


ROWS = (row(1, "no"), row(2, "left  lower\nlobe"), row(3, "no"), row(4, "yes", ("yes", "maybe")), row(5, "right lung"))


def task(**options: Any) -> Task:
    return make_task(TaskSection(prompt=" {question}", decoding=TrieDecoding(**options)), "medqa")


def spelled(asked: Task, rows: tuple[Record, ...] = ROWS) -> tuple[str, ...] | str:
    trie = trie_of(spell_out_answers(asked, rows).decoding)
    assert trie is not None
    return trie.answers


def test_training_answers_are_spelled_out_sorted_and_once() -> None:
    assert spelled(task()) == ("left lower lobe", "no", "right lung", "yes")
    assert spelled(task(min_count=2)) == ("no",)


def test_of_mixed_rows_only_the_open_ones_count() -> None:
    section = TaskSection(prompt=" {question}", decoding=MixedDecoding(open=TrieDecoding(num_beams=3)))
    asked = make_task(section, "medqa")
    assert spelled(asked) == ("left lower lobe", "no", "right lung")
    decoding = spell_out_answers(asked, ROWS).decoding
    assert isinstance(decoding, MixedDecoding) and decoding.open.num_beams == 3  # type: ignore[union-attr]


def test_a_list_and_a_file_say_the_answers_too(tmp_path: Path) -> None:
    assert spelled(task(answers=("b  b", "a", "a"))) == ("a", "b b")
    path = tmp_path / "answers.txt"
    path.write_text("\ufeffb b\n\n  a \nb b\n", encoding="utf-8")
    assert spelled(task(answers_file=str(path))) == ("a", "b b")
    section = spell_out_answers(task(answers_file=str(path)), ())
    assert str(tmp_path) not in section.model_dump_json()


def test_spelling_out_twice_changes_nothing() -> None:
    once = spell_out_answers(task(normalization="length", num_beams=7), ROWS)
    assert spell_out_answers(make_task(once, "medqa"), ()) == once
    assert TaskSection.model_validate_json(once.model_dump_json()) == once


def test_without_a_trie_nothing_is_looked_at() -> None:
    asked = make_task(TaskSection(prompt=" {question} {choices}"), "medqa")
    assert spell_out_answers(asked, ROWS) == asked.section()


def test_what_gives_no_answers_is_refused_without_showing_any(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "empty.txt").write_text("\n \n")
    (tmp_path / "binary.txt").write_bytes(b"\xff\xfe")
    cases: list[tuple[dict[str, Any], tuple[Record, ...], str]] = [
        ({}, (), "task.decoding.answers=train: no training row has an answer$"),
        ({"min_count": 3}, ROWS, r"no training row has an answer \(min_count=3\)"),
        ({"answers_file": str(tmp_path / "no.txt")}, ROWS, "no.txt: No such file"),
        ({"answers_file": str(tmp_path / "empty.txt")}, ROWS, "empty.txt: holds no answers"),
        ({"answers_file": str(tmp_path / "binary.txt")}, ROWS, "binary.txt: not UTF-8"),
    ]
    for options, rows, message in cases:
        with pytest.raises(UsageError, match=message):
            spell_out_answers(task(**options), rows)
    monkeypatch.setattr(module, "MAX_CHARACTERS", 10)
    with pytest.raises(UsageError, match="4 answers with 30 characters are too many") as caught:
        spell_out_answers(task(), ROWS)
    assert "lobe" not in str(caught.value)


@pytest.mark.parametrize(
    ("decoding", "message"),
    [
        ("{method: trie, answers: yes it is}", "answers: expected `train`, or a list such as"),
        ("{method: trie, answers: [yes, 3]}", "answers: expected `train`, or a list such as"),
        ("{method: trie, answers: []}", "expected at least one answer, and none that is empty"),
        ('{method: trie, answers: [a, " "]}', "expected at least one answer, and none that is empty"),
        ("{method: trie, answers: [a], answers_file: b}", "say the same thing in two ways"),
        ("{method: trie, answers: [a], min_count: 2}", "min_count counts training rows"),
        ("{method: trie, num_beams: 0}", "num_beams: 0 is out of range"),
        ("{method: beam, min_new_tokens: 64}", "min_new_tokens must be smaller than max_new_tokens"),
    ],
)
def test_a_decoding_that_cannot_work_is_told_in_one_line(decoding: str, message: str) -> None:
    with pytest.raises(RecipeError) as caught:
        parse_recipe(MINIMAL, source="my.yaml", overrides=[f"task.decoding={decoding}", "evaluation.controls=[]"])
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_a_stored_recipe_keeps_of_the_answers_file_its_name() -> None:
    overrides = ["task.decoding={method: trie, answers_file: /home/someone/answers.txt}", "evaluation.controls=[]"]
    stored = parse_recipe(MINIMAL, source="my.yaml", overrides=overrides).portable()
    assert stored["task"]["decoding"]["answers_file"] == "answers.txt"


def test_a_score_card_has_the_number_of_the_answers_and_no_answer() -> None:
    decoding = spell_out_answers(task(), ROWS).decoding
    for shown in (without_answers(decoding), without_answers(MixedDecoding(open=decoding))["open"]):  # type: ignore[arg-type]
        assert shown["answers"]["count"] == 4 and len(shown["answers"]["sha256"]) == 64
        assert "lobe" not in str(shown)
    assert without_answers(TrieDecoding())["answers"] == "train"


def test_the_set_is_compiled_once_and_every_answer_is_in_it(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[tuple[str, ...]] = []
    compile_answers = FakeBackbone.compile_answers
    monkeypatch.setattr(
        FakeBackbone, "compile_answers", lambda self, names: compiled.append(names) or compile_answers(self, names)
    )
    backbone = FakeBackbone(model := FakeModel())
    examples = [Example(row(n, "no"), f"question {n}", None) for n in range(7)]
    decoding = TrieDecoding(answers=("yes", "no", "left lung"))
    made = predict_examples(backbone, model, examples, decoding, batch_size=3, max_source_length=9)
    assert {p.text for p in made} <= {"yes", "no", "left lung"} and len({p.text for p in made}) > 1
    assert compiled == [("yes", "no", "left lung")] and len(backbone.batches) == 3
    with pytest.raises(UsageError, match="answers=train: no answers are spelled out here"):
        predict_examples(backbone, model, examples, TrieDecoding(), batch_size=3, max_source_length=9)
