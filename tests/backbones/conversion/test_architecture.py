"""A source that contradicts itself, lacks something or has too much is refused by the name of what is wrong."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from bmpeft.backbones.biomedgpt import BiomedGPTForConditionalGeneration
from bmpeft.errors import BackboneError
from tests.backbones.conversion.published_files import (
    checkpoint,
    options,
    published_state,
    run,
    save_fairseq,
    save_transformers,
    small_model,
)

Model = BiomedGPTForConditionalGeneration


@pytest.fixture(scope="module")
def model() -> Model:
    return small_model()


def refused(source: Path) -> str:
    with pytest.raises(BackboneError) as caught:
        run(source, None, dry_run=True)
    message = str(caught.value)
    assert "\n" not in message and source.name in message
    return message


@pytest.mark.parametrize(
    ("option", "value", "expected"),
    [
        ("encoder_layers", 6, "args says encoder_layers=6, the tensors have 2"),
        ("encoder_attention_heads", 4, "args says encoder_attention_heads=4, the tensors have 2"),
        ("resnet_type", "resnet101", "args says resnet_type='resnet101', the tensors have 'resnet10'"),
        ("max_target_positions", 1024, "args says max_target_positions=1024, the tensors have 32"),
        ("scale_heads", False, "args says scale_heads=False, the tensors have True"),
        ("encoder_normalize_before", False, "args says encoder_normalize_before=False, this model has True"),
        ("activation_fn", "relu", "args says activation_fn='relu', this model has 'gelu'"),
        ("entangle_position_embedding", True, "args says entangle_position_embedding=True, this model has False"),
        ("encoder_layers", [2], "args says encoder_layers=a list, the tensors have 2"),
        ("attn_scale_factor", "two", "args says attn_scale_factor='two', expected such as 2.0"),
        ("attn_scale_factor", 0, "args says attn_scale_factor=0.0"),
    ],
)
def test_options_that_contradict_the_tensors(
    option: str, value: Any, expected: str, model: Model, tmp_path: Path
) -> None:
    arguments = argparse.Namespace(**options(model, **{option: value}))
    assert expected in refused(save_fairseq(tmp_path / "source.pt", model, args=arguments))


@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [
        ("d_model", 768, "config.json says d_model=768, the tensors have 64"),
        ("vocab_size", 59457, "config.json says vocab_size=59457, the tensors have 600"),
        ("normformer", False, "config.json says normformer=False, the tensors have True"),
        ("scale_embedding", True, "config.json: scale_embedding=True: released checkpoints have False"),
        ("model_type", "bart", "model_type 'bart', expected 'ofa' or 'biomedgpt'"),
        ("num_code_tokens", 600, "codes and"),
        ("attn_scale_factor", float("inf"), "Infinity is no number"),
        ("pad_token_id", 7, "config.json says pad_token_id=7, this model has 1"),
        ("dropout", -1, "config.json says dropout=-1.0"),
    ],
)
def test_a_config_that_contradicts_the_tensors(
    field: str, value: Any, expected: str, model: Model, tmp_path: Path
) -> None:
    assert expected in refused(save_transformers(tmp_path / "source", model, **{field: value}))


def test_tensors_that_do_not_belong_together(model: Model, tmp_path: Path) -> None:
    whole = published_state(model, "fairseq")

    def with_change(**changes: Any) -> str:
        state = {**whole, **{key.replace("__", "."): value for key, value in changes.items()}}
        state = {key: value for key, value in state.items() if value is not None}
        path = tmp_path / "source.pt"
        torch.save(checkpoint(state), path)
        return refused(path)

    zeros = torch.zeros(3, 5)
    fc2 = "decoder__layers__1__fc2__weight"
    assert "decoder.layers.1.fc2.weight: missing" in with_change(**{fc2: None})
    assert "decoder.layers.1.fc2.weight: shape [3, 5], the other tensors expect [64, 128]" in with_change(
        **{fc2: zeros}
    )
    assert "int64, expected float32, float16, bfloat16" in with_change(**{fc2: torch.zeros(64, 128, dtype=torch.int64)})
    assert "float64, expected" in with_change(**{fc2: torch.zeros(64, 128, dtype=torch.float64)})
    assert "adapters and prompts cannot be converted" in with_change(
        encoder__layers__0__adapter__down_proj__weight=zeros
    )
    assert "encoder.layers.7.fc1.weight: no part of the architecture" in with_change(
        encoder__layers__7__fc1__weight=zeros
    )
    assert "no weights of BiomedGPT or OFA" in with_change(encoder__layernorm_embedding__weight=None)
    assert "belong to no grid of patches" in with_change(encoder__image_rel_pos_table_list__0__weight=zeros)
    assert "blocks in its stages" in with_change(encoder__embed_images__layer1__1__conv1__weight=zeros)
    assert "another key becomes" in with_change(decoder__layers__0__cross_attn__q_proj__weight=torch.zeros(64, 64))
    assert "encoder.version: a str, expected tensors" in with_change(encoder__version="3")
    assert r"'\x1b[2Jx': a tensor with no name of one" in with_change(**{"\x1b[2Jx": zeros})
    embeddings = {f"{stack}__embed_tokens__weight": None for stack in ("encoder", "decoder")}
    assert "encoder.embed_tokens.weight: missing" in with_change(**embeddings, decoder__output_projection__weight=None)


def test_parts_beside_encoder_and_decoder_are_left_out_and_named(model: Model, tmp_path: Path) -> None:
    state = published_state(model, "fairseq") | {"classification_heads.x.weight": torch.zeros(2)}
    torch.save(checkpoint(state), tmp_path / "source.pt")
    report = run(tmp_path / "source.pt", None, dry_run=True)
    (head,) = [key for key in report.keys if key.source == "classification_heads.x.weight"]
    assert head.status == "ignored" and head.reason == "neither of the encoder nor of the decoder"
    assert {key.source for key in report.keys if key.source} >= state.keys(), "every key is in the report"


@pytest.mark.parametrize("part", ["scale_attn", "scale_fc", "scale_heads", "scale_resids"])
def test_the_parts_of_normformer_are_found_from_the_keys(part: str, tmp_path: Path) -> None:
    model = small_model(**{part: part == "scale_resids"})
    torch.save(checkpoint(published_state(model, "fairseq")), tmp_path / "source.pt")
    report = run(tmp_path / "source.pt", tmp_path / "backbone")
    assert report.architecture[part] is (part == "scale_resids")
    loaded = Model.from_pretrained(tmp_path / "backbone", attn_implementation="eager")
    ids = torch.tensor([[0, 5, 6, 2]])
    with torch.no_grad():
        expected, found = (m(input_ids=ids, decoder_input_ids=ids).logits for m in (model, loaded))
    assert torch.equal(found, expected)


def test_a_scaled_residual_scales_the_residual() -> None:
    """By the definition: with scale 0 the feed-forward block's input reaches its output through the block only."""
    layer = small_model(scale_resids=True).encoder.layers[0]
    x = torch.randn(1, 3, 64)
    with torch.no_grad():
        layer.w_resid.fill_(2.0)
        doubled = layer._feed_forward(x)
        layer.w_resid.fill_(1.0)
        assert torch.allclose(doubled - layer._feed_forward(x), x, atol=1e-5)


