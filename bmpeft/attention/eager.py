"""The specification of biased attention: every step written out, softmax in float32."""

from __future__ import annotations

import torch
from torch import Tensor

from bmpeft.attention.bias import PositionBias
from bmpeft.attention.masks import visible_keys


def eager_attention(
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
    scores = (query * scale) @ key.transpose(-1, -2)  # [B, H, Lq, Lk]
    matrix = bias.materialize(query.shape[2], key.shape[2])
    if matrix is not None:
        scores = scores + matrix
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
    if visible is None:
        probabilities = torch.softmax(scores, dim=-1, dtype=torch.float32)
    else:
        scores = scores.masked_fill(~visible, torch.finfo(scores.dtype).min)
        # A query that sees no key gets zeros instead of an average over masked keys.
        probabilities = torch.softmax(scores, dim=-1, dtype=torch.float32).masked_fill(~visible, 0.0)
    probabilities = torch.nn.functional.dropout(probabilities.to(value.dtype), p=dropout, training=dropout > 0.0)
    return probabilities @ value
