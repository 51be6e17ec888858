"""`bmpeft bench attention`: its rows, and that it counts what it says it counts."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from bmpeft.benchmarks.measure import LiveBytes
from bmpeft.benchmarks.plot import plot_rows
from bmpeft.benchmarks.rows import COLUMNS, make_row
from bmpeft.errors import UsageError


def bench(*options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "bmpeft", "bench", "attention", "--quiet", *options]
    return subprocess.run(command, capture_output=True, text=True)


def test_rows_have_the_form_of_all_benchmarks_and_chunked_needs_less_memory(tmp_path: Path) -> None:
    file = tmp_path / "rows.csv"
    options = ("--length", "1024", "--heads", "2", "--head-dim", "16", "--batch", "1", "--repeats", "2")
    result = bench(*options, "--dtype", "float32", "--csv", str(file), "--json")
    assert (result.returncode, result.stderr) == (0, "")
    rows = json.loads(result.stdout)["rows"]
    assert all(tuple(row) == COLUMNS for row in rows)
    assert len(rows) == 3 * 2 * 2  # backends, passes, metrics
    assert all(0 < row["p20"] <= row["p50"] <= row["p80"] for row in rows)
    assert {row["n"] for row in rows if row["metric"] == "time"} == {2}
    memory = {(row["backend"], row["pass"]): row["p50"] for row in rows if row["metric"] == "peak_memory"}
    matrix = 4 * 2 * 1024 * 1024  # bytes of one float32 bias
    for kind in ("forward", "forward+backward"):
        assert memory["chunked", kind] < 2 * matrix < memory["eager", kind]
        assert memory["chunked", kind] < memory["sdpa", kind]
    with file.open(encoding="utf-8", newline="") as stream:
        assert len(list(csv.DictReader(stream))) == len(rows)


def test_live_bytes_are_the_most_that_is_held_at_once() -> None:
    given = torch.ones(1000)
    with LiveBytes() as live:
        first = given + 1  # 4,000 bytes
        second = first * 2
        del first
        view = second[:10]
        second.add_(1)
        third = view + 1  # 40 bytes
    assert live.peak == 8000
    assert third.shape == (10,)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--backend", "fast"), "'fast' is not one of auto, eager, sdpa, chunked, flash, flex, triton"),
        (("--dtype", "int8"), "--dtype int8: not one of float32, bfloat16"),
    ],
)
def test_what_is_unknown_is_refused(options: tuple[str, str], message: str) -> None:
    result = bench(*options)
    assert (result.returncode, result.stdout) == (2, "")
    assert message in result.stderr


def test_without_matplotlib_a_plot_is_refused_in_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(UsageError, match="matplotlib is not installed"):
        plot_rows(tmp_path / "plot.png", [])


def test_a_plot_is_a_png(tmp_path: Path) -> None:
    row = {"backend": "sdpa", "dtype": "float32", "pass": "forward", "metric": "time", "unit": "seconds"}
    rows = [make_row(row, {"case": case, "length": n, "p20": n, "p50": n, "p80": n}) for case in "ab" for n in (1, 2)]
    plot_rows(tmp_path / "plot.png", rows)
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")
