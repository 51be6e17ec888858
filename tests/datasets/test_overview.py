"""`bmpeft data`: figures without the text of a row, problems with file and row."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from bmpeft import cli
from bmpeft.datasets import dataset_names
from tests.datasets.files import png, write_lines

SECRET = "secret finding"


@pytest.fixture
def captions(tmp_path: Path) -> Path:
    rows = []
    for n in range(60):
        (tmp_path / f"{n}.png").write_bytes(png(n))
        rows.append({"image": f"{n}.png", "answers": f"{SECRET} {n}", "group": n // 2})
    return write_lines(tmp_path / "captions.jsonl", rows)


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = cli.main(["data", *arguments])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def as_json(capsys: pytest.CaptureFixture[str], *arguments: str) -> Any:
    code, out, err = run(capsys, *arguments, "--json")
    assert (code, err) == (0, "")
    return json.loads(out)


def test_list_names_every_reader_with_its_task_and_source(capsys: pytest.CaptureFixture[str]) -> None:
    rows = as_json(capsys, "list")["datasets"]
    assert [row["name"] for row in rows] == list(dataset_names())
    assert all(row["tasks"] and row["licence"] and row["files"] and row["source"] for row in rows)


def test_show_prints_figures_and_text_only_when_asked(captions: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ("show", "jsonl", "--path", str(captions), "--task", "captioning")
    code, out, _ = run(capsys, *arguments)
    assert code == 0
    assert "divided: by group, seeded hash" in out
    assert SECRET not in out
    found = as_json(capsys, *arguments)
    assert sum(split["rows"] for split in found["splits"].values()) == 60
    assert sum(split["groups"] for split in found["splits"].values()) == 30
    assert found["splits"]["test"]["groups_in_train"] == 0
    assert found["splits"]["train"]["words"]["answers"] == {"median": 3.0, "longest": 3}
    assert SECRET not in json.dumps(found)
    rows = as_json(capsys, *arguments, "--rows", "2")["rows"]
    assert [(row["image"], SECRET in row["answers"][0]) for row in rows] == [("12 x 12", True)] * 2
    assert SECRET in run(capsys, *arguments, "--rows", "1", "--split", "test")[1]


def test_show_counts_labels_and_takes_a_recipe_with_changes(capsys: pytest.CaptureFixture[str]) -> None:
    found = as_json(capsys, "show", "medqa_lora")
    assert (found["dataset"], found["synthetic"], found["splits"]["train"]["labels"]) == ("medqa-embedded", True, None)
    assert found["splits"]["test"]["groups_in_train"] == 0


def test_check_finds_every_bad_row_and_fails(captions: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ("check", "jsonl", "--path", str(captions), "--task", "captioning")
    found = as_json(capsys, *arguments)
    assert all(note.startswith("overlap with training rows: ") for note in found.pop("notes"))  # plain squares
    assert found == {"dataset": "jsonl", "rows": 60, "images": 60, "problems": []}
    (captions.parent / "7.png").write_bytes(png(7)[:-20])
    (captions.parent / "9.png").unlink()
    lines = captions.read_text().splitlines()
    lines[3] = lines[3][:20]
    captions.write_text("\n".join(lines))
    code, out, err = run(capsys, *arguments)
    assert (code, err) == (1, "")
    problems = [line for line in out.splitlines()[:-1] if not line.startswith("note: ")]
    assert [problem.partition(": ")[0] for problem in problems] == [f"{captions}, row {n}" for n in (4, 8, 10)]
    assert out.splitlines()[-1] == "jsonl: 57 rows, 57 images, 3 problems"
    assert SECRET not in out
    code, out, _ = run(capsys, *arguments, "--json")
    assert (code, len(json.loads(out)["problems"])) == (1, 3)


@pytest.mark.parametrize(
    ("arguments", "code", "problem"),
    [
        (("show", "medqa"), 2, "medqa: --path must say where the files are: a .jsonl file"),
        (("show", "medqaa", "--path", "x"), 2, "nor is it a dataset; did you mean 'medqa'?"),
        (("show", "jsonl", "--path", "x"), 2, "say which by task.name or --task"),
        (("show", "medqa", "--path", "embedded", "data.split_by=grup"), 2, "data.split_by: 'grup' is not one of"),
        (("show", "medqa", "--path", "embedded", "data.fields={a: b}"), 2, "data.fields: medqa has no such option"),
        (("show", "medqa", "--path", "embedded", "--rows", "1", "--split", "dev"), 2, "has no split 'dev'"),
        (("check", "medqa", "--path", "gone"), 1, "gone: not found; MedQA (USMLE) needs"),
    ],
    ids=range(7),
)
def test_what_cannot_be_shown_is_one_line(
    arguments: tuple[str, ...], code: int, problem: str, capsys: pytest.CaptureFixture[str]
) -> None:
    found, out, err = run(capsys, *arguments)
    assert (found, out, err.count("\n")) == (code, "", 1)
    assert problem in err
