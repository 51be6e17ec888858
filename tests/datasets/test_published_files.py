"""The readers on the published files themselves; skipped where those are not at hand."""

from __future__ import annotations

from collections import Counter
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


@pytest.mark.parametrize(
    ("dataset", "path", "options", "sizes"),
    [
        ("medical_abstracts", "medical_abstracts_tc", {}, {"test": 2888}),
        ("meqsum", "meqsum/biomedgpt_split", {}, {"train": 800, "validation": 100, "test": 100}),
        ("mts_dialog", "mts_dialog", {}, {"train": 1201, "validation": 100, "test1": 200, "test2": 200}),
        ("aci_bench", "aci_bench", {}, {"train": 67, "validation": 20, "test1": 40, "test2": 40, "test3": 40}),
        ("mediqa2021_qs", "mediqa2021_qs_mas/Task1", {}, {"validation": 50, "test": 100}),
        ("mediqa2021_mas", "mediqa2021_qs_mas/Task2", {}, {"validation": 50, "test": 80}),
        ("vqa_rad", "vqa_rad", {"split": {"validation": 0.0}}, {"train": 3064, "test": 451}),
        ("medmnist", "medmnist28/retinamnist.npz", {}, {"train": 1080, "validation": 120, "test": 400}),
        ("medmnist", "medmnist28/breastmnist.npz", {}, {"train": 546, "validation": 78, "test": 156}),
        ("medmnist", "medmnist28/pneumoniamnist_rebuilt.npz", {}, {"train": 4708, "validation": 524, "test": 624}),
    ],
    ids=lambda value: value if isinstance(value, str) and "/" not in value else "",
)
def test_official_splits_have_their_published_sizes(
    shared_data: Path, dataset: str, path: str, options: dict[str, object], sizes: dict[str, int]
) -> None:
    loaded = read(shared_data / path, dataset, **options)
    assert {split: len(rows) for split, rows in loaded.splits.items()} == sizes
    assert loaded.split_method == "official"


@pytest.mark.parametrize(
    ("dataset", "path", "size"),
    [
        ("medical_abstracts", "medical_abstracts_tc/medical_tc_test.csv.gz", 2888),
        ("meqsum", "meqsum", 1000),
        ("medquad", "medquad/medquad_sample.jsonl.gz", 4720),
        ("hannover_cxr", "hannover_cxr", 243),
        ("covid_cxr_notes", "covid_cxr_notes_NC-SA", 249),
    ],
    ids=lambda value: value if isinstance(value, str) and "/" not in value else "",
)
def test_sets_without_official_splits_are_whole_and_divided_by_group(
    shared_data: Path, dataset: str, path: str, size: int
) -> None:
    loaded = read(shared_data / path, dataset)
    assert sum(map(len, loaded.splits.values())) == size
    groups = [{record.group for record in rows} for rows in loaded.splits.values()]
    assert sum(map(len, groups)) == len(set.union(*groups))


def test_the_labels_of_the_published_files(shared_data: Path) -> None:
    def labels(path: str, dataset: str, **options: object) -> dict[str, int]:
        rows = [record for split in read(shared_data / path, dataset, **options).splits.values() for record in split]
        return dict(Counter(record.choices[record.label] for record in rows))

    assert labels("medical_abstracts_tc", "medical_abstracts") == {
        "neoplasms": 633,
        "digestive system diseases": 299,
        "nervous system diseases": 385,
        "cardiovascular diseases": 610,
        "general pathological conditions": 961,
    }
    assert labels("hannover_cxr", "hannover_cxr") == {"ap": 194, "pa": 49}
    assert labels("medmnist28/breastmnist.npz", "medmnist") == {"malignant": 210, "normal, benign": 570}


def test_the_official_test_of_vqa_rad_is_on_training_images_and_a_split_by_image_is_not(shared_data: Path) -> None:
    official = read(shared_data / "vqa_rad", "vqa_rad", split={"validation": 0.0}).splits
    assert {record.group for record in official["test"]} <= {record.group for record in official["train"]}
    assert Counter(record.meta["answer_type"] for record in official["train"]) == {"closed": 1823, "open": 1241}
    divided = read(shared_data / "vqa_rad", "vqa_rad", split_by="image").splits
    images = [{record.image.digest for record in rows if record.image} for rows in divided.values()]
    assert sum(map(len, images)) == len(set.union(*images)) == 314


def test_the_workbook_and_the_tables_of_meqsum_hold_the_same_questions(shared_data: Path) -> None:
    def groups(path: str) -> set[str]:
        splits = read(shared_data / "meqsum" / path, "meqsum").splits
        return {record.group for rows in splits.values() for record in rows}

    assert len(groups("") & groups("biomedgpt_split")) > 950
