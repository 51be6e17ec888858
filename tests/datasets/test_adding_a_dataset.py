"""The reader in docs/adding_a_dataset.md works as it stands there."""

from __future__ import annotations

import json
import re
import types
from pathlib import Path

import pytest

from bmpeft.datasets import registry
from bmpeft.errors import DataError
from bmpeft.recipe import DataSection, TaskSection
from bmpeft.tasks import make_task


@pytest.fixture
def passages(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (repository / "docs" / "adding_a_dataset.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
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
