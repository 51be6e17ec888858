"""Summarization: a document (a question, a dialogue, a report) to a shorter text; BiomedGPT's prompt.

The summary starts without a space: BiomedGPT's loader is the one of its loaders that writes none.
"""

from __future__ import annotations

from bmpeft.tasks import upstream
from bmpeft.tasks.base import Task


class Summarization(Task):
    """A document that is too long loses its end, and never the closing words of the prompt, as BiomedGPT's does.

    `{question}` is for sets whose summary answers a question about the document.
    """

    name = "summarization"
    placeholders = ("text", "question")
    required = "text"
    default_prompt = ' what is the summary of article " {text} "?'
    shortened = (("text", "tail"),)
    answer_start = ""

    def upstream_text(self, placeholder: str, text: str) -> str:
        """See `Task.upstream_text`."""
        return upstream.summary(text)

    def upstream_answer(self, answer: str) -> str:
        """See `Task.upstream_answer`."""
        return upstream.summary(answer)
