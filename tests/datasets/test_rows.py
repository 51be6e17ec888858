"""Reading files: every kind of damage is one line that names file and row, and no text of a row leaks into it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bmpeft.datasets.base import DatasetInfo
from bmpeft.datasets.formats.json_rows import read_json, read_rows
from bmpeft.datasets.reading import find_split_files
from bmpeft.datasets.rows import Identities, Row
from bmpeft.errors import DataError

INFO = DatasetInfo("toy", "Toy", "question_answering", "MIT", "a .jsonl file", "example.org/toy", "Toy 2020")


def rows_of(tmp_path: Path, content: bytes) -> list[Row]:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(content)
    return list(read_rows(path, INFO))


def test_lines_and_arrays_give_the_same_objects_whatever_the_name(tmp_path: Path) -> None:
    objects = [{"a": 1}, {"a": "é"}]
    lines = "\n".join(json.dumps(value, ensure_ascii=False) for value in objects).encode()
    array = json.dumps(objects, ensure_ascii=False, indent=1).encode()
    for content in (lines, array, b"\xef\xbb\xbf" + lines, b"\xef\xbb\xbf\n " + array, lines.replace(b"\n", b"\r\n")):
        assert [row.values for row in rows_of(tmp_path, content)] == objects


def test_rows_are_numbered_by_line_with_blank_lines_counted(tmp_path: Path) -> None:
    assert [row.number for row in rows_of(tmp_path, b'{"a": 1}\n\n{"a": 2}\n')] == [1, 3]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "rows.jsonl: the file is empty"),
        (b" \n\n", "rows.jsonl: the file is empty"),
        (b'{"secret": 1}\n{"secret": \n', "rows.jsonl, row 2: broken JSON at character 11"),
        (b'{"secret": 1}\n["secret"]\n', "rows.jsonl, row 2: expected a JSON object, not an array"),
        (b'{"secret": 1}\n{"secret": "\xff"}\n', "rows.jsonl, row 2: not UTF-8 text"),
        (b'[{"secret": 1}, "secret"]', "rows.jsonl, row 2: expected a JSON object, not text"),
        (b'[{"secret": 1},\n {"secret" 2}]', "rows.jsonl: line 2: broken JSON at character 12"),
        (b'[{"secret": 1},\n {"secret": "\xff"}]', "rows.jsonl: line 2: not UTF-8 text"),
        (b"[" * 100_000, "rows.jsonl: broken JSON: nested too deeply"),
        (b'{"a":' * 100_000, "rows.jsonl, row 1: broken JSON: nested too deeply"),
    ],
)
def test_damage_is_named_in_one_line(tmp_path: Path, content: bytes, expected: str) -> None:
    with pytest.raises(DataError) as caught:
        rows_of(tmp_path, content)
    message = str(caught.value)
    assert expected in message
    assert "\n" not in message
    assert "secret" not in message


def test_a_missing_file_says_what_belongs_there_and_where_it_comes_from(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"gone.jsonl: not found; Toy needs a .jsonl file, from example.org/toy"):
        list(read_rows(tmp_path / "gone.jsonl", INFO))


def test_a_directory_in_place_of_a_file_is_an_error_not_a_traceback(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be read"):
        list(read_rows(tmp_path, INFO))


def test_a_key_that_stands_twice_in_an_object_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    path.write_text('{"1": {}, "2": {}, "1": {}}')
    with pytest.raises(DataError, match="the key '1' appears twice"):
        read_json(path, INFO)


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ({}, "the field 'question' is missing"),
        ({"question": None}, "'question' must be text, not null"),
        ({"question": 3}, "'question' must be text, not a number"),
        ({"question": True}, "'question' must be text, not true/false"),
        ({"question": ["x"]}, "'question' must be text, not an array"),
        ({"question": " \n"}, "'question' is empty"),
    ],
)
def test_a_field_that_is_not_text_is_named(values: dict[str, object], problem: str) -> None:
    with pytest.raises(DataError, match=r"rows.jsonl, row 7: ") as caught:
        Row(Path("rows.jsonl"), 7, values).text("question")
    assert problem in str(caught.value)


def test_an_id_is_used_once_in_all_files_of_a_dataset() -> None:
    identities = Identities()
    first, second, other = Row(Path("a"), 1, {}), Row(Path("a"), 5, {}), Row(Path("d/b"), 2, {})
    identities.stated("x", first)
    with pytest.raises(DataError, match="a, row 5: the id 'x' is already that of row 1"):
        identities.stated("x", second)
    with pytest.raises(DataError, match="d/b, row 2: the id 'x' is already that of a, row 1"):
        identities.stated("x", other)


def test_equal_rows_without_ids_get_different_stable_ids() -> None:
    def derive() -> list[str]:
        identities = Identities()
        return [identities.derived("q-1", Row(Path("a"), number, {})) for number in range(3)]

    assert derive() == derive() == ["q-1", "q-1-2", "q-1-3"]


def test_split_files_are_found_by_their_names(tmp_path: Path) -> None:
    for name in ("phrases_no_exclude_train.jsonl", "dev.jsonl", "Test.jsonl", "US_qbank.jsonl", "train.csv"):
        (tmp_path / name).touch()
    found = find_split_files(tmp_path, (".jsonl",), INFO)
    assert {split: path.name for split, path in found.items()} == {
        "train": "phrases_no_exclude_train.jsonl",
        "validation": "dev.jsonl",
        "test": "Test.jsonl",
    }


def test_two_files_for_one_split_are_never_chosen_between(tmp_path: Path) -> None:
    for name in ("train.jsonl", "train_4opt.jsonl"):
        (tmp_path / name).touch()
    with pytest.raises(DataError, match=r"train.jsonl and train_4opt.jsonl could both be the train file"):
        find_split_files(tmp_path, (".jsonl",), INFO)


def test_a_directory_without_split_files_says_what_was_expected(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no file here is named train, dev or test; Toy needs"):
        find_split_files(tmp_path, (".jsonl",), INFO)
