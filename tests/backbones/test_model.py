"""Properties of the model that hold for any weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoConfig, AutoModelForImageTextToText, AutoModelForSeq2SeqLM

from bmpeft.backbones.biomedgpt import SIZES, BiomedGPTConfig, BiomedGPTForConditionalGeneration
from bmpeft.backbones.biomedgpt.modeling import sequence_loss
from tests.backbones.tiny import tiny_model

PUBLISHED_SIZES = {
    "small": 33_488_336,
    "medium": 92_892_000,
    "base": 182_238_536,
    "large": 472_977_152,
    "xlarge": 929_486_848,
}


@pytest.fixture(scope="module")
def model() -> BiomedGPTForConditionalGeneration:
    """Tiny, with relative tables that are not zero, so that positions matter."""
    model = tiny_model()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "rel_pos_table" in name or "pos_" in name:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return model


@pytest.mark.parametrize(("size", "count"), PUBLISHED_SIZES.items())
def test_sizes_have_the_published_number_of_parameters(size: str, count: int) -> None:
    with torch.device("meta"):
        model = BiomedGPTForConditionalGeneration(BiomedGPTConfig.from_size(size))
    assert sum(parameter.numel() for parameter in model.parameters()) == count


def test_nano_is_about_ten_million_with_head_dimension_64() -> None:
    with torch.device("meta"):
        model = BiomedGPTForConditionalGeneration(BiomedGPTConfig.from_size("nano"))
    assert sum(parameter.numel() for parameter in model.parameters()) == 11_168_940  # as docs/nano.md says
    assert model.config.d_model // model.config.encoder_attention_heads == 64
    assert SIZES[0] == "nano"


# --- rows of a batch -------------------------------------------------------------------------------


@st.composite
def batches(draw: st.DrawFn) -> dict[str, torch.Tensor]:
    """Ragged text, some rows with an image."""
    rows = draw(st.integers(2, 4))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 10_000)))
    lengths = torch.tensor(draw(st.lists(st.integers(1, 12), min_size=rows, max_size=rows)))
    ids = torch.randint(4, 8000, (rows, int(lengths.max())), generator=generator)
    mask = torch.arange(ids.shape[1])[None, :] < lengths[:, None]
    targets = torch.randint(4, 8000, (rows, draw(st.integers(1, 5))), generator=generator)
    batch = {"input_ids": ids.masked_fill(~mask, 1), "attention_mask": mask, "decoder_input_ids": targets}
    if draw(st.booleans()):
        batch["pixel_values"] = torch.randn(rows, 3, 32, 48, generator=generator)
        batch["pixel_mask"] = torch.tensor(draw(st.lists(st.booleans(), min_size=rows, max_size=rows)))
    return batch


@settings(max_examples=25, deadline=None)
@given(batch=batches(), attention=st.sampled_from(["eager", "sdpa", "chunked"]))
def test_neighbours_and_padding_never_matter(
    model: BiomedGPTForConditionalGeneration, batch: dict[str, torch.Tensor], attention: str
) -> None:
    model.config._attn_implementation = attention
    with torch.no_grad():
        together = model(**batch).logits
        for row in range(together.shape[0]):
            length = int(batch["attention_mask"][row].sum())
            alone: dict[str, Any] = {
                "input_ids": batch["input_ids"][row : row + 1, :length],
                "decoder_input_ids": batch["decoder_input_ids"][row : row + 1],
            }
            # A row whose pixel_mask is false must equal the run that never had an image.
            if "pixel_mask" in batch and batch["pixel_mask"][row]:
                alone["pixel_values"] = batch["pixel_values"][row : row + 1]
            torch.testing.assert_close(together[row], model(**alone).logits[0], atol=2e-5, rtol=1e-4)


def test_an_image_matters_where_it_is_shown(model: BiomedGPTForConditionalGeneration) -> None:
    inputs = {"input_ids": torch.tensor([[0, 10, 2]]), "decoder_input_ids": torch.tensor([[0, 5]])}
    pixels = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        seen = model(**inputs, pixel_values=pixels).logits
        other = model(**inputs, pixel_values=-pixels).logits
    assert not torch.allclose(seen, other, atol=1e-4)


def test_a_later_target_token_never_reaches_an_earlier_logit(model: BiomedGPTForConditionalGeneration) -> None:
    ids, targets = torch.tensor([[0, 10, 11, 2]]), torch.tensor([[0, 5, 6, 7]])
    changed = targets.clone()
    changed[0, 3] = 99
    with torch.no_grad():
        first, second = (model(input_ids=ids, decoder_input_ids=t).logits for t in (targets, changed))
    assert torch.equal(first[:, :3], second[:, :3]) and not torch.equal(first[:, 3], second[:, 3])


# --- loss --------------------------------------------------------------------------------------------


def test_loss_is_not_shifted_and_ignores_minus_100() -> None:
    logits = torch.randn(2, 3, 7, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([[1, 2, -100], [3, -100, -100]])
    picked = logits.log_softmax(-1)[[0, 0, 1], [0, 1, 0], [1, 2, 3]]
    torch.testing.assert_close(sequence_loss(logits, labels), -picked.mean())
    torch.testing.assert_close(sequence_loss(logits, labels, 10), -picked.sum() / 10)


def test_loss_over_windows_with_the_common_count_equals_one_batch(model: BiomedGPTForConditionalGeneration) -> None:
    ids = torch.tensor([[0, 10, 2], [0, 20, 2]])
    labels = torch.tensor([[5, 6, 2], [7, 2, -100]])
    with torch.no_grad():
        whole = model(input_ids=ids, labels=labels).loss
        parts = [model(input_ids=ids[i : i + 1], labels=labels[i : i + 1], num_items_in_batch=5).loss for i in (0, 1)]
    torch.testing.assert_close(sum(parts), whole)


def test_decoder_inputs_are_the_labels_behind_the_start_token(model: BiomedGPTForConditionalGeneration) -> None:
    labels = torch.tensor([[5, 6, 2], [7, 2, -100]])
    shifted = model.prepare_decoder_input_ids_from_labels(labels)
    assert shifted.tolist() == [[0, 5, 6], [0, 7, 2]]


# --- storing -----------------------------------------------------------------------------------------


def test_every_tensor_and_buffer_is_equal_after_reload(
    model: BiomedGPTForConditionalGeneration, tmp_path: Path
) -> None:
    model.save_pretrained(tmp_path)
    for auto in (AutoModelForSeq2SeqLM, AutoModelForImageTextToText):
        reloaded = auto.from_pretrained(tmp_path)
        assert isinstance(reloaded, BiomedGPTForConditionalGeneration)
        expected, actual = model.state_dict(), reloaded.state_dict()
        assert expected.keys() == actual.keys()
        assert all(torch.equal(expected[name], actual[name]) for name in expected)
        embeddings = reloaded.encoder.embed_tokens.weight
        assert reloaded.decoder.output_projection.weight is embeddings
        assert reloaded.decoder.embed_tokens.weight is embeddings
    assert isinstance(AutoConfig.from_pretrained(tmp_path), BiomedGPTConfig)


def test_a_seed_gives_the_same_weights_and_leaves_the_global_generator_alone() -> None:
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    first, second, other = tiny_model(0), tiny_model(0), tiny_model(1)
    assert torch.equal(torch.rand(1), expected)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    assert not torch.equal(first.encoder.embed_tokens.weight, other.encoder.embed_tokens.weight)


def test_a_published_config_file_builds_the_configuration() -> None:
    published = {
        "model_type": "ofa",
        "architectures": ["OFAModel"],
        "vocab_size": 59457,
        "d_model": 768,
        "encoder_layers": 6,
        "decoder_layers": 6,
        "encoder_attention_heads": 12,
        "decoder_attention_heads": 12,
        "encoder_ffn_dim": 3072,
        "decoder_ffn_dim": 3072,
        "resnet_type": "resnet101",
        "max_position_embeddings": 1024,
        "token_bucket_size": 256,
        "image_bucket_size": 42,
        "attn_scale_factor": 2.0,
        "code_image_size": 128,
        "normformer": True,
        "entangle_position_embedding": False,
        "use_cache": False,
        "forced_eos_token_id": 2,
    }
    config = BiomedGPTConfig.from_dict(published)
    base = BiomedGPTConfig.from_size("base")
    assert all(getattr(config, name) == getattr(base, name) for name in ("d_model", "scale_attn", "code_token_start"))
    assert config.code_token_start == 50265


@pytest.mark.parametrize(
    ("field", "value"),
    [("entangle_position_embedding", True), ("resnet_type", "resnet34"), ("activation_function", "relu")],
)
def test_an_architecture_that_is_not_computed_is_refused(field: str, value: Any) -> None:
    with pytest.raises(ValueError, match=field):
        BiomedGPTConfig(**{field: value})


# --- training ----------------------------------------------------------------------------------------


def test_checkpointing_and_every_layer_give_the_same_gradients() -> None:
    def gradients(checkpointing: bool) -> dict[str, torch.Tensor]:
        model = tiny_model(dropout=0.0).train()
        if checkpointing:
            model.activation_checkpointing_enable()
        ids = torch.tensor([[0, 10, 11, 2]])
        pixels = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
        model(input_ids=ids, pixel_values=pixels, labels=torch.tensor([[5, 6, 2]])).loss.backward()
        return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}

    plain, recomputed = gradients(False), gradients(True)
    assert plain.keys() == recomputed.keys() and len(plain) > 100
    assert all(torch.allclose(plain[name], recomputed[name], atol=1e-7) for name in plain)


def test_a_frozen_tower_keeps_its_running_statistics() -> None:
    model = tiny_model()
    model.encoder.embed_images.requires_grad_(False)
    model.train()
    before = model.encoder.embed_images.bn1.running_mean.clone()
    model(
        input_ids=torch.tensor([[0, 2]]), pixel_values=torch.randn(1, 3, 32, 32), decoder_input_ids=torch.tensor([[0]])
    )
    assert torch.equal(before, model.encoder.embed_images.bn1.running_mean)
    model.encoder.embed_images.requires_grad_(True)
    model.train()
    assert model.encoder.embed_images.training


def test_bfloat16_stays_close_to_float32(model: BiomedGPTForConditionalGeneration) -> None:
    ids, targets = torch.tensor([[0, 10, 11, 12, 2]]), torch.tensor([[0, 5, 6]])
    pixels = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    low = tiny_model()
    low.load_state_dict(model.state_dict())
    low.to(torch.bfloat16)
    with torch.no_grad():
        exact = model(input_ids=ids, decoder_input_ids=targets, pixel_values=pixels).logits
        rounded = low(input_ids=ids, decoder_input_ids=targets, pixel_values=pixels).logits
    assert rounded.dtype == torch.bfloat16
    assert (rounded.float() - exact).norm() / exact.norm() < 0.05


# --- refusals ----------------------------------------------------------------------------------------


def test_what_cannot_be_done_is_said(model: BiomedGPTForConditionalGeneration) -> None:
    ids = torch.tensor([[0, 10, 2]])
    decoder = torch.tensor([[0]])
    cases: list[tuple[dict[str, Any], str]] = [
        ({"input_ids": ids, "decoder_input_ids": decoder, "code_masks": torch.ones(1, 1)}, "image-code targets"),
        ({"input_ids": torch.zeros(1, 257, dtype=torch.long), "decoder_input_ids": decoder}, "257 tokens"),
        ({"input_ids": ids}, "decoder_input_ids or labels"),
        ({"decoder_input_ids": decoder}, "input_ids or encoder_outputs"),
        ({"input_ids": ids, "decoder_input_ids": decoder, "output_attentions": True}, "output_attentions"),
        (
            {"input_ids": ids, "decoder_input_ids": decoder, "pixel_values": torch.zeros(1, 3, 160, 32)},
            "10 x 2 patches",
        ),
    ]
    for inputs, message in cases:
        with pytest.raises(ValueError, match=message):
            model(**inputs)
