"""Which rows form which batch: length-grouped, seeded, and the same whatever the accumulation.

A pure function of (lengths, sizes, seed, epoch), so that an epoch can be replayed from any step.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import replace

from torch.utils.data import DataLoader, Dataset, Sampler

from bmpeft.backbones.base import EncodedExample
from bmpeft.errors import UsageError
from bmpeft.images.augmentation import Augmentation, AugmentedImage
from bmpeft.recipe import MirroredAugmentationSection

POOL_WINDOWS = 32
"""Rows are sorted by length within random pools of this many windows: little padding, still random."""


def length_grouped_batches(
    lengths: Sequence[int], *, batch_size: int, accumulation: int, seed: int, epoch: int
) -> list[list[int]]:
    """Divide rows 0 .. n-1 into batches; every row occurs exactly once.

    What one optimizer step sees is a window of `batch_size * accumulation` rows, which is then cut into
    `accumulation` batches: (8, 1) and (2, 4) step over the same windows. The last window holds the random
    rest of n.
    """
    window = batch_size * accumulation
    generator = random.Random(f"{seed}:{epoch}")
    order = list(range(len(lengths)))
    generator.shuffle(order)
    whole = len(order) - len(order) % window
    windows: list[list[int]] = []
    for start in range(0, whole, window * POOL_WINDOWS):
        pool = sorted(order[start : min(start + window * POOL_WINDOWS, whole)], key=lambda row: -lengths[row])
        windows += [pool[i : i + window] for i in range(0, len(pool), window)]
    generator.shuffle(windows)
    if whole < len(order):
        windows.append(sorted(order[whole:], key=lambda row: -lengths[row]))
    return [rows[i : i + batch_size] for rows in windows for i in range(0, len(rows), batch_size)]


class LengthGroupedBatches(Sampler[list[int]]):
    """`length_grouped_batches` of the current epoch, as a batch sampler."""

    def __init__(self, lengths: Sequence[int], *, batch_size: int, accumulation: int, seed: int) -> None:
        self._lengths = tuple(lengths)
        self._batch_size, self._accumulation, self._seed = batch_size, accumulation, seed
        self._epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self._epoch = epoch

    def __iter__(self) -> Iterator[list[int]]:
        yield from length_grouped_batches(
            self._lengths,
            batch_size=self._batch_size,
            accumulation=self._accumulation,
            seed=self._seed,
            epoch=self._epoch,
        )

    def __len__(self) -> int:
        return -(-len(self._lengths) // self._batch_size)


class EncodedDataset(Dataset[EncodedExample]):
    """Encoded examples for a DataLoader."""

    def __init__(self, examples: Sequence[EncodedExample]) -> None:
        self.examples = tuple(examples)

    def __getitem__(self, index: int) -> EncodedExample:
        return self.examples[index]

    def __len__(self) -> int:
        return len(self.examples)

    def lengths(self) -> list[int]:
        """Positions that each row takes: image patches, tokens of source, decoder prefix and target."""
        return [row.source_length + len(row.decoder_prefix) + len(row.labels or ()) for row in self.examples]

    @property
    def has_images(self) -> bool:
        """Whether a row has an image."""
        return any(example.image is not None for example in self.examples)


class AugmentedDataset(EncodedDataset):
    """Encoded examples whose images are changed at each reading: a pure function of seed, epoch and row.

    Args:
        examples: rows, with and without images.
        augmentation: how far.
        side: of the images that the backbone reads, in pixels.
        mirrored: whether left and right may be exchanged.
        seed: of all changes.
    """

    def __init__(
        self, examples: Sequence[EncodedExample], augmentation: Augmentation, *, side: int, mirrored: bool, seed: int
    ) -> None:
        super().__init__(examples)
        self._augmentation, self._side, self._mirrored, self._seed = augmentation, side, mirrored, seed
        self._epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self._epoch = epoch

    def __getitem__(self, index: int) -> EncodedExample:
        example = self.examples[index]
        if example.image is None:
            return example
        seed = f"{self._seed}:{self._epoch}:{index}"
        changed = AugmentedImage(example.image, self._augmentation, self._side, self._mirrored, seed)
        return replace(example, image=changed)


def training_rows(
    examples: Sequence[EncodedExample], section: MirroredAugmentationSection | None, *, side: int | None, seed: int
) -> EncodedDataset:
    """The rows of a training split as a recipe wants them; `side` is that of the backbone's images.

    Raises:
        UsageError: augmentation is asked for and no row has an image.
    """
    if section is None:
        return EncodedDataset(examples)
    if side is None or all(example.image is None for example in examples):
        raise UsageError("training.augmentation: no training row has an image")
    limits = section.model_dump()
    mirrored = limits.pop("mirrored")
    return AugmentedDataset(examples, Augmentation(**limits), side=side, mirrored=mirrored, seed=seed)


class EpochLoader(DataLoader[EncodedExample]):
    """A DataLoader that passes the epoch, which Trainer tells it, on to its batch sampler and its rows."""

    def set_epoch(self, epoch: int) -> None:
        assert isinstance(self.batch_sampler, LengthGroupedBatches)
        self.batch_sampler.set_epoch(epoch)
        if isinstance(self.dataset, AugmentedDataset):
            self.dataset.set_epoch(epoch)
