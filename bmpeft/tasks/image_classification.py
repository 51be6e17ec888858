"""Image classification: an image to one of the labels of its dataset; BiomedGPT's prompt."""

from __future__ import annotations

from bmpeft.tasks.base import Task


class ImageClassification(Task):
    """The label's name is what the model writes (`data.label_names` changes it); nothing may be shortened."""

    name = "image_classification"
    placeholders = ("choices",)
    default_prompt = " what does the image describe?"
    needs_image = True
