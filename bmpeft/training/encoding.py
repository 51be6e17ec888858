"""Records to token ids, with an account of what was cut."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from bmpeft.backbones.base import EncodedExample, FrozenBackbone
from bmpeft.errors import BmpeftError
from bmpeft.progress import Progress
from bmpeft.records import Example, Record
from bmpeft.tasks import Task


@dataclass(frozen=True)
class EncodedSplit:
    """The rows of one split as the model reads them; `examples[i]` became `encoded[i]`."""

    examples: tuple[Example, ...]
    encoded: tuple[EncodedExample, ...]

    @property
    def rows_cut(self) -> int:
        """Rows whose document did not fit."""
        return sum(1 for row in self.encoded if row.document_tokens_cut)

    @property
    def has_images(self) -> bool:
        """Whether a row has an image."""
        return any(row.image is not None for row in self.encoded)

    @property
    def document_tokens_cut(self) -> int:
        """Tokens that these documents lost."""
        return sum(row.document_tokens_cut for row in self.encoded)


def encode_split(
    backbone: FrozenBackbone,
    task: Task,
    records: Sequence[Record],
    *,
    max_source_length: int,
    max_target_length: int,
    progress: Progress,
) -> EncodedSplit:
    """Encode the rows of a split.

    Raises:
        BmpeftError: a row without a token to learn from, or one that cannot be made to fit; names its id.
    """
    examples, encoded = [], []
    with progress.task("encoding", total=len(records)) as bar:
        for record in records:
            example = task.example(record)
            row = backbone.encode(example, max_source_length=max_source_length, max_target_length=max_target_length)
            if not row.labels:
                raise BmpeftError(f"record {record.id!r} of split {record.split}: no answer to learn from")
            examples.append(example)
            encoded.append(row)
            bar.advance(1)
    return EncodedSplit(tuple(examples), tuple(encoded))
