"""CIDEr-D of captions (Vedantam, Zitnick & Parikh 2015, section 5), from 0 to 10.

For n = 1 to 4 a text is the vector of its n-grams' counts times ln(rows / rows whose accepted texts have it).
A row scores 10 times the mean over n and over its accepted texts of the cosine between the two vectors, in
which a count given is clipped to the accepted one, times exp(-(difference of lengths)^2 / 72). With n-grams of
its own in every row, a perfect answer has 10.

As in the authors' code, from which published figures come: document frequencies are those of the rows
measured, so that figures of different rows are not comparable; n-grams that no accepted text has weigh like
those of one row; and norms are taken before clipping. Texts are cut into the tokens of `text_tokens` (numbers,
ratios and signs in one piece), where publications use the Penn Treebank tokenizer, which needs Java.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from bmpeft.evaluation.metrics.answers import accepted_answers, text_tokens
from bmpeft.evaluation.metrics.bootstrap import MetricDefinition, Values
from bmpeft.records import Prediction, Record

CIDER_D = MetricDefinition(
    "cider-d/tokens@1",
    "CIDEr-D",
    "mean over rows of 10 times the similarity of tf-idf n-gram vectors (n = 1 to 4) with the accepted texts; "
    "document frequencies of the rows measured",
)
ORDERS = 4
SIGMA = 6.0

Gram = tuple[str, ...]


class _Vectors(NamedTuple):
    """A text's weights by n-gram for n = 1 to 4, their norms, and the number of its pairs of words."""

    weights: tuple[dict[Gram, float], ...]
    norms: tuple[float, ...]
    length: int


def cider_rows(records: Sequence[Record], predictions: Sequence[Prediction]) -> Values:
    """CIDEr-D of each row. [n]"""
    given = [text_tokens(prediction.text) for prediction in predictions]
    return cider_of_tokens(given, [[text_tokens(text) for text in accepted_answers(record)] for record in records])


def cider_of_tokens(given: Sequence[Sequence[str]], accepted: Sequence[Sequence[Sequence[str]]]) -> Values:
    """CIDEr-D of texts that are cut into tokens: `given` [n], `accepted` [n], one or more for each row. [n]"""
    counted = [[_counts(text) for text in texts] for texts in accepted]
    rows_with: Counter[Gram] = Counter()
    for texts in counted:
        rows_with.update(set().union(*texts))
    scores = []
    for tokens, texts in zip(given, counted, strict=True):
        candidate = _vectors(_counts(tokens), rows_with, len(given))
        similarities = [_similarity(candidate, _vectors(text, rows_with, len(given))) for text in texts]
        scores.append(10.0 * sum(similarities) / len(similarities))
    return np.array(scores, dtype=np.float64)


def _counts(tokens: Sequence[str]) -> Counter[Gram]:
    return Counter(tuple(tokens[i : i + n]) for n in range(1, ORDERS + 1) for i in range(len(tokens) - n + 1))


def _vectors(counts: Mapping[Gram, int], rows_with: Mapping[Gram, int], rows: int) -> _Vectors:
    weights: tuple[dict[Gram, float], ...] = tuple({} for _ in range(ORDERS))
    for gram, count in counts.items():
        weights[len(gram) - 1][gram] = count * (math.log(rows) - math.log(max(1, rows_with[gram])))
    norms = tuple(math.hypot(*vector.values()) for vector in weights)
    return _Vectors(weights, norms, sum(count for gram, count in counts.items() if len(gram) == 2))


def _similarity(given: _Vectors, accepted: _Vectors) -> float:
    """Mean over n of the clipped cosine, less what the difference in length costs."""
    total = 0.0
    for n in range(ORDERS):
        norm = given.norms[n] * accepted.norms[n]
        if norm:
            shared = given.weights[n].keys() & accepted.weights[n].keys()
            total += (
                sum(min(given.weights[n][g], accepted.weights[n][g]) * accepted.weights[n][g] for g in shared) / norm
            )
    return total / ORDERS * math.exp(-((given.length - accepted.length) ** 2) / (2.0 * SIGMA**2))
