"""Full fine-tuning on the tiny backbone: what trains, what stays, and that nothing of the backbone is lost."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from bmpeft.adaptation import attach, count_parameters, method_of
from bmpeft.adaptation.formats import FORMATS
from bmpeft.adaptation.methods import METHODS
from bmpeft.backbones.biomedgpt.backbone import CODE_PARAMETERS, IMAGE_PARAMETERS, IMAGE_TOWER, BiomedGPTBackbone
from bmpeft.errors import BackboneError, UsageError
from bmpeft.images import ImageFile
from bmpeft.recipe import Recipe
from bmpeft.recipe_adaptation import FullSection, LoraSection
from tests.backbones.tiny import tiny_backbone
from tests.training.small import encoded_rows

SECTION, WITH_TOWER = FullSection(), FullSection(train_image_tower=True)
IMAGE_SIZE = 32
EMBEDDINGS = ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight", "decoder.output_projection.weight")


def batch_of(backbone: BiomedGPTBackbone, image: Path | None = None) -> dict[str, torch.Tensor]:
    rows = encoded_rows(backbone, 3).encoded
    if image is not None:
        pixels = np.random.default_rng(0).integers(0, 255, (IMAGE_SIZE, IMAGE_SIZE, 3), np.uint8)
        Image.fromarray(pixels).save(image)
        rows = tuple(replace(row, image=ImageFile(image), image_patches=4) for row in rows)
    return backbone.collate(rows)


def logits(backbone: BiomedGPTBackbone, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    with torch.inference_mode():
        output: torch.Tensor = backbone.model(**batch).logits
    return output


def disturb(backbone: BiomedGPTBackbone) -> None:
    """Stands for training: every parameter that requires a gradient takes another value."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in backbone.model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.02 * torch.randn(parameter.shape, generator=generator))


def test_every_method_of_a_recipe_has_a_format_and_a_module() -> None:
    schema = Recipe.model_json_schema()["properties"]["adaptation"]["discriminator"]["mapping"]
    assert schema.keys() == FORMATS.keys() == METHODS.keys()


@pytest.mark.parametrize(
    ("section", "with_images", "fixed"),
    [
        (SECTION, False, (*IMAGE_PARAMETERS, *CODE_PARAMETERS)),
        (SECTION, True, (IMAGE_TOWER, *CODE_PARAMETERS)),
        (WITH_TOWER, True, CODE_PARAMETERS),
    ],
)
def test_all_that_the_rows_reach_trains_and_learns_and_is_stored_once(
    tmp_path: Path, section: FullSection, with_images: bool, fixed: tuple[str, ...]
) -> None:
    backbone = tiny_backbone(image_size=IMAGE_SIZE)
    batch = batch_of(backbone, tmp_path / "image.png" if with_images else None)
    names = [name for name, _ in backbone.model.named_parameters()]
    attached = attach(backbone, section, with_images=with_images)
    attached.model.train()
    attached.model(**batch).loss.backward()
    learning = {
        name for name, p in backbone.model.named_parameters() if p.grad is not None and bool(torch.any(p.grad != 0))
    }
    expected = {name for name in names if not name.startswith(fixed)}
    assert learning == expected == attached.tensors().keys()
    assert set(EMBEDDINGS) & expected == {EMBEDDINGS[0]}, "tied ones once"
    shapes = method_of(section).shapes(backbone, section, with_images=with_images)
    assert shapes == {name: tuple(tensor.shape) for name, tensor in attached.tensors().items()}
    assert count_parameters(attached.model)[0] == sum(tensor.numel() for tensor in attached.tensors().values())


def test_a_fresh_one_changes_nothing_and_draws_nothing() -> None:
    backbone = tiny_backbone()
    batch = batch_of(backbone)
    before, state = logits(backbone, batch), torch.random.get_rng_state()
    attach(backbone, SECTION, seed=7)
    assert torch.equal(logits(backbone, batch), before)
    assert torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("with_images", [False, True])
def test_switched_off_or_taken_away_the_backbone_is_what_it_was(
    tmp_path: Path, dtype: torch.dtype, with_images: bool
) -> None:
    backbone = tiny_backbone(image_size=IMAGE_SIZE)
    backbone.model.to(dtype)  # type: ignore[call-overload]
    batch = batch_of(backbone, tmp_path / "image.png" if with_images else None)
    bare = logits(backbone, batch)
    storage = {name: p.data_ptr() for name, p in backbone.model.named_parameters()}
    tensors = {name: tensor.clone() for name, tensor in backbone.model.state_dict().items()}
    attached = attach(backbone, SECTION, with_images=with_images)
    disturb(backbone)
    assert backbone.dtype == dtype, "of the frozen weights"
    assert {tensor.dtype for tensor in attached.tensors().values()} == {torch.float32}
    adapted = logits(backbone, batch)
    assert not torch.equal(adapted.float(), bare.float())
    assert adapted.isfinite().all()
    with attached.disabled(), torch.inference_mode():
        assert torch.equal(logits(backbone, batch), bare)
    assert torch.equal(logits(backbone, batch), adapted)
    with pytest.raises(BackboneError, match="an adapter is attached"):
        backbone.save_pretrained(tmp_path / "saved")
    attached.detach()
    assert torch.equal(logits(backbone, batch), bare)
    assert {name: p.data_ptr() for name, p in backbone.model.named_parameters()} == storage
    after = backbone.model.state_dict()
    assert all(torch.equal(after[name], tensors[name]) and after[name].dtype == dtype for name in tensors if
               tensors[name].is_floating_point())  # fmt: skip
    assert not any(p.requires_grad for p in backbone.model.parameters())
    attach(backbone, LoraSection(rank=2)).detach()


