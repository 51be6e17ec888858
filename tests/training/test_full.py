"""Full fine-tuning through the trainer: what moves and what does not, resuming, and the real command."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from bmpeft import cli
from bmpeft.backbones.base import EncodedExample
from bmpeft.backbones.biomedgpt.backbone import IMAGE_TOWER, BiomedGPTBackbone
from bmpeft.errors import Interrupted
from bmpeft.images import ImageFile
from bmpeft.recipe_adaptation import FullSection
from bmpeft.training.trainer import SequenceTrainer
from tests.backbones.tiny import tiny_backbone
from tests.test_cli_training import QUICK, output, questions, write_lines
from tests.training.small import encoded_rows
from tests.training.test_resume import OPTIONS as OF_RESUMING
from tests.training.test_resume import STEPS, SignalAt, assert_same
from tests.training.test_trainer import ROWS, make_trainer

OPTIONS: dict[str, Any] = {**OF_RESUMING, "lora_dropout": 0.0, "learning_rate": 1e-3, "adaptation": FullSection()}


def new_trainer(directory: Path) -> SequenceTrainer:
    return make_trainer(directory, backbone=tiny_backbone(dropout=0.1), **OPTIONS)[0]


def test_interrupted_and_resumed_is_uninterrupted(tmp_path: Path) -> None:
    whole = new_trainer(tmp_path / "whole")
    wanted = whole, whole.fit()
    trainer = new_trainer(tmp_path / "parts")
    trainer.add_callback(SignalAt(5, signal.SIGTERM))
    with pytest.raises(Interrupted, match=f"after step 5 of {STEPS}"):
        trainer.fit()
    torch.manual_seed(12345)  # a new process starts from other states
    resumed = new_trainer(tmp_path / "parts")
    assert_same((resumed, resumed.fit(resumed.checkpoints.latest(print))), wanted)


def rows_with_images(backbone: BiomedGPTBackbone, directory: Path) -> tuple[EncodedExample, ...]:
    rows = []
    for number, row in enumerate(encoded_rows(backbone, ROWS).encoded):
        path = directory / f"{number}.png"
        Image.fromarray(np.random.default_rng(number).integers(0, 255, (32, 32, 3), np.uint8)).save(path)
        rows.append(replace(row, image=ImageFile(path), image_patches=4))
    return tuple(rows)


@pytest.mark.parametrize(
    ("train_image_tower", "dtype"), [(False, torch.float32), (True, torch.float32), (False, torch.bfloat16)]
)
def test_the_tower_moves_only_where_it_is_asked_to_and_its_statistics_never(
    tmp_path: Path, train_image_tower: bool, dtype: torch.dtype
) -> None:
    backbone = tiny_backbone(dropout=0.1, image_size=32)
    backbone.model.to(dtype)  # type: ignore[call-overload]
    before = {name: tensor.clone() for name, tensor in backbone.model.state_dict().items()}
    said: list[str] = []
    trainer, _ = make_trainer(
        tmp_path,
        backbone=backbone,
        rows=rows_with_images(backbone, tmp_path),
        adaptation=FullSection(train_image_tower=train_image_tower),
        learning_rate=1e-3,
        max_steps=3,
        say=said.append,
    )
    trainer.fit()
    assert not said, "nothing that trains is out of reach"
    after = backbone.model.state_dict()
    moved = {name for name in before if not torch.equal(after[name], before[name].to(after[name].dtype))}
    in_tower = {name for name in before if name.startswith(IMAGE_TOWER)}
    weights = {name for name in in_tower if name in dict(backbone.model.named_parameters())}
    assert in_tower & moved == (weights if train_image_tower else set())
    assert {"encoder.embed_tokens.weight", "encoder.image_proj.weight", "decoder.embed_positions.weight"} <= moved


def test_activation_checkpointing_gives_the_same_parameters(tmp_path: Path) -> None:
    results = []
    for checkpointing in (False, True):
        trainer, _ = make_trainer(
            tmp_path / str(checkpointing),
            adaptation=FullSection(),
            learning_rate=1e-3,
            activation_checkpointing=checkpointing,
        )
        trainer.fit()
        results.append({name: p.detach() for name, p in trainer.adapted.named_parameters() if p.requires_grad})
    for name, parameter in results[0].items():
        # Two steps of AdamW at 1e-3 each; where a gradient is rounding alone its sign, and so a step, is too.
        torch.testing.assert_close(results[1][name], parameter, rtol=0, atol=2 * 2e-3)
    norm = torch.cat([(results[1][name] - parameter).flatten() for name, parameter in results[0].items()]).norm()
    assert norm < 1e-2 * torch.cat([parameter.flatten() for parameter in results[0].values()]).norm()


def test_the_real_commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    write_lines(tmp_path / "rows.jsonl", questions(40))
    options = [option for option in QUICK if not option.startswith("adaptation")]
    options += ["data.path=rows.jsonl", "adaptation={method: full}", "training.learning_rate=1e-4"]
    command = [sys.executable, "-m", "bmpeft", "train", "medqa_lora", *options, "--json"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert "arning" not in result.stderr
    trained = json.loads(result.stdout)["score_card"]["results"]
    (row,) = output(capsys, "adapters", "list", "--json")["adapters"]
    assert (row["name"], row["method"], row["problem"]) == ("tiny", "full", None)
    verified = output(capsys, "adapters", "verify", "tiny", "--json")
    assert verified["canary"]["change"] > verified["canary"]["bound"]
    again = output(capsys, "eval", "adapters/tiny", "--fresh", "--json", "--quiet")["results"]
    assert again[0]["metrics"] == trained[0]["metrics"]
    asked = [{key: row[key] for key in ("question", "options")} for row in questions(4)]
    write_lines(tmp_path / "asked.jsonl", asked)
    assert cli.main(["predict", "--adapter", "tiny", "--input", "asked.jsonl", "--output", "answers.jsonl"]) == 0
    assert len((tmp_path / "answers.jsonl").read_text().splitlines()) == len(asked)
    assert cli.main(["inspect", "medqa_full", "data.path=rows.jsonl", "backbone.init=random"]) == 0
