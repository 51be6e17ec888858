"""Metrics and their intervals.

Every metric has a definition id, which score cards carry: the part after ``@`` grows when the definition
changes, so that two values with one id are comparable. Row metrics give one value in [0, 1] for each row
and average them; macro-F1 is a figure of the whole set.

Intervals are 95 % percentile bootstrap intervals over rows (Efron & Tibshirani 1993, chapter 13). They have
no width where all rows are right or all are wrong.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import numpy.typing as npt

from bmpeft.records import Prediction, Record

if TYPE_CHECKING:
    from bmpeft.recipe import Decoding

Values = npt.NDArray[np.float64]
Labels = npt.NDArray[np.int64]
CONFIDENCE = 0.95
# Resampled indices held at once; bounds the memory to some tens of megabytes whatever the number of rows.
_CHUNK = 2_000_000


@dataclass(frozen=True, slots=True)
class MetricDefinition:
    """What a number means."""

    id: str
    name: str
    description: str


ACCURACY_SUM = MetricDefinition(
    "accuracy/choices-sum@1",
    "accuracy (sum)",
    "share of rows whose choice with the largest summed log-likelihood, end token included, has the right text",
)
ACCURACY_MEAN = MetricDefinition(
    "accuracy/choices-mean@1",
    "accuracy (length-normalised)",
    "share of rows whose choice with the largest log-likelihood per token, end token included, has the right text",
)
ACCURACY_CONSTANT = MetricDefinition(
    "accuracy/constant@1", "accuracy", "share of rows whose right text is the constant answer of a control"
)
MACRO_F1 = MetricDefinition(
    "macro-f1/labels@1",
    "macro-F1",
    "mean of the F1 of the labels that occur among the right answers or the given ones (scikit-learn's default)",
)
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


@dataclass(frozen=True)
class Figure:
    """A measured metric; `rows` holds the value of each row [n], None for a figure of the whole set."""

    definition: MetricDefinition
    value: float
    low: float
    high: float
    n: int
    rows: Values | None


def measure(
    records: Sequence[Record], predictions: Sequence[Prediction], decoding: Decoding, *, samples: int, seed: int
) -> list[Figure]:
    """All metrics that fit; the first is the deciding one and has row values.

    Closed answers: accuracy by either score (the decoding says which decides), or of the constant choice of
    predictions without scores, and macro-F1 where all rows have the same labels. Open answers: exact match
    and token F1.
    """
    rows: list[tuple[MetricDefinition, Values]]
    if decoding.method != "candidates":
        rows = [(EXACT_MATCH, exact_match_rows(records, predictions)), (TOKEN_F1, token_f1_rows(records, predictions))]
    elif any(prediction.choice_scores is None for prediction in predictions):
        rows = [(ACCURACY_CONSTANT, chosen_rows(records, predictions))]
    else:
        rows = [
            (ACCURACY_SUM, accuracy_rows(records, predictions, "sum")),
            (ACCURACY_MEAN, accuracy_rows(records, predictions, "length")),
        ]
        if decoding.normalization == "length":
            rows.reverse()
    figures = [_mean_figure(definition, values, samples, seed) for definition, values in rows]
    if decoding.method == "candidates" and fixed_labels(records) is not None:
        figures.append(_macro_f1_figure(records, predictions, samples, seed))
    return figures


def fixed_labels(records: Sequence[Record]) -> tuple[str, ...] | None:
    """The labels of a classification, where all of at least two rows have the same choices; else None."""
    choices = {record.choices for record in records}
    return next(iter(choices)) if len(choices) == 1 and len(records) > 1 else None


def accuracy_rows(
    records: Sequence[Record], predictions: Sequence[Prediction], normalization: Literal["sum", "length"]
) -> Values:
    """1.0 where the choice with the best score is right, else 0.0. [n]

    Choices are compared by text, since some published questions have one option twice; the first of
    equal scores counts as chosen.
    """
    right = []
    for record, prediction in zip(records, predictions, strict=True):
        scores = prediction.choice_scores if normalization == "sum" else prediction.normalized_scores
        assert scores is not None, "predictions by candidates have scores"
        right.append(_is_right(record, int(np.argmax(scores))))
    return np.array(right, dtype=np.float64)


def chosen_rows(records: Sequence[Record], predictions: Sequence[Prediction]) -> Values:
    """1.0 where `Prediction.choice` is right, else 0.0. [n]"""
    return np.array([_is_right(r, p.choice) for r, p in zip(records, predictions, strict=True)], dtype=np.float64)


def exact_match_rows(records: Sequence[Record], predictions: Sequence[Prediction]) -> Values:
    """1.0 where the answer has the tokens of an accepted answer, else 0.0. [n]"""
    return _best_rows(records, predictions, lambda given, accepted: float(given == accepted))


def token_f1_rows(records: Sequence[Record], predictions: Sequence[Prediction]) -> Values:
    """The largest token F1 with an accepted answer. [n]"""
    return _best_rows(records, predictions, _token_f1)


def answer_tokens(text: str) -> list[str]:
    """The tokens by which open answers are compared.

    After Unicode NFKC and lower-casing: numbers with sign, decimals and ratios in one piece ("-1.5", "120/80"),
    apart from a unit that follows; words, with a trailing + or - that is part of the name ("cd4+"); no other
    punctuation, no articles. SQuAD's normalisation, which deletes punctuation, would make 1.5 and 15 equal.
    """
    plain = unicodedata.normalize("NFKC", text).lower().replace("\N{MINUS SIGN}", "-")
    return [token for token in _TOKEN.findall(plain) if token not in _ARTICLES]


def macro_f1(right: Labels, given: Labels) -> float:
    """Mean F1 over the labels that occur in either [n] array."""
    size = int(max(right.max(), given.max())) + 1
    return float(_macro_f1(_confusion(right * size + given, size)[None])[0])


def bootstrap_interval(per_row_values: Values | Sequence[float], samples: int, seed: int) -> tuple[float, float]:
    """95 % percentile bootstrap interval of the mean of [n] values.

    For a paired comparison give the difference of two systems on each row.
    """
    values = np.asarray(per_row_values, dtype=np.float64)
    means = [values[indices].mean(axis=1) for indices in _resamples(len(values), samples, seed)]
    return _percentiles(np.concatenate(means))


def macro_f1_interval(right: Labels, given: Labels, samples: int, seed: int) -> tuple[float, float]:
    """95 % percentile bootstrap interval of macro-F1: rows are resampled, then the F1 is computed anew."""
    size = int(max(right.max(), given.max())) + 1
    codes = right * size + given
    figures = []
    for indices in _resamples(len(codes), samples, seed):
        figures.append(_macro_f1(np.stack([_confusion(codes[row], size) for row in indices])))
    return _percentiles(np.concatenate(figures))


def accepted_answers(record: Record) -> tuple[str, ...]:
    """The free-text answers that count as right; for closed questions the right option's text; empty if unknown."""
    if record.answers:
        return record.answers
    if record.choices and record.label is not None:
        return (record.choices[record.label],)
    return ()


