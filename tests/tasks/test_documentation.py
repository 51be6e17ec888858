"""Each task has a page, and the page names what the code has."""

from __future__ import annotations

import re
from pathlib import Path
from typing import get_args

import pytest

from bmpeft.datasets import dataset_info, dataset_names
from bmpeft.datasets.base import ANY_TASK
from bmpeft.recipe_task import TaskName, TaskSection, decoding_methods
from bmpeft.tasks import make_task

DOCS = Path(__file__).resolve().parents[2] / "docs"


def page(task: str) -> str:
    return (DOCS / f"{task}.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("task", get_args(TaskName))
def test_a_page_names_the_datasets_and_the_ways_to_read_off_an_answer(task: TaskName) -> None:
    named = set(re.findall(r"`(?:task\.decoding\.method: )?([a-z0-9_]+)`", page(task)))
    datasets = {name for name in dataset_names() if dataset_info(name).task != ANY_TASK}
    serving = {name for name in datasets if task in dataset_info(name).tasks}
    assert serving - {"image_folder"} <= named
    assert {name for name in datasets & named if name not in serving} == set()
    assert set(decoding_methods(task)) <= named


@pytest.mark.parametrize("task", get_args(TaskName))
def test_a_page_shows_every_default_prompt(task: TaskName) -> None:
    text = page(task).replace('\\"', '"')
    for dataset in [name for name in dataset_names() if task in dataset_info(name).tasks]:
        assert make_task(TaskSection(name=task), dataset).prompt in text
