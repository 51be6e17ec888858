"""Captioning: an image to a sentence or a report; BiomedGPT's prompt."""

from __future__ import annotations

from bmpeft.tasks import upstream
from bmpeft.tasks.base import Task


class Captioning(Task):
    """The first caption of a record is what the model learns to write. The prompt asks for nothing of the record."""

    name = "captioning"
    default_prompt = " what does the image describe?"
    needs_image = True

    def upstream_answer(self, answer: str) -> str:
        """See `Task.upstream_answer`."""
        return upstream.caption(answer)
