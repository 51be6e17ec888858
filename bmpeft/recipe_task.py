"""What the model is asked: the section `task` of a recipe, and which decoding fits which task."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from bmpeft.recipe_decoding import BeamDecoding, CandidatesDecoding, Decoding, MixedDecoding
from bmpeft.recipe_section import Section

TaskName = Literal[
    "image_classification",
    "text_understanding",
    "summarization",
    "question_answering",
    "visual_question_answering",
    "captioning",
]
PromptLayout = Literal["none", "src", "prev_output"]

_WRITTEN = ("beam", "sample")
_DECODING_METHODS: dict[TaskName, tuple[str, ...]] = {
    "image_classification": ("candidates", "trie", *_WRITTEN),
    "text_understanding": ("candidates", "trie", *_WRITTEN),
    "summarization": _WRITTEN,
    "question_answering": ("candidates", "mixed", "trie", *_WRITTEN),
    "visual_question_answering": ("candidates", "mixed", "trie", *_WRITTEN),
    "captioning": _WRITTEN,
}
_TASKS_WITH_LAYOUTS: tuple[TaskName, ...] = ("visual_question_answering", "text_understanding")
# BiomedGPT changes neither the labels nor the prompt of its image classification, and has no such question answering.
_TASKS_PREPROCESSED_UPSTREAM: tuple[TaskName, ...] = (
    "text_understanding",
    "summarization",
    "visual_question_answering",
    "captioning",
)


def decoding_methods(task: TaskName) -> tuple[str, ...]:
    """The values that `task.decoding.method` may have for a task."""
    return _DECODING_METHODS[task]


def default_decoding(task: TaskName) -> CandidatesDecoding | BeamDecoding | MixedDecoding:
    """How a task's answers are read off where the recipe does not say; beams as BiomedGPT's scripts for MeQSum."""
    if task == "summarization":
        return BeamDecoding(max_new_tokens=128, length_penalty=0.7, no_repeat_ngram_size=3)
    if task == "captioning":
        return BeamDecoding(max_new_tokens=64, no_repeat_ngram_size=3)
    return MixedDecoding() if task == "visual_question_answering" else CandidatesDecoding()


class TaskSection(Section):
    """What the model is asked and how its answer is read off."""

    name: TaskName = "question_answering"
    prompt: str | None = Field(
        None, description="template with placeholders such as {question}; default: the task's own for this dataset"
    )
    prompt_layout: PromptLayout = Field(
        "none",
        description="what the decoder reads before it answers: nothing, the source (src), or the source without "
        "its end token (prev_output); as `prompt-type` in BiomedGPT's scripts",
    )
    upstream_preprocessing: bool = Field(
        False,
        description="lower case, lost punctuation and all, as BiomedGPT's loaders; only to compare with its figures",
    )
    decoding: Decoding = Field(
        default_factory=lambda fields: default_decoding(fields.get("name", "question_answering")),
        description="default: candidates, beam or mixed, as fits the task",
    )

    @model_validator(mode="after")
    def _fits_the_task(self) -> TaskSection:
        methods = decoding_methods(self.name)
        if self.decoding.method not in methods:
            raise ValueError(f"decoding.method={self.decoding.method} is not for {self.name}; use {', '.join(methods)}")
        for key, given, tasks in (
            (f"prompt_layout={self.prompt_layout}", self.prompt_layout != "none", _TASKS_WITH_LAYOUTS),
            ("upstream_preprocessing", self.upstream_preprocessing, _TASKS_PREPROCESSED_UPSTREAM),
        ):
            if given and self.name not in tasks:
                raise ValueError(f"{key} is for {', '.join(tasks)}, not for {self.name}")
        return self
