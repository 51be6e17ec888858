"""The images of a pretraining recipe: the training split of a dataset, and what its labels say of each image."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from bmpeft.datasets import read_dataset
from bmpeft.errors import RecipeError, did_you_mean
from bmpeft.pretrain_recipe import CorpusSection
from bmpeft.recipe import DataSection
from bmpeft.training.pretraining.wordings import ATTRIBUTES, caption, question

if TYPE_CHECKING:
    from bmpeft.records import ImageReference, Record

SHARED_ATTRIBUTES = ("modality", "organ", "view")
"""Values of these exclude one another over all datasets; a finding is only known not to be another of its own one's."""


@dataclass(frozen=True, slots=True)
class ShownImage:
    """An image, the name of its label, and what it shows: (attribute, words) pairs."""

    image: ImageReference
    label: str
    shown: tuple[tuple[str, str], ...]
    mirrored: bool
    group: str


def read_images(section: CorpusSection, root: Path) -> list[tuple[ShownImage, Record]]:
    """The training split of a dataset of images.

    Raises:
        DataError: a file is missing or broken.
        UsageError: no such reader, or it has no such option.
        RecipeError: `label_shows` has a label that the dataset has not, or the dataset has no images or no labels.
    """
    assert section.dataset is not None
    assert section.path is not None
    data = DataSection(
        dataset=section.dataset,
        path=str(root / section.path),
        variant=section.variant,
        label_names=section.label_names,
    )
    records = read_dataset(data).splits.get("train", ())
    labelled = [(r, r.image, r.choices[r.label]) for r in records if r.image and r.choices and r.label is not None]
    if not records or len(labelled) < len(records):
        raise RecipeError(f"corpus {section.name}: {section.dataset} has no training split of images with labels")
    names = dict.fromkeys(name for record in records for name in record.choices or ())
    label_shows = {str(label): shown for label, shown in section.label_shows.items()}
    for label in label_shows:
        if label not in names:
            raise RecipeError(
                f"corpus {section.name}: label_shows: no label is named {label!r}{did_you_mean(label, names)}"
            )
    images = []
    for record, image, label in labelled:
        shown = {**section.shows, **label_shows.get(label, {})}
        ordered = tuple((name, shown[name]) for name in ATTRIBUTES if name in shown)
        images.append((ShownImage(image, label, ordered, section.mirrored, record.group), record))
    return images


class ImageTexts:
    """What is asked and answered about images of several sources.

    Args:
        sources: the images of each source.
    """

    def __init__(self, sources: Sequence[Sequence[ShownImage]]) -> None:
        self._shown = [list(dict.fromkeys(image.shown for image in images)) for images in sources]

    def caption(self, image: ShownImage, generator: random.Random) -> str:
        """A caption of an image that shows something."""
        return caption(dict(image.shown), generator)

    def question(self, source: int, image: ShownImage, generator: random.Random) -> tuple[str, str]:
        """A question about an image of a source, and its answer."""
        return question(dict(image.shown), self._others(source, image), generator)

    def matching(self, source: int, image: ShownImage, generator: random.Random) -> tuple[str, bool]:
        """A caption that is the image's or, every other time, that of an image that shows something else."""
        own = [shown for shown in self._shown[source] if shown != image.shown]
        foreign = [s for i, all_shown in enumerate(self._shown) if i != source for s in all_shown if s != image.shown]
        pools = [pool for pool in (own, foreign) if pool]
        agrees = generator.random() < 0.5 or not pools
        shown = image.shown if agrees else generator.choice(generator.choice(pools))
        return caption(dict(shown), generator, whole=True), agrees

    def _others(self, source: int, image: ShownImage) -> dict[str, list[str]]:
        """Attribute -> values that the image could have had and has not."""
        others = {}
        for name, value in image.shown:
            scope = self._shown if name in SHARED_ATTRIBUTES else [self._shown[source]]
            values = sorted({words for all_shown in scope for shown in all_shown for n, words in shown if n == name})
            others[name] = [other for other in values if other != value]
        return others
