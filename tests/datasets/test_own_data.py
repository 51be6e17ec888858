"""The user's own data by fields of the recipe: every task, every form, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bmpeft.datasets.leakage import find_leakage
from bmpeft.errors import BmpeftError
from tests.datasets.files import load, png, write_csv, write_lines, write_xlsx

WORDS = st.text(st.characters(categories=("L", "N")), min_size=1, max_size=8)
NO_SPLITS = {"validation": 0.0, "test": 0.0}


def refusal(dataset: str, path: Path, task: str, **options: Any) -> str:
    with pytest.raises(BmpeftError) as caught:
        load(dataset, path, task, **options)
    message = str(caught.value)
    assert "\n" not in message
    assert "secret" not in message
    return message


@settings(max_examples=15, deadline=None)
@given(rows=st.lists(st.tuples(WORDS, WORDS, WORDS), min_size=1, max_size=6))
def test_json_and_tables_of_the_same_rows_are_the_same_dataset(
    rows: list[tuple[str, str, str]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    directory = tmp_path_factory.mktemp("d")
    options: dict[str, Any] = {"fields": {"text": ["a", "b"], "answers": "c"}, "split": NO_SPLITS}
    lines = write_lines(directory / "r.jsonl", [dict(zip("abc", row, strict=True)) for row in rows])
    (directory / "r.json").write_text(json.dumps([dict(zip("abc", row, strict=True)) for row in rows]))
    loaded = load("jsonl", lines, "summarization", **options)
    assert [(r.text, r.answers) for r in loaded.splits["train"]] == [(f"{a}\n{b}", (c,)) for a, b, c in rows]
    tables = [
        load("jsonl", directory / "r.json", "summarization", **options),
        load("csv", write_csv(directory / "r.csv", [["a", "b", "c"], *rows]), "summarization", **options),
        load("csv", write_csv(directory / "r.tsv", [["a", "b", "c"], *rows], "\t"), "summarization", **options),
        load("csv", write_xlsx(directory / "r.xlsx", [["a", "b", "c"], *rows]), "summarization", **options),
    ]
    assert {other.split_digests["train"] for other in tables} == {loaded.split_digests["train"]}


def test_a_table_with_semicolons_says_so(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "r.csv", [["text", "answers"], *([f"t{i}", "a"] for i in range(3))], ";")
    assert "Then say data.delimiter=';'" in refusal("csv", path, "summarization")
    assert len(load("csv", path, "summarization", delimiter=";", split=NO_SPLITS).splits["train"]) == 3


def test_labels_are_ordered_by_name_or_number_or_as_the_recipe_says(tmp_path: Path) -> None:
    def choices(labels: list[Any], **options: Any) -> tuple[Any, list[int]]:
        path = write_lines(tmp_path / "r.jsonl", [{"text": f"t{i}", "label": x} for i, x in enumerate(labels)])
        rows = load("jsonl", path, "text_understanding", split=NO_SPLITS, **options).splits["train"]
        assert {row.choices for row in rows} == {rows[0].choices}
        return rows[0].choices, [row.label for row in rows]

    assert choices(["b", "a", "b"]) == (("a", "b"), [1, 0, 1])
    assert choices([10, 9, 10]) == (("9", "10"), [1, 0, 1])
    assert choices([True, False]) == (("false", "true"), [1, 0])
    assert choices([1, 0, 1], label_names={1: "ill", 0: "well"}) == (("ill", "well"), [0, 1, 0])


def test_a_label_that_has_no_name_and_a_column_that_is_no_label(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "r.jsonl", [{"text": "t", "label": "secret"}])
    assert "row 1: the label is none of those in data.label_names: a, b" in refusal(
        "jsonl", path, "text_understanding", label_names={"a": "x", "b": "y"}
    )
    write_lines(path, [{"text": f"t{i}", "label": f"secret {i}"} for i in range(60)])
    assert "60 different labels in 60 rows: is this the column of labels?" in refusal(
        "jsonl", path, "text_understanding", split=NO_SPLITS
    )


@pytest.mark.parametrize(
    ("row", "options", "label"),
    [
        ({"choices": ["x", "y"], "label": "y"}, {}, 1),
        ({"choices": {"B": "y", "A": "x"}, "label": "B"}, {}, 1),
        ({"choices": ["x", "y"], "label": 1}, {"label_base": 0}, 1),
        ({"choices": ["x", "y"], "label": 2}, {"label_base": 1}, 1),
        ({"choices": ["A", "B"], "label": "A"}, {}, 0),
        ({"choices": ["x", "y"], "answers": "y"}, {}, 1),
        (
            {"one": "x", "two": "y", "key": "B"},
            {"fields": {"question": "question", "choices": ["one", "two"], "label": "key"}},
            1,
        ),
    ],
    ids=range(7),
)
def test_the_right_choice_by_text_letter_or_number(
    tmp_path: Path, row: dict[str, Any], options: dict[str, Any], label: int
) -> None:
    path = write_lines(tmp_path / "q.jsonl", [{"question": "Q?", **row}])
    record = load("jsonl", path, "question_answering", split=NO_SPLITS, **options).splits["train"][0]
    assert (len(record.choices), record.label) == (2, label)


@pytest.mark.parametrize(
    ("row", "options", "problem"),
    [
        ({"choices": ["x", "y"], "label": 1}, {}, "data.label_base must say whether it counts from 0 or from 1"),
        ({"choices": ["x", "y"], "label": 2}, {"label_base": 0}, "must be a number from 0 to 1"),
        ({"choices": ["x", "y"], "label": "secret"}, {}, "neither the text of a choice nor its letter"),
        ({"choices": ["x"], "label": "x"}, {}, "needs at least two choices"),
        ({"choices": "secret", "label": "x"}, {}, "must be an array of choices or an object"),
        ({"choices": ["x", ["secret"]], "label": "x"}, {}, "'choices' must be text or a number, not an array"),
        ({"choices": ["x", "y"]}, {}, "there is no 'label' (label)"),
        ({}, {}, "has neither answers nor a label"),
        ({"answers": {"secret": 1}}, {}, "'answers' must be text or a number, not an object"),
        ({"question": "", "answers": "a"}, {}, "'question' (question) is empty"),
    ],
    ids=range(10),
)
def test_a_bad_question_is_named(tmp_path: Path, row: dict[str, Any], options: dict[str, Any], problem: str) -> None:
    path = write_lines(tmp_path / "q.jsonl", [{"question": "Q?", "answers": "a"}, {"question": "R?", **row}])
    message = refusal("jsonl", path, "question_answering", **options)
    assert "q.jsonl, row 2: " in message
    assert problem in message


def test_open_questions_and_a_fixed_set_of_answers(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "q.jsonl", [{"question": "Q?", "answers": ["a", "b", 3]}])
    record = load("jsonl", path, "question_answering", split=NO_SPLITS).splits["train"][0]
    assert (record.answers, record.choices, record.label) == (("a", "b", "3"), None, None)
    write_lines(path, [{"question": f"Q{i}?", "text": "p", "label": x} for i, x in enumerate(("yes", "no", "maybe"))])
    rows = load("jsonl", path, "question_answering", split=NO_SPLITS).splits["train"]
    assert [(row.choices, row.label) for row in rows] == [(("maybe", "no", "yes"), i) for i in (2, 1, 0)]


@pytest.mark.parametrize(
    ("fields", "in_lines", "in_table"),
    [
        ({"txt": "a"}, "a record has no field 'txt'; did you mean 'text'?", None),
        ({"text": "a"}, "summarization needs answers: say which column holds it", None),
        (
            {"text": "a", "answers": "c", "group": "patiennt"},
            "row 1: there is no 'patiennt' (group); did you mean 'patient'?",
            "row 1: there is no column 'patiennt'; did you mean 'patient'?",
        ),
        (
            {"text": "a", "answers": "c", "licence": "licnce"},
            "data.fields.licence: no row has 'licnce'",
            "row 1: there is no column 'licnce'",
        ),
    ],
    ids=range(4),
)
def test_a_wrong_mapping_is_refused(
    tmp_path: Path, fields: dict[str, str], in_lines: str, in_table: str | None
) -> None:
    lines = write_lines(tmp_path / "r.jsonl", [{"a": "x", "c": "y", "patient": "p"}] * 3)
    assert in_lines in refusal("jsonl", lines, "summarization", fields=fields)
    table = write_csv(tmp_path / "r.csv", [["a", "c", "patient"], ["x", "y", "p"]])
    assert (in_table or in_lines) in refusal("csv", table, "summarization", fields=fields)


def test_a_column_of_splits_decides_and_must_be_whole(tmp_path: Path) -> None:
    names = ("train", "training", "dev", "test", "test_b")
    path = write_lines(tmp_path / "r.jsonl", [{"text": n, "answers": "a", "split": n} for n in names])
    loaded = load("jsonl", path, "summarization")
    assert {split: len(rows) for split, rows in loaded.splits.items()} == {
        "train": 2,
        "validation": 1,
        "test": 1,
        "test_b": 1,
    }
    assert loaded.split_method == "official"
    write_lines(path, [{"text": "a", "answers": "a", "split": "fold secret"}])
    assert "row 1: the split must be train, validation, test, or begin with test" in refusal(
        "jsonl", path, "summarization"
    )
    write_lines(path, [{"text": "a", "answers": "a", "split": "train"}, {"text": "b", "answers": "a"}])
    assert "the column of splits is empty in some rows" in refusal("jsonl", path, "summarization")


def test_groups_are_stated_by_all_rows_or_none(tmp_path: Path) -> None:
    rows = [{"text": f"t{i}", "answers": "a", "group": i // 3} for i in range(60)]
    path = write_lines(tmp_path / "r.jsonl", rows)
    groups = [{record.group for record in split} for split in load("jsonl", path, "summarization").splits.values()]
    assert sum(map(len, groups)) == len(set.union(*groups)) == 20
    rows[4]["group"] = ""
    assert "row 5: 'group' (group) is empty" in refusal("jsonl", write_lines(path, rows), "summarization")


def test_images_are_paths_from_the_file_or_from_their_directory(tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    rows = [["file", "finding", "report"]]
    for n in range(6):
        (tmp_path / "pictures" / f"{n}.png").write_bytes(png(n))
        rows.append([f"{n}.png", ("a", "b")[n % 2], f"Report {n}."])
    path = write_csv(tmp_path / "r.csv", rows)
    fields = {"image": "file", "label": "finding"}
    images = str(tmp_path / "pictures")
    loaded = load("csv", path, "image_classification", fields=fields, images=images, split=NO_SPLITS)
    record = loaded.splits["train"][1]
    assert (record.choices, record.label, record.image.load().size) == (("a", "b"), 1, (12, 12))
    assert "r.csv, row 2: the image " in refusal("csv", path, "image_classification", fields=fields)
    for row in rows[1:]:
        row[0] = str(tmp_path / "pictures" / row[0])
    captions = {"image": "file", "answers": "report"}
    loaded = load("csv", write_csv(path, rows), "captioning", fields=captions, split=NO_SPLITS)
    assert loaded.splits["train"][2].answers == ("Report 2.",)


def test_visual_questions_are_closed_by_their_type_or_their_answer(tmp_path: Path) -> None:
    (tmp_path / "i.png").write_bytes(png())
    rows = [
        {"image": "i.png", "question": "Is it?", "answers": "Yes"},
        {"image": "i.png", "question": "Where?", "answers": "left"},
        {"image": "i.png", "question": "Is it, or what?", "answers": "no", "answer_type": "OPEN"},
    ]
    path = write_lines(tmp_path / "v.jsonl", rows)
    loaded = load("jsonl", path, "visual_question_answering", split=NO_SPLITS).splits["train"]
    assert [(r.choices, r.label, r.meta["answer_type"]) for r in loaded] == [
        (("yes", "no"), 0, "closed"),
        (None, None, "open"),
        (None, None, "open"),
    ]
    assert len({r.group for r in loaded}) == 1


def image_folder(root: Path, splits: tuple[str, ...] = ("",)) -> Path:
    for split in splits:
        for label in ("pneumonia", "normal"):
            for n in range(6):
                patient = root / split / label / f"p{n // 2}"
                patient.mkdir(parents=True, exist_ok=True)
                (patient / f"{n}.png").write_bytes(png(n))
    (root / ".DS_Store").touch()
    (root / splits[0] / "normal" / "Thumbs.db").touch()
    return root


def test_an_image_folder_has_classes_patients_and_perhaps_splits(tmp_path: Path) -> None:
    loaded = load("image_folder", image_folder(tmp_path / "a"), split=NO_SPLITS)
    rows = loaded.splits["train"]
    assert (len(rows), rows[0].choices, {row.group for row in rows}) == (
        12,
        ("normal", "pneumonia"),
        {"p0", "p1", "p2"},
    )
    named = load("image_folder", tmp_path / "a", split=NO_SPLITS, label_names={"pneumonia": "ill", "normal": "well"})
    assert (named.splits["train"][0].choices, named.splits["train"][0].label) == (("ill", "well"), 1)
    loaded = load("image_folder", image_folder(tmp_path / "b", ("train", "valid", "test")))
    assert {split: len(part) for split, part in loaded.splits.items()} == {"train": 12, "validation": 12, "test": 12}
    (tmp_path / "b" / "val").mkdir()
    assert "val and valid could both be the validation split" in refusal(
        "image_folder", tmp_path / "b", "image_classification"
    )


def test_images_numbered_anew_in_each_split_are_no_leak_and_patients_of_two_splits_are(tmp_path: Path) -> None:
    for number, place in enumerate(
        ("train/a", "train/b", "val/a", "val/b", "test/a", "test/b", "test/b/p1", "train/a/p1")
    ):
        (tmp_path / place).mkdir(parents=True, exist_ok=True)
        (tmp_path / place / "1.png").write_bytes(png(number))
    splits = load("image_folder", tmp_path).splits
    others = {split: rows for split, rows in splits.items() if split != "train"}
    found = find_leakage(splits["train"], others, scored=("validation", "test"))
    assert [(leak.kind, leak.split, leak.rows) for leak in found.leaks] == [("group", "test", 1)]


def test_what_is_no_image_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.png").write_bytes(png())
    assert "holds no directories" in refusal("image_folder", tmp_path, "image_classification")
    assert "is no directory" in refusal("image_folder", tmp_path / "x.png", "image_classification")
    (tmp_path / "class").mkdir()
    assert "holds no rows" in refusal("image_folder", tmp_path, "image_classification")
    (tmp_path / "class" / "x.txt").write_text("secret")
    assert "x.txt: " in refusal("image_folder", tmp_path, "image_classification", skip_bad_rows=1)


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ('{"text": "secret\\u0000", "answers": "a"}', "'text' holds a null character"),
        ('{"text": "t", "answers": ["a", "secret\\ud800"]}', "'answers' holds half of a surrogate pair"),
        ('{"text": "t", "answers": NaN}', "'answers' holds nan instead of text or a number"),
        ('{"text": "secret", "text": "t", "answers": "a"}', "the key 'text' appears twice in one object"),
    ],
)
def test_what_is_no_text_is_a_bad_row_and_not_guessed(tmp_path: Path, row: str, problem: str) -> None:
    path = tmp_path / "r.jsonl"
    path.write_text('{"text": "t", "answers": "a"}\n' * 3 + row + "\n")
    assert refusal("jsonl", path, "summarization", split=NO_SPLITS).startswith(f"{path}, row 4: {problem}")
    loaded = load("jsonl", path, "summarization", split=NO_SPLITS, skip_bad_rows=1)
    assert (len(loaded.splits["train"]), loaded.skipped_rows) == (3, 1)


def test_a_null_character_in_a_table_is_a_bad_row(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "r.csv", [["text", "answers"], ["t", "a"], ["secret\0", "a"]])
    assert refusal("csv", path, "summarization", split=NO_SPLITS).startswith(f"{path}, row 3: 'text' holds a null")


def test_one_file_is_never_two_splits(tmp_path: Path) -> None:
    write_lines(tmp_path / "latest_train.jsonl", [{"text": f"t{i}", "answers": "a"} for i in range(9)])
    message = refusal("jsonl", tmp_path, "summarization")
    assert message == f"{tmp_path / 'latest_train.jsonl'}: its name says train and test: rename it"


def test_labels_of_thousands_of_digits_are_labels_like_others(tmp_path: Path) -> None:
    rows = [{"text": f"t{i}", "label": label} for i, label in enumerate(["9" * 5000, "10", "9", "a"])]
    path = write_lines(tmp_path / "r.jsonl", rows)
    loaded = load("jsonl", path, "text_understanding", split=NO_SPLITS)
    assert loaded.splits["train"][0].choices == ("9", "10", "9" * 5000, "a")
    rows = [{"question": "q?", "choices": ["a", "b"], "label": "9" * 5000}]
    path = write_lines(tmp_path / "q.jsonl", rows)
    assert "the label must be a number from 1 to 2" in refusal("jsonl", path, "question_answering", label_base=1)


def test_a_table_without_a_header_is_told_apart_and_its_first_row_is_not_shown(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "r.csv", [["a secret of a patient " * 3, "secret"], ["t", "a"]])
    message = refusal("csv", path, "summarization")
    assert message == f"{path}, row 1: there is no column 'text'; is the first row a header?"
    path = write_csv(tmp_path / "r.csv", [["a secret of a patient " * 3] * 2, ["t", "a"]])
    assert refusal("csv", path, "summarization") == f"{path}, row 1: the header names a column twice"
