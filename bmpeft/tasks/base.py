"""A task: what the model is asked about a record and what it should answer."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

from bmpeft.recipe import Decoding, TaskSection
from bmpeft.records import Example, Record


class Task(ABC):
    """Turns records into examples.

    Attributes:
        name: what a recipe writes into `task.name`.
        prompt: the template in use; the recipe's, or this task's own for the dataset.
        decoding: how answers are read off the model.
    """

    name: ClassVar[str]

    def __init__(self, *, prompt: str, decoding: Decoding) -> None:
        self.prompt, self.decoding = prompt, decoding

    @abstractmethod
    def example(self, record: Record) -> Example:
        """The source and, where the record has an answer, the target.

        Raises:
            UsageError: the record lacks what the prompt or the decoding needs; names the record.
        """

    @abstractmethod
    def options_only(self, record: Record) -> Example:
        """The same example without the question and its document: what the options alone give away."""

    @abstractmethod
    def section(self) -> TaskSection:
        """The recipe section that makes this very task, prompt included; it is stored in adapters."""
