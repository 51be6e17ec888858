"""The readers by name. A new dataset is one file in this package and one line here."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bmpeft.datasets import (
    aci_bench,
    biomedgpt_tsv,
    covid_cxr_notes,
    hannover_cxr,
    iu_xray,
    medical_abstracts,
    mediqa2021_mas,
    mediqa2021_qs,
    medmcqa,
    medmnist,
    medqa,
    medquad,
    meqsum,
    mmlu,
    mts_dialog,
    own_csv,
    own_hf,
    own_images,
    own_jsonl,
    pubmedqa,
    vqa_rad,
)
from bmpeft.datasets.base import DatasetInfo, LoadedDataset, Reader
from bmpeft.datasets.reading import Reading
from bmpeft.errors import UsageError, did_you_mean

if TYPE_CHECKING:
    from bmpeft.recipe import DataSection

_READERS: dict[str, Reader] = {
    "aci_bench": aci_bench,
    "biomedgpt_tsv": biomedgpt_tsv,
    "covid_cxr_notes": covid_cxr_notes,
    "hannover_cxr": hannover_cxr,
    "iu_xray": iu_xray,
    "medical_abstracts": medical_abstracts,
    "mediqa2021_mas": mediqa2021_mas,
    "mediqa2021_qs": mediqa2021_qs,
    "medmcqa": medmcqa,
    "medmnist": medmnist,
    "medqa": medqa,
    "medquad": medquad,
    "meqsum": meqsum,
    "mmlu": mmlu,
    "mts_dialog": mts_dialog,
    "pubmedqa": pubmedqa,
    "vqa_rad": vqa_rad,
    "csv": own_csv,
    "hf": own_hf,
    "image_folder": own_images,
    "jsonl": own_jsonl,
}


def dataset_names() -> tuple[str, ...]:
    """The names that a recipe may write into `data.dataset`."""
    return tuple(_READERS)


def dataset_info(name: str) -> DatasetInfo:
    """The description of a dataset. Raises UsageError for an unknown name."""
    return _reader(name).INFO


def read_dataset(data: DataSection, task: str | None = None) -> LoadedDataset:
    """Read the dataset of a recipe.

    Args:
        data: the recipe's section.
        task: `task.name` of the recipe; default: the dataset's own task.

    Raises:
        UsageError: no reader of this name, or it has no such task, variant or option.
        DataError: a missing, empty or broken file, or a row that is not as documented.
    """
    reader = _reader(data.dataset)
    return reader.read(Reading(reader.INFO, data, task))


def _reader(name: str) -> Reader:
    if name not in _READERS:
        raise UsageError(f"data.dataset: no reader is named {name!r}{did_you_mean(name, _READERS)}")
    return _READERS[name]
