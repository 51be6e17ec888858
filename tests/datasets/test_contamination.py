"""Rows of official evaluation sets are recognised, and nothing of them can be read in the package."""

from __future__ import annotations

import dataclasses
import re
from importlib import resources

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bmpeft.datasets import contamination
from bmpeft.datasets.contamination import (
    EVALUATION_SETS,
    EvaluationSet,
    find_contamination,
    fingerprint_list,
    fingerprint_of,
)
from bmpeft.records import Record


def record(question: str, choices: tuple[str, ...] = ("one", "two")) -> Record:
    return Record(
        id=question, task="question_answering", split="train", group=question, question=question, choices=choices
    )


@pytest.fixture
def known_rows(monkeypatch: pytest.MonkeyPatch) -> list[Record]:
    """Twelve rows that stand for the official sets, four for each."""
    rows = [record(f"Official question {number}?", (f"a{number}", f"b{number}")) for number in range(12)]
    lists = {
        evaluation_set.file: frozenset(fingerprint_list(evaluation_set, rows[4 * i : 4 * i + 4]).split("\n"))
        for i, evaluation_set in enumerate(EVALUATION_SETS)
    }
    monkeypatch.setattr(contamination, "_known", lists.__getitem__)
    return rows


def test_one_row_among_many_is_found_and_counted(known_rows: list[Record]) -> None:
    others = [record(f"Own question {number}?") for number in range(50)]
    assert find_contamination(others) is None
    found = find_contamination([*others, known_rows[2]])
    assert found is not None
    assert (found.name, found.rows) == ("official MedQA test", 1)


def test_several_sets_are_all_named(known_rows: list[Record]) -> None:
    found = find_contamination(known_rows)
    assert found is not None
    assert found.name == "official MedQA test and official MedMCQA validation and official PubMedQA test"
    assert found.rows == 12


def test_reformatting_and_reordering_options_hide_nothing(known_rows: list[Record]) -> None:
    for row in known_rows:
        disguised = dataclasses.replace(row, id="new", question=f"  {row.question.upper()} ", choices=row.choices[::-1])
        assert find_contamination([disguised]) is not None


def test_a_five_option_version_of_a_medqa_question_is_found(known_rows: list[Record]) -> None:
    assert find_contamination([dataclasses.replace(known_rows[0], choices=(*known_rows[0].choices, "c"))]) is not None


def test_a_recurring_short_question_with_other_options_is_not_taken_for_medmcqa(known_rows: list[Record]) -> None:
    assert find_contamination([dataclasses.replace(known_rows[5], choices=("x", "y"))]) is None


@given(st.text(max_size=30), st.permutations(["one", "two", "three"]))
def test_fingerprints_are_48_bits_whatever_the_text(question: str, choices: list[str]) -> None:
    fingerprint = fingerprint_of(record(question, tuple(choices)), with_options=True)
    assert re.fullmatch(r"[0-9a-f]{12}", fingerprint)
    assert fingerprint == fingerprint_of(record(question, ("one", "two", "three")), with_options=True)


@pytest.mark.parametrize(
    ("evaluation_set", "rows"), [(EVALUATION_SETS[0], 1273), (EVALUATION_SETS[1], 4170), (EVALUATION_SETS[2], 500)]
)
def test_packaged_lists_hold_sorted_fingerprints_only(evaluation_set: EvaluationSet, rows: int) -> None:
    text = resources.files("bmpeft.datasets").joinpath("official_tests", evaluation_set.file).read_text()
    comments = [line for line in text.splitlines() if line.startswith("#")]
    lines = text.splitlines()[len(comments) :]
    assert len(lines) == rows
    assert lines == sorted(set(lines))
    assert all(re.fullmatch(r"[0-9a-f]{12}", line) for line in lines)
    assert evaluation_set.name in comments[0]
