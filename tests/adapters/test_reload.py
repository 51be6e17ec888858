"""An adapter in a new process: by bmpeft and by plain peft on the plain model, the same logits bit for bit."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from bmpeft.adapters.runtime import load_backbone
from tests.adapters.conftest import Stored
from tests.training.small import encoded_rows

BY_BMPEFT = """
import sys, torch, bmpeft
backbone_directory, adapter_directory, batch, output = sys.argv[1:]
backbone = bmpeft.load_backbone(backbone_directory, attention="eager", dtype="float32")
name = backbone.load_adapter(adapter_directory)
with torch.inference_mode(), backbone.model_with(name) as model:
    torch.save(model(**torch.load(batch)).logits, output)
"""
BY_PEFT = """
import sys, torch
import bmpeft.backbones.biomedgpt  # makes the architecture known to transformers; nothing else of bmpeft is used
from peft import PeftModel
from transformers import AutoModelForSeq2SeqLM
backbone_directory, adapter_directory, batch, output = sys.argv[1:]
model = AutoModelForSeq2SeqLM.from_pretrained(backbone_directory, attn_implementation="eager", dtype=torch.float32)
model = PeftModel.from_pretrained(model, adapter_directory).eval()
with torch.inference_mode():
    torch.save(model(**torch.load(batch)).logits, output)
"""


@pytest.fixture
def batch(stored: Stored, tmp_path: Path) -> Path:
    backbone = load_backbone(str(stored.backbone))
    torch.save(backbone.frozen.collate(encoded_rows(backbone.frozen, 5).encoded), tmp_path / "batch.pt")
    return tmp_path / "batch.pt"


def test_bmpeft_and_plain_peft_agree_bit_for_bit_in_new_processes(stored: Stored, batch: Path, tmp_path: Path) -> None:
    outputs = {name: tmp_path / f"{name}.pt" for name in ("bmpeft", "peft")}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(stored.backbone), str(stored.first), str(batch), str(outputs[name])],
            stderr=subprocess.PIPE,
            text=True,
        )
        for name, code in (("bmpeft", BY_BMPEFT), ("peft", BY_PEFT))
    ]
    for process in processes:
        _, errors = process.communicate()
        assert process.returncode == 0, errors
    results = {name: torch.load(output) for name, output in outputs.items()}
    backbone = load_backbone(str(stored.backbone), attention="eager", dtype="float32")
    with torch.inference_mode():
        bare = backbone.frozen.model(**torch.load(batch)).logits
        backbone.load_adapter(stored.first)
        with backbone.model_with("first") as model:
            here = model(**torch.load(batch)).logits
    assert torch.equal(results["bmpeft"], results["peft"])
    assert torch.equal(results["bmpeft"], here)
    assert not torch.equal(results["bmpeft"], bare), "an adapter without an effect would prove nothing"
