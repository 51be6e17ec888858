"""docs/evaluation.md has every metric and every control, and no other."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from bmpeft.evaluation.metrics import MetricDefinition, alignment, answers, cider, labels, meteor, overlap, vqa
from bmpeft.recipe_controls import CONTROL_NAMES

MODULES = (alignment, answers, cider, labels, meteor, overlap, vqa)
IDS = [value.id for module in MODULES for value in vars(module).values() if isinstance(value, MetricDefinition)]
REPLACED = {"accuracy/constant@1"}


@pytest.fixture(scope="module")
def text(repository: Path) -> str:
    return (repository / "docs" / "evaluation.md").read_text(encoding="utf-8")


def test_every_metric_has_an_id_of_its_own() -> None:
    assert len(IDS) == len(set(IDS)) >= 22
    assert all(re.fullmatch(r"[a-z0-9-]+/[a-z0-9.-]+@\d+", identity) for identity in IDS)


def test_every_metric_is_documented(text: str) -> None:
    assert set(re.findall(r"`([a-z0-9-]+/[a-z0-9.-]+@\d+)`", text)) == {*IDS, *REPLACED}


def test_every_control_is_documented(text: str) -> None:
    table = text[text.index("## Controls") : text.index("## What is kept")]
    assert re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE) == list(CONTROL_NAMES)
