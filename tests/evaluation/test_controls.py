"""Controls: what each answers, and which fit which rows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from bmpeft.errors import RecipeError, UsageError
from bmpeft.evaluation.controls import (
    ClassicBaseline,
    best_constant,
    fitting_controls,
    lead_sentences,
    majority_predictions,
    with_shuffled_images,
)
from bmpeft.evaluation.controls.constants import first_sentence
from bmpeft.recipe import parse_recipe
from bmpeft.recipe_task import TaskSection
from bmpeft.records import Example, Record
from bmpeft.tasks import make_task


@dataclass(frozen=True)
class Plain:
    """An image of one grey level."""

    level: int
    name: str = ""

    @property
    def digest(self) -> str:
        return f"{self.level}{self.name}"

    def load(self) -> Image.Image:
        return Image.new("RGB", (9, 7), (self.level,) * 3)


def row(number: int, task: str = "text_understanding", **fields: Any) -> Record:
    return Record(id=str(number), task=task, split="test", group=str(number), **fields)


def visual(number: int, answer: str, kind: str) -> Record:
    fields: dict[str, Any] = {"answers": (answer,), "question": "?", "meta": {"answer_type": kind}}
    return row(number, "visual_question_answering", image=Plain(number), **fields)


def test_the_majority_answer_to_visual_questions_is_one_for_each_answer_type() -> None:
    answers = [
        ("yes", "closed"),
        ("No.", "closed"),
        ("no", "closed"),
        ("lung", "open"),
        ("Lung", "open"),
        ("a", "open"),
    ]
    train = [visual(n, *answer) for n, answer in enumerate(answers)]
    asked = [visual(10, "yes", "closed"), visual(11, "heart", "open")]
    made = majority_predictions(train, asked, task="visual_question_answering")
    assert [p.text for p in made] == ["No.", "lung"]
    without_open = majority_predictions(train[:3], asked, task="visual_question_answering")
    assert [p.text for p in without_open] == ["No.", "No."]


def test_the_best_constant_is_like_most_answers() -> None:
    texts = ["no acute finding", "no acute disease", "no acute cardiac finding", "large effusion", "fracture"]
    train = [row(n, "captioning", answers=(text,)) for n, text in enumerate(texts)]
    assert best_constant(train, seed=0) == "no acute finding"


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("The heart is large. No effusion.", "The heart is large."),
        ("Size is 1.5 cm. Stable.", "Size is 1.5 cm."),
        ("Seen by Dr. Smith today. Discharged.", "Seen by Dr. Smith today."),
        ("Is it safe? I take aspirin.", "Is it safe?"),
        ("Doctor: hello\nPatient: hi", "Doctor: hello"),
        ("no end", "no end"),
        ("", ""),
    ],
)
def test_the_lead_sentence(text: str, sentence: str) -> None:
    assert first_sentence(text) == sentence
    assert [p.text for p in lead_sentences([row(0, text=text)])] == [sentence]


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.integers(0, 6), min_size=2, max_size=30).filter(lambda levels: len(set(levels)) > 1), st.integers(0, 9)
)
def test_no_row_keeps_its_image_and_every_image_is_used(levels: list[int], seed: int) -> None:
    rows = [row(n, "captioning", image=Plain(level)) for n, level in enumerate(levels)]
    examples = [Example(record=r, source=" ?", target=None, image=r.image) for r in rows]
    shuffled = with_shuffled_images(examples, seed=seed)
    assert shuffled == with_shuffled_images(examples, seed=seed)
    pairs = [(before.image, after.image) for before, after in zip(examples, shuffled, strict=True)]
    assert all(before != after for before, after in pairs)
    assert len(set(pairs)) == len(set(levels)), "rows of one image stay rows of one image"
    assert {after for _, after in pairs} == {before for before, _ in pairs}
    assert [replace(e, image=None) for e in shuffled] == [replace(e, image=None) for e in examples]


def test_the_classic_baseline_learns_words() -> None:
    words = {0: "fracture of bone", 1: "pain in chest"}
    choices = ("bone", "heart")
    train = [row(n, text=f"{words[n % 2]} case {n}", choices=choices, label=n % 2) for n in range(20)]
    made = ClassicBaseline(train, seed=0).predict(
        [replace(train[0], text="bone"), replace(train[0], text="chest pain")]
    )
    assert [(p.choice, p.text) for p in made] == [(0, "bone"), (1, "heart")]
    for prediction in made:
        assert np.exp(prediction.choice_scores).sum() == pytest.approx(1.0)


def test_the_classic_baseline_weighs_labels_alike_where_training_does() -> None:
    """A text without any known word is answered by the prior alone: the frequent label, or neither."""
    choices = ("bone", "heart")
    train = [row(n, text="bone" if n < 18 else "chest", choices=choices, label=int(n >= 18)) for n in range(20)]
    asked = [replace(train[0], text="elsewhere")]
    shares = [
        np.exp(ClassicBaseline(train, seed=0, balance_labels=said).predict(asked)[0].choice_scores)
        for said in (False, True)
    ]
    assert shares[0][0] > 0.6
    assert shares[1][0] == pytest.approx(0.5, abs=0.1)


def test_the_classic_baseline_learns_pixels_and_knows_no_label_that_it_has_not_seen() -> None:
    choices = ("dark", "light", "never seen")
    train = [
        row(n, "image_classification", image=Plain(40 if n % 2 == 0 else 200), choices=choices, label=n % 2)
        for n in range(10)
    ]
    made = ClassicBaseline(train, seed=0).predict(
        [replace(train[0], image=Plain(60)), replace(train[0], image=Plain(180))]
    )
    assert [p.choice for p in made] == [0, 1]
    assert all(p.choice_scores is not None and p.choice_scores[2] < -20 for p in made)
    constant = ClassicBaseline(train[:1], seed=0).predict(train[:2])
    assert [p.choice for p in constant] == [0, 0]


def test_a_large_training_set_is_sampled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bmpeft.evaluation.controls.classic.MOST_ROWS", 6)
    train = [row(n, text=f"t{n}", choices=("a", "b"), label=n % 2) for n in range(20)]
    assert ClassicBaseline(train, seed=0).rows == 6


def test_question_only_leaves_out_image_and_document() -> None:
    asked = make_task(TaskSection(name="question_answering"), "pubmedqa")
    record = row(
        0, "question_answering", text="A long abstract.", question="Does it help?", choices=("yes", "no"), label=0
    )
    assert asked.question_only(record).source == "  question: Does it help?"
    seen = visual(0, "yes", "closed")
    example = make_task(TaskSection(name="visual_question_answering"), "vqa_rad").question_only(seen)
    assert (example.image, example.source) == (None, " ?")


CLASSES = tuple(row(n, text="t", choices=("a", "b"), label=n % 2) for n in range(4))
IMAGES = tuple(row(n, "image_classification", image=Plain(n), choices=("a", "b"), label=n % 2) for n in range(4))
PAIRS = tuple(replace(record, question="h") for record in CLASSES)
TEXTS = tuple(row(n, "summarization", text="t. u", answers=("s",)) for n in range(3))
CAPTIONS = tuple(row(n, "captioning", image=Plain(n), answers=("s",)) for n in range(3))
VISUAL = tuple(visual(n, "yes", "closed") for n in range(3))


@pytest.mark.parametrize(
    ("rows", "method", "expected"),
    [
        (IMAGES, "candidates", ["majority", "shuffled_images", "classic", "frozen_backbone"]),
        (CLASSES, "candidates", ["majority", "classic", "frozen_backbone"]),
        (CLASSES, "beam", ["majority", "frozen_backbone"]),
        (PAIRS, "candidates", ["majority", "question_only", "classic", "frozen_backbone"]),
        (TEXTS, "beam", ["best_constant", "lead_sentence", "frozen_backbone"]),
        (CAPTIONS, "beam", ["best_constant", "shuffled_images", "frozen_backbone"]),
        (VISUAL, "mixed", ["majority", "question_only", "shuffled_images", "frozen_backbone"]),
    ],
    ids=["images", "texts", "texts-written", "pairs", "summaries", "captions", "visual-questions"],
)
def test_by_default_all_controls_that_fit_are_made(rows: tuple[Record, ...], method: str, expected: list[str]) -> None:
    found = fitting_controls(None, task=rows[0].task, method=method, splits={"test": rows}, train=rows)
    assert list(found) == expected


@pytest.mark.parametrize(
    ("control", "rows", "train", "problem"),
    [
        ("shuffled_images", IMAGES[:1], IMAGES, "shuffled_images needs two different images in split test"),
        ("classic", CLASSES, (), "classic needs a train split with answers"),
        ("classic", CLASSES, (*CLASSES, replace(CLASSES[0], choices=("a", "c"))), "classic needs one set of labels"),
        ("best_constant", TEXTS, (), "best_constant needs a train split"),
        ("lead_sentence", (replace(TEXTS[0], text=None),), TEXTS, "lead_sentence needs a text in every row"),
        ("majority", TEXTS, TEXTS, "majority is a control of image_classification, text_understanding, question_a"),
    ],
    ids=["one-image", "no-training-rows", "other-labels", "no-answers", "no-text", "other-task"],
)
def test_a_control_that_does_not_fit_is_refused_when_asked_for(
    control: Any, rows: Sequence[Record], train: Sequence[Record], problem: str
) -> None:
    method = "candidates" if rows[0].choices else "beam"
    with pytest.raises(UsageError, match=problem) as caught:
        fitting_controls(
            (control, "frozen_backbone"), task=rows[0].task, method=method, splits={"test": rows}, train=train
        )
    assert str(caught.value).endswith("leave it out (evaluation.controls=[frozen_backbone])")


def test_a_recipe_that_asks_for_a_meaningless_control_is_refused() -> None:
    content = {
        "backbone": {"name": "biomedgpt-nano"},
        "data": {"dataset": "medqa", "path": "embedded"},
        "evaluation": {"controls": ["shuffled_images"]},
        "output": {"name": "x"},
    }
    problem = "shuffled_images is a control of image_classification, visual_question_answering, captioning, not of"
    with pytest.raises(RecipeError, match=problem):
        parse_recipe(content, source="x")


def test_the_same_answer_in_other_words_counts_once() -> None:
    train = [visual(n, text, "open") for n, text in enumerate(["lung", "Lung.", "the lung", "heart", "heart"])]
    made = majority_predictions(train, train[:1], task="visual_question_answering")
    assert Counter(p.text for p in made) == {"lung": 1}
