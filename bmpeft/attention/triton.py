"""Biased attention by the Triton kernels of `bmpeft_kernels`: no L x L matrix in the GPU's memory."""

from __future__ import annotations

import torch
from torch import Tensor

from bmpeft.attention.bias import PositionBias, last_bucket_from, patch_places, token_line


def triton_attention(
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
    """softmax(scale * q k^T + bias) v, see `bmpeft.attention.attention`.

    Raises:
        ValueError: token trees, absent patches, or a head dimension that the kernels do not have.
        RuntimeError: Triton has no GPU to compile for.
    """
    from bmpeft_kernels.attention import biased_attention
    from bmpeft_kernels.decode import decode_attention

    layout = bias.layout
    if visible_until is not None or layout.text_positions is not None:
        raise ValueError("attention backend triton: has no token trees; sdpa or chunked compute them")
    batch, _, num_queries, _ = query.shape
    num_keys = key.shape[2]
    query_segment, key_segment = _segments(batch, num_queries, num_keys, query.device, key_padding_mask, segment_ids)
    has_factors = bias.query_factor is not None and bias.key_factor is not None
    has_line = bias.token_table is not None and num_queries > max(layout.num_image - layout.query_offset, 0)
    index = token_line(layout, num_queries, num_keys).to(query.device) if has_line else None
    ids = layout.image_ids
    pos_query = bias.query_factor.to(value.dtype) if has_factors and bias.query_factor is not None else None
    pos_key = bias.key_factor.to(value.dtype) if has_factors and bias.key_factor is not None else None
    query, key = query.to(value.dtype), key.to(value.dtype)
    output: Tensor
    if num_queries == 1 and ids is None and dropout == 0.0 and not _is_differentiated(query, key, value, bias):
        # A causal query that is the last position sees every key; one before it does not.
        seen = min(num_keys, layout.query_offset + 1) if causal else num_keys
        line = None if index is None or bias.token_table is None else bias.token_table[:, index][:, :seen]
        return decode_attention(
            query,
            key[:, :, :seen],
            value[:, :, :seen],
            scale=scale,
            pos_query=pos_query,
            pos_key=None if pos_key is None else pos_key[:, :, :seen],
            line=line,
            query_segment=query_segment,
            key_segment=None if key_segment is None else key_segment[:, :seen],
        )
    output = biased_attention(
        query,
        key,
        value,
        scale=scale,
        pos_query=pos_query,
        pos_key=pos_key,
        token_table=bias.token_table if has_line else None,
        token_index=index,
        token_far=last_bucket_from(layout.token_bucket_size, layout.max_positions),
        image_table=bias.image_table if ids is not None else None,
        image_place=None if ids is None else patch_places(ids, layout.image_bucket_size),
        image_side=layout.image_bucket_size,
        num_image=layout.num_image,
        query_segment=query_segment,
        key_segment=key_segment,
        causal=causal,
        query_offset=layout.query_offset,
        dropout=dropout,
        seed=int(torch.randint(2**31 - 1, ())) if dropout > 0.0 else 0,
    )
    return output


def _is_differentiated(query: Tensor, key: Tensor, value: Tensor, bias: PositionBias) -> bool:
    parts = (query, key, value, bias.query_factor, bias.key_factor, bias.token_table)
    return torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in parts)


def _segments(
    batch: int,
    num_queries: int,
    num_keys: int,
    device: torch.device,
    key_padding_mask: Tensor | None,
    segment_ids: tuple[Tensor, Tensor] | None,
) -> tuple[Tensor | None, Tensor | None]:
    """Segments of queries and keys, those of padding -1; None where everything is one segment."""
    if key_padding_mask is None and segment_ids is None:
        return None, None
    if segment_ids is None:
        of_queries = torch.zeros(batch, num_queries, dtype=torch.int64, device=device)
        of_keys = torch.zeros(batch, num_keys, dtype=torch.int64, device=device)
    else:
        of_queries, of_keys = segment_ids
    if key_padding_mask is not None:
        of_keys = of_keys.masked_fill(~key_padding_mask.to(torch.bool), -1)
    return of_queries, of_keys
