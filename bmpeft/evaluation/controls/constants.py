"""Answers that take nothing, or one sentence, of a row."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence

from bmpeft.datasets.splits import first_of_shuffle
from bmpeft.evaluation.metrics import accepted_answers, answer_tokens
from bmpeft.evaluation.metrics.vqa import answer_type
from bmpeft.records import Prediction, Record

CANDIDATES, COMPARED = 100, 200
"""Training rows whose answers `best_constant` tries, and those that it compares them with."""

_SENTENCE_END = re.compile(r"(?<=[.!?])[\"')\]]*\s+(?=[\"'(\[]?[A-Z0-9])|\n+")
_ABBREVIATIONS = ("Dr.", "Mr.", "Mrs.", "Ms.", "Prof.", "St.", "vs.", "approx.", "No.", "e.g.", "i.e.")


def majority_predictions(train: Sequence[Record], records: Sequence[Record], *, task: str) -> list[Prediction]:
    """What the training rows have most often, the first of equals.

    With fixed labels (yes, no, maybe) the most frequent label; with options that differ from row to row
    the most frequent position of the right one (among those that the row has); with open answers the most
    frequent answer, in visual question answering one for closed and one for open questions.
    """
    if all(record.choices for record in records):
        positions = Counter(record.label for record in train)
        return [_closed(record, positions) for record in records]
    kind: Callable[[Record], str] = answer_type if task == "visual_question_answering" else lambda record: "any"
    overall = _most_frequent(train)
    by_kind = {name: _most_frequent(r for r in train if kind(r) == name) for name in set(map(kind, records))}
    return [Prediction(record.id, by_kind[kind(record)] or overall or "") for record in records]


def best_constant(train: Sequence[Record], *, seed: int) -> str:
    """The training answer that shares most with other training answers: by mean token F1, of a seeded sample."""
    rows = [row for row in first_of_shuffle(train, COMPARED, seed) if accepted_answers(row)]
    answers = [accepted_answers(row)[0] for row in rows]
    counts = [Counter(answer_tokens(answer)) for answer in answers]

    def shared(i: int) -> float:
        return sum(_f1(counts[i], other) for j, other in enumerate(counts) if j != i)

    return max(zip(answers, map(shared, range(min(CANDIDATES, len(answers)))), strict=False), key=lambda pair: pair[1])[
        0
    ]


def lead_sentences(records: Sequence[Record]) -> list[Prediction]:
    """The first sentence of each row's text."""
    return [Prediction(record.id, first_sentence(record.text or "")) for record in records]


def first_sentence(text: str) -> str:
    """A text up to its first line break, or the full stop, question or exclamation mark that ends a sentence."""
    plain = text.strip()
    for match in _SENTENCE_END.finditer(plain):
        sentence = plain[: match.end()].strip()
        if not sentence.endswith(_ABBREVIATIONS):
            return sentence
    return plain


def _closed(record: Record, positions: Counter[int | None]) -> Prediction:
    choices = record.choices or ()
    choice = max(range(len(choices)), key=lambda position: positions[position])
    return Prediction(record.id, choices[choice], choice)


def _most_frequent(rows: Iterable[Record]) -> str | None:
    """The answer, as first written, that most rows have, whatever its case and punctuation."""
    spelled: dict[tuple[str, ...], str] = {}
    counts: Counter[tuple[str, ...]] = Counter()
    for row in rows:
        for answer in accepted_answers(row)[:1]:
            tokens = tuple(answer_tokens(answer))
            spelled.setdefault(tokens, answer)
            counts[tokens] += 1
    return spelled[counts.most_common(1)[0][0]] if counts else None


def _f1(one: Counter[str], other: Counter[str]) -> float:
    return 2.0 * (one & other).total() / max(1, one.total() + other.total())
