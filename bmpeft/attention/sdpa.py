"""Biased attention through torch's scaled_dot_product_attention; the bias is materialised for each call."""

from __future__ import annotations

import torch
from torch import Tensor

from bmpeft.attention.bias import PositionBias
from bmpeft.attention.masks import visible_keys


def sdpa_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    bias: PositionBias,
    key_padding_mask: Tensor | None,
    causal: bool,
    segment_ids: tuple[Tensor, Tensor] | None,
    visible_until: Tensor | None,
    dropout: float,
    scale: float,
) -> Tensor:
    """softmax(scale * q k^T + bias) v, see `bmpeft.attention.attention`."""
    visible = visible_keys(
        query.shape[2],
        key.shape[2],
        device=query.device,
        query_offset=bias.layout.query_offset,
        key_padding_mask=key_padding_mask,
        causal=causal,
        segment_ids=segment_ids,
        visible_until=visible_until,
    )
    matrix = bias.materialize(query.shape[2], key.shape[2])
    if matrix is None:
        mask = visible
    elif visible is None:
        mask = matrix.to(query.dtype)
    else:
        # finfo.min, not -inf: a row without any visible key must not become NaN.
        mask = matrix.to(query.dtype).masked_fill(~visible, torch.finfo(query.dtype).min)
    output = torch.nn.functional.scaled_dot_product_attention(
        query, key, value, attn_mask=mask, dropout_p=dropout, scale=scale
    )
    may_see_nothing = any(mask is not None for mask in (key_padding_mask, segment_ids, visible_until))
    if visible is not None and may_see_nothing:
        output = output.masked_fill(~visible.any(dim=-1, keepdim=True), 0.0)
    return output
