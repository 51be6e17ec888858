"""Biased attention without tables as plain attention on concatenated factors, through torch's fused kernels.

    scale * q . k + pos_q . pos_k = [scale * q, pos_q, 1] . [k, pos_k, c]

with c = 0 for a real key and a large negative number for padding, so that no mask is needed, which FlashAttention does
not take: its weight is then exactly 0 wherever a real key is seen. That is all of cross-attention, which has no tables;
self-attention has, and no sum of a few products is a table.

The value is padded with zeros to the length of the concatenated factors, as the fused kernels want it.
Source: Dao 2023 (arXiv:2307.08691) for the kernel; the factors are `PositionBias`'s.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad, scaled_dot_product_attention

from bmpeft.attention.bias import PositionBias

HIDDEN = -30_000.0
"""Added to the score of padding; float16 holds it, and exp of it is 0 beside any score of a real key."""
MULTIPLE = 8
"""Kernels want a head dimension that is a multiple of it."""


def flash_attention(
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
    """softmax(scale * q k^T + bias) v, see `bmpeft.attention.attention`; memory linear in the length.

    Raises:
        ValueError: tables, packed segments, token trees, or a causal call whose first query is not the first key.
    """
    num_queries, num_keys, offset = query.shape[2], key.shape[2], bias.layout.query_offset
    if bias.has_tables:
        raise ValueError("attention backend flash: has no tables of relative positions; chunked and triton have")
    if segment_ids is not None or visible_until is not None:
        raise ValueError("attention backend flash: has neither packed segments nor token trees; sdpa and chunked have")
    if causal and num_keys <= offset + 1:
        causal = False  # already the first query sees every key
    if causal and (offset or num_queries != num_keys):
        raise ValueError("attention backend flash: causal from the first key on only; sdpa and chunked have the others")
    queries, keys = [query * scale], [key]
    if bias.query_factor is not None and bias.key_factor is not None:
        queries.append(_expanded(bias.query_factor, query))
        keys.append(_expanded(bias.key_factor, key))
    if key_padding_mask is not None:
        hidden = torch.where(key_padding_mask.to(torch.bool), 0.0, HIDDEN).to(key.dtype)  # [B, Lk]
        queries.append(query.new_ones(*query.shape[:3], 1))
        keys.append(hidden[:, None, :, None].expand(-1, key.shape[1], -1, -1))
    q, k = torch.cat(queries, -1), torch.cat(keys, -1)
    width = -(-max(q.shape[-1], value.shape[-1]) // MULTIPLE) * MULTIPLE
    q, k, v = (pad(x, (0, width - x.shape[-1])) for x in (q, k, value))
    output = scaled_dot_product_attention(q, k, v, dropout_p=dropout, is_causal=causal, scale=1.0)
    output = output[..., : value.shape[-1]]
    if key_padding_mask is not None:
        seen = key_padding_mask.to(torch.bool)
        # Causal, a query sees the real keys up to it; else all of its row's.
        some = seen.cummax(1).values[:, None, :, None] if causal else seen.any(1)[:, None, None, None]
        output = output.masked_fill(~some, 0.0)
    return output


def _expanded(factor: Tensor, like: Tensor) -> Tensor:
    """A factor [1 or B, H, L, R] for every row, in the dtype of the content."""
    return factor.to(like.dtype).expand(len(like), -1, -1, -1)
