"""Labels: what stands in the files, and the names that a model reads and writes instead."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING

from bmpeft.datasets.rows import Row
from bmpeft.errors import DataError, UsageError

if TYPE_CHECKING:
    from bmpeft.datasets.reading import Reading, Splits

YES_NO = ("yes", "no")
MOST_LABELS = 1000
FEW_LABELS = 20  # as many different labels as this raise no suspicion, however few the rows


def published_names(reading: Reading, names: Mapping[str, str]) -> dict[str, str]:
    """Label in the files -> name: the published names, or those of `data.label_names` for the same labels.

    Raises:
        UsageError: `data.label_names` is for other labels, or gives two of them one name.
    """
    own = reading.data.label_names
    if own is None:
        return dict(names)
    given = {str(label): name for label, name in own.items()}
    if set(given) != set(names):
        raise UsageError(f"data.label_names: the labels of {reading.info.name} are {', '.join(names)}; name each")
    _distinct(given)
    return {label: given[label] for label in names}


def yes_or_no(answer: str) -> tuple[tuple[str, ...], int] | tuple[None, None]:
    """Choices and label of a closed question whose answer is yes or no; None twice for other answers."""
    plain = answer.strip().casefold()
    return (YES_NO, YES_NO.index(plain)) if plain in YES_NO else (None, None)


class Labels:
    """The labels of a dataset whose files do not list them.

    They are collected while rows are read and put in order at the end: that of `data.label_names`, else
    numbers by value and texts by the alphabet, so that the order of the rows does not matter.
    """

    def __init__(self, reading: Reading) -> None:
        """Raises UsageError if `data.label_names` gives two labels one name."""
        self._reading = reading
        own = reading.data.label_names
        self._names = None if own is None else {str(label): name for label, name in own.items()}
        if self._names is not None:
            _distinct(self._names)
        self._seen: dict[str, int] = {label: i for i, label in enumerate(self._names or ())}
        self._stated: dict[str, str] = {}

    def index(self, row: Row, label: str, name: str | None = None) -> int:
        """A number for the label, which `apply` turns into its place among the choices.

        Args:
            row: for messages.
            label: as it stands in the file.
            name: of the label, where the file states it; `data.label_names` comes before it.

        Raises:
            DataError: `data.label_names` does not name the label (the message lists those that it does name),
                or another row states another name for it.
        """
        if self._names is not None and label not in self._names:
            raise row.error(f"the label is none of those in data.label_names: {', '.join(self._names)}")
        if name is not None and self._stated.setdefault(label, name) != name:
            raise row.error("the label has another name here than in a row before")
        return self._seen.setdefault(label, len(self._seen))

    def apply(self, splits: Splits) -> Splits:
        """The records with their choices and their labels among them.

        Raises:
            DataError: there are so many different labels that they can be no labels.
        """
        rows = sum(map(len, splits.values()))
        if self._names is None and len(self._seen) > min(MOST_LABELS, max(FEW_LABELS, rows // 2)):
            raise DataError(
                self._reading.path,
                f"{len(self._seen):,} different labels in {rows:,} rows: is this the column of labels?",
            )
        ordered = list(self._names) if self._names is not None else sorted(self._seen, key=_label_order)
        places = {self._seen[label]: place for place, label in enumerate(ordered)}
        names = self._names if self._names is not None else self._stated
        choices = tuple(names.get(label, label) for label in ordered)
        if len(set(choices)) < len(choices):
            raise DataError(self._reading.path, "two labels have the same name")
        return {
            split: tuple(
                record
                if record.label is None or record.choices
                else dataclasses.replace(record, choices=choices, label=places[record.label])
                for record in records
            )
            for split, records in splits.items()
        }


def _label_order(label: str) -> tuple[int, int, str]:
    # Python converts no digits by the thousand, and no label is a number of that size.
    return (0, int(label), "") if label.isdecimal() and len(label) < 20 else (1, 0, label)


def _distinct(names: Mapping[str, str]) -> None:
    values = list(names.values())
    for name in values:
        if not name.strip() or values.count(name) > 1:
            raise UsageError(f"data.label_names: {name!r} must name one label only, and not be blank")
