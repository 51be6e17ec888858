"""Alignment accuracy: whether an answer is of the kind that its question asks for, right or wrong.

Our definition. What a question asks for is read off its words, and off its choices where these are yes and no:

    yes/no       begins with a form of be, do, have or a modal verb and has no "or"
    either-or    begins so and has "or": an answer names something that the question names, or both or neither
    number       "how many": an answer has a number
    free         any other: an answer is not empty and does not begin with yes or no

A backbone without an adapter may know much and still answer "yes" to "which organ is this?"; this figure tells
that apart from ignorance.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from bmpeft.evaluation.metrics.answers import answer_tokens
from bmpeft.evaluation.metrics.bootstrap import MetricDefinition, Values
from bmpeft.records import Prediction, Record

ALIGNMENT = MetricDefinition(
    "alignment/question-kind@1",
    "alignment accuracy",
    "share of rows whose answer is of the kind that the question asks for: yes or no, one of the things named, a "
    "number, or anything else",
)

Kind = Literal["yes/no", "either-or", "number", "free"]
_YES_NO = frozenset({"yes", "no"})
_VERBS = (
    frozenset({"is", "are", "was", "were", "am", "be", "been", "do", "does", "did", "has", "have", "had"})
    | {"can", "could", "will", "would", "shall", "should", "may", "might", "must"}
    | {"isn", "aren", "wasn", "weren", "doesn", "didn", "don", "hasn", "haven"}  # without their "'t"
)
_NUMBERS = frozenset({"zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"})
_NUMBER_WORDS = _NUMBERS | {"eleven", "twelve", "none", "no"}
_EITHER_OR_ANSWERS = frozenset({"both", "neither"})
_NAMES_NOTHING = _VERBS | {"or", "it", "this", "that", "there", "these", "those", "of", "in", "on", "to", "and"}


def question_kind(record: Record) -> Kind:
    """What kind of answer a row's question asks for."""
    if record.choices and {choice.strip().lower() for choice in record.choices} == _YES_NO:
        return "yes/no"
    words = answer_tokens(record.question or "")
    if words[:2] == ["how", "many"]:
        return "number"
    if not words or words[0] not in _VERBS:
        return "free"
    return "either-or" if "or" in words else "yes/no"


def is_aligned(record: Record, answer: str) -> bool:
    """Whether an answer is of the kind that the row's question asks for."""
    given, kind = answer_tokens(answer), question_kind(record)
    if not given:
        return False
    says_yes_or_no = given[0] in _YES_NO
    if kind == "yes/no":
        return says_yes_or_no
    if kind == "number":
        return any(word in _NUMBER_WORDS or word[-1].isdigit() for word in given)
    if kind == "free":
        return not says_yes_or_no
    named = {*answer_tokens(record.question or ""), *_EITHER_OR_ANSWERS} - _NAMES_NOTHING
    return not says_yes_or_no and not named.isdisjoint(given)


def alignment_rows(records: Sequence[Record], predictions: Sequence[Prediction]) -> Values:
    """1.0 where the answer is of the kind asked for, else 0.0. [n]"""
    return np.array([is_aligned(r, p.text) for r, p in zip(records, predictions, strict=True)], dtype=np.float64)
