"""Metrics against values computed by hand, scikit-learn, and known coverage."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import f1_score

from bmpeft.evaluation.metrics import (
    accuracy_rows,
    answer_tokens,
    bootstrap_interval,
    exact_match_rows,
    macro_f1,
    macro_f1_interval,
    measure,
    token_f1_rows,
)
from bmpeft.recipe import BeamDecoding, CandidatesDecoding
from bmpeft.records import Prediction, Record


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
    records, predictions = [record(0), record(1, ("x", "y"))], [closed((-1.0, -2.0, -3.0), (1, 1, 1))] * 2
    for normalization, ids in (
        ("sum", ["accuracy/choices-sum@1", "accuracy/choices-mean@1"]),
        ("length", ["accuracy/choices-mean@1", "accuracy/choices-sum@1"]),
    ):
        decoding = CandidatesDecoding.model_validate({"normalization": normalization})
        assert [f.definition.id for f in measure(records, predictions, decoding, samples=100, seed=0)] == ids


def test_fixed_labels_get_macro_f1_of_the_choices_made() -> None:
    records = [record(label) for label in (0, 1, 1, 0)]
    predictions = [dataclasses.replace(closed((-1.0, -2.0, -3.0), (1, 1, 1)), choice=choice) for choice in (0, 1, 0, 0)]
    figures = measure(records, predictions, CandidatesDecoding(), samples=100, seed=0)
    assert figures[-1].definition.id == "macro-f1/labels@1"
    assert figures[-1].value == pytest.approx((0.8 + 2 / 3) / 2)


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=40))
def test_macro_f1_is_scikit_learns(pairs: list[tuple[int, int]]) -> None:
    right, given_ = np.array(pairs).T
    assert macro_f1(right, given_) == pytest.approx(f1_score(right, given_, average="macro"))


def test_macro_f1_interval_is_that_of_resampled_scikit_learn() -> None:
    generator = np.random.default_rng(1)
    right = generator.integers(0, 3, 40)
    given_ = np.where(generator.random(40) < 0.6, right, generator.integers(0, 3, 40))
    resamples = np.random.default_rng(7).integers(0, 40, size=(300, 40))
    figures = [f1_score(right[rows], given_[rows], average="macro") for rows in resamples]
    assert macro_f1_interval(right, given_, 300, 7) == pytest.approx(tuple(np.quantile(figures, [0.025, 0.975])))


def test_the_bootstrap_interval_covers_the_truth_19_times_in_20() -> None:
    generator, hits = np.random.default_rng(0), 0
    for trial in range(400):
        low, high = bootstrap_interval((generator.random(100) < 0.3).astype(float), 400, trial)
        hits += low <= 0.3 <= high
    assert 0.91 <= hits / 400 <= 0.98


def test_the_bootstrap_is_seeded_and_independent_of_its_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.arange(50.0)
    whole = bootstrap_interval(values, 500, 3)
    assert whole == bootstrap_interval(values, 500, 3)
    assert whole != bootstrap_interval(values, 500, 4)
    monkeypatch.setattr("bmpeft.evaluation.metrics._CHUNK", 333)
    assert whole == bootstrap_interval(values, 500, 3)


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
    figures = measure(records, predictions, BeamDecoding(), samples=100, seed=0)
    assert [f.definition.id for f in figures] == ["exact-match/tokens@1", "token-f1/tokens@1"]
