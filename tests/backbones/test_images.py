"""Images through the frozen backbone: batches, scores, texts, and the sampling of patches in training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from bmpeft.backbones.biomedgpt.backbone import BiomedGPTBackbone
from bmpeft.backbones.biomedgpt.configuration import SIZES, BiomedGPTConfig
from bmpeft.backbones.biomedgpt.image_tower import default_processor, make_processor
from bmpeft.backbones.biomedgpt.outputs import BiomedGPTEncoderOutput
from bmpeft.backbones.loading import load_frozen_backbone
from bmpeft.errors import ImageError, UsageError
from bmpeft.images import BytesImage
from bmpeft.images.processing import ImageProcessor
from bmpeft.recipe import BackboneSection
from bmpeft.recipe_decoding import BeamDecoding
from bmpeft.records import Example, Record
from tests.backbones.tiny import tiny_backbone, tiny_directory, tiny_model
from tests.images.test_reading import encoded

SIDE, PATCHES = 48, 9
BEAM = BeamDecoding(num_beams=2, max_new_tokens=4)


def picture(seed: int) -> BytesImage:
    return BytesImage(encoded(np.random.default_rng(seed).integers(0, 256, (30, 40, 3), np.uint8)))


def example(source: str, image: BytesImage | None, **fields: Any) -> Example:
    return Example(Record("r1", "visual_question_answering", "test", "g"), source, " yes", image=image, **fields)


@pytest.fixture(scope="module")
def backbone() -> BiomedGPTBackbone:
    return tiny_backbone(image_size=SIDE)


def batch_of(backbone: BiomedGPTBackbone, *examples: Example) -> dict[str, Tensor]:
    return backbone.collate([backbone.encode(e, max_source_length=64, max_target_length=8) for e in examples])


def test_encoding_reads_no_image_but_counts_its_patches(backbone: BiomedGPTBackbone) -> None:
    encoded_row = backbone.encode(
        example(" what?", BytesImage(b"damaged", "scan 7")), max_source_length=64, max_target_length=8
    )
    assert encoded_row.image_patches == PATCHES
    assert encoded_row.source_length == PATCHES + len(encoded_row.input_ids)
    with pytest.raises(ImageError, match=r"^scan 7: not an image"):
        backbone.collate([encoded_row])


def test_rows_with_and_without_an_image_share_a_batch(backbone: BiomedGPTBackbone) -> None:
    batch = batch_of(backbone, example(" a?", None), example(" b c d?", picture(1)), example(" e?", picture(2)))
    assert batch["pixel_values"].shape == (3, 3, SIDE, SIDE) and batch["pixel_values"].dtype == torch.float32
    assert batch["pixel_mask"].tolist() == [False, True, True]
    assert not batch["pixel_values"][0].any()
    expected = backbone.image_processor.normalized(backbone.image_processor.resized(picture(2).load()))
    assert torch.equal(batch["pixel_values"][2], torch.from_numpy(expected))
    assert "pixel_values" not in batch_of(backbone, example(" a?", None))


def test_neighbours_with_images_do_not_change_a_row(backbone: BiomedGPTBackbone) -> None:
    """Neither of a row without an image, nor of one with its own."""
    choices = (" yes", " no", " a pale nodule")
    rows = [example(" is it?", image, choices=choices) for image in (None, picture(1), picture(2))]
    together = backbone.score_candidates(backbone.model, rows, max_source_length=64)
    alone = [backbone.score_candidates(backbone.model, [row], max_source_length=64)[0] for row in rows]
    for first, second in zip(together, alone, strict=True):
        assert first.log_likelihoods == pytest.approx(second.log_likelihoods, abs=1e-4)
    assert together[1].log_likelihoods != pytest.approx(together[2].log_likelihoods, abs=1e-3), "the image matters"
    assert together[0].log_likelihoods != pytest.approx(together[1].log_likelihoods, abs=1e-3)


def test_generation_reads_the_image(backbone: BiomedGPTBackbone) -> None:
    rows = [example(" describe", image) for image in (picture(1), None, picture(2))]
    together = backbone.generate(backbone.model, rows, BEAM, max_source_length=64)
    assert together == [backbone.generate(backbone.model, [row], BEAM, max_source_length=64)[0] for row in rows]


def test_default_sizes_are_those_of_the_published_recipes() -> None:
    sizes = {size: default_processor(BiomedGPTConfig.from_size(size)).image_size for size in SIZES}
    assert sizes == {"nano": 256, "small": 256, "medium": 256, "base": 384, "large": 384, "xlarge": 384}


@pytest.mark.parametrize(("asked", "problem"), [(144, "multiple of 16 up to 128"), (40, "multiple of 16 up to 128")])
def test_a_size_without_positions_is_refused(asked: int, problem: str) -> None:
    config = tiny_model().config
    assert make_processor(config, None).image_size == 128, "the default ends where the positions end"
    with pytest.raises(ValueError, match=problem):
        make_processor(config, None, image_size=asked)


def test_a_directory_has_its_processor_and_the_recipe_may_change_it(tmp_path: Path) -> None:
    directory = tiny_directory(tmp_path / "tiny")
    own = load_frozen_backbone(BackboneSection(name=str(directory)))
    assert own.image_processor == ImageProcessor(128, "half")
    section = BackboneSection(name=str(directory), image_size=32, image_mean_std="imagenet")
    changed = load_frozen_backbone(section)
    assert changed.image_processor == ImageProcessor(32, "imagenet")
    assert changed.fingerprint == own.fingerprint
    changed.save_pretrained(tmp_path / "again")
    again = load_frozen_backbone(BackboneSection(name=str(tmp_path / "again")))
    assert again.image_processor == ImageProcessor(32, "imagenet")
    with pytest.raises(UsageError, match=r"image_size 672: expected a multiple of 16 up to 128"):
        load_frozen_backbone(BackboneSection(name=str(directory), image_size=672))


def inputs(rows: int = 3) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(5)
    return {
        "input_ids": torch.randint(4, 500, (rows, 6), generator=generator),
        "pixel_values": torch.randn(rows, 3, SIDE, SIDE, generator=generator),
    }


def sampling_model(count: int | None, attention: str = "eager") -> Any:
    model = tiny_model(attention=attention, dropout=0.0)
    model.requires_grad_(False).train()
    model.encoder.sample_patch_num = count
    return model


@pytest.mark.parametrize("attention", ["eager", "sdpa", "chunked"])
def test_sampling_is_hiding_the_other_patches(attention: str) -> None:
    """Features, positions and mask: a sampled batch gives what the whole one gives where the rest is masked."""
    model, given = sampling_model(4, attention), inputs()
    for table in model.encoder.image_rel_pos_table_list:  # zero in an untrained model
        torch.nn.init.normal_(table.weight)
    given["decoder_input_ids"] = torch.tensor([[0, 5, 6]] * 3)
    torch.manual_seed(1)
    ids = model.encoder(given["input_ids"], pixel_values=given["pixel_values"]).sampled_image_ids
    torch.manual_seed(1)
    sampled = model(**given)
    assert sampled.encoder_last_hidden_state.shape[:2] == (3, 4 + 6)
    assert all(len(set(row.tolist())) == 4 for row in ids) and len({tuple(row.tolist()) for row in ids}) > 1

    encoder = model.encoder
    patches, grid = encoder._embed_image(given["pixel_values"])
    drawn = (encoder.image_ids(grid)[0][None, :, None] == ids[:, None, :]).any(-1)  # [3, 9]
    visible = torch.cat([drawn, torch.ones(3, 6, dtype=torch.bool)], dim=1)
    hidden = torch.cat([patches, encoder._embed_text(given["input_ids"])], dim=1) * visible[..., None]
    bias = encoder._position_bias(encoder.image_ids(grid), 6)
    for layer, tokens, image in zip(
        encoder.layers, encoder.token_rel_pos_table_list, encoder.image_rel_pos_table_list, strict=True
    ):
        hidden = layer(hidden, bias.with_tables(tokens.weight.t(), image.weight.t()), visible)
    hidden = encoder.layer_norm(hidden)
    assert torch.allclose(sampled.encoder_last_hidden_state, hidden[visible].view(3, 10, -1), atol=1e-5)
    masked = BiomedGPTEncoderOutput(last_hidden_state=hidden, attention_mask=visible, image_grid=grid)
    logits = model(encoder_outputs=masked, decoder_input_ids=given["decoder_input_ids"]).logits
    assert torch.allclose(sampled.logits, logits, atol=1e-4)


def test_all_patches_are_read_in_evaluation_or_where_there_are_no_more() -> None:
    given = inputs()
    reference = sampling_model(None).encoder(**given).last_hidden_state
    assert torch.equal(sampling_model(PATCHES).encoder(**given).last_hidden_state, reference)
    assert torch.equal(sampling_model(2).eval().encoder(**given).last_hidden_state, reference)


def test_a_seed_fixes_what_is_drawn() -> None:
    model, given = sampling_model(2), inputs()
    drawn = []
    for seed in (3, 3, 4):
        torch.manual_seed(seed)
        drawn.append(model.encoder(**given).sampled_image_ids)
    assert torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], drawn[2])


def test_rows_without_an_image_stay_without_one_when_patches_are_drawn() -> None:
    model, given = sampling_model(4), inputs(2)
    outputs = model.encoder(**given, pixel_mask=torch.tensor([True, False]))
    assert outputs.attention_mask[:, :4].tolist() == [[True] * 4, [False] * 4]
    text = sampling_model(None).encoder(given["input_ids"][1:]).last_hidden_state
    assert torch.allclose(outputs.last_hidden_state[1:, 4:], text, atol=1e-5)
