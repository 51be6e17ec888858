"""What flows between datasets, tasks and models.

    reader -> Record -> task -> Example -> model -> Prediction

Readers know files, tasks know prompts, models know tensors; these three classes are all they share.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol

if TYPE_CHECKING:
    from PIL.Image import Image


class ImageReference(Protocol):
    """A lazy reference to an image, see `bmpeft.images.references`; hashable, and cheap until it is asked."""

    @property
    def digest(self) -> str:
        """SHA-256 of the encoded image or of the array's shape and bytes, in hexadecimal.

        Raises:
            ImageError: it cannot be read.
        """

    def load(self) -> Image:
        """The image in mode RGB, upright.

        Raises:
            ImageError: names the file and why it cannot be shown.
        """


@dataclass(frozen=True, slots=True)
class Record:
    """One row of a dataset, as its owners distribute it. Absent fields are None.

    `group` is the patient, study, image or question that must not straddle a split. `label` is the
    index of the right answer among `choices`; `answers` holds the accepted free-text answers.
    """

    id: str
    task: str
    split: str
    group: str
    text: str | None = None
    question: str | None = None
    image: ImageReference | None = None
    choices: tuple[str, ...] | None = None
    answers: tuple[str, ...] | None = None
    label: int | None = None
    licence: str = "unknown"
    meta: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Example:
    """What a task makes of a record: the text that the model reads and the text that it should write.

    `document` is the span of characters of `source` that may be shortened when the source exceeds
    the token limit; `document_cut` says from which end. Everything else of the source (the prompt's
    own words) is never cut. `choices` holds the closed answers as the model would write them, in the order
    of the record's. `prompt_layout` says what of the source the decoder reads before it answers (see
    `TaskSection.prompt_layout`).
    """

    record: Record
    source: str
    target: str | None
    image: ImageReference | None = None
    choices: tuple[str, ...] | None = None
    document: tuple[int, int] | None = None
    document_cut: Literal["head", "tail"] = "tail"
    prompt_layout: Literal["none", "src", "prev_output"] = "none"


@dataclass(frozen=True, slots=True)
class Prediction:
    """What a model answered for one record.

    For closed answers `choice` is the index of the chosen one, `choice_scores` the summed
    log-likelihood (nats) of each and `choice_lengths` the number of tokens each sum covers, so that
    the length-normalised score is their quotient. `adapter` is None for the bare backbone.
    """

    id: str
    text: str
    choice: int | None = None
    choice_scores: tuple[float, ...] | None = None
    choice_lengths: tuple[int, ...] | None = None
    adapter: str | None = None

    @property
    def normalized_scores(self) -> tuple[float, ...] | None:
        """Mean log-likelihood per token (nats) of each choice."""
        if self.choice_scores is None or self.choice_lengths is None:
            return None
        return tuple(s / n for s, n in zip(self.choice_scores, self.choice_lengths, strict=True))
