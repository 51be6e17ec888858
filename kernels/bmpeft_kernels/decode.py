"""Attention of one query against many keys, for cached decoding: `decode_attention`."""

from __future__ import annotations

import torch
import triton
from torch import Tensor

from bmpeft_kernels import decode_kernels
from bmpeft_kernels.attention import HEAD_DIMS, require_target
from bmpeft_kernels.tiles import DECODING

SMALLEST_CHUNK = 128
"""Keys of a part, at least: below that, joining the parts costs more than it saves."""
MOST_PARTS = 64


def decode_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    scale: float,
    pos_query: Tensor | None = None,
    pos_key: Tensor | None = None,
    line: Tensor | None = None,
    query_segment: Tensor | None = None,
    key_segment: Tensor | None = None,
    parts: int | None = None,
) -> Tensor:
    """softmax(scale * q k^T + pos_q pos_k^T + line) v for one query a row, without gradients.

    Args:
        query: [B, H, 1, D], D one of `HEAD_DIMS`; float32, float16 or bfloat16.
        key: [B, H, L, D].
        value: [B, H, L, D].
        scale: of the content scores.
        pos_query: [1 or B, H, 1, D] or None, in the dtype of `query`.
        pos_key: [1 or B, H, L, D].
        line: [H, L] or None, added to the scores of each key.
        query_segment: [B, 1] int64 or None; a query sees the keys of its own segment.
        key_segment: [B, L] int64, negative for keys that nobody sees (padding).
        parts: into which the keys are divided; default: by `parts_for`. The result depends on it by rounding only.

    Returns:
        [B, H, 1, D] in the dtype of `value`; zeros for a query that sees no key.

    Raises:
        ValueError: another head dimension, or more than one query.
        RuntimeError: no GPU that Triton compiles for, and no interpreter (TRITON_INTERPRET=1).
    """
    batch, heads, num_queries, head_dim = query.shape
    if head_dim not in HEAD_DIMS:
        raise ValueError(f"head dimension {head_dim}: the kernels have {', '.join(map(str, HEAD_DIMS))}")
    if num_queries != 1:
        raise ValueError(f"{num_queries} queries: this is attention of one; biased_attention has several")
    if parts is None:
        parts = parts_for(batch * heads, key.shape[2], query.device)
    optional = (pos_query, pos_key, None if line is None else line.float(), query_segment, key_segment)
    whole = [None if x is None else x.contiguous() for x in optional]
    output: Tensor = _decode(query.contiguous(), key.contiguous(), value.contiguous(), *whole, scale, parts)
    return output


def parts_for(pairs: int, num_keys: int, device: torch.device) -> int:
    """Enough parts that two blocks are there for each multiprocessor, none with fewer than `SMALLEST_CHUNK` keys."""
    multiprocessors = torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 4
    most = min(MOST_PARTS, triton.cdiv(num_keys, SMALLEST_CHUNK))
    return max(1, min(most, triton.cdiv(2 * multiprocessors, pairs)))


@torch.library.custom_op("bmpeft_kernels::decode_attention", mutates_args=())
def _decode(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    pos_query: Tensor | None,
    pos_key: Tensor | None,
    line: Tensor | None,
    query_segment: Tensor | None,
    key_segment: Tensor | None,
    scale: float,
    parts: int,
) -> Tensor:
    require_target(query.device, interpreted=not isinstance(decode_kernels.split_keys, triton.JITFunction))
    batch, heads, _, head_dim = query.shape
    num_keys, pairs = key.shape[2], batch * heads
    d0, d1 = HEAD_DIMS[head_dim]
    # Whole blocks of keys, so that none is read by two parts.
    tile = DECODING["split_keys"]
    chunk = triton.cdiv(triton.cdiv(num_keys, parts), tile.keys) * tile.keys
    parts = triton.cdiv(num_keys, chunk)
    peaks, totals = (query.new_empty(pairs, parts, dtype=torch.float32) for _ in range(2))
    sums = query.new_empty(pairs, parts, head_dim, dtype=torch.float32)
    output = torch.empty_like(query, dtype=value.dtype)
    integers = [query if x is None else x.to(torch.int32) for x in (query_segment, key_segment)]
    given = [query if x is None else x for x in (pos_query, pos_key, line)]  # a pointer that no kernel follows
    decode_kernels.split_keys[(parts, pairs)](
        query, key, value, *given, *integers, peaks, totals, sums, scale, heads, num_keys, chunk,
        D0=d0, D1=d1, BN=tile.keys, POSITIONS=pos_query is not None, LINE=line is not None,
        SEGMENTS=key_segment is not None, POSITION_ROWS=1 if pos_query is None else len(pos_query),
        num_warps=tile.warps,
    )  # fmt: skip
    decode_kernels.join_parts[(pairs,)](
        peaks, totals, sums, output, parts, D0=d0, D1=d1, PARTS=triton.next_power_of_2(parts), num_warps=tile.warps
    )
    return output


@_decode.register_fake
def _(query: Tensor, key: Tensor, value: Tensor, *_: object) -> Tensor:
    return torch.empty_like(query, dtype=value.dtype)
