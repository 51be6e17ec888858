"""The deciding metric on parts of the rows, and the confusion matrix: what a mean over all rows hides."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

import numpy as np

from bmpeft.evaluation.metrics import Measured, Resampling, confusion_matrix, fixed_labels
from bmpeft.evaluation.metrics.labels import given_labels, right_labels
from bmpeft.evaluation.metrics.vqa import answer_type
from bmpeft.evaluation.score_card import Metric, Part
from bmpeft.records import Prediction, Record

LENGTHS = (0, 32, 64, 128, 256, 512, 1024, 2048, 4096)
"""Borders, in tokens, of the classes of source length that a card tells apart; the upper one belongs to a class."""
MOST_LABELS = 64
"""A confusion matrix of more labels is not put on a card."""


def by_answer_type(records: Sequence[Record], measured: Measured, resampling: Resampling) -> list[Part]:
    """Open and closed questions, where there are both."""
    return _parts("answer type", [answer_type(r) for r in records], ("closed", "open"), measured, resampling)


def by_source_length(lengths: Sequence[int], measured: Measured, resampling: Resampling) -> list[Part]:
    """Rows by the tokens of their whole sources, where they are of more than one class."""
    names = [f"{lower + 1}-{upper}" for lower, upper in pairwise(LENGTHS)] + [f"over {LENGTHS[-1]}"]
    classes = np.searchsorted(LENGTHS[1:], lengths, side="left")
    return _parts("source length", [names[number] for number in classes], names, measured, resampling)


def confusion(records: Sequence[Record], predictions: Sequence[Prediction]) -> tuple[tuple[int, ...], ...] | None:
    """The confusion matrix of fixed labels that are not too many, where every row was given one of them."""
    names = fixed_labels(records)
    if names is None or len(names) > MOST_LABELS or any(prediction.choice is None for prediction in predictions):
        return None
    matrix = confusion_matrix(right_labels(records), given_labels(predictions), len(names))
    return tuple(tuple(row) for row in matrix.tolist())


def _parts(
    by: Literal["answer type", "source length"],
    names: Sequence[str],
    order: Sequence[str],
    measured: Measured,
    resampling: Resampling,
) -> list[Part]:
    """One part for each name that rows have, in the order given; none where all rows have the same."""
    definition, rows, found = measured.figures[0].definition, measured.deciding_rows, set(names)
    if len(found) < 2:
        return []
    parts = []
    for name in filter(found.__contains__, order):
        member = np.array([other == name for other in names])
        value, low, high = resampling.mean(np.where(member, rows, np.nan))
        metric = Metric(id=definition.id, name=definition.name, value=value, low=low, high=high, n=int(member.sum()))
        parts.append(Part(by=by, name=name, metric=metric))
    return parts
