"""Small sets of images and texts in the published formats, for tests of pretraining."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

LABELS = {"0": "normal", "1": "pneumonia"}
IMAGES: dict[str, Any] = {
    "name": "chest",
    "dataset": "medmnist",
    "path": "pneumoniamnist.npz",
    "shows": {"modality": "x-ray", "organ": "chest"},
    "label_shows": {"normal": {"finding": "clear lungs"}, "pneumonia": {"finding": "pneumonia"}},
    "weight": 1,
    "licence": "CC BY 4.0",
}
MEASURED = {"dataset": "medmnist", "path": "pneumoniamnist.npz"}


def write_images(root: Path, train: int = 40, *, shared: int = 0, flag: str = "pneumoniamnist") -> None:
    """A MedMNIST file: dark images are 0, bright ones 1; the first `shared` of the test split are in training, too."""
    arrays: dict[str, np.ndarray] = {}
    for number, (split, count) in enumerate({"train": train, "val": 6, "test": 6}.items()):
        labels = np.arange(count) % 2
        noise = np.random.default_rng(number).integers(0, 80, (count, 28, 28))
        arrays[f"{split}_images"] = (noise + 170 * labels[:, None, None]).astype(np.uint8)
        arrays[f"{split}_labels"] = labels[:, None].astype(np.uint8)
    arrays["test_images"][:shared] = arrays["train_images"][:shared]
    np.savez_compressed(root / f"{flag}.npz", **arrays)
