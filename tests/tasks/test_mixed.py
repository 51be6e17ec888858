"""Mixed decoding: rows with choices are scored, the others written, all in the order of the input."""

from __future__ import annotations

import pytest

from bmpeft.errors import UsageError
from bmpeft.recipe_decoding import BeamDecoding, CandidatesDecoding, MixedDecoding
from bmpeft.records import Example, Record
from bmpeft.tasks import predict_examples
from tests.fakes import FakeBackbone, FakeModel
from tests.tasks.test_published_prompts import RECORDS, task


def example(number: int, choices: tuple[str, ...] | None) -> Example:
    record = Record(id=f"r{number}", task="visual_question_answering", split="test", group="g", choices=choices)
    return Example(record=record, source="word " * number, target=None, choices=choices)


def test_each_row_takes_the_way_of_its_kind_and_its_place() -> None:
    examples = [example(n, ("yes", "no") if n % 3 == 0 else None) for n in range(8)]
    backbone = FakeBackbone(FakeModel(score=lambda _, choice: -len(choice), write=lambda e: f" wrote {e.record.id}"))
    made = predict_examples(
        backbone, backbone.model, examples, MixedDecoding(), batch_size=2, max_source_length=99, adapter="a"
    )
    assert [p.text for p in made] == [f"wrote r{n}" if n % 3 else "no" for n in range(8)]
    assert [p.choice for p in made] == [None if n % 3 else 1 for n in range(8)]
    assert all(len({e % 3 == 0 for e in map(len, map(str.split, batch))}) == 1 for batch in backbone.batches)


def test_the_parts_of_a_mixed_decoding_decide() -> None:
    made = predict_examples(
        FakeBackbone(model := FakeModel(score=lambda _, choice: {"aa b": -3.0, "c": -2.5}[choice])),
        model,
        [example(1, ("aa b", "c"))],
        MixedDecoding(closed=CandidatesDecoding(normalization="length"), open=BeamDecoding(num_beams=1)),
        batch_size=1,
        max_source_length=9,
    )
    assert made[0].text == "aa b"  # -3.0 over three tokens is more than -2.5 over two


def test_candidates_alone_refuse_an_open_question_and_name_what_takes_it() -> None:
    closed = task("visual_question_answering", decoding={"method": "candidates"})
    assert closed.example(RECORDS["closed"]).choices == (" yes", " no")
    with pytest.raises(UsageError, match="record 'r1' has no choices; use mixed, trie, beam, sample"):
        closed.example(RECORDS["open"])


def test_a_label_is_named_by_its_name_and_not_by_the_word_that_was_scored() -> None:
    asked = task("text_understanding", "biomedgpt_tsv")
    model = FakeModel(score=lambda _, word: {" yes": -1.0, " maybe": -2.0, " no": -3.0}[word])
    made = predict_examples(
        FakeBackbone(model),
        model,
        [asked.example(RECORDS["entailment"])],
        asked.decoding,
        batch_size=1,
        max_source_length=9,
    )
    assert (made[0].text, made[0].choice) == ("entailment", 0)
