"""Question answering: a question, perhaps a document and options, to an answer.

Options are named by their text, not by letters, because that text is what the model scores.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from bmpeft.tasks.base import Task


class QuestionAnswering(Task):
    """Closed answers (options) and open ones.

    What may be shortened to fit the model: the document (`text`) from its end, where the prompt has one;
    else the question from its beginning, because a vignette asks in its last sentence.
    """

    name = "question_answering"
    placeholders = ("question", "choices", "text")
    required = "question"
    default_prompt = " {question} choices: {choices}"
    dataset_prompts: ClassVar[Mapping[str, str]] = {
        "medquad": " {question}",
        "pubmedqa": " {text} question: {question}",
    }
    shortened = (("text", "tail"), ("question", "head"))
