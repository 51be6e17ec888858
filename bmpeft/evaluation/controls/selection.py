"""Which controls fit: those that a recipe asks for, or by default all that mean something here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from bmpeft.errors import UsageError
from bmpeft.evaluation.controls.images import distinct_images
from bmpeft.evaluation.metrics import accepted_answers, fixed_labels
from bmpeft.recipe_controls import CONTROL_NAMES, ControlName, control_problem
from bmpeft.records import Record

_NEED_TRAINING_ROWS: tuple[ControlName, ...] = ("majority", "best_constant", "classic")


def fitting_controls(
    asked: Sequence[ControlName] | None,
    *,
    task: str,
    method: str,
    splits: Mapping[str, Sequence[Record]],
    train: Sequence[Record],
) -> tuple[ControlName, ...]:
    """The controls to run, in the order asked for.

    Args:
        asked: `evaluation.controls`; None for all that fit.
        task: name of the task.
        method: of decoding.
        splits: the rows that are measured.
        train: the rows that the adapter was trained on; empty where there are none.

    Raises:
        UsageError: one that was asked for does not fit; says why.
    """
    problems = {
        name: control_problem(name, task=task, method=method) or _rows_problem(name, splits, train)
        for name in (CONTROL_NAMES if asked is None else asked)
    }
    fitting = tuple(name for name, problem in problems.items() if problem is None)
    problem = next(filter(None, problems.values()), None)
    if asked is not None and problem is not None:
        raise UsageError(f"evaluation.controls: {problem}; leave it out (evaluation.controls=[{', '.join(fitting)}])")
    return fitting


def _rows_problem(name: ControlName, splits: Mapping[str, Sequence[Record]], train: Sequence[Record]) -> str | None:
    """What the rows lack for a control; None where it fits."""
    if name in _NEED_TRAINING_ROWS and not any(map(accepted_answers, train)):
        return f"{name} needs a train split with answers, and there is none here"
    if name == "classic":
        return _classic_problem(splits, train)
    for split, rows in splits.items():
        if name == "shuffled_images" and distinct_images(rows) < 2:
            return f"shuffled_images needs two different images in split {split}"
        if name == "question_only" and not all(row.question and (row.image or row.text) for row in rows):
            return f"question_only needs a question and an image or a text in every row of split {split}"
        if name == "lead_sentence" and not all(row.text for row in rows):
            return f"lead_sentence needs a text in every row of split {split}"
    return None


def _classic_problem(splits: Mapping[str, Sequence[Record]], train: Sequence[Record]) -> str | None:
    labels = fixed_labels([*train, *(row for rows in splits.values() for row in rows)])
    if labels is None or any(row.label is None for row in train):
        return "classic needs one set of labels that all rows, of train too, share"
    for kind in ("image", "text"):
        if all(getattr(row, kind) is not None for rows in (train, *splits.values()) for row in rows):
            return None
    return "classic needs an image in every row, or a text in every row"
