"""The fingerprint names weights: how a file stores them does not matter, every byte of them does."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from bmpeft.backbones import FrozenBackbone, load_frozen_backbone
from bmpeft.backbones.biomedgpt import BiomedGPTConfig, BiomedGPTForConditionalGeneration
from bmpeft.backbones.fingerprint import canonical_state, fingerprint_of
from bmpeft.backbones.loading import _architecture
from bmpeft.errors import BackboneError
from bmpeft.recipe import BackboneSection
from tests.backbones.tiny import tiny_backbone, tiny_directory

WEIGHTS = "model.safetensors"


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_directory(tmp_path_factory.mktemp("backbones") / "tiny")


@pytest.fixture
def copy(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "copy"))


def load(directory: Path, dtype: str = "float32") -> FrozenBackbone:
    return load_frozen_backbone(BackboneSection.model_validate({"name": str(directory), "dtype": dtype}))


def split_file(path: Path) -> tuple[dict[str, dict[str, object]], bytes]:
    """Header and data of a safetensors file."""
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def test_the_order_of_the_tensors_in_the_file_does_not_matter(saved: Path, copy: Path) -> None:
    header, data = split_file(copy / WEIGHTS)
    turned: dict[str, object] = {"__metadata__": header.pop("__metadata__")}
    blocks = b""
    for name in reversed(header):
        begin, end = header[name]["data_offsets"]  # type: ignore[misc]
        turned[name] = {**header[name], "data_offsets": [len(blocks), len(blocks) + end - begin]}  # type: ignore[has-type]
        blocks += data[begin:end]  # type: ignore[has-type]
    text = json.dumps(turned).encode()
    (copy / WEIGHTS).write_bytes(len(text).to_bytes(8, "little") + text + blocks)
    assert (copy / WEIGHTS).read_bytes() != (saved / WEIGHTS).read_bytes()
    assert load(copy).fingerprint == load(saved).fingerprint == tiny_backbone().fingerprint


def test_the_split_into_shards_does_not_matter(saved: Path, copy: Path) -> None:
    (copy / WEIGHTS).unlink()
    tiny_backbone().model.save_pretrained(copy, max_shard_size="500KB")
    shards = sorted(copy.glob("model-*.safetensors"))
    assert len(shards) > 2
    assert load(copy).fingerprint == load(saved).fingerprint
    flip(shards[-1], -1)
    with pytest.raises(BackboneError, match=r"not those that backbone\.json describes"):
        load(copy)


def flip(path: Path, position: int) -> None:
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("part", [0.0, 0.3, 0.6, 1.0])
def test_a_changed_byte_is_seen(copy: Path, part: float) -> None:
    size = len(split_file(copy / WEIGHTS)[1])
    flip(copy / WEIGHTS, -1 - int(part * (size - 1)))
    with pytest.raises(BackboneError, match=r"not those that backbone\.json describes") as caught:
        load(copy)
    assert "\n" not in str(caught.value)


def test_it_is_what_the_issue_says_it_is(saved: Path) -> None:
    """Over the file's tensors alone: nothing of the loading code takes part but the names of tied tensors."""
    stored = load_file(saved / WEIGHTS)
    assert stored.keys() == canonical_state(tiny_backbone().model).keys()
    assert fingerprint_of(stored) == json.loads((saved / "backbone.json").read_text())["fingerprint"]


def test_it_is_that_of_the_source_after_every_cast_and_copy(saved: Path, tmp_path: Path) -> None:
    source = load(saved).fingerprint
    low = load(saved, "bfloat16")
    low.save_pretrained(tmp_path / "low")
    high = load(tmp_path / "low", "float32")
    high.save_pretrained(tmp_path / "high")
    assert {low.fingerprint, high.fingerprint, load(tmp_path / "high").fingerprint} == {source}
    described = json.loads((tmp_path / "high" / "backbone.json").read_text())
    assert described["fingerprint"] == source != described["stored_tensors"], "the cast lost bits, and says so"


def test_random_weights_are_named_by_configuration_seed_and_tensors() -> None:
    section = BackboneSection(name="biomedgpt-nano", init="random", dtype="float32")
    nano = load_frozen_backbone(section)
    other = load_frozen_backbone(section.model_copy(update={"init_seed": 1}))
    low = load_frozen_backbone(section.model_copy(update={"dtype": "bfloat16", "attention": "eager"}))
    assert low.dtype == torch.bfloat16
    assert low.fingerprint == nano.fingerprint != other.fingerprint
    model = BiomedGPTForConditionalGeneration.from_size("nano", seed=0)
    state = canonical_state(model)

    def named(config: BiomedGPTConfig, seed: int) -> str:
        return fingerprint_of(state, context={"size": "nano", "config": _architecture(config), "seed": seed})

    assert named(model.config, 0) == nano.fingerprint
    # A factor in the attention changes what the same tensors compute.
    assert len({named(model.config, 0), named(model.config, 1),
                named(BiomedGPTConfig.from_size("nano", attn_scale_factor=1.0), 0)}) == 3  # fmt: skip
