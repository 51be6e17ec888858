"""Image classification: an image to one of the labels of its dataset; BiomedGPT's prompt."""

from __future__ import annotations

from bmpeft.records import Record
from bmpeft.tasks.base import Task
from bmpeft.tasks.labels import words_of


class ImageClassification(Task):
    """The label's name is what the model writes, or its word in `task.label_words`; nothing may be shortened."""

    name = "image_classification"
    placeholders = ("choices",)
    default_prompt = " what does the image describe?"
    needs_image = True

    def choices(self, record: Record) -> tuple[str, ...] | None:
        """See `Task.choices`."""
        return words_of(record, self._section.label_words)
