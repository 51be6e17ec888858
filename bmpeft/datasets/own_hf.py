"""The user's own set in the form of the `datasets` library: saved to disk, as parquet files, or by its hub name.

Only data are read: no script of a dataset is run. Images stay encoded; labels with names (ClassLabel) are
read by their names. A hub's dataset with a configuration is `owner/name:configuration`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bmpeft.datasets.base import ANY_TASK, DatasetInfo, LoadedDataset, missing
from bmpeft.datasets.own_fields import OWN_OPTIONS, read_own
from bmpeft.datasets.reading import ALL, Reading
from bmpeft.datasets.rows import Row
from bmpeft.datasets.splits import split_name
from bmpeft.errors import DataError
from bmpeft.records import ImageReference

if TYPE_CHECKING:
    import datasets

INFO = DatasetInfo(
    name="hf",
    title="your own set in the form of the datasets library",
    task=ANY_TASK,
    licence="not stated",
    files="a directory that `save_to_disk` wrote, a .parquet file or a directory of them, or a hub's owner/name",
    source="you, or huggingface.co/datasets",
    reference="docs/adding_a_dataset.md",
    group="group",
    options=OWN_OPTIONS,
)
HUB_NAME = re.compile(r"(?P<name>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(:(?P<configuration>[\w.-]+))?")


SHARD = re.compile(r"(?P<split>[A-Za-z]+)([-_.].*)?\.parquet")


def read(reading: Reading) -> LoadedDataset:
    """Read a set of the `datasets` library; see `bmpeft.datasets.base.Reader`."""
    tables = _by_split(reading, _load(reading.path, reading.data.path))
    sources = {split: _rows(reading.path, table) for split, table in tables.items()}
    return read_own(reading, sources, _image)


def _load(path: Path, name: str) -> Mapping[str, datasets.Dataset]:
    """Split, as the set names it -> table."""
    if path.is_file():
        return {ALL: _parquet([path])}
    if not path.exists():
        hub = HUB_NAME.fullmatch(name)
        if hub is None:
            raise missing(path, INFO)
        return _from_hub(path, hub["name"], hub["configuration"])
    if any((path / file).is_file() for file in ("dataset_dict.json", "state.json")):
        return _saved(path)
    shards: dict[str, list[Path]] = {}
    for file in sorted(path.rglob("*.parquet")):
        match = SHARD.fullmatch(file.name)
        shards.setdefault(match["split"] if match else ALL, []).append(file)
    if not shards:
        raise DataError(path, f"holds neither parquet files nor a saved set; {INFO.title} needs {INFO.files}")
    return {split: _parquet(files) for split, files in shards.items()}


def _parquet(files: list[Path]) -> datasets.Dataset:
    # Not by load_dataset, which would leave a copy of the rows in the user's cache.
    import pyarrow
    from datasets import Dataset
    from datasets.table import InMemoryTable
    from pyarrow import parquet

    tables = []
    for file in files:
        try:
            tables.append(parquet.read_table(file))
        except (pyarrow.ArrowException, OSError):
            raise DataError(file, "no parquet file, or a damaged one") from None
    try:
        return Dataset(InMemoryTable(pyarrow.concat_tables(tables)))
    except (pyarrow.ArrowException, ValueError, TypeError):
        raise DataError(files[0].parent, "its parquet files do not have the same columns") from None


def _saved(path: Path) -> Mapping[str, datasets.Dataset]:
    from datasets import DatasetDict, load_from_disk

    try:
        found = load_from_disk(str(path))
    except Exception as error:  # whatever is wrong with the files; the library has no common class for it
        raise DataError(path, f"is no set that save_to_disk wrote, or damaged ({type(error).__name__})") from None
    return found if isinstance(found, DatasetDict) else {ALL: found}


def _from_hub(path: Path, name: str, configuration: str | None) -> Mapping[str, datasets.Dataset]:
    from datasets import DatasetDict, load_dataset

    try:
        found = load_dataset(name, configuration)
    except Exception as error:  # offline, unknown, gated, a script: each its own class, from several libraries
        raise DataError(
            path,
            f"nothing of this name is here, and the hub gave no dataset {name!r} ({type(error).__name__}): "
            "offline, unknown, private, or it has several configurations (owner/name:configuration)",
        ) from None
    return found if isinstance(found, DatasetDict) else {ALL: found}


def _by_split(reading: Reading, found: Mapping[str, datasets.Dataset]) -> dict[str, datasets.Dataset]:
    """The tables by our names of splits; one table alone is no division. Unknown splits are left out and counted."""
    if len(found) == 1:
        return {ALL: next(iter(found.values()))}
    tables: dict[str, datasets.Dataset] = {}
    for name, table in found.items():
        split = split_name(name)
        if split is None:
            reading.leave_out(f"rows of the split {name!r}", len(table))
        elif split in tables:
            raise DataError(reading.path, f"has several splits that could be {split}; {name!r} is one of them")
        else:
            tables[split] = table
    if not tables:
        raise DataError(reading.path, f"none of its splits is train, validation or test: {', '.join(found)}")
    return tables


def _rows(path: Path, table: datasets.Dataset) -> Iterator[Row]:
    from datasets import ClassLabel, Image

    for name, feature in table.features.items():
        if isinstance(feature, Image):
            table = table.cast_column(name, Image(decode=False))
    names = {name: feature.names for name, feature in table.features.items() if isinstance(feature, ClassLabel)}
    for i, values in enumerate(table):
        labels = {name: _label(names[name], values[name]) for name in names}
        yield Row(path, i + 1, {**values, **labels})


def _label(names: list[str], value: int | None) -> str | None:
    """The name of a label; -1 is how the library writes one that is hidden."""
    return names[value] if value is not None and 0 <= value < len(names) else None


def _image(row: Row, value: Any) -> ImageReference:
    from bmpeft.images import BytesImage, ImageFile

    if isinstance(value, Mapping) and isinstance(value.get("bytes"), bytes):
        return BytesImage(value["bytes"], name=f"{row.path}, row {row.number}")
    if isinstance(value, Mapping) and isinstance(value.get("path"), str) and Path(value["path"]).is_file():
        return ImageFile(Path(value["path"]))
    raise row.error("the column of images holds no image of the datasets library")
