"""Scores of closed answers equal one forward pass per candidate, and cost far less."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from bmpeft.backbones.biomedgpt import BiomedGPTForConditionalGeneration
from bmpeft.backbones.biomedgpt.outputs import BiomedGPTEncoderOutput
from bmpeft.backbones.biomedgpt.scoring import Limits, score_answers
from bmpeft.images import BytesImage
from bmpeft.records import Example, Record
from tests.backbones.tiny import tiny_backbone, tiny_model

END = 2
ANSWER = st.lists(st.integers(4, 9), max_size=4).map(lambda ids: [*ids, END])
ANSWERS = st.lists(ANSWER, min_size=1, max_size=6)
DIFFERENT = st.lists(ANSWERS, min_size=1, max_size=4)
ALIKE = st.tuples(ANSWERS, st.integers(2, 4)).map(lambda pair: [pair[0]] * pair[1])
# In one pass; trees in several pieces; rows in several passes; logits in several parts.
LIMITS = st.sampled_from(
    [Limits(), Limits(tree_nodes=3), Limits(nodes=5), Limits(bias=40), Limits(tree_nodes=4, logits=3 * 8192)]
)


@pytest.fixture(scope="module")
def model() -> BiomedGPTForConditionalGeneration:
    """Tiny, with positions that matter."""
    model = tiny_model()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "rel_pos_table" in name or "pos_" in name:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return model


def encoded(model: BiomedGPTForConditionalGeneration, rows: int, image: bool = True) -> BiomedGPTEncoderOutput:
    """Ragged questions, the last one without its image."""
    generator = torch.Generator().manual_seed(rows)
    ids = torch.randint(4, 8000, (rows, 6), generator=generator)
    for row in range(rows):
        ids[row, 2 + row :] = 1
    pixels = torch.randn(rows, 3, 32, 48, generator=generator) if image else None
    with torch.inference_mode():
        outputs: BiomedGPTEncoderOutput = model.encoder(
            ids, pixel_values=pixels, pixel_mask=torch.arange(rows) < max(1, rows - 1)
        )
    return outputs


def one_by_one(
    model: BiomedGPTForConditionalGeneration,
    memory: BiomedGPTEncoderOutput,
    row: int,
    answer: list[int],
    prefix: list[int],
) -> float:
    """The definition: a decoder pass for one answer of one row."""
    read = torch.tensor([[0, *prefix, *answer[:-1]]])
    memory = memory.of_rows(torch.tensor([row]))
    logits = model(encoder_outputs=memory, decoder_input_ids=read, use_cache=False).logits[0, len(prefix) :]
    return float(logits.log_softmax(-1)[torch.arange(len(answer)), answer].sum())


@settings(max_examples=40, deadline=None)
@given(
    answers=DIFFERENT | ALIKE,
    limits=LIMITS,
    attention=st.sampled_from(["eager", "sdpa", "chunked"]),
    image=st.booleans(),
    prefixes=st.none() | st.lists(st.lists(st.integers(4, 9), max_size=3), min_size=4, max_size=4),
)
def test_scores_equal_those_of_one_pass_per_answer(
    model: BiomedGPTForConditionalGeneration,
    answers: list[list[list[int]]],
    limits: Limits,
    attention: str,
    image: bool,
    prefixes: list[list[int]] | None,
) -> None:
    model.config._attn_implementation = attention
    with torch.inference_mode():
        memory = encoded(model, len(answers), image)
        read = None if prefixes is None else prefixes[: len(answers)]
        scores = score_answers(model, memory, answers, read, limits=limits)
        assert list(map(len, scores)) == list(map(len, answers))
        for row, (row_scores, row_answers) in enumerate(zip(scores, answers, strict=True)):
            prefix = read[row] if read else []
            expected = [one_by_one(model, memory, row, answer, prefix) for answer in row_answers]
            assert row_scores == pytest.approx(expected, abs=2e-4)


def computed(
    model: BiomedGPTForConditionalGeneration, answers: list[list[list[int]]], limits: Limits
) -> dict[str, int]:
    """For how many positions the first decoder layer made keys of the memory, and hidden states of tokens."""
    layer = model.decoder.layers[0]
    counted = {"memory": 0, "tokens": 0}
    hooks = []
    for name, module in (("memory", layer.cross_attn.k_proj), ("tokens", layer.fc1)):

        def count(_: object, inputs: tuple[torch.Tensor], __: object, name: str = name) -> None:
            counted[name] += inputs[0].shape[0] * inputs[0].shape[1]

        hooks.append(module.register_forward_hook(count))
    try:
        with torch.inference_mode():
            score_answers(model, encoded(model, len(answers)), answers, limits=limits)
    finally:
        for hook in hooks:
            hook.remove()
    return counted


@pytest.mark.parametrize("limits", [Limits(), Limits(tree_nodes=40)], ids=["one pass", "several"])
def test_many_answers_share_the_memory_and_their_beginnings(
    model: BiomedGPTForConditionalGeneration, limits: Limits
) -> None:
    """500 answers of four tokens: with the start 556 beginnings are read, not 2,000."""
    answers = [[[4 + i // 100, 4 + i // 10 % 10, 4 + i % 10, END] for i in range(500)]] * 3
    counted = computed(model, answers, limits)
    assert counted["memory"] == 3 * (6 + 2 * 3)
    beginnings = 1 + 5 + 50 + 500
    assert 3 * beginnings <= counted["tokens"] <= 3 * beginnings * (1 if limits == Limits() else 1.1)


def test_an_image_goes_through_the_tower_once_for_all_its_questions() -> None:
    backbone = tiny_backbone()
    pixels = np.random.default_rng(0).integers(0, 255, (2, 16, 16, 3), dtype=np.uint8)
    images = [BytesImage(_png(array)) for array in pixels]
    examples = [
        Example(
            Record(f"r{n}", "visual_question_answering", "test", "g"),
            f" question {n}?",
            None,
            image=None if shown is None else images[shown],
            choices=(" yes", " no"),
        )
        for n, shown in enumerate((0, None, 1, 0, 0))
    ]
    seen: list[int] = []
    hook = backbone.model.encoder.embed_images.register_forward_hook(lambda _, args, __: seen.append(len(args[0])))
    together = backbone.score_candidates(backbone.model, examples, max_source_length=32)
    hook.remove()
    assert sum(seen) == 2
    for example, scores in zip(examples, together, strict=True):
        alone = backbone.score_candidates(backbone.model, [example], max_source_length=32)[0]
        assert scores.log_likelihoods == pytest.approx(alone.log_likelihoods, abs=1e-4)


def _png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def test_no_answers_are_refused(model: BiomedGPTForConditionalGeneration) -> None:
    for answers in ([[]], [[[4, END]], []], [[[]]]):
        with pytest.raises(ValueError, match="at least one token"):
            score_answers(model, encoded(model, len(answers)), answers)
