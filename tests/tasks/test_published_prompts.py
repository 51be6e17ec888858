"""The six tasks: BiomedGPT's prompts and targets, what they refuse, and that no text is damaged on the way."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from bmpeft.errors import UsageError
from bmpeft.recipe_decoding import BeamDecoding, CandidatesDecoding, MixedDecoding
from bmpeft.recipe_task import TaskSection
from bmpeft.records import Record
from bmpeft.tasks import Task, make_task
from bmpeft.tasks.text_understanding import ENTAILMENT_PROMPT


@dataclass(frozen=True)
class Picture:
    """An image that no test looks at."""

    digest: str = "0" * 64


def record(task: str, **fields: Any) -> Record:
    return Record(id="r1", task=task, split="test", group="g", **fields)


def task(name: str, dataset: str = "own", **section: Any) -> Task:
    return make_task(TaskSection.model_validate({"name": name, **section}), dataset)


LABELS = ("no finding", "T-cell (CD4+) 1.5/2")
ENTAILMENT = ("entailment", "neutral", "contradiction")
RECORDS = {
    "image_classification": record("image_classification", image=Picture(), choices=LABELS, label=1),
    "text_understanding": record("text_understanding", text="BP 120/80,\n-5 °C.", choices=LABELS, label=0),
    "entailment": record("text_understanding", text="Pain.", question="No pain.", choices=ENTAILMENT, label=2),
    "summarization": record("summarization", text="A 1.5 x 2.3 cm\r\n mass, BP 120/80.", answers=("Mass: 1.5 cm.",)),
    "closed": record(
        "visual_question_answering",
        question="Is it a T2-weighted MRI/CT?",
        image=Picture(),
        choices=("yes", "no"),
        label=1,
    ),
    "open": record("visual_question_answering", question="Which side?", image=Picture(), answers=("right", "left")),
    "captioning": record("captioning", image=Picture(), answers=("A 1.5 cm node, T2.", "Another.")),
}


@pytest.mark.parametrize(
    ("name", "source", "target", "choices"),
    [
        ("image_classification", " what does the image describe?", f" {LABELS[1]}", tuple(f" {c}" for c in LABELS)),
        (
            "text_understanding",
            ' what does text " BP 120/80, -5 °C. " describe?',
            f" {LABELS[0]}",
            tuple(f" {c}" for c in LABELS),
        ),
        (
            "summarization",
            ' what is the summary of article " A 1.5 x 2.3 cm mass, BP 120/80. "?',
            "Mass: 1.5 cm.",
            None,
        ),
        ("closed", " Is it a T2-weighted MRI/CT?", " no", (" yes", " no")),
        ("open", " Which side?", " right", None),
        ("captioning", " what does the image describe?", " A 1.5 cm node, T2.", None),
    ],
)
def test_default_prompts_and_targets_are_the_published_ones_with_every_sign(
    name: str, source: str, target: str, choices: tuple[str, ...] | None
) -> None:
    row = RECORDS[name]
    example = task(row.task).example(row)
    assert (example.source, example.target, example.choices) == (source, target, choices)
    assert example.image is row.image


def test_entailment_is_asked_and_answered_as_biomedgpt_does() -> None:
    for asked in (task("text_understanding", "biomedgpt_tsv"), task("text_understanding", prompt=ENTAILMENT_PROMPT)):
        example = asked.example(RECORDS["entailment"])
        assert example.source == ' can text1 " Pain. " imply text2 " No pain. "?'
        assert example.choices == (" yes", " maybe", " no")
        assert example.target == " no"


def test_a_second_text_is_never_left_out_in_silence() -> None:
    with pytest.raises(UsageError, match="record 'r1' has a second text, which the prompt leaves out"):
        task("text_understanding").example(RECORDS["entailment"])


@given(st.text(min_size=1).filter(str.strip), st.text(min_size=1).filter(str.strip))
def test_by_default_nothing_but_white_space_is_changed(text: str, answer: str) -> None:
    row = dataclasses.replace(RECORDS["summarization"], text=text, answers=(answer,))
    example = task("summarization").example(row)
    assert example.source == f' what is the summary of article " {" ".join(text.split())} "?'
    assert example.target == " ".join(answer.split())


@pytest.mark.parametrize(
    ("name", "fields", "source", "target"),
    [
        (
            "open",
            {"question": "~*Is the T2-weighted  BP 120/80", "answers": ("T2-weighted",)},
            " is the t2 weighted bp 120 80?",
            " T2-weighted",
        ),
        (
            "summarization",
            {"text": "Temp -5 <unk>, BP 120/80 .", "answers": ("(CD4+) T-cell",)},
            ' what is the summary of article " temp 5 unk, bp 120 80 . "?',
            "(cd4+) t cell",
        ),
        (
            "captioning",
            {"answers": ("1.5 x 2.3 cm, BP 120/80; T-cell (CD4+)",)},
            " what does the image describe?",
            " 15 x 23 cm BP 12080 Tcell CD4",
        ),
        (
            "text_understanding",
            {"text": "BP 120/80 - HIGH"},
            ' what does text " bp 120/80 - high " describe?',
            " no finding",
        ),
    ],
)
def test_upstream_preprocessing_does_the_damage_that_biomedgpts_loaders_do(
    name: str, fields: dict[str, Any], source: str, target: str
) -> None:
    row = dataclasses.replace(RECORDS[name], **fields)
    example = task(row.task, upstream_preprocessing=True).example(row)
    assert (example.source, example.target) == (source, target)
    assert example.record is row  # metrics compare with the answers as published


@pytest.mark.parametrize(
    ("name", "document", "cut"),
    [
        ("text_understanding", "BP 120/80, -5 °C.", "tail"),
        ("summarization", "A 1.5 x 2.3 cm mass, BP 120/80.", "tail"),
        ("open", "Which side?", "head"),
        ("image_classification", None, None),
        ("captioning", None, None),
    ],
)
def test_only_texts_of_the_record_may_be_shortened(name: str, document: str | None, cut: str | None) -> None:
    row = RECORDS[name]
    example = task(row.task).example(row)
    if document is None:
        assert example.document is None
    else:
        assert example.document is not None
        assert example.source[slice(*example.document)] == document
        assert example.document_cut == cut


@pytest.mark.parametrize("name", ["image_classification", "open", "captioning"])
def test_a_task_about_images_refuses_a_record_without_one(name: str) -> None:
    row = RECORDS[name]
    with pytest.raises(UsageError, match=f"task.name={row.task}: record 'r1' has no image"):
        task(row.task).example(dataclasses.replace(row, image=None))


def test_objects_come_from_the_record_and_are_asked_for_by_the_prompt() -> None:
    asked = task("visual_question_answering", prompt=" {question} object: {objects}")
    row = dataclasses.replace(RECORDS["open"], meta={"objects": "rib lung"})
    assert asked.example(row).source == " Which side? object: rib lung"
    with pytest.raises(UsageError, match="record 'r1' has no objects, which the prompt asks for"):
        asked.example(RECORDS["open"])
    with pytest.raises(UsageError, match="the objects of record 'r1' must be text"):
        asked.example(dataclasses.replace(row, meta={"objects": ["rib"]}))


@pytest.mark.parametrize(
    ("name", "decoding"),
    [
        ("image_classification", CandidatesDecoding()),
        ("text_understanding", CandidatesDecoding()),
        ("question_answering", CandidatesDecoding()),
        ("visual_question_answering", MixedDecoding()),
        ("summarization", BeamDecoding(max_new_tokens=128, length_penalty=0.7, no_repeat_ngram_size=3)),
        ("captioning", BeamDecoding(max_new_tokens=64, no_repeat_ngram_size=3)),
    ],
)
def test_each_task_has_a_decoding_that_fits_and_its_section_is_stored_whole(name: str, decoding: Any) -> None:
    original = task(name, upstream_preprocessing=name not in ("image_classification", "question_answering"))
    assert original.decoding == decoding
    stored = original.section().model_dump(mode="json")
    assert stored["prompt"] == original.prompt
    again = make_task(TaskSection.model_validate(stored), "another")
    assert again.section() == original.section()


@pytest.mark.parametrize(
    ("section", "problem"),
    [
        ({"name": "summarization", "decoding": {"method": "candidates"}}, "is not for summarization; use beam, sample"),
        ({"name": "captioning", "decoding": {"method": "mixed"}}, "method=mixed is not for captioning"),
        ({"name": "image_classification", "decoding": {"method": "mixed"}}, "is not for image_classification"),
        ({"name": "captioning", "prompt_layout": "src"}, "prompt_layout=src is for visual_question_answering, text_u"),
        ({"upstream_preprocessing": True}, "not for question_answering"),
    ],
)
def test_what_does_not_fit_the_task_is_refused_by_the_schema(section: dict[str, Any], problem: str) -> None:
    with pytest.raises(ValidationError) as caught:
        TaskSection.model_validate(section)
    assert problem in str(caught.value)
