"""`SequenceTrainer` on an endless mixture: every text parameter trains."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, Sampler

from bmpeft.backbones.base import EncodedExample
from bmpeft.training.pretraining.rows import MixtureRows
from bmpeft.training.trainer import SequenceTrainer

BETAS = (0.9, 0.98)
"""Of AdamW; as in Vaswani et al. 2017, section 5.3: early steps are forgotten sooner than by the default 0.999."""
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
    """Trains a plain model on a `MixtureDataset`; the last step's weights are the result.

    Args:
        batches: which rows make which batch.
        encoder_rate_factor: the encoder's own parameters (not the embedding it shares with the decoder)
            train at this share of the learning rate. An untrained decoder takes whatever is constant in
            the encoder's output for a bias, and at the full rate the encoder gives it nothing else.
    """

    def __init__(self, *args: Any, batches: MixtureBatches, encoder_rate_factor: float, **kwargs: Any) -> None:
        super().__init__(*args, accuracy=None, **kwargs)
        self._mixture = batches
        self._encoder_rate_factor = encoder_rate_factor

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """Trainer's AdamW, the encoder's parameters in groups of their own."""
        if self.optimizer is not None:
            return self.optimizer
        optimizer: torch.optim.Optimizer = super().create_optimizer(model)
        network: Any = self.backbone.model
        shared = {id(parameter) for parameter in network.decoder.parameters()}
        encoder = {id(parameter) for parameter in network.encoder.parameters()} - shared
        groups = optimizer.param_groups
        optimizer.param_groups = [
            {**group, "params": parameters, "lr": group["lr"] * factor, "betas": BETAS}
            for factor, inside in ((1.0, False), (self._encoder_rate_factor, True))
            for group in groups
            if (parameters := [p for p in group["params"] if (id(p) in encoder) == inside])
        ]
        return optimizer

    def get_train_dataloader(self) -> DataLoader[Any]:
        """The batches of the mixture in their order."""
        assert self.train_dataset is not None
        return DataLoader(self.train_dataset, batch_sampler=self._mixture, collate_fn=self.data_collator)

    def _take_best(self) -> None:
        """Not here: the weights of the last step are the result, whatever validation says."""
