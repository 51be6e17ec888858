"""Token trees: every answer is in the tree, nothing else is, and the order is depth first."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bmpeft.backbones.biomedgpt.trie import build_trie, split_answers

END = 2
# Few tokens, so that beginnings are shared; also answers that occur twice, and an end token inside.
PROMPTS = st.lists(st.integers(0, 9), min_size=1, max_size=3)
ANSWERS = st.lists(st.lists(st.integers(2, 5), max_size=5).map(lambda ids: [*ids, END]), min_size=1, max_size=12)


@settings(deadline=None)
@given(answers=ANSWERS, prompt=PROMPTS)
def test_the_paths_spell_the_answers(answers: list[list[int]], prompt: list[int]) -> None:
    trie = build_trie(answers, prompt)
    assert list(trie.tokens[: trie.root + 1]) == prompt
    assert [[trie.edge_tokens[edge] for edge in path] for path in trie.paths] == answers
    assert trie.longest == max(map(len, answers))
    for path in trie.paths:
        for place, edge in enumerate(path):
            node = trie.edge_nodes[edge]
            assert trie.depths[node] == trie.root + place
            assert node == trie.root if place == 0 else trie.targets[path[place - 1]] == node


@settings(deadline=None)
@given(answers=ANSWERS, prompt=PROMPTS)
def test_each_beginning_is_read_once(answers: list[list[int]], prompt: list[int]) -> None:
    trie = build_trie(answers, prompt)
    beginnings = {tuple(answer[:length]) for answer in answers for length in range(len(answer))}
    assert len(trie.tokens) == trie.root + len(beginnings)
    edges = {tuple(answer[: length + 1]) for answer in answers for length in range(len(answer))}
    assert len(trie.edge_tokens) == len(edges) == sum(map(len, trie.children))


@settings(deadline=None)
@given(answers=ANSWERS, prompt=PROMPTS)
def test_a_node_is_seen_by_its_descendants_and_nobody_else(answers: list[list[int]], prompt: list[int]) -> None:
    trie = build_trie(answers, prompt)
    parents = {target: node for node, target in zip(trie.edge_nodes, trie.targets, strict=True) if target is not None}
    parents |= {node: node - 1 for node in range(1, len(prompt))}
    for node in range(len(trie.tokens)):
        ancestors, current = {node}, node
        while current:
            current = parents[current]
            ancestors.add(current)
        assert ancestors == {key for key in range(node + 1) if node < trie.ends[key]}


@settings(deadline=None)
@given(answers=ANSWERS, prompt=PROMPTS, written=st.lists(st.integers(2, 5), max_size=5))
def test_walking_stays_on_the_tree(answers: list[list[int]], prompt: list[int], written: list[int]) -> None:
    trie = build_trie(answers, prompt)
    node = trie.walk(written)
    following = {answer[len(written)] for answer in answers if answer[: len(written)] == written != answer}
    assert (set() if node is None else set(trie.children[node])) == following


@settings(deadline=None)
@given(answers=ANSWERS, limit=st.integers(1, 12))
def test_groups_hold_every_answer_once_and_keep_the_limit(answers: list[list[int]], limit: int) -> None:
    groups = list(split_answers(answers, limit))
    assert sorted(number for group in groups for number in group) == list(range(len(answers)))
    for group in groups:
        nodes = len(build_trie([answers[number] for number in group], [0]).tokens) - 1
        assert nodes <= limit or len({tuple(answers[number]) for number in group}) == 1


@pytest.mark.parametrize(("answers", "prompt"), [([], [0]), ([[]], [0]), ([[END], []], [0]), ([[END]], [])])
def test_nothing_to_read_or_to_write_is_refused(answers: list[list[int]], prompt: list[int]) -> None:
    with pytest.raises(ValueError, match="a prompt and answers of at least one token"):
        build_trie(answers, prompt)
