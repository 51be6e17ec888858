"""Visual question answering: LLaVA-Med's formulas with their quirks, and what they should have been."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from bmpeft.evaluation.metrics import Resampling, measure, vqa
from bmpeft.evaluation.metrics.alignment import alignment_rows, question_kind
from bmpeft.evaluation.metrics.vqa_normalization import normalized
from bmpeft.recipe_decoding import BeamDecoding
from bmpeft.records import Prediction, Record


def asked(answer: str, kind: str | None = "open", question: str = "What is it?", **fields: Any) -> Record:
    meta = {} if kind is None else {"answer_type": kind}
    return Record(
        id="r",
        task="visual_question_answering",
        split="test",
        group="i",
        question=question,
        answers=(answer,),
        meta=meta,
        **fields,
    )


def given(text: str) -> Prediction:
    return Prediction("r", text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The Left lung.", "left lung"),
        ("two", "2"),
        ("None", "0"),
        ("yes, it is", "yes it is"),
        ("left-sided", "left sided"),
        ("left- sided", "left sided"),
        ("1,000 x-rays", "1000 xrays"),  # a comma between digits deletes every mark
        ("1.5 cm.", "1.5 cm"),
        ("dont know", "don't know"),
        ("." * 33 + "end", ".end"),  # only 32 full stops are removed
        ("", ""),
    ],
)
def test_normalisation_by_hand(text: str, expected: str) -> None:
    assert normalized(text) == expected


@pytest.mark.parametrize(
    ("accepted", "answer", "as_published", "corrected"),
    [
        ("left lung", "the left lung", 1.0, 1.0),
        ("left lung", "left", 0.5, 0.5),
        ("left lung", "left left left", 0.75, 0.5),  # 3 hits of 3 + 1 missed word
        ("left upper lobe", "left left", 0.5, 1 / 3),
        ("lung lung", "lung", 1.0, 0.5),
        ("left lung", "heart", 0.0, 0.0),
        ("left lung", "", 0.0, 0.0),
        ("the", "heart", 0.0, 0.0),
    ],
)
def test_open_recall(accepted: str, answer: str, as_published: float, corrected: float) -> None:
    rows, predictions = [asked(accepted)], [given(answer)]
    assert vqa.open_recall_llava_med_rows(rows, predictions).tolist() == [pytest.approx(as_published)]
    assert vqa.open_recall_rows(rows, predictions).tolist() == [pytest.approx(corrected)]


@pytest.mark.parametrize(
    ("accepted", "answer", "as_published", "corrected"),
    [
        ("yes", "Yes, there is.", 1.0, 1.0),
        ("no", "No", 1.0, 1.0),
        ("no", "The heart is normal.", 1.0, 0.0),  # "normal" has the letters of "no"
        ("no", "Yes, it is not normal.", 1.0, 0.0),
        ("yes", "No effusion, yes?", 1.0, 0.0),
        ("left", "left", 0.0, 1.0),  # neither yes nor no is in it
        ("left", "the left side", 0.0, 1.0),
        ("left lung", "lung, left", 0.0, 0.0),
        ("yes", "", 0.0, 0.0),
    ],
)
def test_closed_accuracy(accepted: str, answer: str, as_published: float, corrected: float) -> None:
    rows, predictions = [asked(accepted, "closed")], [given(answer)]
    assert vqa.closed_llava_med_rows(rows, predictions).tolist() == [as_published]
    assert vqa.closed_rows(rows, predictions).tolist() == [corrected]


def test_open_figures_are_of_open_questions_and_closed_ones_of_closed() -> None:
    rows = [asked("lung"), asked("yes", "closed"), asked("heart"), asked("no", "CLOSED ")]
    predictions = [given("lung"), given("yes"), given("lung"), given("yes")]
    measured = measure(
        rows,
        predictions,
        task="visual_question_answering",
        decoding=BeamDecoding(),
        resampling=Resampling.of_rows(4, 100, 0),
    )
    figures = {figure.definition.id: (figure.value, figure.n) for figure in measured.figures}
    assert figures == {
        "exact-match/vqa@1": (0.5, 4),
        "open-recall/clipped@1": (0.5, 2),
        "open-recall/llava-med@1": (0.5, 2),
        "closed-accuracy/words@1": (0.5, 2),
        "closed-accuracy/llava-med@1": (0.5, 2),
        "token-f1/tokens@1": (0.5, 4),
        "alignment/question-kind@1": (0.5, 4),
    }
    assert not np.isnan(measured.deciding_rows).any()


def test_without_open_questions_there_is_no_open_figure() -> None:
    measured = measure(
        [asked("yes", "closed")],
        [given("yes")],
        task="visual_question_answering",
        decoding=BeamDecoding(),
        resampling=Resampling.of_rows(1, 100, 0),
    )
    assert not any(figure.definition.id.startswith("open-") for figure in measured.figures)


@pytest.mark.parametrize(
    ("row", "kind"),
    [
        (asked("yes", None), "closed"),
        (asked("Lung", None), "open"),
        (asked("yes", "open"), "open"),
        (asked("left", "closed"), "closed"),
        (asked("yes", None, choices=("yes", "no"), label=0), "closed"),
    ],
)
def test_a_row_without_a_type_is_closed_if_its_answer_is_yes_or_no(row: Record, kind: str) -> None:
    assert vqa.answer_type(row) == kind


@pytest.mark.parametrize(
    ("question", "kind", "aligned", "not_aligned"),
    [
        ("Is there an effusion?", "yes/no", ["Yes.", "no, there is none"], ["effusion", "", "normal"]),
        ("Isn't the heart large?", "yes/no", ["no"], ["heart"]),
        ("Is it the left or the right lung?", "either-or", ["left", "The right one", "both"], ["yes", "heart", ""]),
        ("How many lesions are there?", "number", ["3", "two lesions", "none", "about 4mm"], ["yes", "many", ""]),
        ("Which organ is shown?", "free", ["liver", "not known"], ["yes", "No", ""]),
    ],
)
def test_alignment(question: str, kind: str, aligned: list[str], not_aligned: list[str]) -> None:
    row = asked("x", question=question)
    assert question_kind(row) == kind
    answers = [*aligned, *not_aligned]
    values = alignment_rows([row] * len(answers), [given(answer) for answer in answers])
    assert values.tolist() == [1.0] * len(aligned) + [0.0] * len(not_aligned)


def test_choices_of_yes_and_no_ask_for_one_of_them() -> None:
    assert question_kind(asked("yes", question="Effusion present", choices=("Yes", "no"), label=0)) == "yes/no"
