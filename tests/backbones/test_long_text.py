"""More positions than the weights have: nothing changes for short inputs, long ones are possible and never cut."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from bmpeft.adapters.artifact import backbone_identity
from bmpeft.backbones import load_frozen_backbone
from bmpeft.backbones.biomedgpt import BiomedGPTForConditionalGeneration
from bmpeft.errors import BackboneError, BmpeftError
from bmpeft.recipe import BackboneSection
from bmpeft.recipe_decoding import BeamDecoding
from bmpeft.records import Example, Record
from tests.backbones.tiny import tiny_backbone, tiny_directory, tiny_model

TRAINED = 32


def model_with(positions: int | None, attention: str = "eager") -> BiomedGPTForConditionalGeneration:
    """A model whose weights have 32 positions, with relative tables that matter."""
    model = tiny_model(attention=attention, max_position_embeddings=TRAINED, token_bucket_size=8)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "rel_pos_table" in name or "pos_" in name:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.3)
    if positions is not None:
        model.extend_positions(positions)
    return model


def tokens(length: int) -> torch.Tensor:
    return torch.randint(4, 8000, (1, length), generator=torch.Generator().manual_seed(length))


@pytest.mark.parametrize("attention", ["eager", "sdpa", "chunked"])
@pytest.mark.parametrize("length", [1, 7, TRAINED])
def test_what_fits_the_trained_positions_is_computed_bit_for_bit_as_before(length: int, attention: str) -> None:
    plain, extended = model_with(None, attention), model_with(100, attention)
    with torch.inference_mode():
        expected = plain(input_ids=tokens(length), decoder_input_ids=tokens(length)).logits
        assert torch.equal(extended(input_ids=tokens(length), decoder_input_ids=tokens(length)).logits, expected)


def test_nothing_is_added_to_the_weights() -> None:
    plain, extended = model_with(None).state_dict(), model_with(100).state_dict()
    assert plain.keys() == extended.keys()
    assert all(torch.equal(plain[name], extended[name]) for name in plain)


def test_rows_beyond_the_trained_ones_repeat_them() -> None:
    encoder = model_with(100).encoder
    rows = encoder._text_positions(0, 100)[0]
    trained = encoder._text_positions(0, TRAINED)[0]
    assert all(torch.equal(rows[i], trained[i % TRAINED]) for i in range(100))
    assert torch.equal(encoder._text_positions(40, 70)[0], rows[40:70])  # as cached decoding asks for them


def test_every_token_of_a_long_source_and_target_is_read() -> None:
    model = model_with(100)
    with torch.inference_mode():
        whole = model(input_ids=tokens(90), decoder_input_ids=tokens(80)).logits
        for place in (0, 40, 89):
            changed = tokens(90)
            changed[0, place] = 4 + (changed[0, place] + 1) % 4000
            assert not torch.allclose(model(input_ids=changed, decoder_input_ids=tokens(80)).logits, whole, atol=1e-6)
        assert whole.shape[1] == 80 and torch.isfinite(whole).all()


def test_far_distances_share_the_last_bucket() -> None:
    """The relative part of the bias is the same at every distance from 31 on."""
    model = model_with(100)
    bias = model.encoder._position_bias(None, 100)
    table = model.encoder.token_rel_pos_table_list[0].weight.t()
    assert bias.query_factor is not None and bias.key_factor is not None
    relative = bias.with_tables(table, None).materialize(100, 100)
    absolute = bias.materialize(100, 100)
    assert relative is not None and absolute is not None
    part = (relative - absolute)[0]
    torch.testing.assert_close(part[:, 99, 0], table[:, -1])
    torch.testing.assert_close(part[:, 99, 99 - TRAINED + 1], table[:, -1])
    torch.testing.assert_close(part[:, 0, 99], table[:, 0])
    assert not torch.allclose(part[:, 99, 99 - TRAINED // 4], table[:, -1])


def test_cached_decoding_goes_on_beyond_the_trained_positions() -> None:
    model = model_with(100)
    options = {"max_new_tokens": 50, "min_new_tokens": 50, "do_sample": False}
    cached, plain = (model.generate(input_ids=tokens(40), use_cache=use, **options) for use in (True, False))
    assert torch.equal(cached, plain) and cached.shape[1] == 51


def test_too_long_an_input_is_an_error() -> None:
    for model, limit in ((model_with(None), TRAINED), (model_with(100), 100)):
        for inputs in ((limit + 1, 2), (2, limit + 1)):
            with pytest.raises(ValueError, match=f"{limit + 1} tokens: this backbone has positions for {limit}"):
                model(input_ids=tokens(inputs[0]), decoder_input_ids=tokens(inputs[1]))


def test_positions_are_only_added() -> None:
    with pytest.raises(ValueError, match="the weights have 32"):
        model_with(31)
    backbone = tiny_backbone()
    with pytest.raises(BackboneError, match=r"backbone\.max_positions=100: tiny has 256 already"):
        backbone.extend_positions(100)
    backbone.extend_positions(256)
    assert backbone.max_positions is None


def test_a_backbone_with_more_positions_keeps_its_fingerprint_and_is_saved_without_them(tmp_path: Path) -> None:
    directory = tiny_directory(tmp_path / "tiny")
    plain = load_frozen_backbone(BackboneSection(name=str(directory)))
    longer = load_frozen_backbone(BackboneSection(name=str(directory), max_positions=600))
    assert longer.fingerprint == plain.fingerprint and longer.max_positions == 600
    assert backbone_identity(longer, with_images=False).max_positions == 600  # so an adapter finds them again by itself
    source = " ".join(["word"] * 250)
    example = Example(Record("r1", "summarization", "test", "g"), source, " yes", document=(0, len(source)))
    encoded = longer.encode(example, max_source_length=600, max_target_length=500)
    assert len(encoded.input_ids) > 400 and encoded.document_tokens_cut == 0
    assert longer.generate(longer.model, [example], BeamDecoding(num_beams=1, max_new_tokens=2), max_source_length=600)
    with pytest.raises(BmpeftError, match=r"600 tokens asked for: .* positions for 256 \(backbone.max_positions adds"):
        plain.encode(example, max_source_length=600, max_target_length=500)
    longer.save_pretrained(tmp_path / "again")
    again = load_frozen_backbone(BackboneSection(name=str(tmp_path / "again")))
    assert again.fingerprint == plain.fingerprint and again.max_positions is None
