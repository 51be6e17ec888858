"""References: nothing is read before it is wanted, and what is missing or damaged is named."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import os
import pickle
import zipfile
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bmpeft.errors import DataError, ImageError
from bmpeft.images import Base64Image, BytesImage, ImageFile, NpzImage
from bmpeft.images.npz import open_array
from bmpeft.records import ImageReference
from tests.images.test_reading import COLOURS, encoded

DATA = encoded(COLOURS)
GREY = np.random.default_rng(1).integers(0, 256, (5, 28, 20), np.uint8)
RGB = np.random.default_rng(2).integers(0, 256, (3, 8, 9, 3), np.uint8)


@pytest.fixture
def npz(tmp_path: Path) -> Path:
    path = tmp_path / "medmnist.npz"
    np.savez_compressed(path, train_images=GREY, test_images=RGB, train_labels=np.zeros((5, 1), np.uint8))
    return path


def references(directory: Path) -> list[ImageReference]:
    """One of each kind, none of which exists."""
    path = directory / "absent"
    return [ImageFile(path), NpzImage(path, "train_images", 3), Base64Image(path, 10, 20), BytesImage(b"no image")]


def test_a_reference_is_a_value_that_reads_nothing(tmp_path: Path) -> None:
    made = references(tmp_path)
    assert len({*made, *references(tmp_path)}) == len(made)
    assert pickle.loads(pickle.dumps(made)) == made
    assert "no image" not in repr(made), "an image's content must not be shown by accident"


def test_what_cannot_be_read_is_a_data_error(tmp_path: Path) -> None:
    for reference in references(tmp_path):
        with pytest.raises(DataError, match=r"absent: No such file or directory|image in memory: not an image"):
            reference.load()


def test_the_same_image_comes_out_of_every_place(tmp_path: Path) -> None:
    file, table = tmp_path / "scan.dat", tmp_path / "table.tsv"
    file.write_bytes(DATA)
    text = base64.b64encode(DATA)
    table.write_bytes(b"7\tquestion\t" + text + b"\n")
    made = [ImageFile(file), BytesImage(DATA), Base64Image(table, 11, len(text), row=1)]
    for reference in made:
        assert np.array_equal(np.asarray(reference.load()), COLOURS)
        assert reference.digest == hashlib.sha256(DATA).hexdigest()


@given(data=st.binary(min_size=1, max_size=40), url_safe=st.booleans(), padded=st.booleans())
def test_both_alphabets_of_base64_are_read(
    tmp_path_factory: pytest.TempPathFactory, data: bytes, url_safe: bool, padded: bool
) -> None:
    text = base64.urlsafe_b64encode(data) if url_safe else base64.b64encode(data)
    text = text if padded else text.rstrip(b"=")
    path = tmp_path_factory.getbasetemp() / "table.tsv"
    path.write_bytes(b"x" + text)
    assert Base64Image(path, 1, len(text)).digest == hashlib.sha256(data).hexdigest()


def test_bad_base64_names_file_and_row(tmp_path: Path) -> None:
    path = tmp_path / "table.tsv"
    path.write_bytes(b"QUJD*UJD")
    with pytest.raises(ImageError, match=r"table\.tsv, row 4: the image is not base64 text"):
        Base64Image(path, 0, 8, row=4).load()
    with pytest.raises(ImageError, match=r"table\.tsv, row 4: ends before its image at byte 4 does"):
        Base64Image(path, 4, 8, row=4).load()


def test_only_files_are_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")  # opening it would wait for ever
    for path in (tmp_path / "pipe", tmp_path, Path("/dev/zero")):
        with pytest.raises(ImageError, match="is not a file"):
            ImageFile(path).load()
    with (tmp_path / "large").open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(ImageError, match="more than 512 MiB"):
        ImageFile(tmp_path / "large").load()
    with pytest.raises(ImageError, match="cannot be read"):
        ImageFile(tmp_path / "a\0b").load()


def test_rows_of_an_npz(npz: Path) -> None:
    for row in (4, 0, 2):
        image = NpzImage(npz, "train_images", row)
        assert np.array_equal(np.asarray(image.load()), np.stack([GREY[row]] * 3, axis=-1))
        assert image.digest == hashlib.sha256(b"(28, 20)" + GREY[row].tobytes()).hexdigest()
    assert np.array_equal(np.asarray(NpzImage(npz, "test_images", 1).load()), RGB[1])
    plain = npz.with_name("plain.npz")
    np.savez(plain, train_images=GREY)
    assert NpzImage(plain, "train_images", 3).digest == NpzImage(npz, "train_images", 3).digest


def test_an_array_is_unpacked_once_and_again_when_the_file_changes(npz: Path) -> None:
    first = open_array(npz, "train_images")
    assert open_array(npz, "train_images") is first
    np.savez(npz, train_images=255 - GREY)
    assert np.array_equal(np.asarray(NpzImage(npz, "train_images", 0).load())[..., 0], 255 - GREY[0])
    assert np.array_equal(first, GREY), "who still holds the old array keeps it"


@pytest.mark.parametrize(
    ("key", "row", "problem"),
    [
        ("val_images", 0, "has no array 'val_images'"),
        ("train_images", 5, r"train_images has 5 images, and image 5 was asked for \(from 0\)"),
        ("train_images", -1, "train_images has 5 images, and image -1 was asked for"),
        ("train_labels", 0, r"train_labels: expected uint8 of shape \[N, H, W\]"),
    ],
)
def test_what_an_npz_does_not_have_is_named(npz: Path, key: str, row: int, problem: str) -> None:
    with pytest.raises(ImageError, match=rf"medmnist\.npz: {problem}"):
        NpzImage(npz, key, row).load()


@pytest.mark.parametrize(
    "array",
    [np.zeros((2, 4, 4), np.float32), np.zeros((2, 4, 0), np.uint8), np.asfortranarray(RGB), np.array([{}] * 2)],
    ids=["float", "no-width", "fortran", "pickled"],
)
def test_other_arrays_are_refused_and_nothing_is_unpickled(tmp_path: Path, array: np.ndarray) -> None:
    np.savez(tmp_path / "a.npz", images=array)
    with pytest.raises(ImageError, match=r"a\.npz: images: expected uint8"):
        NpzImage(tmp_path / "a.npz", "images", 0).load()


@pytest.mark.parametrize("extra", [-1, 1])
def test_an_array_of_another_length_than_it_says_is_refused(tmp_path: Path, extra: int) -> None:
    buffer = BytesIO()
    np.save(buffer, GREY)
    content = buffer.getvalue()[:extra] if extra < 0 else buffer.getvalue() + b"\0"
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("images.npy", content)
    with pytest.raises(ImageError, match="not as long as its shape says"):
        NpzImage(tmp_path / "a.npz", "images", 0).load()


def test_an_array_with_a_damaged_header_is_refused(tmp_path: Path) -> None:
    buffer = BytesIO()
    np.save(buffer, GREY)
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("images.npy", buffer.getvalue().replace(b"'shape': (", b"'shape': $"))
    with pytest.raises(ImageError, match="not an npz file, or damaged"):
        NpzImage(tmp_path / "a.npz", "images", 0).load()


@given(cut=st.integers(0, 3000), flip=st.integers(0, 3000))
def test_a_damaged_npz_is_one_error(tmp_path_factory: pytest.TempPathFactory, cut: int, flip: int) -> None:
    buffer = BytesIO()
    np.savez_compressed(buffer, images=GREY)
    content = bytearray(buffer.getvalue())
    content[flip % len(content)] ^= 0xFF
    path = tmp_path_factory.getbasetemp() / "damaged.npz"
    path.write_bytes(bytes(content[: max(len(content) - cut, 0)] if cut % 2 else content))
    with contextlib.suppress(ImageError):
        NpzImage(path, "images", 2).load()
