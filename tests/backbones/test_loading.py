"""Backbones by name and directory, their fingerprint, and what a damaged one says."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from bmpeft.backbones import load_frozen_backbone
from bmpeft.backbones.fingerprint import canonical_state, fingerprint_of
from bmpeft.errors import BackboneError, BmpeftError, UsageError
from bmpeft.recipe import BackboneSection
from tests.backbones.tiny import tiny_backbone, tiny_directory


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_directory(tmp_path_factory.mktemp("backbones") / "tiny")


@pytest.fixture
def damaged(saved: Path, tmp_path: Path) -> Path:
    """A copy to break."""
    return Path(shutil.copytree(saved, tmp_path / "copy"))


def load(name: str | Path, **fields: object) -> object:
    return load_frozen_backbone(BackboneSection.model_validate({"name": str(name), **fields}))


def test_a_directory_gives_back_weights_tokenizer_and_fingerprint(saved: Path) -> None:
    original, loaded = tiny_backbone(), load_frozen_backbone(BackboneSection(name=str(saved)))
    assert loaded.fingerprint == original.fingerprint
    assert loaded.tokenizer_digest == original.tokenizer_digest
    assert loaded.init == "random" and loaded.init_seed == 0
    expected, actual = original.model.state_dict(), loaded.model.state_dict()
    assert all(torch.equal(expected[name], actual[name]) for name in expected)
    assert not any(parameter.requires_grad for parameter in loaded.model.parameters())


def test_the_fingerprint_is_carried_through_a_cast(saved: Path, tmp_path: Path) -> None:
    low = load_frozen_backbone(BackboneSection(name=str(saved), dtype="bfloat16"))
    assert low.dtype == torch.bfloat16
    low.save_pretrained(tmp_path / "low")
    again = load_frozen_backbone(BackboneSection(name=str(tmp_path / "low")))
    assert again.fingerprint == low.fingerprint == tiny_backbone().fingerprint


def test_the_fingerprint_names_seed_values_names_and_types() -> None:
    state = {"a": torch.zeros(2, 3), "b": torch.ones(4)}
    reference = fingerprint_of(state)
    assert fingerprint_of(dict(reversed(state.items()))) == reference
    variants = [
        {"a": torch.zeros(3, 2), "b": torch.ones(4)},
        {"a": torch.zeros(2, 3), "c": torch.ones(4)},
        {"a": torch.zeros(2, 3), "b": torch.ones(4, dtype=torch.bfloat16)},
        {"a": torch.zeros(2, 3), "b": torch.tensor([1.0, 1.0, 1.0, 1.0000001])},
    ]
    assert len({reference, *map(fingerprint_of, variants), fingerprint_of(state, context={"seed": 1})}) == 6
    assert tiny_backbone(seed=1).fingerprint != tiny_backbone().fingerprint


def test_tied_tensors_count_once() -> None:
    names = canonical_state(tiny_backbone().model)
    assert "encoder.embed_tokens.weight" in names or "decoder.embed_tokens.weight" in names
    assert sum(tensor.shape == (8192, 64) for tensor in names.values()) == 1


def test_the_embedded_name_with_random_weights_says_what_it_is() -> None:
    nano = load_frozen_backbone(BackboneSection(name="biomedgpt-nano", init="random"))
    assert (nano.name, nano.init, nano.init_seed, nano.attention) == ("biomedgpt-nano", "random", 0, "auto")
    assert nano.tokenizer.convert_tokens_to_ids(["<s>", "<pad>", "</s>", "<unk>", "<mask>"]) == [0, 1, 2, 3, 8191]
    again = load_frozen_backbone(BackboneSection(name="biomedgpt-nano", init="random"))
    assert again.fingerprint == nano.fingerprint


def test_unknown_names_are_refused_with_the_nearest() -> None:
    with pytest.raises(UsageError, match="did you mean 'biomedgpt-xlarge'"):
        load("biomedgpt-xlarg", init="random")
    with pytest.raises(UsageError, match="do not come with bmpeft"):
        load("biomedgpt-base")
    with pytest.raises(BackboneError, match="no such directory"):
        load("./nowhere")


def test_an_unreachable_hub_is_one_clear_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(BackboneError, match=r"someone/some-backbone.*cannot be reached") as error:
        load("someone/some-backbone")
    assert "\n" not in str(error.value)


def _truncate_weights(directory: Path) -> None:
    path = directory / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])


def _change_weights(directory: Path) -> None:
    path = directory / "model.safetensors"
    tensors = load_file(path)
    tensors["encoder.layer_norm.weight"][0] += 1
    save_file(tensors, path, metadata={"format": "pt"})


def _break_description(directory: Path) -> None:
    (directory / "backbone.json").write_text("{", encoding="utf-8")


def _retype_description(directory: Path) -> None:
    path = directory / "backbone.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**content, "fingerprint": 7}), encoding="utf-8")


def _break_tokenizer(directory: Path) -> None:
    (directory / "tokenizer.json").write_text("{}", encoding="utf-8")


def _move_special_tokens(directory: Path) -> None:
    path = directory / "tokenizer.json"
    text = path.read_text(encoding="utf-8")
    path.write_text(text.replace('"<pad>"', '"<dap>"'), encoding="utf-8")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_truncate_weights, "weights cannot be loaded"),
        (lambda d: (d / "model.safetensors").write_bytes(b""), "weights cannot be loaded"),
        (lambda d: (d / "model.safetensors").unlink(), "weights cannot be loaded"),
        (_change_weights, "not those that backbone.json describes"),
        (_break_description, "backbone.json: cannot be read"),
        (_retype_description, "expected the keys"),
        (lambda d: (d / "backbone.json").unlink(), "not a bmpeft backbone directory"),
        (_break_tokenizer, "not a tokenizer file"),
        (_move_special_tokens, "<pad> has id None, expected 1"),
        (lambda d: (d / "tokenizer.json").unlink(), "no such file"),
    ],
)
def test_a_damaged_directory_is_one_clear_line(damaged: Path, damage: object, message: str) -> None:
    damage(damaged)  # type: ignore[operator]
    with pytest.raises(BmpeftError, match=message) as error:
        load(damaged)
    assert "\n" not in str(error.value) and str(damaged) in str(error.value)


def test_an_attached_adapter_is_never_saved_with_the_backbone(tmp_path: Path) -> None:
    from peft import LoraConfig, inject_adapter_in_model

    backbone = tiny_backbone()
    inject_adapter_in_model(LoraConfig(target_modules=["q_proj"]), backbone.model)
    with pytest.raises(BackboneError, match="an adapter is attached"):
        backbone.save_pretrained(tmp_path / "x")
    assert not (tmp_path / "x").exists()
