"""docs/adding_a_dataset.md works as it stands there: the reader, and the recipes for one's own data."""

from __future__ import annotations

import json
import re
import types
from pathlib import Path
from typing import Any

import pytest
import yaml

from bmpeft.datasets import registry
from bmpeft.errors import DataError
from bmpeft.recipe import DataSection
from bmpeft.recipe_task import TaskSection
from bmpeft.tasks import make_task
from tests.datasets.files import png, write_csv, write_lines

MOST_LINES = 25


def blocks(repository: Path, language: str) -> list[str]:
    text = (repository / "docs" / "adding_a_dataset.md").read_text(encoding="utf-8")
    return re.findall(rf"```{language}\n(.*?)```", text, flags=re.DOTALL)


@pytest.fixture
def passages(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (code,) = blocks(repository, "python")
    module = types.ModuleType("passages")
    exec(compile(code, "adding_a_dataset.md", "exec"), module.__dict__)
    monkeypatch.setitem(registry._READERS, "passages", module)


@pytest.mark.usefixtures("passages")
def test_it_reads_divides_and_is_asked(tmp_path: Path) -> None:
    path = tmp_path / "passages.jsonl"
    rows = [
        {"passage": f"Text {n // 2}.", "question": f"Is it {n}?", "answer": ("yes", "no")[n % 2]} for n in range(80)
    ]
    path.write_text("\n".join(map(json.dumps, rows)))
    loaded = registry.read_dataset(DataSection(dataset="passages", path=str(path)))
    assert {split: len(records) > 0 for split, records in loaded.splits.items()} == dict.fromkeys(
        ("train", "validation", "test"), True
    )
    groups = [{record.group for record in records} for records in loaded.splits.values()]
    assert sum(map(len, groups)) == len(set.union(*groups)) == 40
    task = make_task(TaskSection(prompt=" {text} question: {question}"), "passages")
    assert re.fullmatch(r" Text \d+\. question: Is it \d+\?", task.example(loaded.splits["test"][0]).source)


@pytest.mark.usefixtures("passages")
def test_it_names_the_bad_row(tmp_path: Path) -> None:
    path = tmp_path / "passages.jsonl"
    path.write_text('{"passage": "T.", "question": "Q?", "answer": "yes"}\n{"passage": "T.", "question": "Q?"}')
    with pytest.raises(DataError, match=r"passages.jsonl, row 2: the field 'answer' is missing"):
        registry.read_dataset(DataSection(dataset="passages", path=str(path)))


def own_files(root: Path) -> None:
    """What the documents' recipes name."""
    rows = [[f"Findings {n}.", f"Impression {n}.", f"patient {n // 2}"] for n in range(60)]
    write_csv(root / "reports.csv", [["findings", "impression", "patient"], *rows])
    for n in range(60):
        directory = root / "radiographs" / ("ap", "pa")[n % 2]
        directory.mkdir(parents=True, exist_ok=True)
        (directory / f"{n}.png").write_bytes(png(n))
    options = {"A": "one", "B": "two"}
    write_lines(root / "questions.jsonl", [{"stem": f"Q{n}?", "options": options, "key": "B"} for n in range(60)])


def test_the_recipes_for_own_data_read_it(repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own_files(tmp_path)
    monkeypatch.chdir(tmp_path)
    tasks = []
    for block in blocks(repository, "yaml"):
        assert block.count("\n") <= MOST_LINES
        content: dict[str, Any] = yaml.safe_load(block)
        data = DataSection.model_validate(content["data"])
        loaded = registry.read_dataset(data, content["task"]["name"])
        assert sum(map(len, loaded.splits.values())) == 60
        assert list(loaded.splits) == ["train", "validation", "test"]
        tasks.append(content["task"]["name"])
    assert tasks == ["summarization", "image_classification", "question_answering"]
