"""The readers on the published files themselves; skipped where those are not at hand."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

import pytest

from bmpeft.datasets import LoadedDataset, read_dataset
from bmpeft.datasets.contamination import EVALUATION_SETS, fingerprint_list
from bmpeft.errors import DataError
from bmpeft.recipe import DataSection


def read(path: Path, dataset: str, **options: object) -> LoadedDataset:
    return read_dataset(DataSection.model_validate({"dataset": dataset, "path": str(path), **options}))


@pytest.fixture(scope="module")
def published(shared_data: Path) -> dict[str, LoadedDataset]:
    return {
        "medqa_test.txt": read(shared_data / "medqa_usmle_test" / "test_4opt.jsonl", "medqa"),
        "medmcqa_validation.txt": read(shared_data / "medmcqa_dev" / "dev.json", "medmcqa", cop_base=1),
        "pubmedqa_test.txt": read(shared_data / "pubmedqa_l", "pubmedqa"),
    }


def test_medqa_is_whole_and_every_split_says_where_it_comes_from(published: dict[str, LoadedDataset]) -> None:
    loaded = published["medqa_test.txt"]
    assert sum(map(len, loaded.splits.values())) == 1273
    assert loaded.contamination == dict.fromkeys(("train", "validation", "test"), "official MedQA test")
    assert loaded.contamination_counts == {split: len(rows) for split, rows in loaded.splits.items()}


def test_a_directory_with_only_the_test_file_is_all_test(shared_data: Path) -> None:
    loaded = read(shared_data / "medqa_usmle_test", "medqa")
    assert {split: len(rows) for split, rows in loaded.splits.items()} == {"test": 1273}


def test_medmcqa_is_read_one_based_and_refused_zero_based(
    published: dict[str, LoadedDataset], shared_data: Path
) -> None:
    loaded = published["medmcqa_validation.txt"]
    assert sum(map(len, loaded.splits.values())) == 4183
    assert loaded.contamination["train"] == "official MedMCQA validation"
    with pytest.raises(DataError, match=r"but data.cop_base=0 allows 0 to 3; is it 1-based"):
        read(shared_data / "medmcqa_dev" / "dev.json", "medmcqa", cop_base=0)


def test_pubmedqa_has_the_official_test_and_only_it_is_marked(published: dict[str, LoadedDataset]) -> None:
    loaded = published["pubmedqa_test.txt"]
    sizes = {split: len(rows) for split, rows in loaded.splits.items()}
    assert sizes["test"] == 500
    assert sizes["train"] + sizes["validation"] == 500
    assert 30 <= sizes["validation"] <= 70
    assert loaded.contamination == {"test": "official PubMedQA test"}


@pytest.mark.parametrize("evaluation_set", EVALUATION_SETS, ids=lambda e: e.file)
def test_packaged_fingerprints_are_those_of_the_files(evaluation_set, published: dict[str, LoadedDataset]) -> None:
    loaded = published[evaluation_set.file]
    official = [split for split, name in loaded.contamination.items() if name == evaluation_set.name]
    rows = [record for split in official for record in loaded.splits[split]]
    packaged = resources.files("bmpeft.datasets").joinpath("official_tests", evaluation_set.file).read_text()
    assert fingerprint_list(evaluation_set, rows) == packaged
