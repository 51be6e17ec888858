"""The registry: names, descriptions, cheap imports."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from bmpeft.datasets import dataset_info, dataset_names, read_dataset
from bmpeft.datasets.base import TASKS
from bmpeft.errors import DataError, UsageError
from bmpeft.recipe import DataSection


def test_names_are_those_of_the_descriptions() -> None:
    assert {name: dataset_info(name).name for name in dataset_names()} == {name: name for name in dataset_names()}
    assert all(vars_ for name in dataset_names() for vars_ in (dataset_info(name).licence, dataset_info(name).source))


def test_an_unknown_name_hints_at_the_nearest() -> None:
    with pytest.raises(UsageError, match=r"no reader is named 'medmqa'; did you mean 'med(mc)?qa'\?"):
        read_dataset(DataSection(dataset="medmqa", path="x"))


@pytest.mark.parametrize("name", dataset_names())
def test_a_missing_path_says_what_the_dataset_is_and_where_to_get_it(name: str, tmp_path: Path) -> None:
    section = DataSection(dataset=name, path=str(tmp_path / "gone"), cop_base=1 if name == "medmcqa" else None)
    with pytest.raises(DataError, match="gone: not found; ") as caught:
        read_dataset(section, "summarization" if dataset_info(name).task == "any" else None)
    assert dataset_info(name).source in str(caught.value)


def test_every_dataset_is_for_tasks_that_exist() -> None:
    assert all(set(dataset_info(name).tasks) <= set(TASKS) for name in dataset_names())


def test_every_dataset_is_in_the_document(repository: Path) -> None:
    table = (repository / "docs" / "datasets.md").read_text(encoding="utf-8")
    assert [name for name in dataset_names() if f"`{name}`" not in table] == []


def test_importing_the_readers_is_cheap(repository: Path) -> None:
    heavy = "print([m for m in ('torch', 'numpy', 'transformers', 'pydantic', 'PIL') if m in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", f"import sys, bmpeft.datasets; {heavy}"],
        cwd=repository,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "[]"
