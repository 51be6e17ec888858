"""Fully fine-tuned parameters as an artifact: read as strictly as a LoRA, switched without a trace."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from bmpeft.adaptation import Attached
from bmpeft.adapters.artifact import ArtifactSummary, BrokenArtifact, list_artifacts, load_artifact
from bmpeft.adapters.canary import record_canary
from bmpeft.adapters.runtime import Backbone, load_backbone
from bmpeft.adapters.verification import verify
from bmpeft.errors import ArtifactError
from bmpeft.progress import Progress
from bmpeft.tasks import make_task, predict_examples
from bmpeft.training import run
from tests.adapters.conftest import Stored, sign
from tests.training.small import encoded_rows, records, small_recipe

TENSORS = "adapter_model.safetensors"
EMBEDDING = "encoder.embed_tokens.weight"
ROWS = records(5, split="questions")
FULL = ("adaptation={method: full}", "training.learning_rate=1e-3")
IN_A_NEW_PROCESS = """
import json, sys
from dataclasses import asdict
import bmpeft
from tests.training.small import records
backbone = bmpeft.load_backbone(sys.argv[1], attention="eager")
name = backbone.load_adapter(sys.argv[2])
print(json.dumps([asdict(prediction) for prediction in backbone.predict(records(5, split="questions"), adapter=name)]))
"""


@pytest.fixture(scope="module")
def trained(stored: Stored) -> tuple[Path, list[Any]]:
    """A fully fine-tuned adapter beside the LoRA adapters, and what the very model that was trained predicts."""
    predictions: list[Any] = []

    def spy(backbone: Any, attached: Attached) -> Any:
        task = make_task(recipe.task, recipe.data.dataset)
        with torch.inference_mode():
            predictions.extend(
                predict_examples(
                    backbone,
                    attached.model,
                    [task.example(record) for record in ROWS],
                    task.decoding,
                    batch_size=32,
                    max_source_length=recipe.data.max_source_length,
                    adapter="full",
                )
            )
        return record_canary(backbone, attached)

    recipe = small_recipe(stored.root, *FULL, "output.name=full")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "record_canary", spy)
        outcome = run.train(recipe, recipe_name="small", progress=Progress(quiet=True))
    return outcome.directory, predictions


@pytest.fixture
def full(trained: tuple[Path, list[Any]]) -> Path:
    return trained[0]


@pytest.fixture
def copy_of_full(full: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(full, tmp_path / "adapters" / "full"))


@pytest.fixture
def backbone(stored: Stored) -> Backbone:
    return load_backbone(str(stored.backbone), attention="eager")


def logits(backbone: Backbone, adapter: str | None) -> torch.Tensor:
    batch = backbone.frozen.collate(encoded_rows(backbone.frozen, 4).encoded)
    with torch.inference_mode(), backbone.model_with(adapter) as model:
        output: torch.Tensor = model(**batch).logits
    return output


def logits_by_hand(stored: Stored, full: Path) -> torch.Tensor:
    """The stored tensors copied into a backbone of its own."""
    backbone = load_backbone(str(stored.backbone), attention="eager")
    parameters = dict(backbone.frozen.model.named_parameters())
    with torch.no_grad():
        for name, tensor in load_artifact(full).read_tensors().items():
            parameters[name].copy_(tensor)
    return logits(backbone, None)


def test_a_new_process_predicts_what_the_trained_model_did_bit_for_bit(
    stored: Stored, trained: tuple[Path, list[Any]], repository: Path
) -> None:
    directory, predictions = trained
    result = subprocess.run(
        [sys.executable, "-c", IN_A_NEW_PROCESS, str(stored.backbone), str(directory)],
        cwd=repository,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout) == json.loads(json.dumps([asdict(prediction) for prediction in predictions]))


def test_the_directory_holds_the_parameters_and_nothing_for_peft(full: Path) -> None:
    assert sorted(path.name for path in full.iterdir()) == ["README.md", TENSORS, "bmpeft.json"]
    artifact = load_artifact(full)
    assert artifact.manifest.adaptation.method == "full"
    assert artifact.manifest.files.keys() == {TENSORS}
    stored_values = sum(np.prod(entry.shape) for entry in artifact.tensors.values())
    assert artifact.manifest.training.trainable_parameters == stored_values
    card = (full / "README.md").read_text()
    for text in ("library_name: bmpeft", "peft cannot load it", "image tower frozen", "Research only"):
        assert text in card
    assert "LoRA adapter for" not in card


def test_each_computes_as_if_it_were_alone(stored: Stored, full: Path, backbone: Backbone) -> None:
    bare, alone = logits(backbone, None), logits_by_hand(stored, full)
    lora = load_backbone(str(stored.backbone), attention="eager")
    lora.load_adapter(stored.first)
    expected = {"full": alone, "first": logits(lora, "first"), None: bare}
    assert not torch.equal(alone, bare)
    for directory in (full, stored.first):
        backbone.load_adapter(directory)
    for adapter in ("full", "first", None, "full", "full", None, "first", "full", "first"):
        assert torch.equal(logits(backbone, adapter), expected[adapter]), adapter
    backbone.load_adapter(full, name="again")
    assert torch.equal(logits(backbone, "again"), alone)
    backbone.unload_adapter("full")
    assert torch.equal(logits(backbone, "first"), expected["first"])
    assert torch.equal(logits(backbone, "again"), alone)
    backbone.unload_adapter("first")
    assert torch.equal(logits(backbone, "again"), alone)
    assert torch.equal(logits(backbone, None), bare)


def test_the_last_unload_leaves_the_very_backbone(
    stored: Stored, full: Path, backbone: Backbone, tmp_path: Path
) -> None:
    modules = dict(backbone.frozen.model.named_modules())
    storage = {name: p.data_ptr() for name, p in backbone.frozen.model.named_parameters()}
    values = {name: tensor.clone() for name, tensor in backbone.frozen.model.state_dict().items()}
    for directory in (stored.first, full):
        backbone.load_adapter(directory)
        logits(backbone, directory.name)
    backbone.unload_adapter("first")
    backbone.unload_adapter("full")
    assert dict(backbone.frozen.model.named_modules()) == modules
    assert {name: p.data_ptr() for name, p in backbone.frozen.model.named_parameters()} == storage
    assert all(torch.equal(tensor, values[name]) for name, tensor in backbone.frozen.model.state_dict().items())
    backbone.frozen.save_pretrained(tmp_path / "saved")


def test_what_was_not_trained_is_shared_and_tied_weights_stay_tied(full: Path, backbone: Backbone) -> None:
    before = {name: p.data_ptr() for name, p in backbone.frozen.model.named_parameters()}
    backbone.load_adapter(full)
    trained = load_artifact(full).tensors.keys()
    with backbone.model_with("full") as model:
        on = {name: p.data_ptr() for name, p in model.named_parameters()}
        assert {name for name in before if on[name] != before[name]} == set(trained)
        assert set(before) - set(trained), "the image tower at least"
        state = model.state_dict()
        assert state["decoder.output_projection.weight"].data_ptr() == state[EMBEDDING].data_ptr() == on[EMBEDDING]
        assert not any(p.requires_grad for p in model.parameters())
    assert {name: p.data_ptr() for name, p in backbone.frozen.model.named_parameters()} == before


def test_an_error_inside_restores_what_was_before(stored: Stored, full: Path, backbone: Backbone) -> None:
    backbone.load_adapter(full)
    backbone.load_adapter(stored.first)
    wanted = {adapter: logits(backbone, adapter) for adapter in ("full", "first", None)}
    with backbone.model_with("first"):
        with pytest.raises(RuntimeError), backbone.model_with("full"):
            raise RuntimeError("out of memory")
        with backbone.model_with("full"):
            assert torch.equal(logits(backbone, None), wanted[None])
        assert torch.equal(logits(backbone, "full"), wanted["full"])
    with backbone.model_with("full"):
        backbone.load_adapter(stored.second)
        backbone.unload_adapter("first")
        batch = backbone.frozen.collate(encoded_rows(backbone.frozen, 4).encoded)
        with torch.inference_mode():
            assert torch.equal(backbone.frozen.model(**batch).logits, wanted["full"]), "still switched on"
    assert torch.equal(logits(backbone, None), wanted[None])


def test_rows_of_different_adapters_are_answered_each_by_its_own(
    stored: Stored, full: Path, backbone: Backbone
) -> None:
    for directory in (full, stored.first):
        backbone.load_adapter(directory)
    mixed = ["full", None, "first", "full", None]
    alone = {name: backbone.predict(ROWS, adapter=name) for name in ("full", "first", None)}
    for row, prediction in enumerate(backbone.predict(ROWS, adapters=mixed)):
        assert prediction.choice_scores == pytest.approx(alone[mixed[row]][row].choice_scores, rel=1e-5)


def test_parameters_stay_float32_on_a_bfloat16_backbone(stored: Stored, full: Path) -> None:
    backbone = load_backbone(str(stored.backbone), dtype="bfloat16", attention="eager")
    bare = logits(backbone, None)
    backbone.load_adapter(full)
    tensors = load_artifact(full).read_tensors()
    with backbone.model_with("full") as model:
        parameters = dict(model.named_parameters())
        assert all(torch.equal(parameters[name], tensor) for name, tensor in tensors.items()), "not rounded"
    torch.testing.assert_close(logits(backbone, "full"), logits_by_hand(stored, full), rtol=1e-5, atol=1e-5)
    assert torch.equal(logits(backbone, None), bare)
    assert bare.dtype == torch.bfloat16


def test_it_is_listed_and_verified(full: Path) -> None:
    (row,) = [row for row in list_artifacts(full.parent) if row.name == "full"]
    assert isinstance(row, ArtifactSummary)
    assert verify(full, files_only=True).canary is None


# What is refused.


@pytest.fixture
def with_others(stored: Stored, full: Path, backbone: Backbone) -> Iterator[Backbone]:
    """A backbone with a sound adapter of each method; after a failed load all three compute as before."""
    backbone.load_adapter(stored.first)
    backbone.load_adapter(full, name="sound")
    wanted = {adapter: logits(backbone, adapter) for adapter in ("sound", "first", None)}
    yield backbone
    assert backbone.adapters == ("first", "sound")
    for adapter, expected in wanted.items():
        assert torch.equal(logits(backbone, adapter), expected)


@pytest.mark.parametrize("damage", ["cut", "longer", "flipped", "gone"])
def test_a_damaged_file_is_refused(copy_of_full: Path, with_others: Backbone, damage: str) -> None:
    file = copy_of_full / TENSORS
    content = file.read_bytes()
    middle = len(content) // 2
    changed = {
        "cut": content[:-8],
        "longer": content + b"more",
        "flipped": content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :],
    }
    file.unlink()
    if damage in changed:
        file.write_bytes(changed[damage])
    with pytest.raises(ArtifactError, match=TENSORS) as caught:
        with_others.load_adapter(copy_of_full)
    assert "\n" not in str(caught.value)


def _without_one(tensors: dict[str, Any]) -> None:
    del tensors["decoder.layer_norm.weight"]


def _with_the_tower(tensors: dict[str, Any]) -> None:
    tensors["encoder.embed_images.conv1.weight"] = np.zeros((64, 3, 7, 7), np.float32)


def _with_a_lora(tensors: dict[str, Any]) -> None:
    tensors["base_model.model.encoder.layers.0.fc1.lora_A.weight"] = np.zeros((2, 64), np.float32)


def _with_the_tied_name(tensors: dict[str, Any]) -> None:
    tensors["decoder.output_projection.weight"] = tensors[EMBEDDING]


def _of_another_shape(tensors: dict[str, Any]) -> None:
    tensors[EMBEDDING] = tensors[EMBEDDING][:-1]


def _of_another_dtype(tensors: dict[str, Any]) -> None:
    tensors[EMBEDDING] = tensors[EMBEDDING].astype(np.float16)


def _with_nan(tensors: dict[str, Any]) -> None:
    tensors[EMBEDDING][-1, -1] = np.nan


def _scaled(tensors: dict[str, Any]) -> None:
    for tensor in tensors.values():
        tensor *= np.float32(1.01)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_without_one, r"tensor 'decoder\.layer_norm\.weight' is missing"),
        (_with_the_tower, r"has no place for tensor 'encoder\.embed_images\.conv1\.weight'"),
        (_with_a_lora, r"unexpected tensor 'base_model\.model\."),
        (_with_the_tied_name, r"has no place for tensor 'decoder\.output_projection\.weight'"),
        (_of_another_shape, r"encoder\.embed_tokens\.weight has shape \(\d+, 64\), expected \(\d+, 64\)"),
        (_of_another_dtype, "is F16, expected F32"),
        (_with_nan, "has values that are not finite"),
        (_scaled, "another effect than when it was saved"),
        (dict.clear, "holds no tensors"),
    ],
)
def test_foreign_tensors_are_refused_even_with_a_right_digest(
    copy_of_full: Path, with_others: Backbone, change: Callable[[dict[str, Any]], None], message: str
) -> None:
    tensors = {name: tensor.copy() for name, tensor in load_file(copy_of_full / TENSORS).items()}
    change(tensors)
    save_file(tensors, copy_of_full / TENSORS, metadata={"format": "pt"})
    sign(copy_of_full)
    with pytest.raises(ArtifactError, match=message):
        with_others.load_adapter(copy_of_full)


def test_a_configuration_of_peft_beside_it_is_refused(stored: Stored, copy_of_full: Path) -> None:
    shutil.copy(stored.first / "adapter_config.json", copy_of_full)
    message = r"adapter_config\.json: an adapter of method full has no such file"
    with pytest.raises(ArtifactError, match=message):
        load_artifact(copy_of_full)
    (row,) = list_artifacts(copy_of_full.parent)
    assert isinstance(row, BrokenArtifact)


def test_a_lora_is_no_full_adapter(copy: Path, edit_json: Callable[..., None]) -> None:
    (copy / "adapter_config.json").unlink()
    edit_json(copy / "bmpeft.json", {"adaptation": {"method": "full", "train_image_tower": False}})
    with pytest.raises(ArtifactError, match="unexpected tensor 'base_model"):
        load_artifact(copy)
    edit_json(copy / "bmpeft.json", {"adaptation": {"method": "fulll"}})
    with pytest.raises(ArtifactError, match=r"bmpeft\.json: adaptation: Input tag 'fulll'"):
        load_artifact(copy)
    edit_json(copy / "bmpeft.json", {"adaptation": {"method": "full", "rank": 4}})
    with pytest.raises(ArtifactError, match=r"bmpeft\.json: adaptation\.rank: Extra inputs"):
        load_artifact(copy)
