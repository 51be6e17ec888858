"""The table of docs/leakage.md says what the committed result says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest


@pytest.mark.parametrize(
    ("line", "command", "split", "kind"),
    [
        ("VQA-RAD | 451 of 451 rows an image", "vqa_rad --path vqa_rad data.split.validation=0", "test", "image"),
        ("VQA-RAD by image | 175 of 706", "vqa_rad --path vqa_rad data.split_by=image", "test", "question"),
        ("MTS-Dialog, both test sets | 2 of 200", "mts_dialog --path mts_dialog", "test1", "row"),
        ("MTS-Dialog, both test sets | 2 of 200", "mts_dialog --path mts_dialog", "test2", "row"),
        ("BreastMNIST | 1 of 156", "medmnist --path breastmnist.npz", "test", "image"),
        ("8 of 524 validation", "medmnist --path pneumoniamnist_rebuilt.npz", "validation", "image"),
        ("by patient | 4 of 52", "covid_cxr_notes --path covid_cxr_notes_NC-SA", "test", "similar"),
        ("by report | 176 of 689", "iu_xray --path NLMCXR_reports.tgz", "test", "row"),
    ],
)
def test_a_figure_of_the_table_is_that_of_the_result(
    line: str, command: str, split: str, kind: str, repository: Path
) -> None:
    runs = json.loads((repository / "benchmarks" / "results" / "leakage.json").read_text(encoding="utf-8"))["runs"]
    (run,) = [run for run in runs if run["command"] == f"bmpeft data check {command}"]
    (overlap,) = [o for o in run["overlaps"] if (o["split"], o["kind"]) == (split, kind)]
    assert line in (repository / "docs" / "leakage.md").read_text(encoding="utf-8")
    assert f"{overlap['rows']} of {overlap['of']}" in line