_TOKEN = re.compile(r"(?<!\w)-?(?:\d+(?:[.,/]\d+)*|\.\d+)|[^\W_]+(?:[+-](?![\w+-]))?")
_ARTICLES = frozenset({"a", "an", "the"})


def _mean_figure(definition: MetricDefinition, rows: Values, samples: int, seed: int) -> Figure:
    low, high = bootstrap_interval(rows, samples, seed)
    return Figure(definition, float(rows.mean()), low, high, len(rows), rows)


def _macro_f1_figure(records: Sequence[Record], predictions: Sequence[Prediction], samples: int, seed: int) -> Figure:
    right = np.array([record.label for record in records], dtype=np.int64)
    given = np.array([prediction.choice for prediction in predictions], dtype=np.int64)
    low, high = macro_f1_interval(right, given, samples, seed)
    return Figure(MACRO_F1, macro_f1(right, given), low, high, len(records), None)


def _is_right(record: Record, choice: int | None) -> bool:
    assert record.choices is not None, "the reader of closed questions gives choices"
    assert record.label is not None, "evaluate() refuses rows without labels"
    return choice is not None and record.choices[choice] == record.choices[record.label]


def _best_rows(
    records: Sequence[Record], predictions: Sequence[Prediction], score: Callable[[list[str], list[str]], float]
) -> Values:
    values = []
    for record, prediction in zip(records, predictions, strict=True):
        given = answer_tokens(prediction.text)
        values.append(max(score(given, answer_tokens(accepted)) for accepted in accepted_answers(record)))
    return np.array(values, dtype=np.float64)


def _token_f1(given: list[str], accepted: list[str]) -> float:
    if not given or not accepted:
        return float(given == accepted)
    common = sum((Counter(given) & Counter(accepted)).values())
    return 2.0 * common / (len(given) + len(accepted))


def _confusion(codes: Labels, size: int) -> Labels:
    """Counts [right, given] from codes right * size + given."""
    return np.bincount(codes, minlength=size * size).reshape(size, size)


def _macro_f1(confusion: Labels) -> Values:
    """Macro-F1 of confusion matrices [s, right, given] -> [s]."""
    hits = np.diagonal(confusion, axis1=1, axis2=2)
    total = confusion.sum(axis=1) + confusion.sum(axis=2)
    occurs = total > 0
    f1 = np.divide(2.0 * hits, total, out=np.zeros(total.shape), where=occurs)
    return np.asarray(f1.sum(axis=1) / occurs.sum(axis=1))


def _resamples(n: int, samples: int, seed: int) -> Iterator[Labels]:
    """Row indices of bootstrap samples, [s, n] at a time; the same for every metric of one seed."""
    generator = np.random.default_rng(seed)
    at_once = max(1, _CHUNK // n)
    for start in range(0, samples, at_once):
        yield generator.integers(0, n, size=(min(at_once, samples - start), n))


def _percentiles(figures: Values) -> tuple[float, float]:
    tail = (1.0 - CONFIDENCE) / 2.0
    low, high = np.quantile(figures, [tail, 1.0 - tail])
    return float(low), float(high)
