"""The Triton kernels without a GPU: their checks run under Triton's interpreter, in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest


def run_checks(repository: Path, checks: str, environment: dict[str, str], *options: str) -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *options]
    process = subprocess.run(
        [*command, f"tests/kernels/{checks}_checks.py"],
        cwd=repository,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
    )
    assert process.returncode == 0, process.stdout[-6000:] + process.stderr[-2000:]
    assert " passed" in process.stdout


def test_kernels_compute_what_the_definition_says(repository: Path) -> None:
    run_checks(repository, "attention", {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"})


def test_decoding_kernels_compute_what_the_definition_says(repository: Path) -> None:
    run_checks(repository, "decode", {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"})


@pytest.mark.slow
def test_kernels_compute_longer_shapes(repository: Path) -> None:
    environment = {"TRITON_INTERPRET": "1", "LONGEST": "300", "EXAMPLES": "60"}
    run_checks(repository, "attention", environment, "-k", "any_shape")


def test_importing_the_kernels_package_needs_no_triton() -> None:
    code = (
        "import sys; sys.modules['triton'] = None; import bmpeft_kernels, bmpeft.attention; import bmpeft_kernels.tiles"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
