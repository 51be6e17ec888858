"""Visual question answering: open and closed answers, as LLaVA-Med's evaluation scores them and corrected.

Figures of open questions are over open questions alone, those of closed ones over closed ones alone. A row
says which it is (`meta["answer_type"]`); where it does not, it is closed if it has choices or its answer is
yes or no.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Literal

import numpy as np

from bmpeft.evaluation.metrics.answers import accepted_answers, best_rows
from bmpeft.evaluation.metrics.bootstrap import MetricDefinition, Values
from bmpeft.evaluation.metrics.vqa_normalization import normalized
from bmpeft.records import Prediction, Record

EXACT_MATCH = MetricDefinition(
    "exact-match/vqa@1",
    "exact match",
    "share of rows whose answer equals an accepted one after the VQA challenge's normalisation",
)
OPEN_RECALL_LLAVA_MED = MetricDefinition(
    "open-recall/llava-med@1",
    "open recall (as LLaVA-Med)",
    "mean over open questions of the recall of the accepted answer's words; a hit counts as often as the word "
    "stands in the answer given, so that repeating it raises the figure",
)
OPEN_RECALL = MetricDefinition(
    "open-recall/clipped@1",
    "open recall",
    "mean over open questions of the share of the accepted answer's words that the answer has; a word counts at "
    "most as often as it stands in the accepted answer",
)
CLOSED_LLAVA_MED = MetricDefinition(
    "closed-accuracy/llava-med@1",
    "closed accuracy (as LLaVA-Med)",
    "share of closed questions whose answer has yes or no as a part of any word and the accepted answer as a part",
)
CLOSED = MetricDefinition(
    "closed-accuracy/words@1",
    "closed accuracy",
    "share of closed questions that are answered right: the first word yes or no decides where one of them is "
    "accepted, else the accepted answer's words stand together in the answer",
)

AnswerType = Literal["open", "closed"]
_POLARITY = ("yes", "no")


def answer_type(record: Record) -> AnswerType:
    """Whether a row is an open or a closed question."""
    stated = str(record.meta.get("answer_type", "")).strip().lower()
    if stated == "open":
        return "open"
    closed = record.choices or any(normalized(answer) in _POLARITY for answer in accepted_answers(record))
    return "closed" if stated == "closed" or closed else "open"


def exact_match_rows(records: Sequence[Record], predictions: Sequence[Prediction]) -> Values:
    """1.0 where the normalised answer equals an accepted one, else 0.0. [n]"""
    return best_rows(records, predictions, normalized, lambda given, accepted: float(given == accepted))


def open_recall_llava_med_rows(records: Sequence[Record], predictions: Sequence[Prediction]) -> Values:
    """LLaVA-Med's recall; NaN for closed questions. [n]"""
    return _only("open", records, best_rows(records, predictions, _twice_normalized_words, _inflated_recall))


def open_recall_rows(records: Sequence[Record], predictions: Sequence[Prediction]) -> Values:
    """The recall without inflation; NaN for closed questions. [n]"""
    return _only("open", records, best_rows(records, predictions, _twice_normalized_words, _clipped_recall))


def closed_llava_med_rows(records: Sequence[Record], predictions: Sequence[Prediction]) -> Values:
    """LLaVA-Med's closed hits; NaN for open questions. [n]"""
    return _only("closed", records, best_rows(records, predictions, normalized, _contained))


def closed_rows(records: Sequence[Record], predictions: Sequence[Prediction]) -> Values:
    """The corrected closed hits; NaN for open questions. [n]"""
    return _only("closed", records, best_rows(records, predictions, lambda text: normalized(text).split(), _answered))


def _only(kind: AnswerType, records: Sequence[Record], rows: Values) -> Values:
    return np.where([answer_type(record) == kind for record in records], rows, np.nan)


def _twice_normalized_words(text: str) -> Counter[str]:
    """LLaVA-Med normalises before it counts, and its counting normalises again."""
    return Counter(normalized(normalized(text.lower())).split())


def _inflated_recall(given: Counter[str], accepted: Counter[str]) -> float:
    hits = sum(count for word, count in given.items() if word in accepted)
    missed = sum(count for word, count in accepted.items() if word not in given)
    return hits / (hits + missed) if hits else 0.0


def _clipped_recall(given: Counter[str], accepted: Counter[str]) -> float:
    return (given & accepted).total() / accepted.total() if accepted else 0.0


def _contained(given: str, accepted: str) -> float:
    return float(any(word in given for word in _POLARITY) and accepted in given)


def _answered(given: list[str], accepted: list[str]) -> float:
    if len(accepted) == 1 and accepted[0] in _POLARITY:
        return float(next((word for word in given if word in _POLARITY), None) == accepted[0])
    size = len(accepted)
    places = range(len(given) - size + 1)
    return float(size > 0 and any(given[start : start + size] == accepted for start in places))