def test_trained_on_text_it_still_reads_images_on_a_bfloat16_backbone(tmp_path: Path) -> None:
    backbone = tiny_backbone(image_size=IMAGE_SIZE)
    batch = batch_of(backbone, tmp_path / "image.png")
    exact = logits(backbone, batch)
    backbone.model.to(torch.bfloat16)
    bare = logits(backbone, batch)
    attach(backbone, SECTION, with_images=False)
    adapted = logits(backbone, batch)
    assert adapted.dtype == torch.float32
    assert (adapted - exact).norm() < (bare.float() - exact).norm(), "only the weights and the tower are rounded"


def test_one_after_the_other_without_the_bare_backbone_between() -> None:
    backbone = tiny_backbone()
    batch = batch_of(backbone)
    bare = logits(backbone, batch)
    host = method_of(SECTION).host(backbone)
    names = method_of(SECTION).shapes(backbone, SECTION, with_images=False)
    own = {name: backbone.weights[name].detach().clone() for name in names}
    for slot, factor in (("one", 0.9), ("two", 1.1)):
        host.add(slot, SECTION, {name: factor * tensor for name, tensor in own.items()})
    host.switch_on("two")
    two = logits(backbone, batch)
    host.switch_on("one")
    host.switch_on("two")
    assert torch.equal(logits(backbone, batch), two)
    host.switch_off()
    assert torch.equal(logits(backbone, batch), bare)


def test_tied_weights_stay_tied() -> None:
    backbone = tiny_backbone()
    attached = attach(backbone, SECTION)
    disturb(backbone)
    state = backbone.model.state_dict()
    assert len({state[name].data_ptr() for name in EMBEDDINGS}) == 1
    with attached.disabled():
        state = backbone.model.state_dict()
        assert len({state[name].data_ptr() for name in EMBEDDINGS}) == 1


def test_batch_norm_normalises_by_the_running_statistics_even_where_the_tower_trains(tmp_path: Path) -> None:
    backbone = tiny_backbone(image_size=IMAGE_SIZE)
    batch = batch_of(backbone, tmp_path / "image.png")
    before = {name: buffer.clone() for name, buffer in backbone.model.named_buffers()}
    attached = attach(backbone, WITH_TOWER, with_images=True)
    attached.model.train()
    attached.model(**batch).loss.backward()
    assert not any(module.training for module in backbone.model.modules() if isinstance(module, torch.nn.BatchNorm2d))
    assert backbone.model.encoder.layers[0].training, "the rest is in training mode"
    after = dict(backbone.model.named_buffers())
    assert all(torch.equal(after[name], before[name]) for name in before)


@settings(max_examples=10, deadline=None)
@given(st.data())
def test_tensors_are_written_all_or_not_at_all(data: st.DataObject) -> None:
    backbone = tiny_backbone()
    attached = attach(backbone, SECTION)
    tensors = {name: torch.full_like(tensor, 0.5) for name, tensor in attached.tensors().items()}
    name = data.draw(st.sampled_from(sorted(tensors)))
    wrong = data.draw(
        st.sampled_from(
            [
                {other: tensor for other, tensor in tensors.items() if other != name},
                {**tensors, name + "x": torch.zeros(1)},
                {**tensors, name: tensors[name][:-1]},
            ]
        )
    )
    before = attached.tensors()
    with pytest.raises(ValueError, match="tensors differ"):
        attached.set_tensors(wrong)
    assert all(torch.equal(tensor, before[other]) for other, tensor in attached.tensors().items())
    attached.set_tensors(tensors)
    assert all(torch.equal(tensor, tensors[other]) for other, tensor in attached.tensors().items())


@pytest.mark.parametrize("first", [SECTION, LoraSection(rank=2)])
@pytest.mark.parametrize("second", [SECTION, LoraSection(rank=2)])
def test_no_adapter_is_stacked_on_another(first: FullSection | LoraSection, second: FullSection | LoraSection) -> None:
    backbone = tiny_backbone()
    attach(backbone, first)
    with pytest.raises(BackboneError, match="tiny: already carries an adapter"):
        attach(backbone, second)


def test_what_cannot_be_is_said_and_nothing_is_changed() -> None:
    backbone = tiny_backbone()
    with pytest.raises(UsageError, match=r"^adaptation\.train_image_tower: no training row has an image$"):
        attach(backbone, WITH_TOWER)
    assert not backbone.is_adapted
    backbone.model.to(torch.bfloat16)
    with pytest.raises(BackboneError, match=r"train_image_tower needs backbone\.dtype=float32"):
        attach(backbone, WITH_TOWER, with_images=True)
    assert not backbone.is_adapted
    (remark,) = method_of(SECTION).remarks(attach(backbone, SECTION), backbone)
    assert remark.startswith("adaptation.method=full on a backbone in bfloat16: ")
    assert f"{count_parameters(backbone.model)[0]:,} parameters train in float32" in remark
