"""`SequenceTrainer` on an endless mixture: every text parameter trains, checkpoints hold the whole state."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch import nn
from torch.utils.data import DataLoader, Dataset, Sampler
from transformers import Trainer
from transformers.trainer_utils import get_last_checkpoint

from bmpeft.backbones.base import EncodedExample
from bmpeft.backbones.quiet_loading import no_progress_bars
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
    """Trains a plain model on a `MixtureDataset`; its checkpoints are Trainer's own, optimizer included."""

    def __init__(self, *args: Any, batches: MixtureBatches, **kwargs: Any) -> None:
        super().__init__(*args, accuracy=None, adapter_config=b"", **kwargs)
        self.args.save_total_limit = 2
        self._mixture = batches

    def get_train_dataloader(self) -> DataLoader[Any]:
        """The batches of the mixture in their order."""
        assert self.train_dataset is not None
        return DataLoader(self.train_dataset, batch_sampler=self._mixture, collate_fn=self.data_collator)

    def fit(self) -> float:
        """Train on, from the last whole checkpoint where there is one."""
        assert self.model is not None
        try:
            return float(self.train(resume_from_checkpoint=last_checkpoint(self.directory)).training_loss)
        finally:
            self.model.eval()

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        with no_progress_bars():
            Trainer._save_checkpoint(self, model, trial)


def last_checkpoint(directory: Path) -> str | None:
    """The newest checkpoint that was written to its end (its state file is written last)."""
    if not directory.is_dir():
        return None
    newest = get_last_checkpoint(str(directory))
    if newest is not None and not (Path(newest) / "trainer_state.json").exists():
        Path(newest).rename(Path(newest).with_name(f"incomplete-{Path(newest).name}"))
        return last_checkpoint(directory)
    return newest
