"""Controls: what needs no model, or not the question, to answer."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from bmpeft.evaluation.metrics import accepted_answers
from bmpeft.records import Prediction, Record


def majority_predictions(train: Sequence[Record], records: Sequence[Record]) -> list[Prediction]:
    """The best constant answer that the training rows show.

    With fixed labels (yes, no, maybe) the most frequent label; with options that differ from row to row
    the most frequent position of the right one (among those that the row has); with open answers the most
    frequent answer.
    """
    if not all(record.choices for record in records):
        answer = Counter(answers[0] for answers in map(accepted_answers, train) if answers).most_common(1)[0][0]
        return [Prediction(record.id, answer) for record in records]
    positions = Counter(record.label for record in train)
    return [_constant(record, positions) for record in records]


def _constant(record: Record, positions: Counter[int | None]) -> Prediction:
    choices = record.choices or ()
    choice = max(range(len(choices)), key=lambda position: positions[position])
    return Prediction(record.id, choices[choice], choice)
