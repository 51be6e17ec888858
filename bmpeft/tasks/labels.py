"""The words in which a model names the labels of a classification."""

from __future__ import annotations

from collections.abc import Mapping

from bmpeft.errors import UsageError, did_you_mean
from bmpeft.records import Record


def words_of(record: Record, words: Mapping[str, str] | None) -> tuple[str, ...] | None:
    """What the model writes for each of a record's labels, in their order: its word, or without `words` its name.

    Raises:
        UsageError: `words` lacks one of the labels, or names one that the dataset does not have.
    """
    if record.choices is None or words is None:
        return record.choices
    for label in record.choices:
        if label not in words:
            raise UsageError(f"task.label_words: no word for the label {label!r}")
    for label in words:
        if label not in record.choices:
            raise UsageError(f"task.label_words: no label is named {label!r}{did_you_mean(label, record.choices)}")
    return tuple(words[label] for label in record.choices)
