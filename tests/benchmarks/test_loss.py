"""`bmpeft bench loss`: its rows, and that the loss in chunks needs less memory than the matrix of logits."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from bmpeft.benchmarks.rows import COLUMNS, make_row


def bench(*options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "bmpeft", "bench", "loss", "--quiet", *options]
    return subprocess.run(command, capture_output=True, text=True)


def test_rows_have_the_form_of_all_benchmarks_and_chunks_need_less_memory() -> None:
    result = bench("--tokens", "1500", "--vocabulary", "40000", "--width", "8", "--repeats", "1", "--json")
    assert (result.returncode, result.stderr) == (0, "")
    rows = json.loads(result.stdout)["rows"]
    assert all(tuple(row) == COLUMNS for row in rows)
    assert len(rows) == 3 * 2 * 2 * 2  # backends, number types, cases, metrics
    assert all(0 < row["p20"] <= row["p50"] <= row["p80"] for row in rows)
    memory = {(r["backend"], r["dtype"], r["case"]): r["p50"] for r in rows if r["metric"] == "peak_memory"}
    for dtype in ("float32", "bfloat16"):
        for case in ("frozen output layer, 40000 entries", "trained output layer, 40000 entries"):
            assert memory["chunked", dtype, case] < memory["matrix", dtype, case] < 8 * 4 * 1500 * 40_000


@pytest.mark.parametrize("options", [("--backend", "liger"), ("--dtype", "float16")])
def test_what_there_is_not_is_said(options: tuple[str, str]) -> None:
    result = bench(*options)
    assert (result.returncode, result.stdout) == (2, "")
    assert f"{options[0]} {options[1]}: not one of" in result.stderr


def test_a_row_has_no_other_columns() -> None:
    with pytest.raises(ValueError, match="no columns: speed"):
        make_row({"benchmark": "loss"}, {"speed": 1})
