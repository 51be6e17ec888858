"""`SequenceTrainer` on an endless mixture: every text parameter trains."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

from torch.utils.data import DataLoader, Dataset, Sampler

from bmpeft.backbones.base import EncodedExample
from bmpeft.training.pretraining.rows import MixtureRows
from bmpeft.training.trainer import SequenceTrainer

WINDOW_ROWS = 2048
"""Rows that are sorted by length and cut into batches together."""


class MixtureBatches(Sampler[list[int]]):
    """Batches of row numbers up to a number of tokens, padding included; a pure function of the seed."""

    def __init__(self, rows: MixtureRows, *, batch_tokens: int, batches: int, seed: int) -> None:
        self._rows, self._batch_tokens, self._batches, self._seed = rows, batch_tokens, batches, seed

    def __len__(self) -> int:
        return self._batches

    def __iter__(self) -> Iterator[list[int]]:
        produced, window = 0, 0
        while produced < self._batches:
            for batch in self._window(window)[: self._batches - produced]:
                yield batch
                produced += 1
            window += 1

    def _window(self, window: int) -> list[list[int]]:
        numbers = range(window * WINDOW_ROWS, (window + 1) * WINDOW_ROWS)
        sizes = {n: (len(row.input_ids), len(row.labels or ())) for n in numbers for row in (self._rows[n],)}
        batches: list[list[int]] = [[]]
        source, target = 0, 0
        for number in sorted(numbers, key=lambda n: (sum(sizes[n]), n)):
            source, target = max(source, sizes[number][0]), max(target, sizes[number][1])
            if batches[-1] and (len(batches[-1]) + 1) * (source + target) > self._batch_tokens:
                batches.append([])
                source, target = sizes[number]
            batches[-1].append(number)
        random.Random(f"{self._seed}:{window}").shuffle(batches)
        return batches


class MixtureDataset(Dataset[EncodedExample]):
    """Rows of the mixture for a DataLoader; `length` is only what Trainer asks for."""

    def __init__(self, rows: MixtureRows, length: int) -> None:
        self._rows, self._length = rows, length

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, number: int) -> EncodedExample:
        return self._rows[number]


class PretrainTrainer(SequenceTrainer):
    """Trains a plain model on a `MixtureDataset`; the last step's weights are the result."""

    def __init__(self, *args: Any, batches: MixtureBatches, **kwargs: Any) -> None:
        super().__init__(*args, accuracy=None, **kwargs)
        self._mixture = batches

    def get_train_dataloader(self) -> DataLoader[Any]:
        """The batches of the mixture in their order."""
        assert self.train_dataset is not None
        return DataLoader(self.train_dataset, batch_sampler=self._mixture, collate_fn=self.data_collator)

    def _take_best(self) -> None:
        """Not here: the weights of the last step are the result, whatever validation says."""
