"""Sets in the form of the datasets library: saved, parquet, hub; and none of them is there or whole."""

from __future__ import annotations

from pathlib import Path

import datasets
import pytest

from bmpeft.errors import DataError
from bmpeft.recipe import parse_recipe
from tests.datasets.files import load, png

NO_SPLITS = {"validation": 0.0, "test": 0.0}


@pytest.fixture(scope="module")
def labelled() -> datasets.Dataset:
    features = datasets.Features(
        {
            "scan": datasets.Image(),
            "finding": datasets.ClassLabel(names=["well", "ill"]),
            "patient": datasets.Value("int64"),
        }
    )
    rows = {"scan": [{"bytes": png(n), "path": None} for n in range(6)], "finding": [0, 1] * 3, "patient": [1, 2] * 3}
    return datasets.Dataset.from_dict(rows, features=features)


FIELDS = {"image": "scan", "label": "finding", "group": "patient"}


def test_a_saved_set_keeps_names_of_labels_and_its_images(tmp_path: Path, labelled: datasets.Dataset) -> None:
    labelled.save_to_disk(tmp_path / "one")
    record = load("hf", tmp_path / "one", "image_classification", fields=FIELDS, split=NO_SPLITS).splits["train"][1]
    assert (record.choices, record.label, record.group) == (("ill", "well"), 0, "2")
    assert record.image.load().size == (12, 12)
    datasets.DatasetDict({"train": labelled, "validation": labelled, "extra": labelled}).save_to_disk(tmp_path / "two")
    loaded = load("hf", tmp_path / "two", "image_classification", fields=FIELDS)
    assert {split: len(rows) for split, rows in loaded.splits.items()} == {"train": 6, "validation": 6}
    assert loaded.notes == ("6 rows of the split 'extra' left out",)


def test_parquet_files_are_joined_by_split_without_a_copy_in_the_cache(
    tmp_path: Path, labelled: datasets.Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    data = tmp_path / "data"
    data.mkdir()
    for name in ("train-00000-of-00002", "train-00001-of-00002", "test-00000-of-00001"):
        labelled.to_parquet(data / f"{name}.parquet")
    loaded = load("hf", tmp_path, "image_classification", fields={"image": "scan", "label": "finding"}, split=NO_SPLITS)
    assert {split: len(rows) for split, rows in loaded.splits.items()} == {"train": 12, "test": 6}
    assert loaded.splits["test"][0].choices == ("ill", "well")
    assert not (tmp_path / "cache").exists() or not list((tmp_path / "cache").rglob("*.arrow"))


@pytest.mark.parametrize("content", [b"", b"PAR1secretPAR1", b"secret"], ids=range(3))
def test_damage_is_one_line(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "train.parquet").write_bytes(content)
    with pytest.raises(DataError, match=r"train.parquet: no parquet file, or a damaged one"):
        load("hf", tmp_path, "summarization")


def test_a_damaged_saved_set_is_one_line(tmp_path: Path, labelled: datasets.Dataset) -> None:
    labelled.save_to_disk(tmp_path / "one")
    (tmp_path / "one" / "state.json").write_text("{}")
    with pytest.raises(DataError, match=r"one: is no set that save_to_disk wrote, or damaged"):
        load("hf", tmp_path / "one", "summarization")


def test_an_unreachable_hub_is_one_line() -> None:
    with pytest.raises(DataError, match=r"nothing of this name is here, and the hub gave no dataset 'nobody/nothing'"):
        load("hf", Path("nobody/nothing"), "summarization")


def test_what_is_neither_here_nor_a_hub_name(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="gone: not found; your own set in the form of the datasets library needs"):
        load("hf", tmp_path / "gone", "summarization")
    with pytest.raises(DataError, match="holds neither parquet files nor a saved set"):
        load("hf", tmp_path, "summarization")


def test_an_adapter_remembers_a_hub_name_whole_and_of_a_directory_only_the_name(tmp_path: Path) -> None:
    def remembered(path: str) -> str:
        content = {
            "backbone": {"name": "biomedgpt-nano"},
            "data": {"dataset": "hf", "path": path},
            "output": {"name": "x"},
        }
        return str(parse_recipe(content, source="x").portable()["data"]["path"])

    assert remembered("owner/name:configuration") == "owner/name:configuration"
    assert remembered(str(tmp_path)) == tmp_path.name
