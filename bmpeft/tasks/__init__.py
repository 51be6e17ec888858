"""Tasks: records to examples, and examples to predictions.

    task = make_task(recipe.task, recipe.data.dataset)
    task.example(record).source

A new task is one file here, its name in `TaskName` of the recipe's schema, and one line in `_TASKS`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from bmpeft.tasks.answers import spell_out_answers
from bmpeft.tasks.base import Task
from bmpeft.tasks.captioning import Captioning
from bmpeft.tasks.image_classification import ImageClassification
from bmpeft.tasks.prediction import predict_examples
from bmpeft.tasks.question_answering import QuestionAnswering
from bmpeft.tasks.summarization import Summarization
from bmpeft.tasks.text_understanding import TextUnderstanding
from bmpeft.tasks.visual_question_answering import VisualQuestionAnswering

if TYPE_CHECKING:
    from bmpeft.recipe_task import TaskName, TaskSection

__all__ = ["Task", "make_task", "predict_examples", "spell_out_answers"]

_TASKS: dict[TaskName, type[Task]] = {
    "image_classification": ImageClassification,
    "text_understanding": TextUnderstanding,
    "summarization": Summarization,
    "question_answering": QuestionAnswering,
    "visual_question_answering": VisualQuestionAnswering,
    "captioning": Captioning,
}


def make_task(section: TaskSection, dataset_name: str) -> Task:
    """The task of a recipe; `dataset_name` picks the default prompt.

    Raises:
        UsageError: a prompt that cannot be filled.
    """
    return _TASKS[section.name](section, dataset_name)
