"""There and back: every key of the published layouts returns with its bits."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor

from bmpeft.backbones.biomedgpt import BiomedGPTForConditionalGeneration
from bmpeft.backbones.biomedgpt.conversion.names import to_fairseq, to_ours
from bmpeft.backbones.fingerprint import canonical_state, fingerprint_of
from bmpeft.errors import BackboneError, UsageError
from tests.backbones.conversion.published_files import (
    fairseq_name,
    published_state,
    run,
    save_fairseq,
    save_transformers,
    small_model,
)
from tests.backbones.tiny import tiny_directory

Model = BiomedGPTForConditionalGeneration


@pytest.fixture(scope="module")
def model() -> Model:
    return small_model()


def fairseq_content(path: Path) -> dict[str, object]:
    """As upstream reads it, with the real class of its options."""
    with torch.serialization.safe_globals([argparse.Namespace]):
        return torch.load(path, weights_only=True)  # type: ignore[no-any-return]


def assert_equal(found: object, expected: Mapping[str, Tensor]) -> None:
    assert isinstance(found, Mapping)
    assert found.keys() == expected.keys()
    for key, tensor in expected.items():
        assert torch.equal(found[key], tensor) and found[key].dtype == tensor.dtype, key


@pytest.mark.parametrize("half", [False, True], ids=["float32", "float16"])
def test_fairseq_to_backbone_to_fairseq(half: bool, tmp_path: Path) -> None:
    model = small_model().half() if half else small_model()
    state = published_state(model, "fairseq")
    if half:
        state |= {key: state[key].half() for key in ("encoder.version", "decoder.version")}
    source = save_fairseq(tmp_path / "source.pt", model, model=state)
    run(source, tmp_path / "backbone")
    run(tmp_path / "backbone", tmp_path / "back.pt", to="fairseq")
    content = fairseq_content(tmp_path / "back.pt")
    assert_equal(content["model"], state)
    assert content["last_optimizer_state"] is None and content["args"].encoder_layers == 2  # type: ignore[attr-defined]


def test_transformers_to_backbone_to_transformers(model: Model, tmp_path: Path) -> None:
    source = save_transformers(tmp_path / "source", model)
    run(source, tmp_path / "backbone")
    run(tmp_path / "backbone", tmp_path / "back", to="transformers")
    assert_equal(torch.load(tmp_path / "back" / "pytorch_model.bin"), published_state(model, "transformers"))
    config = json.loads((tmp_path / "back" / "config.json").read_text())
    assert json.loads((source / "config.json").read_text()).items() <= config.items()
    assert (tmp_path / "back" / "LICENCE_NOTE.md").is_file() and not (tmp_path / "back" / "backbone.json").exists()


def test_from_one_published_layout_to_the_other(model: Model, tmp_path: Path) -> None:
    """The script that upstream does not have."""
    run(save_fairseq(tmp_path / "source.pt", model), tmp_path / "there", to="transformers")
    assert_equal(torch.load(tmp_path / "there" / "pytorch_model.bin"), published_state(model, "transformers"))
    report = run(tmp_path / "there", tmp_path / "back.pt", to="fairseq")
    assert_equal(fairseq_content(tmp_path / "back.pt")["model"], published_state(model, "fairseq"))
    assert report.fingerprint == fingerprint_of(canonical_state(model))


def test_tied_tensors_are_stored_once(model: Model, tmp_path: Path) -> None:
    run(save_fairseq(tmp_path / "source.pt", model), tmp_path / "there", to="transformers")
    state = torch.load(tmp_path / "there" / "pytorch_model.bin")
    names = ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight", "decoder.output_projection.weight")
    assert len({state[name].data_ptr() for name in names}) == 1


def test_names_are_those_of_the_description(model: Model) -> None:
    for name in model.state_dict():
        assert to_fairseq(name) == fairseq_name(name)
        assert to_ours(fairseq_name(name)) == to_ours(name) == (name,)


def test_what_cannot_be_bit_for_bit_is_refused(model: Model, tmp_path: Path) -> None:
    source = save_fairseq(tmp_path / "source.pt", model)
    with pytest.raises(UsageError, match="goes back bit for bit"):
        run(source, tmp_path / "never.pt", to="fairseq", dtype="float16")
    with pytest.raises(UsageError, match="one file, without a tokenizer"):
        run(source, tmp_path / "never.pt", to="fairseq", tokenizer=tmp_path)
    with pytest.raises(UsageError, match=r"such as never\.pt"):
        run(source, tmp_path / "never.safetensors", to="fairseq")
    assert list(tmp_path.iterdir()) == [source]


def test_a_backbone_is_cast_under_its_own_name(tmp_path: Path) -> None:
    directory = tiny_directory(tmp_path / "tiny")
    before = json.loads((directory / "backbone.json").read_text())
    report = run(directory, tmp_path / "low", dtype="bfloat16")
    after = json.loads((tmp_path / "low" / "backbone.json").read_text())
    assert after["fingerprint"] == report.fingerprint == before["fingerprint"] != after["stored_tensors"]
    assert (after["init"], after["init_seed"], after["tokenizer_digest"]) == ("random", 0, before["tokenizer_digest"])
    assert report.licence == (), "untrained weights of this package are nobody else's"
    run(tmp_path / "low", tmp_path / "high", dtype="float32")
    assert json.loads((tmp_path / "high" / "backbone.json").read_text())["fingerprint"] == before["fingerprint"]


def test_a_damaged_backbone_is_not_converted(tmp_path: Path) -> None:
    weights = tiny_directory(tmp_path / "tiny") / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(BackboneError, match=r"not those that its backbone\.json describes"):
        run(tmp_path / "tiny", tmp_path / "out.pt", to="fairseq")
    assert [path.name for path in tmp_path.iterdir()] == ["tiny"]