def test_synchronised_batch_norm_has_its_own_epsilon(model: Model, tmp_path: Path) -> None:
    arguments = argparse.Namespace(**options(model, sync_bn=True))
    run(save_fairseq(tmp_path / "source.pt", model, args=arguments), tmp_path / "backbone")
    loaded = Model.from_pretrained(tmp_path / "backbone")
    assert {m.eps for m in loaded.modules() if isinstance(m, torch.nn.BatchNorm2d)} == {1e-3}


def test_the_rates_of_somebodys_training_are_not_taken_over(model: Model, tmp_path: Path) -> None:
    arguments = argparse.Namespace(**options(model, encoder_drop_path_rate=0.1, dropout=0.3))
    report = run(save_fairseq(tmp_path / "source.pt", model, args=arguments), None, dry_run=True)
    assert report.architecture["encoder_drop_path_rate"] == 0.0 and report.architecture["dropout"] == 0.1


def test_what_the_source_does_not_say_is_named(model: Model, tmp_path: Path) -> None:
    said = run(save_fairseq(tmp_path / "a.pt", model), None, dry_run=True)
    unsaid = run(save_fairseq(tmp_path / "b.pt", model, args=None), None, dry_run=True)
    assert (said.assumed, unsaid.assumed) == ((), ("attn_scale_factor",))
    assert said.architecture_from == "args and the tensors, which agree" and unsaid.architecture_from == "the tensors"


@pytest.mark.parametrize("size", ["small", "xlarge"])
def test_a_size_is_recognised_from_its_shapes(size: str, tmp_path: Path) -> None:
    """On the meta device: no weights are needed to tell sizes apart."""
    from bmpeft.backbones.biomedgpt.configuration import BiomedGPTConfig
    from bmpeft.backbones.biomedgpt.conversion.architecture import configuration, fields_of, size_of

    with torch.device("meta"):
        state = Model(BiomedGPTConfig.from_size(size)).state_dict()
    fields = fields_of({name: tuple(tensor.shape) for name, tensor in state.items()})
    config, _ = configuration(fields, {}, None, tied=True)
    assert size_of(config) == size
    expected = BiomedGPTConfig.from_size(size)
    assert all(getattr(config, name) == getattr(expected, name) for name in BiomedGPTConfig.__annotations__)


def test_hostile_directories_are_one_clear_line(model: Model, tmp_path: Path) -> None:
    directory = save_transformers(tmp_path / "source", model)
    weights = directory / "pytorch_model.bin"
    (directory / "config.json").write_text('{"d_model": 1, "d_model": 2}')
    assert "a key occurs twice" in refused(directory)
    (directory / "config.json").unlink()
    index = directory / "pytorch_model.bin.index.json"
    for names in ({"a": "../elsewhere.bin"}, {"a": "/etc/passwd"}, {"a": 7}, {}, ["a"]):
        weights.unlink(missing_ok=True)
        index.write_text(json.dumps({"weight_map": names}))
        assert "expected weight_map with the names of files beside it" in refused(directory)
    index.write_text(json.dumps({"weight_map": {"a": "missing.bin"}}))
    assert "missing.bin" in refused(directory)
    index.unlink()
    assert "no weights: expected model.safetensors or pytorch_model.bin" in refused(directory)
    (directory / "model.safetensors").write_bytes(b"12345678")
    assert "no safetensors file, or damaged" in refused(directory)
    assert "no such file or directory" in refused(tmp_path / "nowhere")
