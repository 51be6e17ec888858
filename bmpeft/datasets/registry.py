"""The readers by name. A new dataset is one file in this package and one line here."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bmpeft.datasets import medmcqa, medqa, pubmedqa
from bmpeft.datasets.base import DatasetInfo, LoadedDataset, Reader
from bmpeft.errors import UsageError, did_you_mean

if TYPE_CHECKING:
    from bmpeft.recipe import DataSection

_READERS: dict[str, Reader] = {
    "medqa": medqa,
    "medmcqa": medmcqa,
    "pubmedqa": pubmedqa,
}


def dataset_names() -> tuple[str, ...]:
    """The names that a recipe may write into `data.dataset`."""
    return tuple(_READERS)


def dataset_info(name: str) -> DatasetInfo:
    """The description of a dataset. Raises UsageError for an unknown name."""
    return _reader(name).INFO


def read_dataset(data: DataSection) -> LoadedDataset:
    """Read the dataset of a recipe.

    Raises:
        UsageError: no reader of this name.
        DataError: a missing, empty or broken file, or a row that is not as documented.
    """
    return _reader(data.dataset).read(data)


def _reader(name: str) -> Reader:
    if name not in _READERS:
        raise UsageError(f"data.dataset: no reader is named {name!r}{did_you_mean(name, _READERS)}")
    return _READERS[name]
