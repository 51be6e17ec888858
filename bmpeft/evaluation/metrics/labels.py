"""Closed answers: accuracy, figures of fixed labels (a classification), ranking and calibration.

Probabilities of the choices are the softmax of their deciding scores: the summed log-likelihoods, or the mean
per token where the decoding says so.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt

from bmpeft.evaluation.metrics.bootstrap import Labels, MetricDefinition, Statistic, Values, divided
from bmpeft.records import Prediction, Record

Normalization = Literal["sum", "length"]
BINS = 15

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
ACCURACY_CHOSEN = MetricDefinition(
    "accuracy/chosen@1",
    "accuracy",
    "share of rows whose choice has the right text, by a control that has no likelihoods",
)
BALANCED_ACCURACY = MetricDefinition(
    "balanced-accuracy/labels@1",
    "balanced accuracy",
    "mean over the labels that occur among the right answers of the share of their rows that are right",
)
MACRO_F1 = MetricDefinition(
    "macro-f1/labels@1",
    "macro-F1",
    "mean of the F1 of the labels that occur among the right answers or the given ones (scikit-learn's default)",
)
AUROC_BINARY = MetricDefinition(
    "auroc/binary@1",
    "AUROC",
    "area under the ROC curve of the second label's probability; equal probabilities count half",
)
AUROC_MACRO = MetricDefinition(
    "auroc/one-vs-rest-macro@1",
    "AUROC (one-vs-rest)",
    "mean over the labels that some but not all rows have of the area under the ROC curve of the label's "
    "probability; equal probabilities count half",
)
ECE = MetricDefinition(
    "ece/15-equal-width-bins@1",
    "calibration error (ECE)",
    "mean over rows, in 15 equal bins of the largest probability, of the distance between a bin's mean "
    "probability and its accuracy (Guo et al. 2017); 0 is best",
)


def fixed_labels(records: Sequence[Record]) -> tuple[str, ...] | None:
    """The labels of a classification, where all of at least two rows have the same choices; else None."""
    choices = {record.choices for record in records}
    return next(iter(choices)) if len(choices) == 1 and len(records) > 1 else None


def accuracy_rows(records: Sequence[Record], predictions: Sequence[Prediction], normalization: Normalization) -> Values:
    """1.0 where the choice with the best score is right, else 0.0. [n]

    Choices are compared by text, since some published questions have one option twice; the first of
    equal scores counts as chosen.
    """
    right = []
    for record, prediction in zip(records, predictions, strict=True):
        scores = prediction.choice_scores if normalization == "sum" else prediction.normalized_scores
        assert scores is not None, "predictions by candidates have scores"
        right.append(is_right(record, int(np.argmax(scores))))
    return np.array(right, dtype=np.float64)


def chosen_rows(records: Sequence[Record], predictions: Sequence[Prediction]) -> Values:
    """1.0 where `Prediction.choice` is right, else 0.0. [n]"""
    return np.array([is_right(r, p.choice) for r, p in zip(records, predictions, strict=True)], dtype=np.float64)


def is_right(record: Record, choice: int | None) -> bool:
    """Whether a choice has the text of the right one."""
    assert record.choices is not None, "the reader of closed questions gives choices"
    assert record.label is not None, "evaluate() refuses rows without labels"
    return choice is not None and record.choices[choice] == record.choices[record.label]


def right_labels(records: Sequence[Record]) -> Labels:
    """The index of each row's right label. [n]"""
    return np.array([record.label for record in records], dtype=np.int64)


def given_labels(predictions: Sequence[Prediction]) -> Labels:
    """The index of each row's chosen label. [n]"""
    return np.array([prediction.choice for prediction in predictions], dtype=np.int64)


