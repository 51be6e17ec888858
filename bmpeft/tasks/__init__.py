"""Tasks: records to examples, and examples to predictions.

    task = make_task(recipe.task, recipe.data.dataset)
    task.example(record).source

A new task is one file here and one line in `_TASKS`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from bmpeft.tasks.base import Task
from bmpeft.tasks.prediction import predict_examples
from bmpeft.tasks.question_answering import QuestionAnswering

if TYPE_CHECKING:
    from bmpeft.recipe import TaskSection

__all__ = ["Task", "make_task", "predict_examples"]

_TASKS = {
    "question_answering": QuestionAnswering,
}


def make_task(section: TaskSection, dataset_name: str) -> Task:
    """The task of a recipe; `dataset_name` picks the default prompt.

    Raises:
        UsageError: a prompt that cannot be filled.
    """
    return _TASKS[section.name].from_section(section, dataset_name)
