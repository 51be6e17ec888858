"""Attention without tables on concatenated factors: what `eager` computes, without an L x L matrix."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bmpeft.attention.chunked import chunked_attention
from bmpeft.attention.eager import eager_attention
from bmpeft.attention.flash import flash_attention
from bmpeft.backbones import load_frozen_backbone
from bmpeft.benchmarks.measure import LiveBytes
from bmpeft.recipe import BackboneSection
from tests.attention.cases import check_errors, make_case, solve, specification


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_any_shape_gives_what_the_definition_gives(data: st.DataObject) -> None:
    batch, keys = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 40))
    cross = data.draw(st.booleans())
    case = make_case(
        data.draw(st.integers(0, 99)),
        batch=batch,
        text=data.draw(st.integers(1, 20)) if cross else keys,
        cross_keys=keys if cross else None,
        tables=False,
        factors=data.draw(st.booleans()),
        causal=False if cross else data.draw(st.booleans()),
        padding=data.draw(st.none() | st.lists(st.integers(0, keys), min_size=batch, max_size=batch)),
        head_dim=data.draw(st.sampled_from([4, 8, 10])),
    ).to(torch.float32)
    exact = solve(case.to(torch.float64), specification)
    largest = max(float(x.abs().max()) for x in exact.values() if x.numel())
    allowed = 64 * torch.finfo(torch.float32).eps * largest
    for name, x in solve(case, flash_attention, dropout=0.0).items():
        torch.testing.assert_close(x.double(), exact[name], atol=allowed, rtol=0.0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("options", [{"cross_keys": 200, "padding": [200, 77]}, {"causal": True}])
def test_errors_are_within_those_of_eager(options: dict[str, Any], dtype: torch.dtype) -> None:
    case = make_case(0, text=60, tables=False, head_dim=64, **options).to(dtype)
    exact = solve(case.to(torch.float64), specification)
    reference = solve(case.to(dtype), eager_attention, dropout=0.0)
    check_errors(solve(case, flash_attention, dropout=0.0), reference, exact, dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_padding_has_no_weight_whatever_it_holds(dtype: torch.dtype) -> None:
    case = make_case(0, text=5, cross_keys=30, padding=[30, 11]).to(dtype)
    outputs = []
    for filling in (1.0, -40.0):
        key, value = (x.clone() for x in (case.key, case.value))
        key[1, :, 11:], value[1, :, 11:] = filling, filling
        arguments: dict[str, Any] = {"bias": case.bias, "scale": 0.3, "dropout": 0.0, **case.masks}
        outputs.append(flash_attention(case.query, key, value, **arguments))
    assert torch.equal(*outputs)


def test_no_matrix_of_scores_exists() -> None:
    case = make_case(0, text=1500, cross_keys=1500, padding=[1500, 900], head_dim=8).to(torch.float32)
    arguments: dict[str, Any] = {"bias": case.bias, "scale": 0.3, "dropout": 0.0, **case.masks}
    with LiveBytes() as live, torch.no_grad():
        flash_attention(case.query, case.key, case.value, **arguments)
    assert live.peak < 4 * 1500 * 1500  # bytes of one head's scores


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"text": 6}, "has no tables of relative positions"),
        ({"text": 6, "tables": False, "segments": True}, "neither packed segments nor token trees"),
    ],
)
def test_what_it_has_not_is_refused(options: dict[str, Any], message: str) -> None:
    case = make_case(0, **options)
    with pytest.raises(ValueError, match=message):
        flash_attention(case.query, case.key, case.value, bias=case.bias, scale=1.0, dropout=0.0, **case.masks)


def test_a_causal_query_behind_a_cache_is_refused_unless_it_sees_everything() -> None:
    case = make_case(0, text=9, tables=False, causal=True)
    assert case.bias.query_factor is not None
    for row, refused in ((4, True), (8, False)):
        layout = replace(case.bias.layout, query_offset=row)
        bias = replace(case.bias, query_factor=case.bias.query_factor[:, :, row : row + 1], layout=layout)
        arguments: dict[str, Any] = {"bias": bias, "scale": 0.3, "dropout": 0.0, **case.masks}
        query = case.query[:, :, row : row + 1]
        if refused:
            with pytest.raises(ValueError, match="causal from the first key on only"):
                flash_attention(query, case.key, case.value, **arguments)
        else:
            found = flash_attention(query, case.key, case.value, **arguments)
            torch.testing.assert_close(found, chunked_attention(query, case.key, case.value, **arguments))


def test_a_stored_backbone_computes_and_writes_with_it_as_with_eager() -> None:
    """transformers takes names with "flash" in them for kernels of the hub, in loading and in generating."""
    ids = torch.randint(4, 400, (2, 12), generator=torch.Generator().manual_seed(0))
    mask = torch.arange(12)[None] < torch.tensor([[12], [7]])
    given = {"input_ids": ids.masked_fill(~mask, 1), "attention_mask": mask}
    logits, answers = [], []
    for attention in ("eager", "flash"):
        section = BackboneSection.model_validate({"name": "biomedgpt-nano", "attention": attention})
        model: Any = load_frozen_backbone(section).model.eval()
        with torch.no_grad():
            logits.append(model(**given, decoder_input_ids=ids[:, :5]).logits)
            answers.append(model.generate(**given, num_beams=2, max_new_tokens=5))
    torch.testing.assert_close(logits[1], logits[0], atol=1e-3, rtol=1e-4)
    assert torch.equal(answers[1], answers[0])
