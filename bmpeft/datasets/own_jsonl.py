"""The user's own JSON lines, or JSON array; `data.fields` says which key holds what."""

from __future__ import annotations

from bmpeft.datasets.base import ANY_TASK, DatasetInfo, LoadedDataset
from bmpeft.datasets.own_fields import OWN_OPTIONS, read_own
from bmpeft.datasets.reading import Reading

INFO = DatasetInfo(
    name="jsonl",
    title="your own JSON lines",
    task=ANY_TASK,
    licence="not stated",
    files="a .jsonl or .json file, or a directory with train, dev and test files; images as paths from there",
    source="you",
    reference="docs/adding_a_dataset.md",
    group="group",
    options=OWN_OPTIONS,
)


def read(reading: Reading) -> LoadedDataset:
    """Read JSON; see `bmpeft.datasets.base.Reader`."""
    files = reading.split_files(".jsonl", ".json")
    return read_own(reading, {split: reading.json_rows(file) for split, file in files.items()}, reading.own_image)
