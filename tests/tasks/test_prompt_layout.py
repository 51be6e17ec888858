"""The three prompt layouts: what the decoder reads, what carries loss, and that "none" changes nothing."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from bmpeft.backbones.biomedgpt.backbone import BiomedGPTBackbone
from bmpeft.errors import BmpeftError
from bmpeft.recipe_decoding import BeamDecoding
from bmpeft.records import Example, Record
from bmpeft.training.batches import EncodedDataset
from bmpeft.training.losses import Objective
from tests.backbones.tiny import tiny_backbone
from tests.tasks.test_published_prompts import RECORDS, task

LAYOUTS = ("none", "src", "prev_output")


@pytest.fixture(scope="module")
def backbone() -> BiomedGPTBackbone:
    return tiny_backbone()


def example(layout: str, question: str = "Which side is the lesion on?", target: str = " right") -> Example:
    record = Record(id="q", task="visual_question_answering", split="test", group="g", question=question)
    source = f" {question}"
    return Example(record, source, target, document=(1, len(source)), document_cut="head", prompt_layout=layout)  # type: ignore[arg-type]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_decoder_reads_the_source_of_its_layout_and_learns_the_answer_alone(
    backbone: BiomedGPTBackbone, layout: str
) -> None:
    bos, eos = backbone.tokenizer.bos_token_id, backbone.tokenizer.eos_token_id
    rows = [example(layout), example(layout, "Is it?", " a rather long answer")]
    encoded = [backbone.encode(row, max_source_length=64, max_target_length=16) for row in rows]
    batch = backbone.collate(encoded)
    for row, encoding, labels in zip(rows, encoded, batch["labels"], strict=True):
        source = list(encoding.input_ids)
        assert source[0] == bos
        assert source[-1] == eos
        answer = backbone.tokenizer(row.target, add_special_tokens=False)["input_ids"]
        read = {"none": [bos], "src": source, "prev_output": source[:-1]}[layout]
        assert [label for label in labels.tolist() if label != -100] == [*answer, eos]
        assert labels.tolist()[: len(read) - 1] == [-100] * (len(read) - 1)
        if layout != "none":
            index = encoded.index(encoding)
            ids = batch["decoder_input_ids"][index].tolist()
            assert ids[: len(read) + len(answer)] == [*read, *answer]
    assert ("decoder_input_ids" in batch) == (layout != "none")
    assert EncodedDataset(encoded).lengths() == [
        len(e.input_ids) + len(e.decoder_prefix) + len(e.labels or ()) for e in encoded
    ]


def test_a_prefix_is_the_source_as_it_was_cut(backbone: BiomedGPTBackbone) -> None:
    long = example("src", "word " * 50 + "end?")
    encoded = backbone.encode(long, max_source_length=20, max_target_length=8)
    assert encoded.document_tokens_cut > 0
    assert (backbone.tokenizer.bos_token_id, *encoded.decoder_prefix) == encoded.input_ids


def test_prefix_and_answer_share_the_decoders_positions(backbone: BiomedGPTBackbone) -> None:
    long = example("prev_output", "word " * 400, " answer " * 60)
    with pytest.raises(BmpeftError, match="tokens asked for: tiny has positions for 256"):
        backbone.encode(long, max_source_length=250, max_target_length=200)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_loss_of_a_row_does_not_depend_on_its_neighbours(backbone: BiomedGPTBackbone, layout: str) -> None:
    rows = [example(layout), example(layout, "Is it?", " a rather long answer")]
    encoded = [backbone.encode(row, max_source_length=64, max_target_length=16) for row in rows]
    with torch.inference_mode():
        together = backbone.model(**backbone.collate(encoded), num_items_in_batch=1).loss
        alone = sum(backbone.model(**backbone.collate([row]), num_items_in_batch=1).loss for row in encoded)
    torch.testing.assert_close(together, alone)


def test_noise_touches_the_answer_and_never_the_prefix(backbone: BiomedGPTBackbone) -> None:
    encoded = [backbone.encode(example("src"), max_source_length=64, max_target_length=16)]
    batch = backbone.collate(encoded)
    noisy = Objective(torch.tensor([7]), decoder_noise=1.0).with_noise(batch["decoder_input_ids"], batch["labels"])
    prefix = len(encoded[0].input_ids)
    assert noisy[0, :prefix].tolist() == list(encoded[0].input_ids)
    assert set(noisy[0, prefix:].tolist()) == {7}


def test_the_recipe_hands_its_layout_to_every_example() -> None:
    for layout in LAYOUTS:
        asked = task("visual_question_answering", prompt_layout=layout)
        assert asked.example(RECORDS["open"]).prompt_layout == layout


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_score_is_the_loss_of_the_same_answer_behind_the_same_prefix(
    backbone: BiomedGPTBackbone, layout: str
) -> None:
    rows = [
        dataclasses.replace(example(layout, question), choices=(" right", " a rather long answer"))
        for question in ("Which side is the lesion on?", "Is it?")
    ]
    scores = backbone.score_candidates(backbone.model, rows, max_source_length=64)
    for row, scored in zip(rows, scores, strict=True):
        for choice, score in zip(row.choices or (), scored.log_likelihoods, strict=True):
            answered = dataclasses.replace(row, target=choice)
            encoded = backbone.encode(answered, max_source_length=64, max_target_length=16)
            with torch.inference_mode():
                loss = backbone.model(**backbone.collate([encoded]), num_items_in_batch=1).loss
            assert score == pytest.approx(-float(loss), abs=1e-3)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_greedy_text_goes_on_where_the_prefix_ends(backbone: BiomedGPTBackbone, layout: str) -> None:
    rows = [example(layout), example(layout, "Is it?")]
    written = backbone.generate(backbone.model, rows, BeamDecoding(num_beams=1, max_new_tokens=5), max_source_length=64)
    for row, text in zip(rows, written, strict=True):
        encoded = backbone.encode(row, max_source_length=64, max_target_length=16)
        batch = backbone.collate([dataclasses.replace(encoded, labels=None)])
        read = [backbone.model.config.decoder_start_token_id, *encoded.decoder_prefix]
        start = len(read)
        for _ in range(5):
            with torch.inference_mode():
                logits = backbone.model(**batch, decoder_input_ids=torch.tensor([read])).logits[0, -1]
            read.append(int(logits.argmax()))
            if read[-1] == backbone.tokenizer.eos_token_id:
                break
        assert text == backbone.tokenizer.decode(read[start:], skip_special_tokens=True).strip()
