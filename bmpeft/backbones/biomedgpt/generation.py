"""Free text and answers of a given set, by transformers' generation over an encoder memory.

What is searched for is said by a `GenerationConfig` made here for each call, never by one that lies beside the
weights. The memory that transformers is handed is a copy: beam search repeats its rows in place.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessorList
from transformers.generation.logits_process import LogitsProcessor

from bmpeft.backbones.biomedgpt.modeling import BiomedGPTForConditionalGeneration
from bmpeft.backbones.biomedgpt.outputs import BiomedGPTEncoderOutput
from bmpeft.backbones.biomedgpt.trie import TokenTrie
from bmpeft.recipe_decoding import BeamDecoding, SampleDecoding, TrieDecoding


def generate_ids(
    model: BiomedGPTForConditionalGeneration,
    memory: BiomedGPTEncoderOutput,
    decoding: BeamDecoding | SampleDecoding | TrieDecoding,
    *,
    prefixes: Sequence[Sequence[int]] | None = None,
    trie: TokenTrie | None = None,
) -> list[list[int]]:
    """The token ids that are written for each row, up to the end token, which is included where it was written.

    Args:
        model: in evaluation mode, with or without an adapter in its layers.
        memory: the encoder's output for B rows; it is not changed.
        decoding: beam search, sampling (from `decoding.seed`; other generators are left alone) or the search for
            an answer of `trie`.
        prefixes: for each row, what the decoder reads between its start token and the answer; default: nothing.
        trie: of the answers that may be written; without one, everything but image codes and location bins may.
    """
    assert memory.last_hidden_state is not None
    prefixes = prefixes or [()] * len(memory.last_hidden_state)
    written: dict[int, list[int]] = {}
    with _own_random_numbers(decoding, model.device):
        for rows in _rows_of_equal_length(prefixes):
            prompts = torch.tensor([[model.config.decoder_start_token_id, *prefixes[row]] for row in rows])
            processors = [] if trie is None else [AnswersOnly(trie, prompt_length=prompts.shape[1])]
            ids = model.generate(
                encoder_outputs=memory.of_rows(torch.tensor(rows)),
                decoder_input_ids=prompts.to(model.device),
                generation_config=_generation_config(model, decoding, trie),
                logits_processor=LogitsProcessorList(processors),
            )
            for row, tokens in zip(rows, ids[:, prompts.shape[1] :].tolist(), strict=True):
                written[row] = _until_end(tokens, model.config.eos_token_id)
    return [written[row] for row in range(len(prefixes))]


class AnswersOnly(LogitsProcessor):
    """Forbid every token that does not go on towards an answer of a tree."""

    def __init__(self, trie: TokenTrie, prompt_length: int) -> None:
        self.trie, self.prompt_length = trie, prompt_length

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Scores [B, V] with -inf for what is forbidden: everything, in a row that has ended."""
        rows: list[int] = []
        tokens: list[int] = []
        for row, written in enumerate(input_ids[:, self.prompt_length :].tolist()):
            node = self.trie.walk(written)
            following = () if node is None else self.trie.children[node]
            rows += [row] * len(following)
            tokens += following
        allowed = torch.full_like(scores, -math.inf)
        allowed[rows, tokens] = scores[rows, tokens]
        return allowed


def _generation_config(
    model: BiomedGPTForConditionalGeneration,
    decoding: BeamDecoding | SampleDecoding | TrieDecoding,
    trie: TokenTrie | None,
) -> GenerationConfig:
    config = model.config
    options: dict[str, Any] = {
        "pad_token_id": config.pad_token_id,
        "bos_token_id": config.bos_token_id,
        "eos_token_id": config.eos_token_id,
        "decoder_start_token_id": config.decoder_start_token_id,
        "use_cache": True,
    }
    if isinstance(decoding, SampleDecoding):
        options |= {"do_sample": True, "temperature": decoding.temperature, "top_p": decoding.top_p, "top_k": 0}
    else:
        options |= {"do_sample": False, "num_beams": decoding.num_beams}
    if isinstance(decoding, TrieDecoding):
        assert trie is not None
        # Scores are divided by length ** penalty; "never" goes on while a longer answer could still be the best.
        penalty = 0.0 if decoding.normalization == "sum" else 1.0
        beams = {"length_penalty": penalty, "early_stopping": "never"} if decoding.num_beams > 1 else {}
        return GenerationConfig(**options, **beams, max_new_tokens=trie.longest)
    if isinstance(decoding, BeamDecoding) and decoding.num_beams > 1:
        options["length_penalty"] = decoding.length_penalty
    if decoding.no_repeat_ngram_size:
        options["no_repeat_ngram_size"] = decoding.no_repeat_ngram_size
    if decoding.min_new_tokens:
        options["min_new_tokens"] = decoding.min_new_tokens
    return GenerationConfig(**options, max_new_tokens=decoding.max_new_tokens)


@contextmanager
def _own_random_numbers(decoding: BeamDecoding | SampleDecoding | TrieDecoding, device: torch.device) -> Iterator[None]:
    """Sampling draws from its own seed; afterwards every generator is as it was."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        if isinstance(decoding, SampleDecoding):
            torch.manual_seed(decoding.seed)
        yield


def _rows_of_equal_length(prefixes: Sequence[Sequence[int]]) -> Iterator[list[int]]:
    """Rows that can be generated together: those whose prefixes have the same number of tokens."""
    for length in sorted({len(prefix) for prefix in prefixes}):
        yield [row for row, prefix in enumerate(prefixes) if len(prefix) == length]


def _until_end(tokens: list[int], end: int) -> list[int]:
    return tokens[: tokens.index(end) + 1] if end in tokens else tokens
