"""Closed and open answers: metrics against values computed by hand and scikit-learn."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import balanced_accuracy_score, confusion_matrix, f1_score, roc_auc_score

from bmpeft.evaluation.metrics import Figure, Resampling, answer_tokens, labels, measure
from bmpeft.evaluation.metrics.answers import exact_match_rows, token_f1_rows
from bmpeft.evaluation.metrics.labels import accuracy_rows, probabilities
from bmpeft.recipe_decoding import BeamDecoding, CandidatesDecoding, Decoding
from bmpeft.records import Prediction, Record


def once(n: int) -> np.ndarray:
    """Every row once."""
    return np.ones((1, n))


def figures_of(
    records: Sequence[Record], predictions: Sequence[Prediction], decoding: Decoding | None = None
) -> dict[str, Figure]:
    measured = measure(
        records,
        predictions,
        task="question_answering",
        decoding=decoding or CandidatesDecoding(),
        resampling=Resampling.of_rows(len(records), 100, 0),
    )
    return {figure.definition.id: figure for figure in measured.figures}


def record(
    label: int | None = 0, choices: tuple[str, ...] | None = ("a", "b", "c"), answers: tuple[str, ...] | None = None
) -> Record:
    return Record(
        id="r",
        task="question_answering",
        split="test",
        group="g",
        question="?",
        choices=choices,
        label=label,
        answers=answers,
    )


def closed(scores: tuple[float, ...], lengths: tuple[int, ...], choice: int = 0) -> Prediction:
    return Prediction("r", "", choice, scores, lengths)


def test_accuracy_by_sum_and_by_length_on_a_case_by_hand() -> None:
    records = [record(0), record(1), record(2)]
    predictions = [
        closed((-2.0, -2.4, -9.0), (2, 3, 2)),
        closed((-2.0, -2.4, -9.0), (2, 3, 2)),
        closed((-3.0, -3.0, -1.0), (1, 1, 9)),
    ]
    assert accuracy_rows(records, predictions, "sum").tolist() == [1.0, 0.0, 1.0]
    assert accuracy_rows(records, predictions, "length").tolist() == [0.0, 1.0, 1.0]


def test_the_right_text_is_right_wherever_it_stands() -> None:
    twice = record(2, choices=("x", "y", "x"))
    assert accuracy_rows([twice], [closed((-1.0, -2.0, -3.0), (1, 1, 1))], "sum").tolist() == [1.0]


def test_the_deciding_accuracy_comes_first() -> None:
    records, predictions = [record(0), record(1, ("x", "y"))], [closed((-1.0, -2.0), (1, 1))] * 2
    for normalization, ids in (
        ("sum", ["accuracy/choices-sum@1", "accuracy/choices-mean@1"]),
        ("length", ["accuracy/choices-mean@1", "accuracy/choices-sum@1"]),
    ):
        decoding = CandidatesDecoding.model_validate({"normalization": normalization})
        figures = figures_of(records, predictions, decoding)
        assert list(figures) == [*ids, "ece/15-equal-width-bins@1"]


def test_fixed_labels_get_the_figures_of_the_choices_made() -> None:
    records = [record(label) for label in (0, 1, 1, 0)]
    predictions = [dataclasses.replace(closed((-1.0, -2.0, -3.0), (1, 1, 1)), choice=choice) for choice in (0, 1, 0, 0)]
    figures = figures_of(records, predictions)
    assert figures["macro-f1/labels@1"].value == pytest.approx((0.8 + 2 / 3) / 2)
    assert figures["balanced-accuracy/labels@1"].value == pytest.approx((1.0 + 0.5) / 2)
    assert figures["auroc/one-vs-rest-macro@1"].value == 0.5  # all rows have the same probabilities


def test_a_control_without_scores_has_figures_of_its_choices_alone() -> None:
    predictions = [Prediction("r", "a", 0)] * 2
    assert list(figures_of([record(0), record(1)], predictions)) == [
        "accuracy/chosen@1",
        "balanced-accuracy/labels@1",
        "macro-f1/labels@1",
    ]


def test_log_probabilities_without_token_counts_are_ranked_too() -> None:
    shares = [(0.7, 0.3), (0.4, 0.6), (0.2, 0.8)]
    records = [record(label, ("no", "yes")) for label in (0, 0, 1)]
    predictions = [Prediction("r", "", int(np.argmax(s)), tuple(map(math.log, s))) for s in shares]
    figures = figures_of(records, predictions)
    assert figures["accuracy/chosen@1"].value == pytest.approx(2 / 3)
    assert figures["auroc/binary@1"].value == 1.0


def test_one_right_label_in_all_rows_has_no_auroc() -> None:
    assert "auroc/binary@1" not in figures_of([record(0, ("no", "yes"))] * 3, [closed((-1.0, -2.0), (1, 1))] * 3)


label_pairs = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=40)


@settings(deadline=None, max_examples=40)
@given(label_pairs)
@pytest.mark.filterwarnings("ignore:y_pred contains classes not in y_true", "ignore:A single label was found")
def test_figures_of_labels_are_scikit_learns(pairs: list[tuple[int, int]]) -> None:
    right, given_ = np.array(pairs).T
    weights = once(len(right))
    assert labels.macro_f1(right, given_, 4)(weights)[0] == pytest.approx(f1_score(right, given_, average="macro"))
    assert labels.balanced_accuracy(right, given_, 4)(weights)[0] == pytest.approx(
        balanced_accuracy_score(right, given_)
    )
    assert (labels.confusion_matrix(right, given_, 4) == confusion_matrix(right, given_, labels=range(4))).all()


@settings(deadline=None, max_examples=40)
@given(st.lists(st.tuples(st.integers(0, 2), st.tuples(*[st.integers(0, 5)] * 3)), min_size=2, max_size=40))
def test_auroc_is_scikit_learns_ties_included(rows: list[tuple[int, tuple[int, ...]]]) -> None:
    right = np.array([label for label, _ in rows])
    scores = np.array([values for _, values in rows], dtype=np.float64)
    areas = [roc_auc_score(right == k, scores[:, k]) for k in range(3) if 0 < (right == k).sum() < len(right)]
    value = labels.auroc(right, scores)(once(len(right)))[0]
    assert math.isnan(value) if not areas else value == pytest.approx(np.mean(areas))


def test_auroc_of_drawn_rows_is_that_of_the_rows_repeated() -> None:
    generator = np.random.default_rng(3)
    right, scores = generator.integers(0, 2, 30), generator.integers(0, 6, (30, 1)).astype(float)
    for weights in Resampling.of_rows(30, 5, 1).weights():
        expected = [
            roc_auc_score(np.repeat(right, row.astype(int)), np.repeat(scores[:, 0], row.astype(int)))
            for row in weights
        ]
        assert labels.auroc(right - 1, scores)(weights) == pytest.approx(expected)


def test_calibration_error_by_hand() -> None:
    confidence, right = np.array([0.9, 0.9, 0.62, 0.62]), np.array([1.0, 0.0, 1.0, 1.0])
    assert labels.calibration_error(confidence, right)(once(4))[0] == pytest.approx(0.5 * 0.4 + 0.5 * 0.38)
    assert labels.confidence_bins(np.array([0.0, 1 / 15, 0.0667, 1.0])).tolist() == [0, 0, 1, 14]


def test_probabilities_are_the_softmax_of_the_deciding_score() -> None:
    prediction = closed((-2.0, -4.0), (1, 4))
    assert probabilities(prediction, "sum") == pytest.approx([1 / (1 + math.exp(-2)), 1 / (1 + math.exp(2))])
    assert probabilities(prediction, "length") == pytest.approx([1 / (1 + math.exp(1)), 1 / (1 + math.exp(-1))])
    far = Prediction("r", "", 0, (-1e4, -2e4), (1, 1))
    assert probabilities(far, "sum") == pytest.approx([1.0, 0.0])


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("The Left  lung.", ["left", "lung"]),
        ("1.5 mg", ["1.5", "mg"]),
        ("1.5mg", ["1.5", "mg"]),
        ("15 mg", ["15", "mg"]),
        ("-5 °C", ["-5", "c"]),
        ("\N{MINUS SIGN}5", ["-5"]),
        ("BP 120/80; T-cell (CD4+), HER2- tumour", ["bp", "120/80", "t", "cell", "cd4+", "her2-", "tumour"]),
        ("2-3 days", ["2", "3", "days"]),
        ("", []),
    ],
)
def test_tokens_keep_numbers_and_signs(text: str, tokens: list[str]) -> None:
    assert answer_tokens(text) == tokens


def test_open_answers_by_hand() -> None:
    records = [
        record(None, None, ("the left lung", "left lobe")),
        record(None, None, ("none",)),
        record(1, ("x", "B 12")),
    ]
    predictions = [Prediction("r", "Left lung!"), Prediction("r", ""), Prediction("r", "12 b c")]
    assert exact_match_rows(records, predictions).tolist() == [1.0, 0.0, 0.0]
    assert token_f1_rows(records, predictions).tolist() == pytest.approx([1.0, 0.0, 2 * 2 / 5])
    assert list(figures_of(records, predictions, BeamDecoding())) == ["exact-match/tokens@1", "token-f1/tokens@1"]
