"""Readers of published distributions: files -> records.

    dataset = read_dataset(recipe.data, recipe.task.name)
    dataset.splits["train"][0].question

A new dataset is one file here and one line in `registry.py`; docs/adding_a_dataset.md shows one.
"""

from __future__ import annotations

from bmpeft.datasets.base import DatasetInfo, LoadedDataset
from bmpeft.datasets.registry import dataset_info, dataset_names, read_dataset

__all__ = ["DatasetInfo", "LoadedDataset", "dataset_info", "dataset_names", "read_dataset"]
