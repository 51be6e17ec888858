"""Question answering: what the model reads, what it should write, and what may be cut."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bmpeft.errors import UsageError
from bmpeft.recipe_decoding import BeamDecoding, CandidatesDecoding
from bmpeft.recipe_task import TaskSection
from bmpeft.records import Record
from bmpeft.tasks import Task, make_task

MCQ = Record(
    id="q1",
    task="question_answering",
    split="test",
    group="g",
    question="Which\nvitamin {0}?",
    choices=("B1", "vitamin  B12"),
    label=1,
)
ABSTRACT = Record(
    id="p1",
    task="question_answering",
    split="test",
    group="g",
    question="Does it work?",
    text="METHODS: We {text} it.",
    choices=("yes", "no", "maybe"),
    label=0,
)
OPEN = Record(id="o1", task="question_answering", split="test", group="g", question="Which?", answers=("niacin", "B3"))


def task(dataset: str = "medqa", **section: Any) -> Task:
    return make_task(TaskSection(**section), dataset)


def test_default_prompts_start_with_a_space_and_name_options_by_their_text() -> None:
    example = task().example(MCQ)
    assert example.source == " Which vitamin {0}? choices: B1; vitamin B12"
    assert example.choices == (" B1", " vitamin B12")
    assert example.target == " vitamin B12"
    assert task("pubmedqa").example(ABSTRACT).source == " METHODS: We {text} it. question: Does it work?"


def test_the_leading_space_of_a_recipes_prompt_is_kept_and_none_is_added() -> None:
    assert task(prompt="  {question}").example(MCQ).source.startswith("  Which")
    assert task(prompt="{question}").example(MCQ).source.startswith("Which")


def test_vignettes_lose_their_beginning_and_abstracts_their_end() -> None:
    vignette, abstract = task().example(MCQ), task("pubmedqa").example(ABSTRACT)
    assert vignette.document is not None
    assert vignette.source[slice(*vignette.document)] == "Which vitamin {0}?"
    assert vignette.document_cut == "head"
    assert abstract.document is not None
    assert abstract.source[slice(*abstract.document)] == "METHODS: We {text} it."
    assert abstract.document_cut == "tail"


def test_options_only_removes_the_question_and_its_document_and_nothing_else() -> None:
    example, bare = task().example(MCQ), task().options_only(MCQ)
    assert example.document is not None
    start, stop = example.document
    assert bare.source == example.source[:start] + example.source[stop:]
    assert (bare.choices, bare.target, bare.document) == (example.choices, example.target, None)
    assert task("pubmedqa").options_only(ABSTRACT).source == "  question: "


@given(st.text(min_size=1).filter(str.strip), st.text(min_size=1).filter(str.strip))
def test_no_text_of_a_record_is_read_as_a_template(question: str, document: str) -> None:
    record = dataclasses.replace(ABSTRACT, question=question, text=document)
    example = task(prompt=" <{text}|{question}>").example(record)
    assert example.source == f" <{' '.join(document.split())}|{' '.join(question.split())}>"


def test_open_answers_train_on_the_first_one() -> None:
    open_task = task(prompt=" {question}", decoding=BeamDecoding())
    assert open_task.example(OPEN).target == " niacin"
    assert open_task.example(OPEN).choices is None


def test_rows_without_an_answer_have_no_target_but_can_be_asked() -> None:
    unlabelled = dataclasses.replace(MCQ, label=None)
    assert task().example(unlabelled).target is None
    assert task().example(unlabelled).choices == (" B1", " vitamin B12")


@pytest.mark.parametrize(
    ("section", "record", "problem"),
    [
        ({"prompt": " {text} {question}"}, MCQ, "record 'q1' has no text, which the prompt asks for ({text})"),
        (
            {"decoding": BeamDecoding()},
            OPEN,
            "where questions have none, write task.prompt: ' {question}'",
        ),
        ({"prompt": " {question}"}, OPEN, "candidates: record 'o1' has no choices; use mixed, trie, beam, sample"),
    ],
)
def test_a_record_without_what_is_asked_for_is_named(section: dict[str, Any], record: Record, problem: str) -> None:
    with pytest.raises(UsageError) as caught:
        task(**section).example(record)
    assert problem in str(caught.value)


@pytest.mark.parametrize("dataset", ["medqa", "pubmedqa", "a dataset to come"])
def test_the_stored_section_makes_the_same_task_for_any_dataset(dataset: str) -> None:
    original = task(dataset, decoding=CandidatesDecoding(normalization="length"))
    again = make_task(TaskSection.model_validate(original.section().model_dump(mode="json")), "another")
    assert (again.prompt, again.decoding) == (original.prompt, original.decoding)
