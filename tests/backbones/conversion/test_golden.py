"""Converted weights compute what the original implementation computed with them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

from bmpeft.backbones import load_frozen_backbone
from bmpeft.backbones.biomedgpt import BiomedGPTConfig, BiomedGPTForConditionalGeneration
from bmpeft.recipe import BackboneSection
from tests.backbones.conversion.published_files import published_state, run, save_fairseq, save_transformers
from tests.backbones.test_parity import GOLDEN, load_golden_weights
from tests.backbones.test_parity import run as forward

pytestmark = pytest.mark.skipif(not GOLDEN.is_dir(), reason=f"golden outputs are not at {GOLDEN.name}")


@pytest.mark.parametrize(("scheme", "case"), [("fairseq", "text_padded"), ("transformers", "image_text_padded")])
def test_golden_outputs_under_both_name_schemes(scheme: str, case: str, tmp_path: Path) -> None:
    with safe_open(GOLDEN / f"{case}.safetensors", "pt") as file:
        fields: dict[str, Any] = json.loads(file.metadata()["config"])
        expected = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
    original = BiomedGPTForConditionalGeneration(BiomedGPTConfig(**fields, num_code_tokens=0, num_bin_tokens=0))
    load_golden_weights(original)
    if scheme == "fairseq":
        state = published_state(original, scheme, with_tables=False)
        source = save_fairseq(tmp_path / "source.pt", original, model=state)
    else:
        source = save_transformers(tmp_path / "source", original, with_tables=False)
    report = run(source, tmp_path / "backbone", max_shard_bytes=2_000_000)
    assert report.names == scheme
    assert len(list((tmp_path / "backbone").glob("*.safetensors"))) > 2
    section = {"name": str(tmp_path / "backbone"), "tokenizer": str(special_tokens(tmp_path)), "dtype": "float32"}
    backbone = load_frozen_backbone(BackboneSection.model_validate({**section, "attention": "eager"}))
    assert backbone.fingerprint == report.fingerprint and backbone.init == "pretrained"
    with torch.no_grad():
        output = forward(backbone.model, expected)  # type: ignore[arg-type]
    torch.testing.assert_close(output.logits, expected["logits"], atol=1e-4, rtol=0)
    torch.testing.assert_close(output.loss, expected["loss"], atol=1e-4, rtol=0)


def special_tokens(directory: Path) -> Path:
    """A tokenizer of four tokens: the golden cases come as ids."""
    vocabulary = {"<s>": 0, "<pad>": 1, "</s>": 2, "<unk>": 3}
    Tokenizer(WordLevel(vocabulary, unk_token="<unk>")).save(str(directory / "tokenizer.json"))
    return directory
