"""Prediction: results in the order of the input, whatever the batches."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bmpeft.errors import BmpeftError
from bmpeft.images import BytesImage
from bmpeft.recipe_decoding import BeamDecoding, CandidatesDecoding
from bmpeft.records import Example, Record
from bmpeft.tasks import predict_examples
from tests.fakes import FakeBackbone, FakeModel


def example(number: int, words: int = 3, choices: tuple[str, ...] | None = (" a", " b b", " c")) -> Example:
    record = Record(id=f"r{number}", task="question_answering", split="test", group="g", choices=choices)
    return Example(record=record, source=f"{number}" + " word" * words, target=None, choices=choices)


examples_of_any_size = st.lists(st.tuples(st.integers(0, 30), st.integers(1, 5)), max_size=25).map(
    lambda shapes: [example(n, words, tuple(f" c{i}" for i in range(k))) for n, (words, k) in enumerate(shapes)]
)


@settings(max_examples=60, deadline=None)
@given(examples_of_any_size, st.integers(1, 9))
def test_batches_never_change_or_reorder_results(examples: list[Example], batch_size: int) -> None:
    backbone, done = FakeBackbone(), list[int]()
    made = predict_examples(
        backbone,
        backbone.model,
        examples,
        CandidatesDecoding(),
        batch_size=batch_size,
        max_source_length=8,
        on_progress=done.append,
    )
    alone = [
        predict_examples(backbone, backbone.model, [one], CandidatesDecoding(), batch_size=1, max_source_length=8)[0]
        for one in examples
    ]
    assert made == alone
    assert [p.id for p in made] == [e.record.id for e in examples]
    assert sum(done) == len(examples)
    assert all(count <= batch_size for count in done)


@settings(deadline=None)
@given(images=st.lists(st.integers(0, 4), max_size=20), batch_size=st.integers(1, 6))
def test_rows_with_the_same_image_are_batched_together(images: list[int], batch_size: int) -> None:
    """An image is in more batches than it needs only where its rows do not fit into one."""
    backbone = FakeBackbone()
    examples = [
        replace(example(n, words=n % 4), image=BytesImage(bytes([image])) if image else None)
        for n, image in enumerate(images)
    ]
    predict_examples(
        backbone, backbone.model, examples, CandidatesDecoding(), batch_size=batch_size, max_source_length=9
    )
    shown = {e.source: image for e, image in zip(examples, images, strict=True)}
    for image in set(images) - {0}:
        batches = sum(any(shown[source] == image for source in batch) for batch in backbone.batches)
        needed = -(-images.count(image) // batch_size)
        assert batches == needed or (images.count(image) > batch_size and batches == needed + 1)
    assert sorted(source for batch in backbone.batches for source in batch) == sorted(shown)
    assert all(0 < len(batch) <= batch_size for batch in backbone.batches)


def test_batches_hold_rows_of_similar_length_the_longest_first() -> None:
    backbone = FakeBackbone()
    predict_examples(
        backbone,
        backbone.model,
        [example(n, words) for n, words in enumerate((1, 9, 2, 8, 3, 7))],
        CandidatesDecoding(),
        batch_size=2,
        max_source_length=99,
    )
    assert [[len(source.split()) for source in batch] for batch in backbone.batches] == [[10, 9], [8, 4], [3, 2]]


@pytest.mark.parametrize(("normalization", "choice"), [("sum", 0), ("length", 1)])
def test_the_decoding_says_which_score_decides(normalization: str, choice: int) -> None:
    scores = {" a": -2.0, " b b": -2.4, " c": -9.0}  # 2 and 3 tokens: -1.0 and -0.8 each
    model = FakeModel(score=lambda _, text: scores[text])
    decoding = CandidatesDecoding.model_validate({"normalization": normalization})
    made = predict_examples(
        FakeBackbone(model), model, [example(0)], decoding, batch_size=1, max_source_length=9, adapter="x"
    )
    assert (made[0].choice, made[0].text, made[0].adapter) == (choice, ("a", "b b")[choice], "x")
    assert made[0].choice_scores == (-2.0, -2.4, -9.0)
    assert made[0].choice_lengths == (2, 3, 2)


@pytest.mark.parametrize("value", [math.nan, -math.inf])
def test_scores_that_are_not_finite_are_an_error_that_names_the_row(value: float) -> None:
    model = FakeModel(score=lambda e, _: value if e.record.id == "r1" else -1.0)
    with pytest.raises(BmpeftError, match="record 'r1': the model's scores are not finite"):
        predict_examples(
            FakeBackbone(model),
            model,
            [example(0), example(1)],
            CandidatesDecoding(),
            batch_size=2,
            max_source_length=9,
        )


def test_open_answers_are_written_and_stripped() -> None:
    model = FakeModel(write=lambda e: f" answer to {e.record.id}\n")
    made = predict_examples(
        FakeBackbone(model), model, [example(0), example(1, 30)], BeamDecoding(), batch_size=1, max_source_length=9
    )
    assert [p.text for p in made] == ["answer to r0", "answer to r1"]
    assert made[0].choice is made[0].choice_scores is None


def test_a_model_in_training_mode_is_refused_since_dropout_would_answer() -> None:
    backbone = FakeBackbone(FakeModel(training=True))
    with pytest.raises(ValueError, match="evaluation mode"):
        predict_examples(
            backbone, backbone.model, [example(0)], CandidatesDecoding(), batch_size=1, max_source_length=9
        )
    assert backbone.batches == []
