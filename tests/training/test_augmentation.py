"""`training.augmentation`: training rows differ from epoch to epoch, reproducibly, and nothing else does."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from bmpeft.backbones.base import EncodedExample
from bmpeft.errors import UsageError
from bmpeft.images import NpzImage
from bmpeft.recipe import MirroredAugmentationSection
from bmpeft.training.batches import AugmentedDataset, EpochLoader, LengthGroupedBatches, training_rows

SIDE = 32


@pytest.fixture
def examples(tmp_path: Path) -> list[EncodedExample]:
    pixels = np.random.default_rng(0).integers(0, 256, (3, 28, 28), dtype=np.uint8)
    np.savez(tmp_path / "images.npz", train_images=pixels)
    images = [NpzImage(tmp_path / "images.npz", "train_images", index) for index in range(3)]
    rows = [EncodedExample(input_ids=(0, 5, 2), labels=(7, 2), image=image, image_patches=4) for image in images]
    return [*rows, EncodedExample(input_ids=(0, 6, 2), labels=(8, 2))]


def read(rows: AugmentedDataset, epoch: int) -> list[bytes]:
    rows.set_epoch(epoch)
    return [row.image.load().tobytes() for row in map(rows.__getitem__, range(len(rows))) if row.image is not None]


def augmented(examples: list[EncodedExample], seed: int = 0, **limits: object) -> AugmentedDataset:
    section = MirroredAugmentationSection.model_validate(limits)
    rows = training_rows(examples, section, side=SIDE, seed=seed)
    assert isinstance(rows, AugmentedDataset)
    return rows


def test_every_epoch_and_row_has_its_own_changes_and_a_second_reading_the_same(examples: list[EncodedExample]) -> None:
    rows = augmented(examples)
    epochs = [read(rows, epoch) for epoch in (0, 1)]
    assert len({image for images in epochs for image in images}) == 6
    assert read(augmented(examples), 1) == epochs[1]  # as after a resumed run
    assert read(augmented(examples, seed=1), 1) != epochs[1]
    assert rows[3] == examples[3]
    assert [rows[0].input_ids, rows[0].labels] == [examples[0].input_ids, examples[0].labels]


def test_the_loader_tells_the_epoch(examples: list[EncodedExample]) -> None:
    rows = augmented(examples)
    sampler = LengthGroupedBatches(rows.lengths(), batch_size=4, accumulation=1, seed=0)
    loader = EpochLoader(rows, batch_sampler=sampler, collate_fn=list)
    seen = set()
    for epoch in (0, 1):
        loader.set_epoch(epoch)
        seen |= {row.image.digest for batch in loader for row in batch if row.image is not None}
    assert len(seen) == 6


def test_without_the_section_images_are_read_as_they_are(examples: list[EncodedExample]) -> None:
    rows = training_rows(examples, None, side=SIDE, seed=0)
    assert [rows[i] for i in range(len(rows))] == examples


def test_images_are_mirrored_only_where_that_is_said(examples: list[EncodedExample]) -> None:
    nothing = dict.fromkeys(("shift", "rotation", "scale", "brightness", "contrast"), 0.0)
    plain, mirrored = (augmented(examples, **nothing, mirrored=said) for said in (False, True))
    assert len({read(plain, epoch)[0] for epoch in range(12)}) == 1
    assert len({read(mirrored, epoch)[0] for epoch in range(12)}) == 2


def test_rows_without_images_are_refused(examples: list[EncodedExample]) -> None:
    section = MirroredAugmentationSection()
    for rows, side in ((examples[3:], SIDE), (examples, None)):
        with pytest.raises(UsageError, match=r"training\.augmentation: no training row has an image"):
            training_rows(rows, section, side=side, seed=0)
