"""Which metrics fit: decided by the task, the decoding and the rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from bmpeft.evaluation.metrics import alignment, answers, labels, meteor, overlap, vqa
from bmpeft.evaluation.metrics.bootstrap import Figure, MetricDefinition, Resampling, Values, row_figure, set_figure
from bmpeft.evaluation.metrics.cider import CIDER_D, cider_rows
from bmpeft.records import Prediction, Record

if TYPE_CHECKING:
    from bmpeft.recipe_decoding import Decoding

Rows = list[tuple[MetricDefinition, Values]]


@dataclass(frozen=True)
class Measured:
    """The figures of one system.

    Attributes:
        figures: the first decides comparisons and has a value for every row.
        absent: metrics that belong here but cannot be measured on this machine, and why.
    """

    figures: tuple[Figure, ...]
    absent: tuple[str, ...] = ()

    @property
    def deciding_rows(self) -> Values:
        """The value of each row in the deciding metric. [n]"""
        rows = self.figures[0].rows
        assert rows is not None, "measure() puts a metric of rows first"
        return rows


def measure(
    records: Sequence[Record],
    predictions: Sequence[Prediction],
    *,
    task: str,
    decoding: Decoding,
    resampling: Resampling,
) -> Measured:
    """All metrics that fit.

    Args:
        records: rows with their right answers.
        predictions: one for each, in the same order.
        task: name of the task.
        decoding: of the model; a control is measured by the same metrics, as far as it has what they need.
        resampling: of the intervals.
    """
    if decoding.method == "candidates":
        return Measured(_closed(records, predictions, decoding.normalization, resampling))
    if task == "captioning":
        return _captions(records, predictions, resampling)
    if task == "summarization":
        rouge = overlap.rouge_rows(records, predictions)
        order = (overlap.ROUGE_L, overlap.ROUGE_1, overlap.ROUGE_2)
        figures = [row_figure(definition, rouge[definition], resampling) for definition in order]
        return Measured((*figures, _bleu(records, predictions, resampling)))
    rows = _visual(records, predictions) if task == "visual_question_answering" else _open(records, predictions)
    return Measured(tuple(row_figure(*row, resampling) for row in rows))


def _open(records: Sequence[Record], predictions: Sequence[Prediction]) -> Rows:
    return [
        (answers.EXACT_MATCH, answers.exact_match_rows(records, predictions)),
        (answers.TOKEN_F1, answers.token_f1_rows(records, predictions)),
    ]


def _visual(records: Sequence[Record], predictions: Sequence[Prediction]) -> Rows:
    """Exact match of all rows, figures of the open and of the closed ones, token F1, alignment."""
    rows = [
        (vqa.EXACT_MATCH, vqa.exact_match_rows(records, predictions)),
        (vqa.OPEN_RECALL, vqa.open_recall_rows(records, predictions)),
        (vqa.OPEN_RECALL_LLAVA_MED, vqa.open_recall_llava_med_rows(records, predictions)),
        (vqa.CLOSED, vqa.closed_rows(records, predictions)),
        (vqa.CLOSED_LLAVA_MED, vqa.closed_llava_med_rows(records, predictions)),
        (answers.TOKEN_F1, answers.token_f1_rows(records, predictions)),
        (alignment.ALIGNMENT, alignment.alignment_rows(records, predictions)),
    ]
    return [(definition, values) for definition, values in rows if not np.isnan(values).all()]


def _captions(records: Sequence[Record], predictions: Sequence[Prediction], resampling: Resampling) -> Measured:
    rouge = overlap.rouge_rows(records, predictions)[overlap.ROUGE_L]
    figures = [
        row_figure(CIDER_D, cider_rows(records, predictions), resampling),
        row_figure(overlap.ROUGE_L, rouge, resampling),
        _bleu(records, predictions, resampling),
    ]
    lack = meteor.missing()
    if lack is not None:
        return Measured(tuple(figures), (lack,))
    with meteor.MeteorProgram() as program:
        counts = program.counts(records, predictions)
        figures.append(set_figure(meteor.METEOR, program.statistic(counts), resampling))
    return Measured(tuple(figures))


def _bleu(records: Sequence[Record], predictions: Sequence[Prediction], resampling: Resampling) -> Figure:
    statistics = overlap.bleu_statistics(records, predictions)
    return set_figure(overlap.BLEU, overlap.bleu(statistics), resampling)


def _closed(
    records: Sequence[Record],
    predictions: Sequence[Prediction],
    normalization: labels.Normalization,
    resampling: Resampling,
) -> tuple[Figure, ...]:
    """Accuracy by either score, the deciding one first; figures of fixed labels; calibration."""
    scored = all(prediction.choice_scores is not None for prediction in predictions)
    by_tokens = scored and all(prediction.choice_lengths is not None for prediction in predictions)
    rows: Rows
    if by_tokens:
        rows = [
            (labels.ACCURACY_SUM, labels.accuracy_rows(records, predictions, "sum")),
            (labels.ACCURACY_MEAN, labels.accuracy_rows(records, predictions, "length")),
        ]
        if normalization == "length":
            rows.reverse()
    else:
        rows = [(labels.ACCURACY_CHOSEN, labels.chosen_rows(records, predictions))]
    figures = [row_figure(*row, resampling) for row in rows]
    shares = [labels.probabilities(prediction, normalization) for prediction in predictions] if scored else []
    names = labels.fixed_labels(records)
    if names is not None:
        figures += _classification(records, predictions, len(names), shares, resampling)
    if shares:
        confidence = np.array([share.max() for share in shares])
        right = np.array([labels.is_right(r, int(s.argmax())) for r, s in zip(records, shares, strict=True)], float)
        figures.append(set_figure(labels.ECE, labels.calibration_error(confidence, right), resampling))
    return tuple(figures)


def _classification(
    records: Sequence[Record],
    predictions: Sequence[Prediction],
    size: int,
    shares: Sequence[Values],
    resampling: Resampling,
) -> list[Figure]:
    right, given = labels.right_labels(records), labels.given_labels(predictions)
    figures = [
        set_figure(labels.BALANCED_ACCURACY, labels.balanced_accuracy(right, given, size), resampling),
        set_figure(labels.MACRO_F1, labels.macro_f1(right, given, size), resampling),
    ]
    if shares and len(set(right.tolist())) > 1:  # the area needs rows on both sides
        scores = np.stack(shares)
        binary = size == 2
        statistic = labels.auroc(right, scores) if not binary else labels.auroc(right - 1, scores[:, 1:])
        definition = labels.AUROC_BINARY if binary else labels.AUROC_MACRO
        figures.append(set_figure(definition, statistic, resampling))
    return figures
