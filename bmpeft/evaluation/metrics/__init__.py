"""Metrics and their intervals.

    measured = measure(records, predictions, task=task.name, decoding=task.decoding, resampling=resampling)
    measured.figures[0].value

Every metric has a definition id, which score cards carry: the part after ``@`` grows when the definition
changes, so that two values with one id are comparable. docs/evaluation.md has every id with its formula.

One module for each family: `labels` (closed answers), `answers` (open ones), `vqa`, `alignment`, `overlap`
(ROUGE and BLEU), `cider`, `meteor`; `bootstrap` makes the intervals, `selection` decides what fits.
"""

from __future__ import annotations

from bmpeft.evaluation.metrics.answers import accepted_answers, answer_tokens
from bmpeft.evaluation.metrics.bootstrap import Figure, MetricDefinition, Resampling, Values
from bmpeft.evaluation.metrics.labels import confusion_matrix, fixed_labels
from bmpeft.evaluation.metrics.selection import Measured, measure

__all__ = [
    "Figure",
    "Measured",
    "MetricDefinition",
    "Resampling",
    "Values",
    "accepted_answers",
    "answer_tokens",
    "confusion_matrix",
    "fixed_labels",
    "measure",
]
