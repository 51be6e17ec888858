"""The kernels compiled for GPUs that are not here: budgets, and that the committed table is what they compile to."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
from bmpeft_kernels.compilation import DTYPES, KERNELS, WITHOUT_PRODUCTS, Compiled
from bmpeft_kernels.tiles import TILES, Tile, tiles_for

from bmpeft.benchmarks.compile_matrix import MULTIPROCESSORS, Entry
from bmpeft.benchmarks.rows import COLUMNS

Key = tuple[str, str, str, int]


def bench(*options: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "bmpeft", "bench", "compile", "--quiet", *options]
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, **environment})


@pytest.fixture(scope="module")
def committed(repository: Path) -> dict[Key, dict[str, int]]:
    """Figures by (architecture, kernel, dtype, head dimension)."""
    found: dict[Key, dict[str, int]] = defaultdict(dict)
    with (repository / "benchmarks" / "results" / "compile_matrix.csv").open(encoding="utf-8", newline="") as stream:
        reader = csv.DictReader(stream)
        assert tuple(reader.fieldnames or ()) == COLUMNS
        for row in reader:
            key = (row["device"], row["case"], row["dtype"], int(row["head_dim"]))
            found[key][row["metric"]] = int(row["p50"])
    return found


def test_the_committed_table_has_every_case_within_its_budgets(committed: dict[Key, dict[str, int]]) -> None:
    cases = {(a, k, t, d) for a in MULTIPROCESSORS for k in KERNELS for t in DTYPES for d in (64, 80)}
    assert set(committed) == cases
    for (architecture, kernel, *_), figures in committed.items():
        assert figures["stack"] == 0
        assert figures["shared_memory"] <= MULTIPROCESSORS[architecture].shared_of_block
        assert (figures["matrix_instructions"] > 0) == (kernel not in WITHOUT_PRODUCTS)
        assert figures["occupancy"] >= 8


def test_the_kernels_compile_to_what_the_committed_table_says(
    committed: dict[Key, dict[str, int]], tmp_path: Path
) -> None:
    options = ("--target", "sm_86", "--dtype", "bfloat16", "--head-dim", "64", "--csv", str(tmp_path / "rows.csv"))
    result = bench(*options, "--json", TRITON_CACHE_DIR=str(tmp_path / "cache"))
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    content: dict[str, Any] = json.loads(result.stdout)
    assert {row["kernel"] for row in content["kernels"]} == set(KERNELS)
    for row in content["rows"]:
        assert tuple(row) == COLUMNS
        assert committed["sm_86", row["case"], "bfloat16", 64][row["metric"]] == row["p50"]
    assert len((tmp_path / "rows.csv").read_text(encoding="utf-8").splitlines()) == 1 + len(content["rows"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--target", "sm_75"), "sm_75: Triton emits no tensor-core code below sm_80; use the backend sdpa"),
        (("--target", "gfx942"), "gfx942: no tiles; known are sm_80"),
        (("--dtype", "int8"), "--dtype int8: not one of float16, bfloat16"),
        (("--head-dim", "24"), "--head-dim 24: not one of 16, 32, 64, 80"),
    ],
)
def test_what_cannot_be_compiled_is_said_in_one_line(options: tuple[str, str], message: str) -> None:
    result = bench(*options)
    assert (result.returncode, result.stdout) == (2, "")
    assert message in result.stderr
    assert result.stderr.count("\n") == 1


def test_interpreted_kernels_cannot_be_compiled() -> None:
    result = bench("--target", "sm_86", TRITON_INTERPRET="1")
    assert result.returncode == 2
    assert "TRITON_INTERPRET=1 is set" in result.stderr


@pytest.mark.parametrize(
    ("registers", "shared", "warps", "occupancy"),
    [
        (64, 1024, 4, 32),  # 65,536 / (64 * 32) warps
        (255, 1024, 4, 8),
        (32, 49_000, 8, 16),  # two blocks of 48 KiB and one more of the system
        (16, 0, 8, 48),  # as many warps as there can be
    ],
)
def test_occupancy_is_what_registers_shared_memory_or_warps_allow(
    registers: int, shared: int, warps: int, occupancy: int
) -> None:
    compiled = Compiled("forward", "sm_86", "bfloat16", 64, Tile(64, 64, warps, 1), registers, 0, shared, 1)
    assert Entry(compiled).occupancy == occupancy
    assert Entry(compiled).problems == ()


def test_every_exceeded_budget_is_named() -> None:
    compiled = Compiled("forward", "sm_86", "bfloat16", 64, Tile(64, 64, 4, 1), 255, 8, 102_000, 0)
    assert Entry(compiled).problems == (
        "stack 8", "shared memory above 101376", "no matrix instructions", "fewer than 8 warps"
    )  # fmt: skip


def test_an_architecture_that_is_not_listed_has_the_tiles_of_its_ancestor() -> None:
    assert tiles_for("sm_87", 64) is TILES["sm_86"][0]
    assert tiles_for("sm_121", 80) is TILES["sm_120"][1]
