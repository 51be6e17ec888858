"""Generation through transformers: cached equals uncached, beams, masks, forbidden tokens."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bmpeft.backbones.biomedgpt import BiomedGPTForConditionalGeneration
from bmpeft.backbones.biomedgpt.outputs import BiomedGPTCache
from tests.backbones.tiny import tiny_model

WITH_CODES = {"num_code_tokens": 100, "num_bin_tokens": 20}


@pytest.fixture(scope="module")
def model() -> BiomedGPTForConditionalGeneration:
    """Tiny, positions and image made to matter, the last 120 ids being codes and bins."""
    model = tiny_model(**WITH_CODES)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "rel_pos_table" in name or "pos_" in name or "proj" in name:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.2)
    return model


def batch(seed: int = 0, image: bool = True) -> dict[str, torch.Tensor]:
    """Two rows of different length; the second one without an image."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(4, 8000, (2, 7), generator=generator)
    ids[1, 4:] = 1
    inputs = {"input_ids": ids, "attention_mask": ids.ne(1).long()}
    if image:
        inputs["pixel_values"] = torch.randn(2, 3, 32, 48, generator=generator)
        inputs["pixel_mask"] = torch.tensor([True, False])
    return inputs


@pytest.mark.parametrize("attention", ["eager", "sdpa", "chunked"])
@pytest.mark.parametrize("image", [False, True])
@pytest.mark.parametrize(
    "options", [{"num_beams": 1}, {"num_beams": 4}, {"num_beams": 3, "num_return_sequences": 3}], ids=str
)
def test_cached_generation_equals_uncached(
    model: BiomedGPTForConditionalGeneration, attention: str, image: bool, options: dict[str, Any]
) -> None:
    model.config._attn_implementation = attention
    settings_: dict[str, Any] = {"max_new_tokens": 10, "do_sample": False, **options}
    cached = model.generate(**batch(image=image), use_cache=True, **settings_)
    uncached = model.generate(**batch(image=image), use_cache=False, **settings_)
    assert torch.equal(cached, uncached)
    assert cached[:, 1:].unique().numel() > 1


@settings(max_examples=20, deadline=None)
@given(cuts=st.lists(st.integers(1, 8), min_size=1, max_size=4), image=st.booleans())
def test_logits_by_any_chunks_equal_those_of_one_pass(
    model: BiomedGPTForConditionalGeneration, cuts: list[int], image: bool
) -> None:
    model.config._attn_implementation = "eager"
    targets = torch.randint(4, 8000, (2, sum(cuts)), generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        inputs = batch(image=image)
        whole = model(**inputs, decoder_input_ids=targets).logits
        outputs = model.encoder(**inputs)
        cache, parts = None, []
        for chunk in targets.split(cuts, dim=1):
            output = model(encoder_outputs=outputs, decoder_input_ids=chunk, past_key_values=cache, use_cache=True)
            cache = output.past_key_values
            parts.append(output.logits)
    torch.testing.assert_close(torch.cat(parts, dim=1), whole, atol=2e-5, rtol=1e-4)
    assert isinstance(cache, BiomedGPTCache) and cache.self_key_factor is not None
    assert cache.self_key_factor.shape[2] == sum(cuts)


def test_the_bias_of_a_new_token_costs_its_own_row_only(model: BiomedGPTForConditionalGeneration) -> None:
    lengths: list[int] = []
    hook = model.decoder.self_pos_k_linear.register_forward_hook(lambda _, args, __: lengths.append(args[0].shape[1]))
    crossed: list[int] = []
    other = model.decoder.cross_pos_k_linear.register_forward_hook(lambda *_: crossed.append(1))
    try:
        model.generate(**batch(), max_new_tokens=6, min_new_tokens=6, do_sample=False)
    finally:
        hook.remove()
        other.remove()
    assert lengths == [1] * 6 and crossed == [1]


def test_a_static_cache_gives_the_same_tokens(model: BiomedGPTForConditionalGeneration) -> None:
    options: dict[str, Any] = {"max_new_tokens": 6, "do_sample": False}
    dynamic = model.generate(**batch(), **options)
    static = model.generate(**batch(), cache_implementation="static", disable_compile=True, **options)
    assert torch.equal(dynamic, static)


@pytest.mark.parametrize("beams", [1, 3])
def test_rows_are_generated_as_if_alone(model: BiomedGPTForConditionalGeneration, beams: int) -> None:
    options: dict[str, Any] = {"max_new_tokens": 8, "do_sample": False, "num_beams": beams}
    together = model.generate(**batch(), **options)
    inputs = batch()
    first = model.generate(input_ids=inputs["input_ids"][:1], pixel_values=inputs["pixel_values"][:1], **options)
    second = model.generate(input_ids=inputs["input_ids"][1:, :4], **options)
    for row, alone in ((together[0], first[0]), (together[1], second[0])):
        assert row[: len(alone)].tolist() == alone.tolist() and (row[len(alone) :] == 1).all()


@pytest.mark.parametrize("options", [{"num_beams": 1}, {"num_beams": 3}, {"do_sample": True}], ids=str)
def test_codes_and_bins_are_generated_only_when_asked(
    model: BiomedGPTForConditionalGeneration, options: dict[str, Any]
) -> None:
    start = model.config.code_token_start
    assert start == 8192 - 120
    direction = model.encoder.embed_tokens.weight
    backup = direction.detach().clone()
    try:
        with torch.no_grad():
            direction[start:] *= 30  # their logits are now the most extreme of all
        torch.manual_seed(0)
        kept: dict[str, Any] = {"do_sample": False, **options, "max_new_tokens": 12}
        assert (model.generate(**batch(), **kept) < start).all()
        assert (model.generate(**batch(), **kept, allow_code_and_bin_tokens=True) >= start).any()
    finally:
        with torch.no_grad():
            direction.copy_(backup)


def test_sampling_follows_the_seed(model: BiomedGPTForConditionalGeneration) -> None:
    def sample(seed: int) -> list[list[int]]:
        torch.manual_seed(seed)
        ids: list[list[int]] = model.generate(**batch(), max_new_tokens=8, do_sample=True).tolist()
        return ids

    assert sample(0) == sample(0) != sample(1)


def test_a_mask_of_the_text_alone_is_refused_for_an_image(model: BiomedGPTForConditionalGeneration) -> None:
    from transformers.modeling_outputs import BaseModelOutput

    inputs = batch()
    plain = BaseModelOutput(last_hidden_state=model.encoder(**inputs).last_hidden_state)
    with pytest.raises(ValueError, match="covers the image"):
        model(encoder_outputs=plain, attention_mask=inputs["attention_mask"], decoder_input_ids=torch.tensor([[0]] * 2))
