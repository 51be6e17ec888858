"""What something is measured on, so that none of it is trained on: texts, images and groups of excluded splits.

A text is excluded whose words are those of a question, document or open answer of such a row, or of which half of
the 13-word sequences are in one. An image is excluded by its digest, and with every other of its group (patient,
study ...) in the same dataset.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from bmpeft.datasets import read_dataset
from bmpeft.datasets.leakage import documents_seen
from bmpeft.datasets.splits import image_digests, normalize_words
from bmpeft.pretrain_recipe import ExcludeSection
from bmpeft.recipe import DataSection, match_splits

if TYPE_CHECKING:
    from bmpeft.records import Record

EMBEDDED = "embedded"


@dataclass(frozen=True)
class Excluded:
    """The content of the excluded splits; `texts` by their words."""

    texts: frozenset[str]
    images: frozenset[str]
    groups: frozenset[tuple[str, str]]

    def of_texts(self, texts: Sequence[str]) -> list[bool]:
        """Whether each text is excluded."""
        parts = documents_seen(texts, self.texts) if self.texts else [False] * len(texts)
        return [part or normalize_words(text) in self.texts for text, part in zip(texts, parts, strict=True)]

    def of_images(self, dataset: str, records: Sequence[Record]) -> list[bool]:
        """Whether each record of a dataset is excluded by its image or its group. Raises ImageError."""
        digest_of = image_digests()
        return [
            (dataset, record.group) in self.groups
            or (record.image is not None and bool(self.images) and digest_of(record.image) in self.images)
            for record in records
        ]


def read_excluded(sections: Sequence[ExcludeSection], root: Path) -> Excluded:
    """Read all excluded splits.

    Raises:
        UsageError: no such reader or split.
        DataError: a file is missing or broken; says where it comes from.
    """
    texts, images, groups = set[str](), set[str](), set[tuple[str, str]]()
    for section in sections:
        data = DataSection(
            dataset=section.dataset,
            path=section.path if section.path == EMBEDDED else str(root / section.path),
            variant=section.variant,
            split_by=section.split_by,
            cop_base=section.cop_base,
        )
        splits = read_dataset(data).splits
        digest_of = image_digests()
        for name in match_splits(section.splits, splits):
            for record in splits[name]:
                texts |= {normalize_words(text) for text in _texts(record)}
                groups.add((section.dataset, record.group))
                if record.image is not None:
                    images.add(digest_of(record.image))
    return Excluded(frozenset(texts - {""}), frozenset(images), frozenset(groups))


def _texts(record: Record) -> list[str]:
    """What a row reads and, unless it is one of a few options, writes."""
    answers = record.answers if record.answers and not record.choices else ()
    return [text for text in (record.question, record.text, *answers) if text]
