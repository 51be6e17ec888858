"""Attention of one query against the definition in float64: under Triton's interpreter, or on a GPU where there is one.

Run by `test_interpreter.py` in a process of its own, like `attention_checks.py`.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any
from unittest.mock import patch

import bmpeft_kernels.decode
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from bmpeft.attention.bias import PositionBias
from bmpeft.attention.eager import eager_attention
from tests.attention.cases import Case, make_case, specification
from tests.backbones.tiny import tiny_model
from tests.kernels.attention_checks import DEVICE, DTYPES, INTERPRETED, kernels, poisoned_memory

__all__ = ["poisoned_memory"]


def one_query(case: Case, row: int) -> Case:
    """The query `row` of self-attention alone, as cached decoding asks: the keys up to it are in the cache."""
    query_factor, key_factor = case.bias.query_factor, case.bias.key_factor
    bias = replace(
        case.bias,
        query_factor=None if query_factor is None else query_factor[:, :, row : row + 1],
        key_factor=None if key_factor is None else key_factor[:, :, : row + 1],
        layout=replace(case.bias.layout, query_offset=row),
    )
    masks = {**case.masks, "segment_ids": None}
    if masks["key_padding_mask"] is not None:
        masks["key_padding_mask"] = masks["key_padding_mask"][:, : row + 1]
    return Case(case.query[:, :, row : row + 1], case.key[:, :, : row + 1], case.value[:, :, : row + 1], bias, masks)


def output(case: Case, backend: Any, **options: Any) -> Tensor:
    scale = case.query.shape[-1] ** -0.5
    with torch.no_grad():
        return backend(case.query, case.key, case.value, bias=case.bias, scale=scale, **case.masks, **options)


def exact(case: Case) -> Tensor:
    offset = {"query_offset": case.bias.layout.query_offset}
    return output(case.to(torch.float64), specification, **offset)


CROSS = {
    "cross": {"text": 1, "cross_keys": 333},
    "cross, a row without keys": {"text": 1, "cross_keys": 150, "padding": [129, 0], "hidden_row": True},
    "cross, no factors": {"text": 1, "cross_keys": 70, "factors": False},
    "one key": {"text": 1, "cross_keys": 1},
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("head_dim", [64, 80])
@pytest.mark.parametrize("name", CROSS)
@pytest.mark.parametrize("parts", [1, 3])
def test_errors_are_within_those_of_eager(name: str, head_dim: int, dtype: torch.dtype, parts: int) -> None:
    case = make_case(0, **CROSS[name], head_dim=head_dim).to(dtype)
    expected = exact(case)
    error = (output(case, eager_attention, dropout=0.0).double() - expected).abs().max()
    with patch.object(bmpeft_kernels.decode, "parts_for", return_value=parts):
        found = output(case, kernels)
    rounding = torch.finfo(dtype).eps * case.value.double().abs().max()  # of the largest term of the sums
    assert (found.double() - expected).abs().max() <= torch.maximum(2 * error, rounding)
    assert found.isfinite().all()


@settings(max_examples=6 if INTERPRETED else 100, deadline=None)
@given(st.integers(0, 99), st.integers(1, 200), st.integers(1, 5), st.booleans(), st.booleans())
def test_a_token_behind_a_cache_sees_what_the_whole_sequence_shows_it(
    seed: int, length: int, parts: int, causal: bool, padded: bool
) -> None:
    """Self-attention with the token table, whatever the division of the keys."""
    padding = [length, max(1, length // 2)] if padded else None
    whole = make_case(seed, text=length, causal=causal, padding=padding, head_dim=16).to(torch.float32)
    case = one_query(whole, length - 1)
    expected = exact(case)
    with patch.object(bmpeft_kernels.decode, "parts_for", return_value=parts):
        found = output(case, kernels)
    allowed = 64 * torch.finfo(torch.float32).eps * float(expected.abs().max())
    torch.testing.assert_close(found.double(), expected, atol=allowed, rtol=0.0)
    # The same row of the whole sequence, computed by the kernel of many queries.
    if causal:
        all_rows = output(whole, kernels)
        torch.testing.assert_close(found[:, :, 0], all_rows[:, :, -1], atol=allowed, rtol=0.0)


def test_one_query_takes_the_decoding_kernel_and_training_the_other_one() -> None:
    case = make_case(0, text=1, cross_keys=9, head_dim=16).to(torch.float32)
    with patch.object(bmpeft_kernels.decode, "parts_for", side_effect=ZeroDivisionError):
        with pytest.raises(ZeroDivisionError):
            output(case, kernels)
        case.query.requires_grad_()
        kernels(case.query, case.key, case.value, bias=case.bias, scale=0.25, **case.masks).sum().backward()
    assert case.query.grad is not None


def test_several_queries_and_head_dimensions_without_kernels_are_refused() -> None:
    decode = bmpeft_kernels.decode.decode_attention
    two = torch.zeros(1, 1, 2, 16)
    with pytest.raises(ValueError, match="2 queries: this is attention of one"):
        decode(two, two, two, scale=1.0)
    odd = torch.zeros(1, 1, 1, 24)
    with pytest.raises(ValueError, match="head dimension 24: the kernels have 16, 32, 64, 80"):
        decode(odd, odd, odd, scale=1.0)


def test_the_operator_has_shapes_for_tensors_without_data() -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        case = make_case(0, text=1, cross_keys=20, head_dim=16).to(torch.float32)
        assert output(case, kernels).shape == (2, 2, 1, 16)


def test_a_tiny_model_writes_the_same_answer() -> None:
    """Greedy and beams, with padding: every step behind the first has one query."""
    ids = torch.randint(4, 400, (2, 12), generator=torch.Generator().manual_seed(0))
    mask = torch.arange(12)[None] < torch.tensor([[12], [7]])
    answers = {}
    for attention in ("eager", "triton"):
        model = tiny_model(attention=attention, dropout=0.0).to(DEVICE).eval()
        given = {"input_ids": ids.masked_fill(~mask, 1).to(DEVICE), "attention_mask": mask.to(DEVICE)}
        answers[attention] = [model.generate(**given, num_beams=n, max_new_tokens=6).cpu() for n in (1, 3)]
    for mine, theirs in zip(answers["triton"], answers["eager"], strict=True):
        assert torch.equal(mine, theirs)


def test_bias_of_the_cache_is_not_mistaken() -> None:
    """A query in the middle, causal: keys behind it are not seen."""
    whole = make_case(5, text=30, causal=True, head_dim=16).to(torch.float32)
    row = 11
    layout = replace(whole.bias.layout, query_offset=row)
    assert whole.bias.query_factor is not None
    bias: PositionBias = replace(whole.bias, query_factor=whole.bias.query_factor[:, :, row : row + 1], layout=layout)
    found = output(Case(whole.query[:, :, row : row + 1], whole.key, whole.value, bias, whole.masks), kernels)
    torch.testing.assert_close(found[:, :, 0], exact(whole)[:, :, row].float(), atol=1e-5, rtol=1e-5)
