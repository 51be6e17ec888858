"""Which rows form which batch: length-grouped, seeded, and the same whatever the accumulation.

A pure function of (lengths, sizes, seed, epoch), so that an epoch can be replayed from any step.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

from torch.utils.data import DataLoader, Dataset, Sampler

from bmpeft.backbones.base import EncodedExample

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


class EpochLoader(DataLoader[EncodedExample]):
    """A DataLoader that passes the epoch, which Trainer tells it, on to its batch sampler."""

    def set_epoch(self, epoch: int) -> None:
        assert isinstance(self.batch_sampler, LengthGroupedBatches)
        self.batch_sampler.set_epoch(epoch)
