"""Data-parallel pretraining: every process has its share of a batch, and the result is that of one process."""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from bmpeft.errors import UsageError
from bmpeft.pretrain_recipe import PretrainRecipe
from bmpeft.training.pretraining.processes import SharedBatches, require_enough_rows
from tests.training.test_pretraining_images import learning


@given(
    sizes=st.lists(st.integers(1, 9), min_size=1, max_size=6),
    processes=st.integers(1, 4),
)
def test_shares_are_the_batch_each_row_once(sizes: list[int], processes: int) -> None:
    batches = [[100 * number + row for row in range(size)] for number, size in enumerate(sizes)]
    shares = [
        list(SharedBatches(batches, len(batches), process=process, processes=processes)) for process in range(processes)
    ]
    for number, batch in enumerate(batches):
        counted = [row for process in shares for row, counts in process[number] if counts]
        assert sorted(counted) == batch
        # No process is ever without a row: all take part in every step.
        assert all(process[number] for process in shares)
        assert max(len(process[number]) for process in shares) - min(len(process[number]) for process in shares) <= 1


def test_a_batch_with_fewer_images_than_processes_is_refused() -> None:
    require_enough_rows(2, 2)
    with pytest.raises(UsageError, match="batch_images=2: fewer than the 3 processes"):
        require_enough_rows(2, 3)


def run(recipe: PretrainRecipe, root: Path, processes: int, *arguments: str) -> list[dict[str, Any]]:
    """The real command in new processes; the events of its log."""
    path = root / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe.model_dump(mode="json")), encoding="utf-8")
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"] if processes > 1 else []
    command = [sys.executable, *launcher, "-m", "bmpeft", "train", str(path), "--quiet", *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("backbone:") == 1
    name = Path(recipe.output.directory).name
    lines = (Path(recipe.output.runs) / name / "log.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def with_output(recipe: PretrainRecipe, directory: Path) -> PretrainRecipe:
    return recipe.model_copy(update={"output": recipe.output.model_copy(update={"directory": str(directory)})})


@pytest.mark.slow
def test_two_processes_are_as_one(tmp_path: Path) -> None:
    training = {"steps": 6, "checkpoint_steps": 6, "logging_steps": 1, "batch_images": 9, "learning_rate": 1e-3}
    recipe = learning(tmp_path, training=training)
    before = load_file(Path(recipe.backbone.name) / "model.safetensors")
    logs, weights = [], []
    for processes in (1, 2):
        directory = tmp_path / f"by{processes}"
        logs.append(run(with_output(recipe, directory), tmp_path, processes))
        weights.append(load_file(directory / "model.safetensors"))
    compared = [
        [(e["step"], {k: v for k, v in e.items() if k.startswith(("loss", "grad", "supervised"))}) for e in log]
        for log in logs
    ]
    assert len(compared[0]) == len(compared[1]) >= 7
    for (step, one), (same_step, two) in zip(*compared, strict=True):
        assert step == same_step and two == pytest.approx(one, rel=2e-3)
    one, two = weights
    apart = {name: float((two[name].double() - one[name]).norm()) for name in before}
    moved = {name: float((one[name].double() - start).norm()) for name, start in before.items()}
    # Over all: a tensor whose gradient is nothing but rounding (the bias of keys) moves as it likes under Adam.
    assert math.hypot(*apart.values()) <= 0.02 * math.hypot(*moved.values())
    statistics = [name for name in before if name.endswith(("running_mean", "running_var"))]
    assert statistics and all(apart[name] <= 0.02 * moved[name] for name in statistics)


@pytest.mark.slow
def test_two_processes_go_on_as_if_they_had_not_been_interrupted(tmp_path: Path) -> None:
    training = {"steps": 4, "checkpoint_steps": 2, "dropout": 0.1, "sample_patch_num": 3}
    recipe = learning(tmp_path, training=training)
    run(recipe, tmp_path, 2)
    whole = load_file(Path(recipe.output.directory) / "model.safetensors")
    shutil.rmtree(recipe.output.directory)
    shutil.rmtree(Path(recipe.output.runs) / "backbone" / "checkpoints" / "step-00000004")
    run(recipe, tmp_path, 2, "--resume")
    resumed = load_file(Path(recipe.output.directory) / "model.safetensors")
    assert all(torch.equal(resumed[name], tensor) for name, tensor in whole.items())
