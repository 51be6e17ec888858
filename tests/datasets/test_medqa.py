"""MedQA: what is read, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from bmpeft.datasets import read_dataset
from bmpeft.errors import DataError
from bmpeft.recipe import DataSection


def row(number: int = 0, **changes: Any) -> dict[str, Any]:
    values = {
        "question": f"A patient number {number} asks. What is it?",
        "options": {"A": "one", "B": "two", "C": "three", "D": "four"},
        "answer_idx": "ABCD"[number % 4],
        "answer": ("one", "two", "three", "four")[number % 4],
    }
    return {key: value for key, value in {**values, **changes}.items() if value is not ...}


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(values) + "\n" for values in rows), encoding="utf-8")
    return path


def data(path: Path, **changes: Any) -> DataSection:
    return DataSection(dataset="medqa", path=str(path), **changes)


def test_a_row_becomes_a_record(tmp_path: Path) -> None:
    options = {"B": " two ", "A": "one", "C": "three"}
    rows = [row(1, options=options, id="x1", metamap_phrases=["y"], meta_info="step1"), *map(row, range(60))]
    loaded = read_dataset(data(write(tmp_path / "rows.jsonl", rows)))
    record = next(r for records in loaded.splits.values() for r in records if r.id == "x1")
    assert record.choices == ("one", "two", "three")
    assert record.label == 1
    assert record.question == "A patient number 1 asks. What is it?"
    assert record.licence == "MIT"
    assert record.meta == {"meta_info": "step1"}
    assert loaded.contamination == {}
    assert loaded.synthetic is False


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"question": ...}, "the field 'question' is missing"),
        ({"question": "  "}, "'question' is empty"),
        ({"options": ...}, "the field 'options' is missing"),
        ({"options": ["one", "two"]}, "'options' must be an object of letters and texts, not an array"),
        ({"options": {"A": "one"}}, "'options' must hold 2 to 26 options, not 1"),
        ({"options": {"A": "one", "bb": "two"}}, "option 'bb' must be named by one letter A to Z"),
        ({"options": {"A": "one", "": "two"}}, "option '' must be named by one letter A to Z"),
        ({"options": {"A": "one", "B": 2}}, "option B must be text that is not empty"),
        ({"options": {"A": "one", "B": " "}}, "option B must be text that is not empty"),
        ({"options": {"A": "one", "B": "two", "C": "one "}}, "options A and C are the same text"),
        ({"answer_idx": ...}, "the field 'answer_idx' is missing"),
        ({"answer_idx": 2}, "'answer_idx' must be text, not a number"),
        ({"answer_idx": "E"}, "answer_idx 'E' is not among the options A, B, C, D"),
        ({"answer": "three"}, "'answer' is not the text of option A, which 'answer_idx' names"),
        ({"id": "same"}, "the id 'same' is already that of row 1"),
        ({"id": 1.5}, "'id' must be text or a whole number"),
    ],
)
def test_a_bad_row_is_named_without_its_text(tmp_path: Path, changes: dict[str, Any], problem: str) -> None:
    rows = [row(1, id="same"), row(2), row(0, **changes)]
    with pytest.raises(DataError) as caught:
        read_dataset(data(write(tmp_path / "rows.jsonl", rows)))
    assert str(caught.value).startswith(f"{tmp_path / 'rows.jsonl'}, row 3: {problem}")
    assert "patient" not in str(caught.value)


def test_one_file_is_divided_and_the_division_is_recorded(tmp_path: Path) -> None:
    loaded = read_dataset(data(write(tmp_path / "rows.jsonl", list(map(row, range(80)))), split={"seed": 3}))
    assert set(loaded.splits) == set(loaded.split_digests) == {"train", "validation", "test"}
    assert loaded.split_method == "by question, seeded hash (seed 3, validation 0.1, test 0.2)"
    assert sum(map(len, loaded.splits.values())) == 80


def test_ids_and_splits_survive_shuffled_rows(tmp_path: Path) -> None:
    rows = list(map(row, range(80)))
    one = read_dataset(data(write(tmp_path / "one.jsonl", rows)))
    other = read_dataset(data(write(tmp_path / "other.jsonl", rows[::-1])))
    assert one.split_digests == other.split_digests


def test_the_same_question_never_straddles_splits(tmp_path: Path) -> None:
    reworded = [
        row(
            n,
            question=f"a PATIENT number {n} asks; what is it",
            options={"A": "i", "B": "j"},
            answer_idx="A",
            answer="i",
        )
        for n in range(80)
    ]
    loaded = read_dataset(data(write(tmp_path / "rows.jsonl", [*map(row, range(80)), *reworded])))
    groups = [{r.group for r in records} for records in loaded.splits.values()]
    assert sum(map(len, groups)) == len(set.union(*groups)) == 80


def test_official_files_keep_their_splits(tmp_path: Path) -> None:
    for name, numbers in (("train", range(20)), ("dev", range(20, 25)), ("test", range(25, 32))):
        write(tmp_path / f"phrases_no_exclude_{name}.jsonl", list(map(row, numbers)))
    loaded = read_dataset(data(tmp_path))
    assert {name: len(records) for name, records in loaded.splits.items()} == {"train": 20, "validation": 5, "test": 7}
    assert loaded.split_method == "official"


def test_validation_is_taken_from_training_where_there_is_no_file_for_it(tmp_path: Path) -> None:
    write(tmp_path / "train.jsonl", list(map(row, range(100))))
    write(tmp_path / "test.jsonl", list(map(row, range(100, 110))))
    loaded = read_dataset(data(tmp_path))
    assert len(loaded.splits["train"]) + len(loaded.splits["validation"]) == 100
    assert len(loaded.splits["test"]) == 10
    assert loaded.split_method == "official test; validation by question, seeded hash (seed 0, validation 0.1)"
    assert "validation" not in read_dataset(data(tmp_path, split={"validation": 0.0})).splits


def test_an_id_that_two_files_use_is_an_error(tmp_path: Path) -> None:
    write(tmp_path / "train.jsonl", [row(1, id="x")])
    write(tmp_path / "test.jsonl", [row(2, id="x")])
    with pytest.raises(DataError, match=r"test.jsonl, row 1: the id 'x' is already that of train.jsonl, row 1"):
        read_dataset(data(tmp_path))


def test_an_empty_array_holds_no_rows(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text("[]")
    with pytest.raises(DataError, match=r"rows.jsonl: holds no rows"):
        read_dataset(data(tmp_path / "rows.jsonl"))


def test_the_embedded_set_is_labelled_synthetic_everywhere() -> None:
    loaded = read_dataset(DataSection(dataset="medqa", path="embedded"))
    assert (loaded.name, loaded.synthetic, loaded.contamination) == ("medqa-embedded", True, {})
    assert list(loaded.splits) == ["train", "validation", "test", "test_unknown"]
    records = [record for rows in loaded.splits.values() for record in rows]
    assert {record.licence for record in records} == {loaded.licence} == {"Apache-2.0"}
    assert {record.meta["meta_info"] for record in records} == {"synthetic"}
    groups = [{record.group for record in rows} for rows in loaded.splits.values()]
    assert sum(map(len, groups)) == len(set.union(*groups))
