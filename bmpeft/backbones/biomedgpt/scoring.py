"""Log-likelihoods of closed answers: all candidates of a question in one decoder pass.

The candidates of a question form a token tree. Its nodes are query rows over the question's one encoder
memory: the encoder runs once for each question, the keys and values of cross-attention are computed once for
each question, and a beginning that candidates share is read once. The sum over an answer's edges equals,
within rounding, the one that a pass for this answer alone would give.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor
from transformers import EncoderDecoderCache
from transformers.cache_utils import DynamicCache

from bmpeft.backbones.biomedgpt.modeling import BiomedGPTForConditionalGeneration
from bmpeft.backbones.biomedgpt.outputs import BiomedGPTCache, BiomedGPTEncoderOutput
from bmpeft.backbones.biomedgpt.trie import TokenTrie, build_trie, split_answers, tree_rows

Answers = Sequence[Sequence[int]]


@dataclass(frozen=True)
class Limits:
    """What bounds the memory of one decoder pass.

    Attributes:
        tree_nodes: of one tree; the bias of self-attention grows with their square.
        nodes: of all rows' trees together, padding included.
        bias: elements of the self-attention bias where every row has a tree of its own.
        logits: elements of the logits that exist at once.
    """

    tree_nodes: int = 2**11
    nodes: int = 2**13
    bias: int = 2**26
    logits: int = 2**26


def score_answers(
    model: BiomedGPTForConditionalGeneration,
    memory: BiomedGPTEncoderOutput,
    answers: Sequence[Answers],
    prefixes: Sequence[Sequence[int]] | None = None,
    limits: Limits | None = None,
) -> list[list[float]]:
    """Summed log-likelihood (nats) of every answer of every row.

    Args:
        model: in evaluation mode, with or without an adapter in its layers.
        memory: the encoder's output for B rows.
        answers: for each of the B rows, token ids of its answers with the end token last. Rows with equal
            answers and prefixes share one tree.
        prefixes: for each row, what the decoder reads between its start token and the answer; default: nothing.
        limits: of memory; answers and rows that exceed them are scored in several passes.

    Raises:
        ValueError: a row without answers, or an answer without a token.
    """
    limits = limits or Limits()
    prompts = [(model.config.decoder_start_token_id, *prefix) for prefix in prefixes or [()] * len(answers)]
    asked = list(zip(answers, prompts, strict=True))
    if all(other == asked[0] for other in asked[1:]):
        pieces = _pieces(*asked[0], limits)
        size = max(1, limits.nodes // max(len(piece.trie.tokens) for piece in pieces))
        shared = [slice(first, first + size) for first in range(0, len(answers), size)]
        return [scores for rows in shared for scores in _score_rows(model, memory, rows, [pieces], limits)]
    pieces_of = [_pieces(*row, limits) for row in asked]
    return [
        scores
        for rows in _chunks(pieces_of, model.config.decoder_attention_heads, limits)
        for scores in _score_rows(model, memory, rows, pieces_of[rows], limits)
    ]


@dataclass(frozen=True)
class _Piece:
    """Some of a row's answers, by their numbers, as one tree; all of them unless there are very many."""

    numbers: list[int]
    trie: TokenTrie


def _pieces(answers: Answers, prompt: Sequence[int], limits: Limits) -> list[_Piece]:
    groups = split_answers(answers, limits.tree_nodes)
    return [_Piece(group, build_trie([answers[number] for number in group], prompt)) for group in groups]


def _chunks(pieces_of: Sequence[Sequence[_Piece]], heads: int, limits: Limits) -> Iterator[slice]:
    """Consecutive rows for one pass; a row whose answers are in several pieces has its passes alone."""
    first, widest = 0, 0
    for row, pieces in enumerate(pieces_of):
        nodes = max(widest, len(pieces[0].trie.tokens))
        count = row - first + 1
        alone = len(pieces) > 1 or (row > first and len(pieces_of[row - 1]) > 1)
        if row > first and (alone or count * nodes > limits.nodes or count * heads * nodes**2 > limits.bias):
            yield slice(first, row)
            first, nodes = row, len(pieces[0].trie.tokens)
        widest = nodes
    yield slice(first, len(pieces_of))


def _score_rows(
    model: BiomedGPTForConditionalGeneration,
    memory: BiomedGPTEncoderOutput,
    rows: slice,
    pieces_of: Sequence[Sequence[_Piece]],
    limits: Limits,
) -> list[list[float]]:
    """Scores of some rows: one list of pieces for all of them, or one piece for each."""
    assert memory.last_hidden_state is not None
    assert memory.attention_mask is not None
    hidden, mask = memory.last_hidden_state[rows], memory.attention_mask[rows]
    positions = model.encoder_positions(memory)
    # Between the pieces it keeps what belongs to the encoder's output, so that this is computed once.
    cache = BiomedGPTCache(EncoderDecoderCache(DynamicCache(), DynamicCache()))
    scores: list[dict[int, float]] = [{} for _ in hidden]
    for number in range(len(pieces_of[0])):
        pieces = [pieces[number] for pieces in pieces_of]
        cache.forget_tokens()
        trees = tree_rows([piece.trie for piece in pieces], hidden.device)
        states = model.decoder.forward_trees(trees, hidden, mask, positions, cache)
        shared = pieces * len(hidden) if len(pieces) == 1 else pieces
        edges = _edge_scores(model, states, [piece.trie for piece in shared], limits)
        for row, piece, values in zip(scores, shared, edges, strict=True):
            sums = (math.fsum(values[edge] for edge in path) for path in piece.trie.paths)
            row.update(zip(piece.numbers, sums, strict=True))
    return [[row[number] for number in range(len(row))] for row in scores]


def _edge_scores(
    model: BiomedGPTForConditionalGeneration, states: Tensor, tries: Sequence[TokenTrie], limits: Limits
) -> list[list[float]]:
    """Log-likelihood of every edge of every row's tree, from the hidden states [B, N, D] at its nodes."""
    # Neither padding nor the prompt before its last token has edges.
    nodes = torch.cat([row[trie.root : len(trie.tokens)] for row, trie in zip(states, tries, strict=True)])  # [M, D]
    counts = [len(trie.tokens) - trie.root for trie in tries]
    first = accumulate(counts, initial=0)
    places = torch.cat([torch.tensor(t.edge_nodes) - t.root + begin for t, begin in zip(tries, first, strict=False)])
    tokens = torch.cat([torch.tensor(trie.edge_tokens) for trie in tries]).to(states.device)
    places = places.to(states.device)
    values = torch.empty(len(places), dtype=torch.float64, device=states.device)
    size = max(1, limits.logits // model.config.vocab_size)
    for begin in range(0, len(nodes), size):
        log_probabilities = model.decoder.output_projection(nodes[begin : begin + size]).float().log_softmax(-1)
        inside = ((places >= begin) & (places < begin + size)).nonzero().flatten()
        values[inside] = log_probabilities[places[inside] - begin, tokens[inside]].double()
    split: tuple[Tensor, ...] = values.cpu().split([len(trie.edge_nodes) for trie in tries])
    return [part.tolist() for part in split]
