"""Visual question answering: a question about an image; BiomedGPT's prompt is the question alone.

A dataset has closed questions (answered by yes or no) and open ones in one split. `task.decoding.method: mixed`,
the default, scores the choices of the rows that have them and lets the model write for all others.
"""

from __future__ import annotations

from bmpeft.errors import UsageError
from bmpeft.records import Record
from bmpeft.tasks import upstream
from bmpeft.tasks.base import Task


class VisualQuestionAnswering(Task):
    """`{objects}` are names of objects seen in the image, which BiomedGPT's files may carry beside the question."""

    name = "visual_question_answering"
    placeholders = ("question", "choices", "objects")
    required = "question"
    default_prompt = " {question}"
    shortened = (("question", "head"),)
    needs_image = True

    def field(self, record: Record, placeholder: str) -> str | None:
        """See `Task.field`; the objects are in the record's `meta`."""
        if placeholder != "objects":
            return super().field(record, placeholder)
        objects = record.meta.get("objects")
        if objects is not None and not isinstance(objects, str):
            raise UsageError(f"task.prompt: the objects of record {record.id!r} must be text")
        return objects

    def upstream_text(self, placeholder: str, text: str) -> str:
        """See `Task.upstream_text`."""
        return upstream.question(text) if placeholder == "question" else text
