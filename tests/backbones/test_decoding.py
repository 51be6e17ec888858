"""Beam search, sampling and constrained search against slow references written from their definitions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import GenerationConfig

from bmpeft.backbones.biomedgpt import BiomedGPTForConditionalGeneration
from bmpeft.backbones.biomedgpt.backbone import BiomedGPTBackbone
from bmpeft.backbones.biomedgpt.generation import generate_ids
from bmpeft.backbones.biomedgpt.outputs import BiomedGPTEncoderOutput
from bmpeft.backbones.biomedgpt.scoring import score_answers
from bmpeft.backbones.biomedgpt.trie import build_trie
from bmpeft.errors import UsageError
from bmpeft.recipe_decoding import BeamDecoding, SampleDecoding, TrieDecoding
from bmpeft.records import Example, Record
from tests.backbones.tiny import tiny_backbone, tiny_model

END, WORDS = 2, 12
Allowed = Callable[[tuple[int, ...], int], bool]


@pytest.fixture(scope="module")
def model() -> BiomedGPTForConditionalGeneration:
    """A vocabulary of 12 tokens, with distributions that are far from even and answers of any length."""
    model = tiny_model(vocab_size=WORDS)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "rel_pos_table" in name or "pos_" in name or "proj" in name:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.2)
    # Tied to the embeddings, a random model mostly writes again what it has read.
    output = torch.randn(WORDS, model.config.d_model, generator=generator) * 0.4
    model.decoder.output_projection.weight = torch.nn.Parameter(output)
    return model


def encoded(model: BiomedGPTForConditionalGeneration, seed: int) -> BiomedGPTEncoderOutput:
    """Three questions of different length."""
    ids = torch.randint(4, WORDS, (3, 6), generator=torch.Generator().manual_seed(seed))
    ids[1, 4:] = ids[2, 2:] = 1
    with torch.inference_mode():
        outputs: BiomedGPTEncoderOutput = model.encoder(ids)
    return outputs


def next_logits(
    model: BiomedGPTForConditionalGeneration, memory: BiomedGPTEncoderOutput, written: tuple[int, ...]
) -> torch.Tensor:
    """Without a cache, one row at a time. [V]"""
    with torch.inference_mode():
        read = torch.tensor([[0, *written]])
        logits: torch.Tensor = model(encoder_outputs=memory, decoder_input_ids=read, use_cache=False).logits[0, -1]
    return logits


def allowed_by(decoding: BeamDecoding | SampleDecoding) -> Allowed:
    """Minimum length, and no n tokens in a row twice."""

    def allowed(written: tuple[int, ...], token: int) -> bool:
        if token == END and len(written) < decoding.min_new_tokens:
            return False
        size = decoding.no_repeat_ngram_size
        sequence = (0, *written, token)
        grams = [sequence[i : i + size] for i in range(len(sequence) - size + 1)]
        return size == 0 or len(sequence) < size or grams[-1] not in grams[:-1]

    return allowed


def slow_beam_search(
    model: BiomedGPTForConditionalGeneration, memory: BiomedGPTEncoderOutput, decoding: BeamDecoding
) -> list[int]:
    """The best answer that keeping `num_beams` beginnings finds; an answer ends at the end token or the limit."""
    beams: list[tuple[float, tuple[int, ...]]] = [(0.0, ())]
    finished: list[tuple[float, tuple[int, ...]]] = []
    allowed = allowed_by(decoding)
    for length in range(1, decoding.max_new_tokens + 1):
        grown = []
        for total, written in beams:
            log_probabilities = next_logits(model, memory, written).log_softmax(-1).tolist()
            grown += [
                (total + value, (*written, token))
                for token, value in enumerate(log_probabilities)
                if allowed(written, token)
            ]
        grown = sorted(grown, reverse=True)[: 2 * decoding.num_beams]
        for total, written in grown[: decoding.num_beams]:
            if written[-1] == END or length == decoding.max_new_tokens:
                finished.append((total / length**decoding.length_penalty, written))
        finished = sorted(finished, reverse=True)[: decoding.num_beams]
        beams = [beam for beam in grown if beam[1][-1] != END][: decoding.num_beams]
        best_possible = beams[0][0] / length**decoding.length_penalty
        if len(finished) == decoding.num_beams and best_possible <= finished[-1][0]:
            break
    return list(finished[0][1])


def slow_greedy(
    model: BiomedGPTForConditionalGeneration, memory: BiomedGPTEncoderOutput, decoding: BeamDecoding
) -> list[int]:
    written: tuple[int, ...] = ()
    allowed = allowed_by(decoding)
    while len(written) < decoding.max_new_tokens and END not in written:
        logits = next_logits(model, memory, written).tolist()
        written += (max((t for t in range(WORDS) if allowed(written, t)), key=logits.__getitem__),)
    return list(written)


@pytest.mark.parametrize(
    "options",
    [
        {"num_beams": 1},
        {"num_beams": 1, "min_new_tokens": 4, "no_repeat_ngram_size": 2},
        {"num_beams": 2},
        {"num_beams": 4, "length_penalty": 0.0},
        {"num_beams": 3, "length_penalty": 2.0},
        {"num_beams": 3, "length_penalty": -1.0},
        {"num_beams": 3, "no_repeat_ngram_size": 1},
        {"num_beams": 4, "no_repeat_ngram_size": 2, "min_new_tokens": 5, "length_penalty": 0.7},
    ],
    ids=str,
)
def test_search_equals_the_slow_reference(model: BiomedGPTForConditionalGeneration, options: dict[str, Any]) -> None:
    decoding = BeamDecoding(max_new_tokens=7, **options)
    lengths = set()
    for seed in range(3):
        memory = encoded(model, seed)
        reference = slow_greedy if decoding.num_beams == 1 else slow_beam_search
        expected = [reference(model, memory.of_rows(torch.tensor([row])), decoding) for row in range(3)]
        assert generate_ids(model, memory, decoding) == expected
        lengths |= set(map(len, expected))
    assert min(lengths) > decoding.min_new_tokens
    assert len(lengths) > 1 or decoding.length_penalty > 1, "all ran to the limit: no end was ever decided on"


def test_sampling_equals_the_slow_reference(model: BiomedGPTForConditionalGeneration) -> None:
    """One row at a time, since a batch draws for all of its rows at once."""
    for seed, top_p, temperature in ((0, 1.0, 1.0), (1, 0.6, 1.5), (2, 0.3, 0.7), (3, 0.9, 3.0)):
        decoding = SampleDecoding(
            seed=seed, top_p=top_p, temperature=temperature, max_new_tokens=8, min_new_tokens=3, no_repeat_ngram_size=2
        )
        memory = encoded(model, seed).of_rows(torch.tensor([0]))
        allowed = allowed_by(decoding)
        torch.manual_seed(seed)
        written: tuple[int, ...] = ()
        while len(written) < decoding.max_new_tokens and END not in written:
            logits = next_logits(model, memory, written).clone()
            for token in range(WORDS):
                if not allowed(written, token):
                    logits[token] = -torch.inf
            probabilities = (logits / temperature).softmax(-1)
            order = probabilities.argsort(descending=True)
            before = probabilities[order].cumsum(0) - probabilities[order]
            nucleus = torch.zeros(WORDS)
            kept = order[before < top_p]
            nucleus[kept] = probabilities[kept] / probabilities[kept].sum()
            written += (int(torch.multinomial(nucleus, 1)),)
        assert generate_ids(model, memory, decoding) == [list(written)]


# --- answers of a set --------------------------------------------------------------------------------

ANSWER = st.lists(st.integers(4, WORDS - 1), max_size=4).map(lambda ids: [*ids, END])


@settings(max_examples=30, deadline=None)
@given(
    answers=st.lists(ANSWER, min_size=1, max_size=9),
    beams=st.integers(1, 6),
    normalization=st.sampled_from(["sum", "length"]),
    seed=st.integers(0, 3),
)
def test_a_constrained_result_is_in_the_set(
    model: BiomedGPTForConditionalGeneration, answers: list[list[int]], beams: int, normalization: Any, seed: int
) -> None:
    decoding = TrieDecoding(num_beams=beams, normalization=normalization)
    written = generate_ids(model, encoded(model, seed), decoding, trie=build_trie(answers, [0]))
    assert len(written) == 3 and all(ids in answers for ids in written)


@settings(max_examples=30, deadline=None)
@given(
    answers=st.lists(ANSWER, min_size=2, max_size=9, unique_by=tuple),
    normalization=st.sampled_from(["sum", "length"]),
    seed=st.integers(0, 3),
    prefixes=st.none() | st.lists(st.lists(st.integers(4, 9), max_size=2), min_size=3, max_size=3),
)
def test_a_beam_as_wide_as_the_set_finds_the_best_answer(
    model: BiomedGPTForConditionalGeneration,
    answers: list[list[int]],
    normalization: Any,
    seed: int,
    prefixes: list[list[int]] | None,
) -> None:
    memory = encoded(model, seed)
    decoding = TrieDecoding(num_beams=len(answers), normalization=normalization)
    with torch.inference_mode():
        scores = score_answers(model, memory, [answers] * 3, prefixes)
    written = generate_ids(model, memory, decoding, prefixes=prefixes, trie=build_trie(answers, [0]))
    for row, ids in zip(scores, written, strict=True):
        values = [s / len(a) if normalization == "length" else s for s, a in zip(row, answers, strict=True)]
        assert values[answers.index(ids)] == pytest.approx(max(values), abs=1e-4)


def test_greedy_constrained_search_follows_the_likeliest_branch(model: BiomedGPTForConditionalGeneration) -> None:
    answers = [[4, 5, END], [4, 6, 7, END], [8, END], [8, 9, END], [END]]
    memory = encoded(model, 0)
    written = generate_ids(model, memory, TrieDecoding(num_beams=1), trie=build_trie(answers, [0]))
    for row in range(3):
        taken: tuple[int, ...] = ()
        while END not in taken:
            logits = next_logits(model, memory.of_rows(torch.tensor([row])), taken)
            following = {a[len(taken)] for a in answers if tuple(a[: len(taken)]) == taken}
            taken += (max(following, key=lambda token: float(logits[token])),)
        assert written[row] == list(taken)


# --- traps of the library ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "decoding",
    [BeamDecoding(num_beams=3, max_new_tokens=5), TrieDecoding(num_beams=3), SampleDecoding(max_new_tokens=5)],
    ids=lambda decoding: decoding.method,
)
def test_a_memory_can_be_used_again(model: BiomedGPTForConditionalGeneration, decoding: Any) -> None:
    """Beam search repeats the rows of the object that it is given, in place."""
    memory = encoded(model, 0)
    kept = {name: value.clone() for name, value in memory.items() if isinstance(value, torch.Tensor)}
    trie = build_trie([[4, END], [5, 6, END]], [0]) if isinstance(decoding, TrieDecoding) else None
    first = generate_ids(model, memory, decoding, trie=trie)
    assert generate_ids(model, memory, decoding, trie=trie) == first and len(first) == 3
    assert all(torch.equal(memory[name], value) for name, value in kept.items())


def test_rows_with_prefixes_of_any_length_are_written_as_if_alone(model: BiomedGPTForConditionalGeneration) -> None:
    """transformers would put a start token before all rows or none, and pad on the wrong side."""
    memory, prefixes = encoded(model, 1), [[5, 6, 7], [], [8]]
    for decoding in (BeamDecoding(num_beams=2, max_new_tokens=5), BeamDecoding(num_beams=1, max_new_tokens=5)):
        together = generate_ids(model, memory, decoding, prefixes=prefixes)
        for row, prefix in enumerate(prefixes):
            alone = memory.of_rows(torch.tensor([row]))
            assert generate_ids(model, alone, decoding, prefixes=[prefix]) == [together[row]]


def question(text: str, **fields: Any) -> Example:
    return Example(Record("r1", "question_answering", "test", "g"), text, None, **fields)


@pytest.fixture(scope="module")
def backbone() -> BiomedGPTBackbone:
    return tiny_backbone()


def test_settings_that_lie_beside_the_weights_do_not_matter(backbone: BiomedGPTBackbone) -> None:
    decoding, examples = BeamDecoding(num_beams=2, max_new_tokens=6), [question(" which one?")]
    expected = backbone.generate(backbone.model, examples, decoding, max_source_length=32)
    other = tiny_backbone()
    beside: Any = GenerationConfig(
        num_beams=7, no_repeat_ngram_size=1, forced_eos_token_id=50, suppress_tokens=[5, 6], repetition_penalty=9.0
    )
    other.model.generation_config = beside
    tiny = BiomedGPTBackbone(
        name="tiny",
        init="random",
        init_seed=0,
        model=other.model,
        tokenizer=backbone.loaded_tokenizer,
        fingerprint=other.fingerprint,
    )
    assert tiny.generate(tiny.model, examples, decoding, max_source_length=32) == expected


# --- through the backbone ----------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["none", "src", "prev_output"])
def test_answers_come_back_as_they_were_given(backbone: BiomedGPTBackbone, layout: Any) -> None:
    names = ("metformin", "insulin", "metformin and insulin", "a 2.5 mg dose")
    answers = backbone.compile_answers(names)
    examples = [question(" first", prompt_layout=layout), question(" a second, longer question", prompt_layout=layout)]
    wide = TrieDecoding(num_beams=4)
    chosen = backbone.choose(backbone.model, examples, answers, wide, max_source_length=32)
    scored = backbone.score_candidates(
        backbone.model,
        [question(e.source, prompt_layout=layout, choices=tuple(f" {name}" for name in names)) for e in examples],
        max_source_length=32,
    )
    for choice, scores in zip(chosen, scored, strict=True):
        assert choice == names[max(range(4), key=scores.log_likelihoods.__getitem__)]


def test_answers_that_are_not_text_are_refused_by_number(backbone: BiomedGPTBackbone) -> None:
    codes = tiny_backbone(num_code_tokens=8192 - 300)
    with pytest.raises(UsageError, match=r"task\.decoding\.answers: answer 2 has no tokens, or others than those"):
        codes.compile_answers(["a", "thrombocytopenia"])
    answers = backbone.compile_answers(["no</s>", "no"])  # an end token that is text does not end the answer
    chosen = backbone.choose(backbone.model, [question(" q")], answers, TrieDecoding(num_beams=2), max_source_length=9)
    assert chosen[0] in answers.answers
