"""Names of the controls of an evaluation, and which of them mean something for which task.

What is known from the recipe alone is here, so that a recipe that asks for the impossible is refused before
anything is loaded; `bmpeft.evaluation.controls` makes them and knows what depends on the rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, get_args

ControlName = Literal[
    "majority",
    "best_constant",
    "lead_sentence",
    "options_only",
    "question_only",
    "shuffled_images",
    "classic",
    "frozen_backbone",
]
CONTROL_NAMES: tuple[ControlName, ...] = get_args(ControlName)

_CLASSIFICATION = ("image_classification", "text_understanding")
_QUESTIONS = ("question_answering", "visual_question_answering")
_TASKS: Mapping[ControlName, tuple[str, ...]] = {
    "majority": (*_CLASSIFICATION, *_QUESTIONS),
    "best_constant": ("summarization", "captioning"),
    "lead_sentence": ("summarization",),
    "options_only": ("question_answering",),
    "question_only": ("text_understanding", *_QUESTIONS),
    "shuffled_images": ("image_classification", "visual_question_answering", "captioning"),
    "classic": _CLASSIFICATION,
    "frozen_backbone": (*_CLASSIFICATION, *_QUESTIONS, "summarization", "captioning"),
}


def control_problem(name: ControlName, *, task: str, method: str) -> str | None:
    """Why a control means nothing for a task and a decoding method; None where it does."""
    if task not in _TASKS[name]:
        return f"{name} is a control of {', '.join(_TASKS[name])}, not of {task}"
    if name == "options_only" and method != "candidates":
        return "options_only needs task.decoding.method=candidates"
    if name == "classic" and method != "candidates":
        return "classic needs task.decoding.method=candidates"
    return None
