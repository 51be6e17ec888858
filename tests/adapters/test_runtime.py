"""Many adapters on one backbone: each computes as if it were alone, and the bare backbone as if there were none."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from bmpeft.adaptation import lora
from bmpeft.adaptation.lora import add_adapter, lora_config
from bmpeft.adapters import runtime
from bmpeft.adapters.artifact import load_artifact
from bmpeft.adapters.runtime import Backbone, load_backbone
from bmpeft.errors import ArtifactError, UsageError
from bmpeft.recipe_decoding import BeamDecoding
from bmpeft.recipe_task import TaskSection
from bmpeft.tasks import make_task
from tests.adapters.conftest import Stored
from tests.backbones.tiny import tiny_backbone, tiny_directory
from tests.training.small import encoded_rows, records

ROWS = records(7, split="questions")


@pytest.fixture
def backbone(stored: Stored) -> Backbone:
    return load_backbone(str(stored.backbone), attention="eager")


def logits(backbone: Backbone, adapter: str | None) -> torch.Tensor:
    batch = backbone.frozen.collate(encoded_rows(backbone.frozen, 4).encoded)
    with torch.inference_mode(), backbone.model_with(adapter) as model:
        output: torch.Tensor = model(**batch).logits
    return output


def plain_logits(stored: Stored, adapter: Path | None) -> torch.Tensor:
    """The same by peft alone, on a backbone of its own."""
    backbone = load_backbone(str(stored.backbone), attention="eager")
    if adapter is not None:
        artifact = load_artifact(adapter)
        model = add_adapter(backbone.frozen.model, lora_config(artifact.manifest.adaptation, "x"), "default").eval()
        model.load_adapter(str(adapter), "default")
    return logits(backbone, None)


def test_adapters_and_bare_backbone_do_not_touch_each_other(stored: Stored, backbone: Backbone) -> None:
    bare, first, second = (plain_logits(stored, path) for path in (None, stored.first, stored.second))
    assert not torch.equal(first, second)
    assert not torch.equal(first, bare)
    assert torch.equal(logits(backbone, None), bare)
    assert backbone.load_adapter(stored.first) == "first"
    assert torch.equal(logits(backbone, None), bare)
    assert backbone.load_adapter(stored.second, name="a name: with anything.") == "a name: with anything."
    for adapter, expected in (("first", first), (None, bare), ("a name: with anything.", second), ("first", first)):
        assert torch.equal(logits(backbone, adapter), expected)
    backbone.unload_adapter("first")
    assert backbone.adapters == ("a name: with anything.",)
    assert torch.equal(logits(backbone, None), bare)
    assert torch.equal(logits(backbone, "a name: with anything."), second)
    backbone.load_adapter(stored.first)
    assert torch.equal(logits(backbone, "first"), first)


def test_the_last_unload_leaves_the_very_backbone(stored: Stored, backbone: Backbone, tmp_path: Path) -> None:
    modules = dict(backbone.frozen.model.named_modules())
    tensors = {name: tensor.clone() for name, tensor in backbone.frozen.model.state_dict().items()}
    backbone.load_adapter(stored.first)
    backbone.load_adapter(stored.second)
    backbone.unload_adapter("first")
    backbone.unload_adapter("second.v2")
    assert dict(backbone.frozen.model.named_modules()) == modules
    after = backbone.frozen.model.state_dict()
    assert after.keys() == tensors.keys()
    assert all(torch.equal(after[name], tensors[name]) for name in tensors)
    assert not any(parameter.requires_grad for parameter in backbone.frozen.model.parameters())
    backbone.frozen.save_pretrained(tmp_path / "saved")


def test_base_weights_are_shared_and_nothing_trains(stored: Stored, backbone: Backbone) -> None:
    before = {name: p.data_ptr() for name, p in backbone.frozen.model.named_parameters()}
    backbone.load_adapter(stored.first)
    backbone.load_adapter(stored.second)
    after = {
        name.replace(".base_layer", ""): p.data_ptr()
        for name, p in backbone.frozen.model.named_parameters()
        if "lora_" not in name
    }
    assert after == before
    logits(backbone, "first")
    assert not any(parameter.requires_grad for parameter in backbone.frozen.model.parameters())


def test_loading_draws_no_random_numbers(stored: Stored, backbone: Backbone) -> None:
    torch.manual_seed(5)
    state = torch.random.get_rng_state()
    backbone.load_adapter(stored.first)
    backbone.load_adapter(stored.second)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_an_error_inside_restores_what_was_before(stored: Stored, backbone: Backbone) -> None:
    bare = logits(backbone, None)
    backbone.load_adapter(stored.first)
    backbone.load_adapter(stored.second)
    expected = logits(backbone, "first")
    with backbone.model_with("first") as model:
        with pytest.raises(RuntimeError), backbone.model_with("second.v2"):
            raise RuntimeError("out of memory")
        batch = backbone.frozen.collate(encoded_rows(backbone.frozen, 4).encoded)
        with torch.inference_mode():
            assert torch.equal(model(**batch).logits, expected), "the outer context is the first adapter's again"
            with backbone.model_with(None) as bare_model:
                assert torch.equal(bare_model(**batch).logits, bare)
        with pytest.raises(UsageError, match="adapter 'first' is in use"):
            backbone.unload_adapter("first")
    assert torch.equal(logits(backbone, None), bare)


def test_predictions_come_in_the_order_of_the_rows(stored: Stored, backbone: Backbone) -> None:
    backbone.load_adapter(stored.first)
    backbone.load_adapter(stored.second)
    alone = {name: backbone.predict(ROWS, adapter=name) for name in ("first", "second.v2", None)}
    mixed = ["first", None, "second.v2", "second.v2", None, "first", "first"]
    predictions = backbone.predict(ROWS, adapters=mixed, batch_size=2)
    assert [p.id for p in predictions] == [record.id for record in ROWS]
    assert [p.adapter for p in predictions] == mixed
    for row, (prediction, name) in enumerate(zip(predictions, mixed, strict=True)):
        assert prediction.choice_scores == pytest.approx(alone[name][row].choice_scores, rel=1e-5)
    assert alone["first"][0].choice_scores != alone[None][0].choice_scores
    assert backbone.predict([], adapter="first") == []


def test_the_labels_of_the_rows_are_not_looked_at(stored: Stored, backbone: Backbone) -> None:
    backbone.load_adapter(stored.first)
    unlabelled = [dataclasses.replace(record, label=None) for record in ROWS]
    assert backbone.predict(unlabelled, adapter="first") == backbone.predict(ROWS, adapter="first")


def test_decoding_and_task_can_be_replaced(stored: Stored, backbone: Backbone) -> None:
    backbone.load_adapter(stored.first)
    written = backbone.predict(ROWS[:2], adapter="first", decoding=BeamDecoding(num_beams=2, max_new_tokens=4))
    assert [p.choice for p in written] == [None, None]
    task = make_task(TaskSection(prompt=" tell me: {question}"), "medqa")
    assert backbone.predict(ROWS, adapter="first", task=task) != backbone.predict(ROWS, adapter="first")


def test_the_bare_backbone_needs_a_task(stored: Stored, backbone: Backbone) -> None:
    with pytest.raises(UsageError, match=r"the loaded adapters have 0: pass task="):
        backbone.predict(ROWS)
    assert len(backbone.predict(ROWS, task=make_task(TaskSection(), "medqa"))) == len(ROWS)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"adapter": "frist"}, r"no adapter 'frist' is loaded; did you mean 'first'\?"),
        ({"adapters": ["first"]}, "adapters has 1 entries for 7 records"),
        ({"adapters": [None] * 7, "adapter": "first"}, "either adapter or adapters"),
    ],
)
def test_wrong_calls(stored: Stored, backbone: Backbone, arguments: dict[str, Any], message: str) -> None:
    backbone.load_adapter(stored.first)
    with pytest.raises(UsageError, match=message):
        backbone.predict(ROWS, **arguments)


def test_names_are_taken_once(stored: Stored, backbone: Backbone) -> None:
    backbone.load_adapter(stored.first, name="x")
    with pytest.raises(UsageError, match="'x' is loaded already"):
        backbone.load_adapter(stored.second, name="x")
    with pytest.raises(UsageError, match="no adapter 'y' is loaded"):
        backbone.unload_adapter("y")


def test_an_adapter_of_another_backbone_is_refused(stored: Stored, tmp_path: Path) -> None:
    other = load_backbone(str(tiny_directory(tmp_path / "other", seed=1)))
    with pytest.raises(ArtifactError) as caught:
        other.load_adapter(stored.first)
    trained, here = load_artifact(stored.first).manifest.backbone.fingerprint, other.frozen.fingerprint
    assert str(caught.value) == (
        f"{stored.first}: adapter first was trained on backbone tiny-backbone (fingerprint {trained[:12]}...), "
        f"not on {tmp_path}/other (fingerprint {here[:12]}...)"
    )
    assert other.adapters == ()


def test_another_tokenizer_is_refused(copy: Path, backbone: Backbone, edit_json: Callable[..., None]) -> None:
    edit_json(copy / "bmpeft.json", {"backbone.tokenizer_digest": "0" * 64})
    with pytest.raises(ArtifactError, match=r"adapter first was trained with another tokenizer \(000000000000"):
        backbone.load_adapter(copy)


def test_tensors_must_be_those_of_the_model(copy: Path, stored: Stored, edit_json: Callable[..., None]) -> None:
    wider = Backbone(tiny_backbone(encoder_ffn_dim=192))
    edit_json(copy / "bmpeft.json", {"backbone.fingerprint": wider.frozen.fingerprint})
    with pytest.raises(ArtifactError, match=r"fc1\.lora_B\.weight has shape \(128, 4\), expected \(192, 4\)$"):
        wider.load_adapter(copy)
    deeper = Backbone(tiny_backbone(encoder_layers=3))
    edit_json(copy / "bmpeft.json", {"backbone.fingerprint": deeper.frozen.fingerprint})
    with pytest.raises(ArtifactError, match=r"tensor 'base_model\.model\.encoder\.layers\.2\..*' is missing$"):
        deeper.load_adapter(copy)
    shallower = Backbone(tiny_backbone(encoder_layers=1))
    edit_json(copy / "bmpeft.json", {"backbone.fingerprint": shallower.frozen.fingerprint})
    with pytest.raises(ArtifactError, match=r"backbone tiny has no place for tensor '.*layers\.1\."):
        shallower.load_adapter(copy)


def test_a_file_that_changes_after_its_check_is_refused(
    copy: Path, backbone: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = runtime.check_fits

    def check_and_replace(*arguments: Any) -> None:
        original(*arguments)
        shutil.copy(copy / "adapter_config.json", copy / "adapter_model.safetensors")

    monkeypatch.setattr(runtime, "check_fits", check_and_replace)
    with pytest.raises(ArtifactError, match="damaged or replaced"):
        backbone.load_adapter(copy)


@pytest.mark.parametrize("others", [0, 1])
def test_a_load_that_fails_half_way_leaves_no_trace(
    stored: Stored, backbone: Backbone, monkeypatch: pytest.MonkeyPatch, others: int
) -> None:
    if others:
        backbone.load_adapter(stored.second)
    names = [name for name, _ in backbone.frozen.model.named_parameters()]

    def failing(*_: Any, **__: Any) -> None:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(lora, "set_adapter_tensors", failing)
    with pytest.raises(RuntimeError):
        backbone.load_adapter(stored.first)
    assert [name for name, _ in backbone.frozen.model.named_parameters()] == names
    monkeypatch.undo()
    backbone.load_adapter(stored.first)
    assert torch.equal(logits(backbone, "first"), plain_logits(stored, stored.first))


def test_adapters_stay_float32_on_a_bfloat16_backbone(stored: Stored) -> None:
    backbone = load_backbone(str(stored.backbone), dtype="bfloat16", attention="eager")
    backbone.load_adapter(stored.first)
    backbone.load_adapter(stored.second)
    loaded = dict(backbone.frozen.model.named_parameters())
    assert {"lora_" in name: p.dtype for name, p in loaded.items()} == {False: torch.bfloat16, True: torch.float32}
    for slot, directory in enumerate((stored.first, stored.second)):
        for name, tensor in load_artifact(directory).read_tensors().items():
            place = name.removeprefix("base_model.model.").removesuffix("weight") + f"slot{slot}.weight"
            assert torch.equal(loaded[place], tensor), "not rounded on the way"
    assert torch.isfinite(logits(backbone, "first")).all()
