"""The model equals the original implementation on its recorded outputs."""

from __future__ import annotations

import importlib.util
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

from bmpeft.backbones.biomedgpt import BiomedGPTConfig, BiomedGPTForConditionalGeneration

CASES = ("text", "text_padded", "long_text", "image_text", "image_text_padded")
GOLDEN = Path(os.environ.get("BMPEFT_SHARED_GOLDEN", Path(__file__).resolve().parents[3] / "shared" / "golden"))

pytestmark = pytest.mark.skipif(not GOLDEN.is_dir(), reason=f"golden outputs are not at {GOLDEN.name}")


@pytest.fixture(
    scope="module", params=[(c, a) for c in CASES for a in ("eager", "sdpa", "chunked")], ids=lambda p: "-".join(p)
)
def golden(request: pytest.FixtureRequest) -> tuple[BiomedGPTForConditionalGeneration, dict[str, torch.Tensor]]:
    """A model with the golden weights, and the case's inputs and outputs."""
    case, attention = request.param
    with safe_open(GOLDEN / f"{case}.safetensors", "pt") as file:
        config = json.loads(file.metadata()["config"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
    fields: dict[str, Any] = {**config, "num_code_tokens": 0, "num_bin_tokens": 0, "attn_implementation": attention}
    model = BiomedGPTForConditionalGeneration(BiomedGPTConfig(**fields)).eval()
    load_golden_weights(model)
    return model, tensors


def load_golden_weights(model: BiomedGPTForConditionalGeneration) -> None:
    """Fill every tensor from its name and shape, as the golden cases were made."""
    spec = importlib.util.spec_from_file_location("golden_weights", GOLDEN / "golden_weights.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    tied = {"decoder.embed_tokens.weight", "decoder.output_projection.weight"}
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if name not in tied and not name.endswith("num_batches_tracked"):
                tensor.copy_(torch.from_numpy(module.golden_tensor(name, tuple(tensor.shape))))


def run(model: BiomedGPTForConditionalGeneration, golden: dict[str, torch.Tensor]) -> Any:
    inputs = {name: golden[name] for name in ("input_ids", "decoder_input_ids", "labels")}
    if "pixel_values" in golden:
        inputs["pixel_values"] = golden["pixel_values"]
    return model(**inputs, attention_mask=golden["input_ids"].ne(1))


def test_logits_loss_and_encoder(golden: Any) -> None:
    model, expected = golden
    with torch.no_grad():
        output = run(model, expected)
    torch.testing.assert_close(output.logits, expected["logits"], atol=1e-4, rtol=0)
    torch.testing.assert_close(output.loss, expected["loss"], atol=1e-4, rtol=0)
    text = expected["input_ids"].ne(1)
    patches = torch.ones(text.shape[0], output.encoder_last_hidden_state.shape[1] - text.shape[1], dtype=torch.bool)
    real = torch.cat([patches, text], dim=1)
    torch.testing.assert_close(
        output.encoder_last_hidden_state[real], expected["encoder_last_hidden_state"][real], atol=1e-4, rtol=0
    )


def test_gradients_position_tables_included(golden: Any) -> None:
    model, expected = golden
    model.zero_grad()
    run(model, expected).loss.backward()
    parameters = dict(model.named_parameters())
    names = [name.removeprefix("grad:") for name in expected if name.startswith("grad:")]
    assert any("rel_pos_table" in name for name in names) and any("pos_q_linear" in name for name in names)
    for name in names:
        reference = expected[f"grad:{name}"]
        error = (parameters[name].grad - reference).norm() / reference.norm()
        assert error < 1e-3, f"{name}: {error}"


def test_greedy_tokens_with_and_without_cache(golden: Any) -> None:
    model, expected = golden
    inputs = {"input_ids": expected["input_ids"], "attention_mask": expected["input_ids"].ne(1)}
    if "pixel_values" in expected:
        inputs["pixel_values"] = expected["pixel_values"]
    for use_cache in (True, False):
        ids = model.generate(
            **inputs,
            max_new_tokens=12,
            do_sample=False,
            no_repeat_ngram_size=1,
            eos_token_id=None,
            use_cache=use_cache,
        )
        assert torch.equal(ids, expected["greedy_no_repeat_1_ids"])
