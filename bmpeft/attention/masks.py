"""Which keys a query may see: padding, causality and packed segments in one boolean mask."""

from __future__ import annotations

import torch
from torch import Tensor


def visible_keys(
    num_queries: int,
    num_keys: int,
    *,
    device: torch.device,
    query_offset: int = 0,
    key_padding_mask: Tensor | None = None,
    causal: bool = False,
    segment_ids: tuple[Tensor, Tensor] | None = None,
    visible_until: Tensor | None = None,
) -> Tensor | None:
    """Boolean mask broadcastable to [B, H, Lq, Lk], true where a query may see a key; None where all are visible.

    Args:
        num_queries: Lq.
        num_keys: Lk.
        device: where the mask is built.
        query_offset: index of the first query among the keys (cached decoding).
        key_padding_mask: [B, Lk] boolean, true for real keys.
        causal: a query sees keys up to its own index.
        segment_ids: ([B, Lq], [B, Lk]) integers; a query sees the keys of its own segment.
        visible_until: [1 or B, Lk] int64; a query sees keys whose value is larger than its own index.
    """
    visible: Tensor | None = None
    queries = torch.arange(query_offset, query_offset + num_queries, device=device)
    if causal and num_keys > query_offset + 1:  # else already the first query sees every key
        visible = (torch.arange(num_keys, device=device)[None, :] <= queries[:, None])[None, None]
    if key_padding_mask is not None:
        keys = key_padding_mask.to(torch.bool)[:, None, None, :]
        visible = keys if visible is None else visible & keys
    if segment_ids is not None:
        same = (segment_ids[0][:, :, None] == segment_ids[1][:, None, :])[:, None]
        visible = same if visible is None else visible & same
    if visible_until is not None:
        open_keys = (queries[None, :, None] < visible_until[:, None, :])[:, None]
        visible = open_keys if visible is None else visible & open_keys
    return visible
