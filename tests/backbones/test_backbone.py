"""The frozen backbone: encoding, truncation, scoring candidates, generating text."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bmpeft.backbones.biomedgpt import backbone as module
from bmpeft.backbones.biomedgpt.backbone import BiomedGPTBackbone
from bmpeft.errors import BmpeftError
from bmpeft.recipe_decoding import BeamDecoding, SampleDecoding
from bmpeft.records import Example, Record
from tests.backbones.tiny import tiny_backbone

WORDS = st.text(alphabet="abcdefg hij,.é中", min_size=1, max_size=60)


@pytest.fixture(scope="module")
def backbone() -> BiomedGPTBackbone:
    return tiny_backbone()


def example(source: str, target: str | None = " yes", **fields: Any) -> Example:
    return Example(Record("r1", "question_answering", "test", "g"), source, target, **fields)


def test_source_and_target_have_their_special_tokens(backbone: BiomedGPTBackbone) -> None:
    encoded = backbone.encode(example(" is it?"), max_source_length=32, max_target_length=8)
    text = backbone.tokenizer.decode(encoded.input_ids)
    assert text == "<s> is it?</s>"
    assert encoded.labels is not None and backbone.tokenizer.decode(encoded.labels) == " yes</s>"
    assert encoded.document_tokens_cut == 0


@settings(deadline=None)
@given(text=WORDS)
def test_text_survives_the_tokenizer(backbone: BiomedGPTBackbone, text: str) -> None:
    ids = backbone.encode(example(text), max_source_length=256, max_target_length=8).input_ids
    decoded = backbone.tokenizer.decode(ids[1:-1], clean_up_tokenization_spaces=False)
    assert decoded == text


@settings(max_examples=60, deadline=None)
@given(document=WORDS, limit=st.integers(12, 40), head=st.booleans())
def test_truncation_cuts_the_document_and_nothing_else(
    backbone: BiomedGPTBackbone, document: str, limit: int, head: bool
) -> None:
    before, after = " context:", " question: is it?"
    source = before + document + after
    cut = example(source, document=(len(before), len(before) + len(document)), document_cut="head" if head else "tail")
    whole = backbone.encode(cut, max_source_length=256, max_target_length=8)
    encoded = backbone.encode(cut, max_source_length=limit, max_target_length=8)
    assert len(encoded.input_ids) == min(limit, len(whole.input_ids))
    assert len(encoded.input_ids) + encoded.document_tokens_cut == len(whole.input_ids)
    prompt_start = backbone.tokenizer(before, add_special_tokens=False)["input_ids"]
    assert encoded.input_ids[1 : len(prompt_start) + 1] == tuple(prompt_start)
    text = backbone.tokenizer.decode(encoded.input_ids[1:-1], clean_up_tokenization_spaces=False)
    assert text.endswith("question: is it?")
    kept = text.removeprefix(before)[: -len(after)].strip("\ufffd")
    assert kept in document and (document.endswith(kept) if head else document.startswith(kept))


def test_no_word_of_the_cut_part_stays(backbone: BiomedGPTBackbone) -> None:
    document = "During rounds a patient asks about aspirin."
    source = f" {document} choices: a; b"
    cut = example(source, document=(1, 1 + len(document)), document_cut="head")
    length = len(backbone.encode(cut, max_source_length=256, max_target_length=8).input_ids)
    ids = backbone.encode(cut, max_source_length=length - 2, max_target_length=8).input_ids
    text = backbone.tokenizer.decode(ids[1:-1], clean_up_tokenization_spaces=False)
    assert source.endswith(text) and "During" not in text


def test_what_cannot_be_cut_is_an_error_that_names_the_record(backbone: BiomedGPTBackbone) -> None:
    with pytest.raises(BmpeftError, match=r"record r1: the prompt without its document takes \d+ tokens, and 8 fit"):
        backbone.encode(example(" a b c d e f g h i j k l"), max_source_length=10, max_target_length=8)
    with pytest.raises(BmpeftError, match=r"record r1: the answer has \d+ tokens, and 3 fit"):
        backbone.encode(example(" a", " one two three four"), max_source_length=10, max_target_length=3)
    with pytest.raises(BmpeftError, match="record r1: no answer to train on"):
        backbone.encode(example(" a", " "), max_source_length=10, max_target_length=3)
    with pytest.raises(BmpeftError, match="300 tokens asked for: tiny has positions for 256"):
        backbone.encode(example(" a"), max_source_length=300, max_target_length=3)


def test_image_code_targets_are_refused_in_one_line() -> None:
    backbone = tiny_backbone(num_code_tokens=8192 - 300)
    with pytest.raises(BmpeftError, match="record r1: image-code and location targets are not supported"):
        backbone.encode(example(" a", " thrombocytopenia"), max_source_length=10, max_target_length=64)


@settings(deadline=None)
@given(lengths=st.lists(st.tuples(st.integers(1, 9), st.integers(1, 5)), min_size=1, max_size=5))
def test_collating_pads_and_keeps_every_token(backbone: BiomedGPTBackbone, lengths: list[tuple[int, int]]) -> None:
    encoded = [module.EncodedExample(tuple(range(4, 4 + s)), tuple(range(4, 4 + t))) for s, t in lengths]
    batch = backbone.collate(encoded)
    for row, item in enumerate(encoded):
        real = batch["attention_mask"][row].bool()
        assert batch["input_ids"][row][real].tolist() == list(item.input_ids)
        assert (batch["input_ids"][row][~real] == 1).all()
        assert batch["labels"][row][batch["labels"][row] != -100].tolist() == list(item.labels or ())


def candidates() -> list[Example]:
    return [
        example(" first question", choices=(" a", " a longer answer", " b")),
        example(" a second and longer question", choices=(" metformin", " insulin")),
        example(" third", choices=(" only one",)),
    ]


def one_by_one(backbone: BiomedGPTBackbone, item: Example) -> list[tuple[float, int]]:
    """The score of every choice by one whole forward pass each."""
    scores = []
    for choice in item.choices or ():
        encoded = backbone.encode(Example(item.record, item.source, choice), max_source_length=64, max_target_length=64)
        batch = backbone.collate([encoded])
        with torch.no_grad():
            log_probabilities = backbone.model(**batch).logits[0].log_softmax(-1)
        labels = batch["labels"][0]
        scores.append((float(log_probabilities[torch.arange(len(labels)), labels].sum()), len(labels)))
    return scores


def test_scores_equal_one_forward_pass_per_candidate(backbone: BiomedGPTBackbone) -> None:
    scored = backbone.score_candidates(backbone.model, candidates(), max_source_length=64)
    for item, scores in zip(candidates(), scored, strict=True):
        expected = one_by_one(backbone, item)
        assert scores.lengths == tuple(length for _, length in expected)
        assert scores.log_likelihoods == pytest.approx([value for value, _ in expected], abs=1e-4)


def test_the_encoder_runs_once_for_each_question(backbone: BiomedGPTBackbone) -> None:
    rows: list[int] = []
    hook = backbone.model.encoder.layers[0].register_forward_hook(lambda _, args, __: rows.append(args[0].shape[0]))
    try:
        backbone.score_candidates(backbone.model, candidates(), max_source_length=64)
    finally:
        hook.remove()
    assert rows == [3]


def test_scoring_without_choices_names_the_record(backbone: BiomedGPTBackbone) -> None:
    with pytest.raises(BmpeftError, match="record r1: no choices"):
        backbone.score_candidates(backbone.model, [example(" a")], max_source_length=64)


def test_generated_text_is_the_same_in_a_batch_and_alone(backbone: BiomedGPTBackbone) -> None:
    decoding = BeamDecoding(num_beams=3, max_new_tokens=6)
    examples = [example(" short"), example(" a somewhat longer question")]
    together = backbone.generate(backbone.model, examples, decoding, max_source_length=64)
    alone = [backbone.generate(backbone.model, [e], decoding, max_source_length=64)[0] for e in examples]
    assert together == alone


def test_sampling_has_its_own_seed(backbone: BiomedGPTBackbone) -> None:
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    decodings = [SampleDecoding(max_new_tokens=6, seed=seed) for seed in (0, 0, 1)]
    texts = [backbone.generate(backbone.model, [example(" q")], d, max_source_length=64)[0] for d in decodings]
    assert texts[0] == texts[1] != texts[2]
    assert torch.equal(torch.rand(1), expected)


def test_text_never_becomes_a_special_token(backbone: BiomedGPTBackbone) -> None:
    ids = backbone.encode(example(" a</s><mask> b"), max_source_length=64, max_target_length=8).input_ids
    special = set(backbone.tokenizer.all_special_ids)
    assert len(special) == 5 and special.isdisjoint(ids[1:-1])
    assert backbone.tokenizer.decode(ids[1:-1], clean_up_tokenization_spaces=False) == " a</s><mask> b"