def probabilities(prediction: Prediction, normalization: Normalization) -> Values:
    """Of each choice [K]: the softmax of its deciding scores. Scores without token counts are log-probabilities."""
    scores = prediction.choice_scores
    if normalization == "length" and prediction.choice_lengths is not None:
        scores = prediction.normalized_scores
    assert scores is not None, "predictions by candidates have scores"
    values = np.exp(np.array(scores, dtype=np.float64) - max(scores))
    return np.asarray(values / values.sum())


def confusion_matrix(right: Labels, given: Labels, size: int) -> Labels:
    """How many rows of each label were given which. [right, given]"""
    return np.bincount(right * size + given, minlength=size * size).reshape(size, size)


def balanced_accuracy(right: Labels, given: Labels, size: int) -> Statistic:
    """See `BALANCED_ACCURACY`."""

    def statistic(weights: Values) -> Values:
        confusion = _confusions(right, given, size, weights)
        recall = divided(_diagonal(confusion), confusion.sum(axis=2))
        return _mean_of_defined(recall)

    return statistic


def macro_f1(right: Labels, given: Labels, size: int) -> Statistic:
    """See `MACRO_F1`."""

    def statistic(weights: Values) -> Values:
        confusion = _confusions(right, given, size, weights)
        return _mean_of_defined(divided(2.0 * _diagonal(confusion), confusion.sum(axis=1) + confusion.sum(axis=2)))

    return statistic


def auroc(right: Labels, scores: Values) -> Statistic:
    """Mean over the columns of `scores` [n, K] whose label some but not all of the drawn rows have.

    The area is the share of pairs of a row with the label and one without in which the former has the higher
    score (Hanley & McNeil 1982).
    """
    order = np.argsort(scores, axis=0, kind="stable")

    def statistic(weights: Values) -> Values:
        areas = [_area(weights, order[:, k], scores[:, k], right == k) for k in range(scores.shape[1])]
        return _mean_of_defined(np.stack(areas, axis=1))

    return statistic


def calibration_error(confidence: Values, right: Values) -> Statistic:
    """See `ECE`; `confidence` and `right` (0 or 1) are [n]."""
    bins = confidence_bins(confidence)
    member = np.eye(BINS)[bins]

    def statistic(weights: Values) -> Values:
        gaps = np.abs((weights * (confidence - right)) @ member)
        return divided(gaps.sum(axis=1), weights.sum(axis=1))

    return statistic


def confidence_bins(confidence: Values) -> Labels:
    """The bin, from 0, of each probability; bins are open below and closed above. [n]"""
    return np.clip(np.ceil(confidence * BINS).astype(np.int64) - 1, 0, BINS - 1)


def _area(weights: Values, order: Labels, scores: Values, positive: npt.NDArray[np.bool_]) -> Values:
    """Areas [s] for resamples [s, n]; NaN where one side is empty."""
    ranked, is_positive = scores[order], positive[order]
    starts = np.flatnonzero(np.r_[True, ranked[1:] > ranked[:-1]])
    drawn = weights[:, order]
    positives = np.add.reduceat(drawn * is_positive, starts, axis=1)
    negatives = np.add.reduceat(drawn * ~is_positive, starts, axis=1)
    below = np.cumsum(negatives, axis=1) - negatives / 2.0  # of rows with equal scores one half
    return divided((positives * below).sum(axis=1), positives.sum(axis=1) * negatives.sum(axis=1))


def _confusions(right: Labels, given: Labels, size: int, weights: Values) -> Values:
    """Weighted counts [s, right, given]."""
    codes, cells = right * size + given, size * size
    return np.stack([np.bincount(codes, weights=row, minlength=cells).reshape(size, size) for row in weights])


def _diagonal(confusion: Values) -> Values:
    return np.diagonal(confusion, axis1=1, axis2=2)


def _mean_of_defined(values: Values) -> Values:
    """Mean over the second axis of what is not NaN. [s, k] -> [s]"""
    defined = ~np.isnan(values)
    return divided(np.where(defined, values, 0.0).sum(axis=1), defined.sum(axis=1).astype(np.float64))
