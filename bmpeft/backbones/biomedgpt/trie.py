"""A set of answers as one tree of tokens, in which answers with the same beginning share its tokens.

Compiled once, it serves twice: the decoder reads it as it stands and scores every answer in one pass
(`bmpeft.backbones.biomedgpt.scoring`), and generation walks it, so that nothing but an answer can come
out (`bmpeft.backbones.biomedgpt.generation`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence


@dataclass(frozen=True)
class TokenTrie:
    """The tree, its nodes in depth-first order.

    A node is a token that the decoder reads; an edge is a token that it may write there. The first nodes, in a
    line, are the prompt: the start token and, in some layouts, the question. The last edge of an answer (its end
    token) leads to no node, since nothing is read after it.

    Attributes:
        tokens: what is read at each node. [N]
        depths: number of tokens before each node, which is its position. [N]
        ends: index behind the last descendant of each node. [N]
        root: the prompt's last node, where every answer begins.
        edge_nodes: the node that each edge starts from. [E]
        edge_tokens: what is written there. [E]
        paths: the edges of each answer, in the order of the answers.
        children: by node, the edge of each token that may follow.
        targets: the node that each edge leads to, None behind an end token. [E]
    """

    tokens: tuple[int, ...]
    depths: tuple[int, ...]
    ends: tuple[int, ...]
    root: int
    edge_nodes: tuple[int, ...]
    edge_tokens: tuple[int, ...]
    paths: tuple[tuple[int, ...], ...]
    children: tuple[Mapping[int, int], ...]
    targets: tuple[int | None, ...]

    @property
    def longest(self) -> int:
        """Tokens of the longest answer, its end token included."""
        return max(map(len, self.paths))

    def walk(self, written: Sequence[int]) -> int | None:
        """The node that is reached by writing these tokens; None behind an end token and off the tree."""
        node: int | None = self.root
        for token in written:
            edge = None if node is None else self.children[node].get(token)
            node = None if edge is None else self.targets[edge]
        return node


def build_trie(answers: Sequence[Sequence[int]], prompt: Sequence[int]) -> TokenTrie:
    """The tree of at least one answer behind a prompt; each answer ends with the end token, and one may occur twice.

    Raises:
        ValueError: no answer, or an answer or the prompt without a token.
    """
    if not answers or not all(answers) or not prompt:
        raise ValueError("a tree needs a prompt and answers of at least one token")
    tokens, depths = list(prompt), list(range(len(prompt)))
    ends = [len(prompt)] * len(prompt)
    root = len(prompt) - 1
    edge_nodes: list[int] = []
    edge_tokens: list[int] = []
    targets: list[int | None] = []
    children: list[dict[int, int]] = [{} for _ in prompt]
    paths: dict[int, tuple[int, ...]] = {}
    # In sorted order every answer continues below the branch of the one before: nodes come depth first.
    for index in sorted(range(len(answers)), key=lambda i: tuple(answers[i])):
        nodes, edges = list(range(len(prompt))), []
        for place, token in enumerate(answers[index]):
            edge = children[nodes[-1]].setdefault(token, len(edge_nodes))
            if edge == len(edge_nodes):
                edge_nodes.append(nodes[-1])
                edge_tokens.append(token)
                targets.append(None)
            edges.append(edge)
            if place == len(answers[index]) - 1:
                break
            target = targets[edge]
            if target is None:
                target = targets[edge] = len(tokens)
                tokens.append(token)
                depths.append(root + place + 1)
                ends.append(target + 1)
                children.append({})
            nodes.append(target)
        for node in nodes:
            ends[node] = max(ends[node], ends[nodes[-1]])
        paths[index] = tuple(edges)
    return TokenTrie(
        tokens=tuple(tokens),
        depths=tuple(depths),
        ends=tuple(ends),
        root=root,
        edge_nodes=tuple(edge_nodes),
        edge_tokens=tuple(edge_tokens),
        paths=tuple(paths[index] for index in range(len(answers))),
        children=tuple(children),
        targets=tuple(targets),
    )


def split_answers(answers: Sequence[Sequence[int]], max_nodes: int) -> Iterator[list[int]]:
    """Indices of the answers in groups that take at most `max_nodes` nodes each, prompt not counted, or are one answer.

    Neighbours in sorted order stay together, so that a beginning is read in more than one group only where a
    group ends inside its branch.
    """
    group: list[int] = []
    nodes = 0
    previous: Sequence[int] = ()
    for index in sorted(range(len(answers)), key=lambda i: tuple(answers[i])):
        answer = answers[index]
        new = len(answer) - 1 - _common_prefix(previous[:-1], answer[:-1])
        if group and nodes + new > max_nodes:
            yield group
            group = []
        nodes = nodes + new if group else len(answer) - 1
        group.append(index)
        previous = answer
    yield group


@dataclass(frozen=True)
class TreeRows:
    """Trees as one batch that the decoder reads; rows are padded at their ends with nodes that nobody sees.

    Attributes:
        input_ids: [1 or B, N] int64; one row where all rows of the batch have the same tree.
        positions: [1 or B, N] int64, the depths.
        visible_until: [1 or B, N] int64, see `bmpeft.attention.attention`.
        num_positions: one more than the largest depth.
    """

    input_ids: Tensor
    positions: Tensor
    visible_until: Tensor
    num_positions: int


def tree_rows(tries: Sequence[TokenTrie], device: torch.device) -> TreeRows:
    """The trees of a batch's rows, or the one tree that all of them have."""

    def padded(values: Sequence[tuple[int, ...]]) -> Tensor:
        return pad_sequence([torch.tensor(row) for row in values], batch_first=True).to(device)

    return TreeRows(
        input_ids=padded([trie.tokens for trie in tries]),
        positions=padded([trie.depths for trie in tries]),
        visible_until=padded([trie.ends for trie in tries]),
        num_positions=max(max(trie.depths) for trie in tries) + 1,
    )


def _common_prefix(first: Sequence[int], second: Sequence[int]) -> int:
    length = 0
    for a, b in zip(first, second, strict=False):
        if a != b:
            break
        length += 1
    return length
