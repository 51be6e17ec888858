"""PubMedQA: the official test ids, sections with their labels."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from bmpeft.datasets import read_dataset
from bmpeft.errors import DataError
from bmpeft.recipe import DataSection

ANSWERS = ("yes", "no", "maybe")


def rows(n: int = 120) -> dict[str, dict[str, Any]]:
    return {
        str(1000 + i): {
            "QUESTION": f"Does drug {i} work?",
            "CONTEXTS": [f"We had {i}.", "It rose."],
            "LABELS": ["METHODS", "RESULTS"],
            "final_decision": ANSWERS[i % 3],
        }
        for i in range(n)
    }


def write(directory: Path, content: Any, truth: Any) -> DataSection:
    (directory / "ori_pqal.json").write_text(json.dumps(content))
    if truth is not None:
        (directory / "test_ground_truth.json").write_text(json.dumps(truth))
    return DataSection(dataset="pubmedqa", path=str(directory))


def truth_of(content: dict[str, dict[str, Any]], n: int = 60) -> dict[str, str]:
    return {pmid: content[pmid]["final_decision"] for pmid in list(content)[:n]}


def test_official_test_ids_are_the_test_split_and_the_rest_is_divided(tmp_path: Path) -> None:
    content = rows()
    loaded = read_dataset(write(tmp_path, content, truth_of(content)))
    assert {r.id for r in loaded.splits["test"]} == set(list(content)[:60])
    assert len(loaded.splits["train"]) + len(loaded.splits["validation"]) == 60
    record = loaded.splits["test"][4]
    assert (record.text, record.question) == ("METHODS: We had 4. RESULTS: It rose.", "Does drug 4 work?")
    assert (record.choices, record.label) == (ANSWERS, 1)
    assert record.group == record.id == "1004"


def test_the_file_itself_may_be_named(tmp_path: Path) -> None:
    content = rows()
    data = write(tmp_path, content, truth_of(content))
    file = data.model_copy(update={"path": str(tmp_path / "ori_pqal.json")})
    assert read_dataset(file).split_digests == read_dataset(data).split_digests


def test_without_the_ground_truth_the_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"test_ground_truth.json: not found; ori_pqal.json needs it"):
        read_dataset(write(tmp_path, rows(), None))


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"final_decision": "perhaps"}, "row 2: 'final_decision' must be one of yes, no, maybe"),
        ({"CONTEXTS": []}, "row 2: 'CONTEXTS' must be an array of texts that are not empty"),
        ({"CONTEXTS": ["a", 2]}, "row 2: 'CONTEXTS' must be an array of texts"),
        ({"LABELS": ["A"]}, "row 2: 'CONTEXTS' has 2 sections but 'LABELS' 1"),
        ({"QUESTION": ""}, "row 2: 'QUESTION' is empty"),
    ],
)
def test_a_bad_row_is_named(tmp_path: Path, change: dict[str, Any], problem: str) -> None:
    content = rows()
    content["1001"] |= change
    with pytest.raises(DataError, match=r"ori_pqal.json, ") as caught:
        read_dataset(write(tmp_path, content, truth_of(content)))
    assert problem in str(caught.value)


@pytest.mark.parametrize(
    ("content", "truth", "problem"),
    [
        ([], {}, "ori_pqal.json: expected an object of PMIDs, not an array"),
        ({}, {}, "ori_pqal.json: expected an object of PMIDs, not an empty one"),
        ({"1": 3}, {}, "ori_pqal.json, row 1: expected a JSON object, not a number"),
        (rows(), {"7": "yes"}, "test_ground_truth.json: the test question 7 is not in ori_pqal.json"),
        (rows(), {"1001": "yes"}, "the answer to test question 1001 differs"),
        (rows(), truth_of(rows(), 120), "names every question"),
    ],
)
def test_files_that_do_not_belong_together_are_refused(tmp_path: Path, content: Any, truth: Any, problem: str) -> None:
    with pytest.raises(DataError) as caught:
        read_dataset(write(tmp_path, content, truth))
    assert problem in str(caught.value)
