"""Splits and digests depend on content alone."""

from __future__ import annotations

import dataclasses
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bmpeft.datasets.splits import (
    divide,
    first_of_shuffle,
    group_of,
    normalize_words,
    split_digest,
    with_balanced_labels,
)
from bmpeft.errors import DataError, UsageError
from bmpeft.records import Record

FILE = Path("rows.jsonl")
SHARES = {"validation": 0.2, "test": 0.3}


def record(number: int, group: int) -> Record:
    return Record(
        id=f"r{number}",
        task="question_answering",
        split="all",
        group=f"g{group}",
        question=f"Question {number}?",
        choices=("a", "b"),
        label=0,
    )


records_in_groups = st.lists(st.integers(0, 40), min_size=1, max_size=80).map(
    lambda groups: [record(number, group) for number, group in enumerate(groups)]
)


@settings(max_examples=60, deadline=None)
@given(records_in_groups, st.integers(0, 5), st.randoms())
def test_no_group_straddles_a_split_and_row_order_does_not_matter(records: list[Record], seed: int, random) -> None:
    def assignment(rows: list[Record]) -> dict[str, str]:
        try:
            splits = divide(rows, SHARES, seed, source=FILE)
        except DataError:
            return {}
        return {row.id: name for name, members in splits.items() for row in members}

    found = assignment(records)
    if found:
        assert found.keys() == {row.id for row in records}
        assert all(len({found[r.id] for r in records if r.group == group}) == 1 for group in {r.group for r in records})
    assert assignment(random.sample(records, len(records))) == found


def test_rows_that_are_added_move_no_other_row() -> None:
    rows = [record(number, number) for number in range(300)]
    few, many = (divide(rows[:n], SHARES, 0, source=FILE) for n in (200, 300))
    assert all({r.id for r in few[name]} <= {r.id for r in many[name]} for name in few)


def test_shares_are_met_and_the_seed_matters() -> None:
    rows = [record(number, number) for number in range(2000)]
    splits = divide(rows, SHARES, 0, source=FILE)
    assert {name: round(len(members) / 2000, 1) for name, members in splits.items()} == {
        "train": 0.5,
        "validation": 0.2,
        "test": 0.3,
    }
    assert {r.id for r in splits["test"]} != {r.id for r in divide(rows, SHARES, 1, source=FILE)["test"]}
    assert all(row.split == name for name, members in splits.items() for row in members)


def test_a_share_of_zero_makes_no_split_and_an_empty_one_is_an_error() -> None:
    rows = [record(number, 0) for number in range(5)]
    assert list(divide(rows, {"validation": 0.0, "test": 0.0}, 0, source=FILE)) == ["train"]
    with pytest.raises(DataError, match=r"rows.jsonl: the \w+ split would be empty: a share of 0\.\d of 1 questions"):
        divide(rows, SHARES, 0, source=FILE)


@given(st.integers(1, 60), st.integers(1, 60), st.integers(0, 3))
def test_a_limit_takes_a_prefix_of_one_shuffle(small: int, large: int, seed: int) -> None:
    rows = [record(number, number) for number in range(50)]
    small, large = sorted((small, large))
    few, many = first_of_shuffle(rows, small, seed), first_of_shuffle(rows, large, seed)
    assert len(few) == min(small, 50)
    assert set(few_ids := [r.id for r in few]) <= {r.id for r in many}
    assert few_ids == [r.id for r in rows if r.id in set(few_ids)]
    assert first_of_shuffle(rows, None, seed) == tuple(rows)


def test_a_limit_is_not_the_head_of_the_file() -> None:
    rows = [record(number, number) for number in range(500)]
    assert first_of_shuffle(rows, 20, 0) != tuple(rows[:20])
    assert first_of_shuffle(rows, 20, 0) != first_of_shuffle(rows, 20, 1)


def test_digest_ignores_order_and_white_space_and_sees_everything_else() -> None:
    rows = [record(number, number) for number in range(4)]
    digest = split_digest(rows)
    assert digest == split_digest(reversed(rows))
    assert digest == split_digest([dataclasses.replace(rows[0], question=" Question\r\n0?"), *rows[1:]])
    for change in (
        {"id": "other"},
        {"question": "Question 0!"},
        {"choices": ("b", "a")},
        {"label": 1},
        {"text": "t"},
        {"answers": ("a",)},
    ):
        assert split_digest([dataclasses.replace(rows[0], **change), *rows[1:]]) != digest, change


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("What is it?", "what  is it", True),
        ("What is it?", "What is he?", False),
        ("ﬁbrosis", "Fibrosis", True),
        ("1.5 mg", "15 mg", False),
        ("_x_", "x", True),
    ],
)
def test_groups_are_of_words(one: str, other: str, same: bool) -> None:
    assert (group_of(one) == group_of(other)) is same
    assert (normalize_words(one) == normalize_words(other)) is same


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 3), min_size=1, max_size=60), st.integers(0, 5))
def test_balanced_labels_come_equally_often_and_no_row_is_left_out(labels: list[int], seed: int) -> None:
    rows = [dataclasses.replace(record(n, n), choices=tuple("abcd"), label=label) for n, label in enumerate(labels)]
    balanced = with_balanced_labels(rows, seed)
    assert balanced[: len(rows)] == tuple(rows)
    counts = Counter(row.label for row in balanced)
    assert set(counts.values()) == {max(Counter(labels).values())}
    for label in counts:  # no row of a label comes more than once more often than another
        times = Counter(row.id for row in balanced if row.label == label).values()
        assert max(times) - min(times) <= 1
    assert with_balanced_labels(rows, seed) == balanced


def test_rows_without_labels_cannot_be_balanced() -> None:
    rows = [record(0, 0), dataclasses.replace(record(1, 1), label=None, choices=None, answers=("a",))]
    with pytest.raises(UsageError, match=r"data\.balance_labels: row 'r1' has no label"):
        with_balanced_labels(rows, 0)
