"""`bmpeft bench decode` and `bmpeft bench step`: their rows, and what they refuse."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from bmpeft.benchmarks.rows import COLUMNS


def bench(*options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "bmpeft", "bench", *options, "--quiet"]
    return subprocess.run(command, capture_output=True, text=True)


def test_decoding_has_a_row_for_each_backend_and_figure() -> None:
    result = bench("decode", "--length", "64", "--heads", "2", "--head-dim", "16", "--repeats", "2", "--json")
    assert (result.returncode, result.stderr) == (0, "")
    rows = json.loads(result.stdout)["rows"]
    assert all(tuple(row) == COLUMNS for row in rows)
    assert [(r["backend"], r["dtype"], r["metric"]) for r in rows] == [
        (backend, dtype, metric)
        for dtype in ("float32", "bfloat16")
        for backend in ("eager", "sdpa", "chunked", "flash")
        for metric in ("time", "peak_memory")
    ]


def test_a_step_without_the_matrix_of_logits_needs_less_memory_and_recomputing_less_again() -> None:
    memory = {}
    sizes = ("--size", "nano", "--source", "32", "--target", "600", "--repeats", "1", "--batch", "2")
    for options in ((), ("--checkpointing",)):
        only = ("--backend", "sdpa", "--dtype", "float32", "--loss", "matrix", "--loss", "chunked", "--json")
        result = bench("step", *sizes, *only, *options)
        assert (result.returncode, result.stderr) == (0, "")
        rows = json.loads(result.stdout)["rows"]
        assert all(tuple(row) == COLUMNS and row["p50"] > 0 for row in rows)
        memory |= {row["case"]: row["p50"] for row in rows if row["metric"] == "peak_memory"}
    matrix, chunked, matrix_recomputed, chunked_recomputed = memory.values()
    assert chunked < matrix
    assert chunked_recomputed < min(chunked, matrix_recomputed)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("step", "--size", "huge"), "backbone 'biomedgpt-huge': unknown"),
        (("step", "--loss", "torch"), "--loss torch: not one of matrix, chunked"),
        (("step", "--backend", "triton"), "--backend triton: Triton compiles for GPUs"),
        (("decode", "--backend", "flex"), "--backend flex: torch compiles it for GPUs"),
        (("decode", "--dtype", "float16"), "--dtype float16: not one of float32, bfloat16"),
    ],
)
def test_what_there_is_not_is_said(options: tuple[str, ...], message: str) -> None:
    result = bench(*options)
    assert (result.returncode, result.stdout) == (2, "")
    assert message in result.stderr
