"""What all readers share: bad rows that are allowed, splits by group or image, options that a dataset has not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bmpeft.datasets import dataset_info, dataset_names
from bmpeft.datasets.leakage import find_leakage
from bmpeft.datasets.splits import split_name
from bmpeft.errors import DataError, ImageError, UsageError
from bmpeft.images import ImageFile
from bmpeft.recipe import DataSection
from tests.datasets.files import load, png, records, write_csv, write_lines


def questions(n: int) -> list[dict[str, Any]]:
    return [{"question": f"Which {i}?", "options": {"A": "a", "B": "b"}, "answer_idx": "A"} for i in range(n)]


def test_bad_rows_up_to_the_number_are_left_out_and_counted(tmp_path: Path) -> None:
    rows = questions(60)
    for i in (7, 30):
        rows[i]["answer_idx"] = "X"
    path = write_lines(tmp_path / "q.jsonl", rows)
    path.write_bytes(path.read_bytes() + b'{"broken\n')
    loaded = load("medqa", path, skip_bad_rows=3)
    assert (len(records(loaded)), loaded.skipped_rows) == (58, 3)
    assert [problem.split(": ")[0] for problem in loaded.bad_rows] == [f"{path}, row {n}" for n in (8, 31, 61)]
    for allowed in (0, 1, 2):
        with pytest.raises(DataError, match=r"q.jsonl, row 8: answer_idx 'X' is not among the options"):
            load("medqa", path, skip_bad_rows=allowed)


def test_where_all_rows_are_bad_the_first_one_is_the_error(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "t.csv", [["condition_label", "medical_abstract"], ["9", "a"], ["8", "b"]])
    with pytest.raises(DataError, match=r"t.csv, row 2: 'condition_label' must be one of"):
        load("medical_abstracts", path, skip_bad_rows=99)


def test_a_wrong_column_is_never_a_bad_row(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "t.csv", [["label", "medical_abstract"], ["1", "a"]])
    with pytest.raises(DataError, match=r"t.csv, row 1: there is no column 'condition_label'"):
        load("medical_abstracts", path, skip_bad_rows=99)


def test_a_broken_image_is_named_with_the_row_that_names_it(tmp_path: Path) -> None:
    rows = [{"image": f"{n}.png", "answers": f"caption {n}", "group": str(n)} for n in range(20)]
    for n in range(20):
        (tmp_path / f"{n}.png").write_bytes(png(n) if n != 5 else b"secret")
    path = write_lines(tmp_path / "rows.jsonl", rows)
    loaded = load("jsonl", path, "captioning", split={"validation": 0.0, "test": 0.0})
    with pytest.raises(ImageError) as caught:
        find_leakage(loaded.splits["train"], {}, scored=())
    assert str(caught.value).startswith(f"{tmp_path / '5.png'}: not an image of a known kind")
    assert str(caught.value).endswith(" (named in rows.jsonl, row 6)")
    image = loaded.splits["train"][5].image
    assert image == ImageFile(tmp_path / "5.png") and hash(image) == hash(ImageFile(tmp_path / "5.png"))
    image.path.unlink()
    with pytest.raises(ImageError, match=r"5\.png: No such file or directory \(named in rows\.jsonl, row 6\)$"):
        _ = image.digest


def test_broken_images_are_bad_rows_where_bad_rows_are_allowed(tmp_path: Path) -> None:
    rows = []
    for n in range(60):
        (tmp_path / f"{n}.png").write_bytes(png(n))
        rows.append({"image": f"{n}.png", "answers": f"Caption {n}."})
    (tmp_path / "5.png").write_bytes(png(5)[:-30])
    path = write_lines(tmp_path / "c.jsonl", rows)
    loaded = load("jsonl", path, "captioning", skip_bad_rows=1)
    assert (len(records(loaded)), loaded.skipped_rows) == (59, 1)
    assert loaded.bad_rows[0].startswith(f"{path}, row 6: 5.png: ")


@settings(max_examples=15, deadline=None)
@given(groups=st.lists(st.integers(0, 59), max_size=30).flatmap(lambda more: st.permutations([*range(60), *more])))
def test_split_by_group_pools_the_official_splits(groups: list[int], tmp_path_factory: pytest.TempPathFactory) -> None:
    directory = tmp_path_factory.mktemp("d")
    rows = [{"text": f"t{i}", "answers": "a", "group": f"p{group}"} for i, group in enumerate(groups)]
    write_lines(directory / "train.jsonl", rows[: len(rows) // 2])
    write_lines(directory / "test.jsonl", rows[len(rows) // 2 :])
    loaded = load("jsonl", directory, "summarization", split_by="group", split={"validation": 0.2, "test": 0.3})
    members = [{record.group for record in split} for split in loaded.splits.values()]
    assert sum(map(len, members)) == len(set.union(*members)) == len(set(groups))
    assert sum(map(len, loaded.splits.values())) == len(rows)
    assert {record.split for record in records(loaded)} == set(loaded.splits)


def test_a_division_anew_leaves_a_test_without_labels_alone(tmp_path: Path) -> None:
    def rows(n: int, start: int, **more: int) -> list[dict[str, Any]]:
        options = {"opa": "a", "opb": "b", "opc": "c", "opd": "d"}
        return [{"question": f"{start + i}?", **options, **more} for i in range(n)]

    write_lines(tmp_path / "train.json", rows(40, 0, cop=1))
    write_lines(tmp_path / "dev.json", rows(20, 100, cop=4))
    write_lines(tmp_path / "test.json", rows(7, 200))
    loaded = load("medmcqa", tmp_path, cop_base=1, split_by="group")
    assert len(loaded.splits["hidden_test"]) == 7
    assert sum(len(loaded.splits[name]) for name in ("train", "validation", "test")) == 60


def test_a_split_by_image_needs_images(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"data.split_by=image: medqa has records without an image; use group"):
        load("medqa", write_lines(tmp_path / "q.jsonl", questions(50)), split_by="image")


@pytest.mark.parametrize(
    ("options", "key"),
    [
        ({"fields": {"text": "x"}}, "fields"),
        ({"label_names": {0: "a"}}, "label_names"),
        ({"variant": "x"}, "variant"),
        ({"images": "x"}, "images"),
        ({"delimiter": ";"}, "delimiter"),
        ({"licence": "mine"}, "licence"),
        ({"label_base": 1}, "label_base"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_an_option_that_would_do_nothing_is_refused(tmp_path: Path, options: dict[str, Any], key: str) -> None:
    with pytest.raises(UsageError, match=f"data.{key}: medqa has no such option"):
        load("medqa", write_lines(tmp_path / "q.jsonl", questions(50)), **options)


def test_the_options_that_readers_name_exist() -> None:
    for name in dataset_names():
        assert set(dataset_info(name).options) <= set(DataSection.model_fields)


def test_a_dataset_for_any_task_needs_to_be_told_which(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="jsonl can be read for several tasks; say which"):
        load("jsonl", write_lines(tmp_path / "q.jsonl", [{}]))


@pytest.mark.parametrize(
    ("word", "split"),
    [
        ("train", "train"),
        ("Training", "train"),
        (" DEV ", "validation"),
        ("valid", "validation"),
        ("val", "validation"),
        ("test", "test"),
        ("testing", "test"),
        ("test_external", "test_external"),
        ("fold1", None),
        ("", None),
    ],
)
def test_names_of_splits(word: str, split: str | None) -> None:
    assert split_name(word) == split
