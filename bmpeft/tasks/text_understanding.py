"""Text understanding: a text, or a pair of texts, to one of the labels of its dataset.

The prompt for pairs and its answers yes, no and maybe are BiomedGPT's for MedNLI. The one for single texts is
ours, after BiomedGPT's for images: BiomedGPT has published none.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from bmpeft.errors import UsageError
from bmpeft.records import Example, Record
from bmpeft.tasks import upstream
from bmpeft.tasks.base import Task

ENTAILMENT_PROMPT = ' can text1 " {text} " imply text2 " {question} "?'
ENTAILMENT_WORDS = {"entailment": "yes", "neutral": "maybe", "contradiction": "no"}


class TextUnderstanding(Task):
    """`{text}` is the text, or the first of a pair; `{question}` is the second of a pair (the hypothesis).

    What may be shortened to fit the model: the (first) text, from its end.
    """

    name = "text_understanding"
    placeholders = ("text", "question", "choices")
    required = "text"
    default_prompt = ' what does text " {text} " describe?'
    dataset_prompts: ClassVar[Mapping[str, str]] = {
        "biomedgpt_tsv": ENTAILMENT_PROMPT,
        "pubmedqa": " {text} question: {question}",
    }
    shortened = (("text", "tail"),)

    def example(self, record: Record) -> Example:
        """See `Task.example`; a second text that the prompt leaves out is refused too."""
        if record.question and "question" not in self._template.names:
            raise UsageError(
                f"task.prompt: record {record.id!r} has a second text, which the prompt leaves out; "
                f"for entailment write {ENTAILMENT_PROMPT!r}"
            )
        return super().example(record)

    def choices(self, record: Record) -> tuple[str, ...] | None:
        """See `Task.choices`; the labels of entailment have words of their own."""
        if record.choices is None or set(record.choices) != set(ENTAILMENT_WORDS):
            return record.choices
        return tuple(ENTAILMENT_WORDS[label] for label in record.choices)

    def upstream_text(self, placeholder: str, text: str) -> str:
        """See `Task.upstream_text`."""
        return text if placeholder == "choices" else upstream.sentence(text)
