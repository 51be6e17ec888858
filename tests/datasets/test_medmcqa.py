"""MedMCQA: the base of `cop` is stated and checked, hidden labels are never answers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from bmpeft.datasets import read_dataset
from bmpeft.errors import DataError
from bmpeft.recipe import DataSection


def row(number: int, cop: Any) -> dict[str, Any]:
    options = {f"op{letter}": f"{letter} of {number}" for letter in "abcd"}
    values = {"id": f"id{number}", "question": f"Which is number {number}?", **options, "cop": cop}
    return {key: value for key, value in values.items() if value is not ...}


def write(path: Path, rows: list[dict[str, Any]], *, array: bool = False) -> Path:
    path.write_text(json.dumps(rows) if array else "\n".join(map(json.dumps, rows)))
    return path


def rows_from(base: int, numbers: range) -> list[dict[str, Any]]:
    return [row(number, base + number % 4) for number in numbers]


def data(path: Path, base: int) -> DataSection:
    return DataSection(dataset="medmcqa", path=str(path), cop_base=base)


@pytest.mark.parametrize("array", [False, True])
@pytest.mark.parametrize("base", [0, 1])
def test_labels_are_right_for_either_base_and_layout(tmp_path: Path, base: int, array: bool) -> None:
    path = write(tmp_path / "train.json", rows_from(base, range(60)), array=array)
    loaded = read_dataset(data(path, base))
    for record in (r for records in loaded.splits.values() for r in records):
        number = int(record.id.removeprefix("id"))
        assert record.label == number % 4
        assert record.choices == tuple(f"{letter} of {number}" for letter in "abcd")


@pytest.mark.parametrize(
    ("base", "said", "row_number", "problem"),
    [
        (1, 0, 4, "cop is 4, but data.cop_base=0 allows 0 to 3; is it 1-based?"),
        (0, 1, 1, "cop is 0, but data.cop_base=1 allows 1 to 4; is it 0-based?"),
    ],
)
def test_a_value_of_the_other_base_is_refused(
    tmp_path: Path, base: int, said: int, row_number: int, problem: str
) -> None:
    path = write(tmp_path / "train.json", rows_from(base, range(8)))
    with pytest.raises(DataError) as caught:
        read_dataset(data(path, said))
    assert str(caught.value) == f"{path}, row {row_number}: {problem}"


@pytest.mark.parametrize("said", [0, 1])
def test_values_that_fit_both_bases_are_refused_in_a_long_file(tmp_path: Path, said: int) -> None:
    ambiguous = [row(number, 1 + number % 3) for number in range(60)]
    problem = f"none of the 60 rows has cop {(0, 4)[said]}, so the data look {1 - said}-based"
    with pytest.raises(DataError, match=problem):
        read_dataset(data(write(tmp_path / "train.json", ambiguous), said))


@pytest.mark.parametrize("cop", ["1", 1.0, True])
def test_cop_must_be_a_whole_number(tmp_path: Path, cop: object) -> None:
    with pytest.raises(DataError, match="row 2: 'cop' must be a whole number"):
        read_dataset(data(write(tmp_path / "train.json", [row(0, 1), row(1, cop)]), 1))


@pytest.mark.parametrize("hidden", [None, -1, ...])
def test_rows_with_hidden_labels_are_refused_among_others_and_alone(tmp_path: Path, hidden: object) -> None:
    some = write(tmp_path / "some.json", [row(0, 1), row(1, hidden)])
    with pytest.raises(DataError, match=r"row 2: the label is hidden .* in 1 of 2 rows"):
        read_dataset(data(some, 1))
    everything = write(tmp_path / "all.json", [row(0, hidden), row(1, hidden)])
    with pytest.raises(DataError, match="the labels of all rows are hidden"):
        read_dataset(data(everything, 1))


def test_the_hidden_test_file_never_becomes_the_test_split(tmp_path: Path) -> None:
    write(tmp_path / "train.json", rows_from(1, range(100)))
    write(tmp_path / "dev.json", rows_from(1, range(100, 120)))
    write(tmp_path / "test.json", [row(number, ...) for number in range(120, 130)])
    loaded = read_dataset(data(tmp_path, 1))
    assert {r.id for r in loaded.splits["test"]} == {f"id{number}" for number in range(100, 120)}
    assert all(r.label is None for r in loaded.splits["hidden_test"])
    assert len(loaded.splits["train"]) + len(loaded.splits["validation"]) == 100
    assert "official validation as test, since the test labels are hidden" in loaded.split_method


def test_one_text_twice_among_the_options_is_read_as_published(tmp_path: Path) -> None:
    rows = rows_from(1, range(60))
    rows[0]["opd"] = rows[0]["opa"]
    loaded = read_dataset(data(write(tmp_path / "dev.json", rows), 1))
    assert sum(map(len, loaded.splits.values())) == 60


def test_a_missing_option_is_named(tmp_path: Path) -> None:
    rows = rows_from(1, range(4))
    del rows[2]["opc"]
    with pytest.raises(DataError, match="row 3: the field 'opc' is missing"):
        read_dataset(data(write(tmp_path / "dev.json", rows), 1))
