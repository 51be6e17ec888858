"""A task: what the model is asked about a record and what it should answer.

Prompts start with a space and answers mostly do too, as BiomedGPT was pretrained (its byte-pair encoding gives
a word other tokens with a space before it than without). Runs of white space in a value become one space;
nothing else of a record's text is changed, unless `task.upstream_preprocessing` asks for it.
"""

from __future__ import annotations

import dataclasses
from abc import ABC
from collections.abc import Mapping
from typing import ClassVar, Literal

from bmpeft.errors import UsageError
from bmpeft.recipe_decoding import Decoding
from bmpeft.recipe_task import TaskName, TaskSection, decoding_methods
from bmpeft.records import Example, Record
from bmpeft.tasks.template import Rendered, parse_template

CHOICE_SEPARATOR = "; "
Shortened = tuple[str, Literal["head", "tail"]]


class Task(ABC):
    """Turns records into examples. A new task is a subclass that fills the class attributes.

    Class attributes:
        name: what a recipe writes into `task.name`.
        placeholders: what the prompt may ask for.
        required: the placeholder that it must have, if any.
        default_prompt: the prompt where neither the recipe nor `dataset_prompts` has one.
        dataset_prompts: dataset -> its own default prompt.
        shortened: placeholders that may be cut to fit the model, each with the end that goes first; the first
            of them that the prompt has is the example's document.
        needs_image: whether every record must have an image.
        answer_start: what stands before an answer.

    Attributes:
        prompt: the template in use.
        decoding: how answers are read off the model.
    """

    name: ClassVar[TaskName]
    placeholders: ClassVar[tuple[str, ...]] = ()
    required: ClassVar[str | None] = None
    default_prompt: ClassVar[str]
    dataset_prompts: ClassVar[Mapping[str, str]] = {}
    shortened: ClassVar[tuple[Shortened, ...]] = ()
    needs_image: ClassVar[bool] = False
    answer_start: ClassVar[str] = " "

    def __init__(self, section: TaskSection, dataset_name: str) -> None:
        """The task of a recipe; `dataset_name` picks the prompt where the recipe has none.

        Raises:
            UsageError: a prompt that cannot be filled.
        """
        prompt = section.prompt
        if prompt is None:
            prompt = self.dataset_prompts.get(dataset_name, self.default_prompt)
        self._section = section.model_copy(update={"prompt": prompt})
        self._template = parse_template(prompt, allowed=self.placeholders, required=self.required)
        self.prompt: str = prompt
        self.decoding: Decoding = section.decoding

    def section(self) -> TaskSection:
        """The recipe section that makes this very task, prompt included; it is stored in adapters."""
        return self._section

    def example(self, record: Record) -> Example:
        """The source and, where the record has an answer, the target.

        Raises:
            UsageError: the record lacks what the prompt or the decoding needs; names the record.
        """
        if self.needs_image and record.image is None:
            raise UsageError(f"task.name={self.name}: record {record.id!r} has no image")
        rendered = self._template.render(self._values(record))
        for placeholder, end in self.shortened:
            if placeholder in rendered.spans:
                return self._made(record, rendered, document=rendered.spans[placeholder], cut=end)
        return self._made(record, rendered)

    def options_only(self, record: Record) -> Example:
        """The same example without the question and its document: what the options alone give away."""
        values = {name: value if name == "choices" else "" for name, value in self._values(record).items()}
        return self._made(record, self._template.render(values))

    def question_only(self, record: Record) -> Example:
        """The same example without its image and its document: what the question alone gives away."""
        values = {name: "" if name == "text" else value for name, value in self._values(record).items()}
        return dataclasses.replace(self._made(record, self._template.render(values)), image=None)

    # What a subclass may say differently.

    def field(self, record: Record, placeholder: str) -> str | None:
        """The text that a record has for a placeholder, as its owners wrote it."""
        if placeholder == "choices":
            return CHOICE_SEPARATOR.join(one_line(choice) for choice in record.choices or ())
        return {"question": record.question, "text": record.text}[placeholder]

    def upstream_text(self, placeholder: str, text: str) -> str:
        """`field` as BiomedGPT's loader changes it; used with `task.upstream_preprocessing` alone."""
        return text

    def upstream_answer(self, answer: str) -> str:
        """An answer as BiomedGPT's loader changes it; used with `task.upstream_preprocessing` alone."""
        return answer

    def choices(self, record: Record) -> tuple[str, ...] | None:
        """The closed answers in the words that the model writes, in the record's order."""
        return record.choices

    # What all tasks share.

    def _values(self, record: Record) -> dict[str, str]:
        """The value of each placeholder of the prompt."""
        values = {}
        for name in self._template.names:
            value = self.field(record, name)
            if value is not None:
                value = one_line(value)
                value = self.upstream_text(name, value) if self._section.upstream_preprocessing else value
            if not value:
                hint = "; where questions have none, write task.prompt: ' {question}'" if name == "choices" else ""
                raise UsageError(
                    f"task.prompt: record {record.id!r} has no {name}, which the prompt asks for ({{{name}}}){hint}"
                )
            values[name] = value
        return values

    def _made(
        self,
        record: Record,
        rendered: Rendered,
        *,
        document: tuple[int, int] | None = None,
        cut: Literal["head", "tail"] = "tail",
    ) -> Example:
        choices = self.choices(record)
        if self.decoding.method == "candidates" and not choices:
            others = ", ".join(method for method in decoding_methods(self.name) if method != "candidates")
            raise UsageError(f"task.decoding.method=candidates: record {record.id!r} has no choices; use {others}")
        return Example(
            record=record,
            source=rendered.text,
            target=self._target(record, choices),
            image=record.image,
            choices=tuple(map(self._answer, choices)) if choices else None,
            document=document,
            document_cut=cut,
            prompt_layout=self._section.prompt_layout,
        )

    def _target(self, record: Record, choices: tuple[str, ...] | None) -> str | None:
        if choices and record.label is not None:
            return self._answer(choices[record.label])
        return self._answer(record.answers[0]) if record.answers else None

    def _answer(self, text: str) -> str:
        plain = one_line(text)
        return self.answer_start + (self.upstream_answer(plain) if self._section.upstream_preprocessing else plain)


def one_line(text: str) -> str:
    """The text with every run of white space as one space, and none around it."""
    return " ".join(text.split())
