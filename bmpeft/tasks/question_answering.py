"""Question answering: a question, perhaps an abstract and options, to an answer.

Prompts start with a space and answers do too, as BiomedGPT was pretrained (its byte-pair encoding gives
a word other tokens with a space before it than without). Options are named by their text, not by
letters, because that text is what the model scores. Runs of white space in a value become one space.
"""

from __future__ import annotations

from typing import Literal

from bmpeft.errors import UsageError
from bmpeft.recipe import Decoding, TaskSection
from bmpeft.records import Example, Record
from bmpeft.tasks.base import Task
from bmpeft.tasks.template import parse_template

PLACEHOLDERS = ("question", "choices", "text")
DEFAULT_PROMPT = " {question} choices: {choices}"
DEFAULT_PROMPTS = {
    "pubmedqa": " {text} question: {question}",
}
CHOICE_SEPARATOR = "; "


class QuestionAnswering(Task):
    """Closed answers (options) and open ones.

    What may be shortened to fit the model: the document (`text`) from its end, where the prompt has one;
    else the question from its beginning, because a vignette asks in its last sentence.
    """

    name = "question_answering"

    def __init__(self, *, prompt: str, decoding: Decoding) -> None:
        super().__init__(prompt=prompt, decoding=decoding)
        self._template = parse_template(prompt, allowed=PLACEHOLDERS, required="question")

    @classmethod
    def from_section(cls, section: TaskSection, dataset_name: str) -> QuestionAnswering:
        """The task of a recipe; `dataset_name` picks the prompt where the recipe has none."""
        default = DEFAULT_PROMPTS.get(dataset_name, DEFAULT_PROMPT)
        return cls(prompt=section.prompt if section.prompt is not None else default, decoding=section.decoding)

    def section(self) -> TaskSection:
        return TaskSection(name="question_answering", prompt=self.prompt, decoding=self.decoding)

    def example(self, record: Record) -> Example:
        rendered = self._template.render(self._values(record))
        if "text" in rendered.spans:
            return self._example(record, rendered.text, rendered.spans["text"], "tail")
        return self._example(record, rendered.text, rendered.spans["question"], "head")

    def options_only(self, record: Record) -> Example:
        values = {**self._values(record), "question": "", "text": ""}
        return self._example(record, self._template.render(values).text, None, "tail")

    def _values(self, record: Record) -> dict[str, str]:
        """The value of each placeholder of the prompt."""
        choices = CHOICE_SEPARATOR.join(_one_line(choice) for choice in record.choices or ())
        fields = {"question": record.question, "text": record.text, "choices": choices}
        values = {}
        for name in self._template.names:
            value = fields[name]
            if not value:
                raise UsageError(
                    f"task.prompt: record {record.id!r} has no {name}, which the prompt asks for ({{{name}}})"
                )
            values[name] = _one_line(value)
        return values

    def _example(
        self, record: Record, source: str, document: tuple[int, int] | None, cut: Literal["head", "tail"]
    ) -> Example:
        if self.decoding.method == "candidates" and not record.choices:
            raise UsageError(
                f"task.decoding.method=candidates: record {record.id!r} has no choices; use beam or sample"
            )
        choices = tuple(_answer(choice) for choice in record.choices) if record.choices else None
        return Example(
            record=record,
            source=source,
            target=_target(record),
            image=record.image,
            choices=choices,
            document=document,
            document_cut=cut,
        )


def _target(record: Record) -> str | None:
    if record.choices and record.label is not None:
        return _answer(record.choices[record.label])
    return _answer(record.answers[0]) if record.answers else None


def _answer(text: str) -> str:
    return f" {_one_line(text)}"


def _one_line(text: str) -> str:
    return " ".join(text.split())
