"""Biased attention through torch's flex_attention: a fused kernel that torch compiles for the GPU.

The factors are concatenated with the content as in `bmpeft.attention.flash`; the tables are added to each score by its
two indices, and hidden keys are a block mask. Nothing of size L x L is stored.
Source: Dong et al. 2024 (arXiv:2412.05496).
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from bmpeft.attention.bias import PositionBias, patch_places, token_line

Score = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]


def flex_attention(
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
        ValueError: dropout on probabilities, which flex_attention has not; token trees.
    """
    from torch.nn.attention.flex_attention import create_block_mask

    if dropout > 0.0:
        raise ValueError("attention backend flex: has no dropout on probabilities; sdpa, chunked and triton have")
    if visible_until is not None or bias.layout.text_positions is not None:
        raise ValueError("attention backend flex: has no token trees; sdpa and chunked have")
    offset, batch = bias.layout.query_offset, len(query)
    visible = _visible(key_padding_mask, causal, segment_ids, offset)
    mask = None
    if visible is not None:
        rows = batch if key_padding_mask is not None or segment_ids is not None else None
        mask = create_block_mask(visible, rows, None, query.shape[2], key.shape[2], device=query.device)
    queries, keys = [query * scale], [key]
    if bias.query_factor is not None and bias.key_factor is not None:
        queries.append(bias.query_factor.to(query.dtype).expand(batch, -1, -1, -1))
        keys.append(bias.key_factor.to(key.dtype).expand(batch, -1, -1, -1))
    added = _added(bias, query.shape[2], key.shape[2], query.device)
    function = _compiled() if query.is_cuda else _uncompiled()
    output: Tensor = function(torch.cat(queries, -1), torch.cat(keys, -1), value, added, mask, scale=1.0)
    return output


def _visible(
    key_padding_mask: Tensor | None, causal: bool, segment_ids: tuple[Tensor, Tensor] | None, offset: int
) -> Callable[..., Tensor] | None:
    """Whether a query sees a key, by row, head and both indices; None where every key is seen."""
    if key_padding_mask is None and not causal and segment_ids is None:
        return None

    def visible(row: Tensor, _: Tensor, query: Tensor, key: Tensor) -> Tensor:
        seen = key >= 0
        if causal:
            seen = seen & (key <= query + offset)
        if key_padding_mask is not None:
            seen = seen & key_padding_mask[row, key].to(torch.bool)
        if segment_ids is not None:
            seen = seen & (segment_ids[0][row, query] == segment_ids[1][row, key])
        return seen

    return visible


def _added(bias: PositionBias, num_queries: int, num_keys: int, device: torch.device) -> Score | None:
    """What the tables add to a score; None where there are none."""
    layout = bias.layout
    num_image, offset = layout.num_image, layout.query_offset
    has_text = num_queries > max(num_image - offset, 0) and num_keys > num_image
    token_table = bias.token_table if has_text else None
    image_table = bias.image_table if num_image > offset else None
    if token_table is None and image_table is None:
        return None
    last_query = offset + num_queries - 1 - num_image
    line = None
    if token_table is not None:
        line = token_table[:, token_line(layout, num_queries, num_keys).to(device)]  # [H, M]
    places = None
    if image_table is not None and layout.image_ids is not None:
        places = patch_places(layout.image_ids, layout.image_bucket_size)  # [1 or B, P]
    zero = 2 * layout.image_bucket_size * (layout.image_bucket_size - 1)

    def added(score: Tensor, row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        place, text_query, text_key = query + offset, query + offset - num_image, key - num_image
        if line is not None:
            diagonal = (last_query + text_key - text_query).clamp(0, line.shape[1] - 1)
            score = score + torch.where((text_query >= 0) & (text_key >= 0), line[head, diagonal], 0.0)
        if places is not None and image_table is not None:
            of = row if len(places) > 1 else row * 0
            of_query, of_key = (places[of, x.clamp(0, num_image - 1)] for x in (place, key))
            both = (place < num_image) & (key < num_image)
            score = score + torch.where(both, image_table[head, of_query - of_key + zero], 0.0)
        return score

    return added


@functools.lru_cache(maxsize=1)
def _compiled() -> Any:
    return torch.compile(_uncompiled(), dynamic=False)


def _uncompiled() -> Any:
    from torch.nn.attention import flex_attention as flex

    return flex.flex_attention
