"""Open answers: the tokens by which they are compared, exact match and token F1."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np

from bmpeft.evaluation.metrics.bootstrap import MetricDefinition, Values
from bmpeft.records import Prediction, Record

T = TypeVar("T")

EXACT_MATCH = MetricDefinition(
    "exact-match/tokens@1",
    "exact match",
    "share of rows whose answer has the same tokens as one of the accepted answers",
)
TOKEN_F1 = MetricDefinition(
    "token-f1/tokens@1",
    "token F1",
    "mean over rows of the largest F1 between the tokens of the answer and an accepted one",
)


def exact_match_rows(records: Sequence[Record], predictions: Sequence[Prediction]) -> Values:
    """1.0 where the answer has the tokens of an accepted answer, else 0.0. [n]"""
    return best_rows(records, predictions, answer_tokens, lambda given, accepted: float(given == accepted))


def token_f1_rows(records: Sequence[Record], predictions: Sequence[Prediction]) -> Values:
    """The largest token F1 with an accepted answer. [n]"""
    return best_rows(records, predictions, answer_tokens, _token_f1)


def answer_tokens(text: str) -> list[str]:
    """The tokens by which open answers are compared.

    After Unicode NFKC and lower-casing: numbers with sign, decimals and ratios in one piece ("-1.5", "120/80"),
    apart from a unit that follows; words, with a trailing + or - that is part of the name ("cd4+"); no other
    punctuation, no articles. SQuAD's normalisation, which deletes punctuation, would make 1.5 and 15 equal.
    """
    return [token for token in text_tokens(text) if token not in _ARTICLES]


def text_tokens(text: str) -> list[str]:
    """The tokens of `answer_tokens` and the articles, for texts longer than an answer."""
    plain = unicodedata.normalize("NFKC", text).lower().replace("\N{MINUS SIGN}", "-")
    return _TOKEN.findall(plain)


def accepted_answers(record: Record) -> tuple[str, ...]:
    """The free-text answers that count as right; for closed questions the right option's text; empty if unknown."""
    if record.answers:
        return record.answers
    if record.choices and record.label is not None:
        return (record.choices[record.label],)
    return ()


def best_rows(
    records: Sequence[Record],
    predictions: Sequence[Prediction],
    prepare: Callable[[str], T],
    score: Callable[[T, T], float],
) -> Values:
    """For each row the largest score(given, accepted) over its accepted answers, each text prepared first. [n]"""
    values = []
    for record, prediction in zip(records, predictions, strict=True):
        given = prepare(prediction.text)
        values.append(max(score(given, prepare(accepted)) for accepted in accepted_answers(record)))
    return np.array(values, dtype=np.float64)


_TOKEN = re.compile(r"(?<!\w)-?(?:\d+(?:[.,/]\d+)*|\.\d+)|[^\W_]+(?:[+-](?![\w+-]))?")
_ARTICLES = frozenset({"a", "an", "the"})


def _token_f1(given: list[str], accepted: list[str]) -> float:
    if not given or not accepted:
        return float(given == accepted)
    common = sum((Counter(given) & Counter(accepted)).values())
    return 2.0 * common / (len(given) + len(accepted))
