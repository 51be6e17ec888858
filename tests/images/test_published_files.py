"""Images as their owners publish them: every one is shown."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from bmpeft.images import ImageFile, NpzImage
from bmpeft.images.npz import open_array


@pytest.mark.parametrize(("file", "channels"), [("retinamnist.npz", 3), ("breastmnist.npz", 1)])
def test_rows_of_medmnist(shared_data: Path, file: str, channels: int) -> None:
    path = shared_data / "medmnist28" / file
    with np.load(path) as content:
        for key in ("train_images", "test_images"):
            expected = content[key]
            assert np.array_equal(open_array(path, key), expected)
            shown = np.asarray(NpzImage(path, key, len(expected) - 1).load())
            assert np.array_equal(shown[..., :channels].squeeze(), expected[-1])


@pytest.mark.parametrize("name", ["vqa_rad", "hannover_cxr", "covid_cxr_notes_NC-SA"])
def test_files_of_published_sets(shared_data: Path, name: str) -> None:
    files = sorted(path for path in (shared_data / name / "images").rglob("*") if path.is_file())[::30]
    assert len(files) > 3
    for path in files:
        image = ImageFile(path).load()
        assert image.mode == "RGB" and min(image.size) > 100
        assert np.asarray(image).std() > 5, "not one colour"
