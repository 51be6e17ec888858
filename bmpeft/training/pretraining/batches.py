"""Batches of a mixture: rows of one task each, texts of about one length, images always of one number.

Rows of text are sorted by length, so that little is padding. Rows with an image are not: the image tower
normalises by the statistics of its batch (BatchNorm), and a batch sorted by the length of its answers would hold
images of one label.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterator

from torch.utils.data import Sampler

from bmpeft.training.pretraining.rows import FINAL_ROWS, MixtureRow, MixtureRows, PretrainTask

WINDOW_ROWS = 2048
"""Rows that are sorted by length and cut into batches together."""


class MixtureBatches(Sampler[list[int]]):
    """Batches of row numbers; a pure function of the seed.

    Args:
        rows: of the mixture.
        batch_tokens: of source and target in a batch of texts, padding included; a longer row is one of its own.
        batch_images: rows of a batch with images.
        batches: how many.
        seed: of their order.
        final: how many of them, at the end, have the sources' final weights.
    """

    def __init__(
        self, rows: MixtureRows, *, batch_tokens: int, batch_images: int, batches: int, seed: int, final: int = 0
    ) -> None:
        self._rows, self._batches, self._seed, self._final = rows, batches, seed, final
        self._batch_tokens, self._batch_images = batch_tokens, batch_images

    def __len__(self) -> int:
        return self._batches

    def __iter__(self) -> Iterator[list[int]]:
        for first_window, count in ((0, self._batches - self._final), (FINAL_ROWS // WINDOW_ROWS, self._final)):
            produced, window = 0, first_window
            waiting: defaultdict[PretrainTask, list[int]] = defaultdict(list)
            while produced < count:
                for batch in self._window(window, waiting)[: count - produced]:
                    yield batch
                    produced += 1
                window += 1

    def _window(self, window: int, waiting: defaultdict[PretrainTask, list[int]]) -> list[list[int]]:
        """The batches of one window; rows with an image that do not fill one wait for the next window."""
        texts: defaultdict[PretrainTask, dict[int, MixtureRow]] = defaultdict(dict)
        for number in range(window * WINDOW_ROWS, (window + 1) * WINDOW_ROWS):
            row = self._rows.row(number)
            if row.example.image is None:
                texts[row.task][number] = row
            else:
                waiting[row.task].append(number)
        batches = [batch for _, rows in sorted(texts.items()) for batch in self._by_length(rows)]
        for _, numbers in sorted(waiting.items()):
            while len(numbers) >= self._batch_images:
                batches.append(numbers[: self._batch_images])
                del numbers[: self._batch_images]
        random.Random(f"{self._seed}:{window}").shuffle(batches)
        return batches

    def _by_length(self, rows: dict[int, MixtureRow]) -> list[list[int]]:
        sizes = {n: (len(row.example.input_ids), len(row.example.labels or ())) for n, row in rows.items()}
        batches: list[list[int]] = [[]]
        source, target = 0, 0
        for number in sorted(rows, key=lambda n: (sum(sizes[n]), n)):
            source, target = max(source, sizes[number][0]), max(target, sizes[number][1])
            if batches[-1] and (len(batches[-1]) + 1) * (source + target) > self._batch_tokens:
                batches.append([])
                source, target = sizes[number]
            batches[-1].append(number)
        return batches
