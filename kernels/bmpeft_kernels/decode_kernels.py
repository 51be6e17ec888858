"""One query against many keys, as Triton kernels: each block takes some of the keys, a second kernel joins the parts.

A single query leaves no work for more than B * H blocks, which are fewer than a GPU has multiprocessors; divided by
keys there are enough, each with the online softmax of its own keys. A part is (peak, total, sum of weighted values);
parts of disjoint keys join as the tiles of one softmax do (Milakov & Gimelshein 2018, arXiv:1805.02867; split keys: Dao
et al. 2023, Flash-Decoding). Every key is read once and used once, so that the memory is the limit and tensor cores
would gain nothing.

Tensors are contiguous: query, output [B, H, 1, D]; keys and values [B, H, L, D]; pos_query [1 or B, H, 1, D]; pos_key
[1 or B, H, L, D]; line [H, L] float32; query_segment [B], key_segment [B, L] int32, negative for keys that nobody sees.
"""

# The arguments are what Triton makes of them.
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import triton
import triton.language as tl

from bmpeft_kernels.attention_kernels import LOG2_E, load_rows


@triton.jit
def load_vector(base, D0: tl.constexpr, D1: tl.constexpr):
    """The first D0 and the other D1 numbers of one row, in float32."""
    first = tl.load(base + tl.arange(0, D0)).to(tl.float32)
    second = first
    if D1 > 0:
        second = tl.load(base + D0 + tl.arange(0, D1)).to(tl.float32)
    return first, second


@triton.jit
def row_products(k0, k1, q0, q1, D1: tl.constexpr):
    """k q for a block of keys, [BN] in float32."""
    result = tl.sum(k0.to(tl.float32) * q0[None, :], 1)
    if D1 > 0:
        result += tl.sum(k1.to(tl.float32) * q1[None, :], 1)
    return result


@triton.jit
def split_keys(
    query, key, value, pos_query, pos_key, line, query_segment, key_segment, peaks, totals, sums,
    scale, heads, num_keys, chunk,
    D0: tl.constexpr, D1: tl.constexpr, BN: tl.constexpr,
    POSITIONS: tl.constexpr, LINE: tl.constexpr, SEGMENTS: tl.constexpr, POSITION_ROWS: tl.constexpr,
):  # fmt: skip
    """The part of `chunk` keys; grid (parts, B * H)."""
    part, pair = tl.program_id(0), tl.program_id(1)
    batch, head = pair // heads, pair % heads
    D: tl.constexpr = D0 + D1
    of_keys = pair.to(tl.int64) * num_keys
    position = pair if POSITION_ROWS > 1 else head
    q0, q1 = load_vector(query + pair.to(tl.int64) * D, D0, D1)
    p0, p1 = q0, q1
    if POSITIONS:
        p0, p1 = load_vector(pos_query + position.to(tl.int64) * D, D0, D1)
    own_segment = 0
    if SEGMENTS:
        own_segment = tl.load(query_segment + batch)
    peak = tl.full([1], float("-inf"), tl.float32)
    total = tl.zeros([1], tl.float32)
    sum0 = tl.zeros([D0], tl.float32)
    sum1 = tl.zeros([D1 if D1 > 0 else 1], tl.float32)
    end = tl.minimum((part + 1) * chunk, num_keys)
    for column in range(part * chunk, end, BN):
        columns = column + tl.arange(0, BN)
        k0, k1 = load_rows(key + of_keys * D, columns, end, D0, D1)
        scores = row_products(k0, k1, q0, q1, D1) * scale
        if POSITIONS:
            r0, r1 = load_rows(pos_key + position.to(tl.int64) * num_keys * D, columns, end, D0, D1)
            scores += row_products(r0, r1, p0, p1, D1)
        visible = columns < end
        if LINE:
            scores += tl.load(line + head * num_keys + columns, mask=visible, other=0.0)
        if SEGMENTS:
            of_columns = tl.load(key_segment + batch * num_keys + columns, mask=visible, other=-1)
            visible = visible & (of_columns == own_segment) & (of_columns >= 0)
        scores = tl.where(visible, scores * LOG2_E, float("-inf"))
        higher = tl.maximum(peak, tl.max(scores, 0))
        safe = tl.where(higher == float("-inf"), 0.0, higher)  # nothing seen so far: no NaN from inf - inf
        weights = tl.exp2(scores - safe)
        shrink = tl.exp2(peak - safe)
        total = total * shrink + tl.sum(weights, 0)
        v0, v1 = load_rows(value + of_keys * D, columns, end, D0, D1)
        sum0 = sum0 * shrink + tl.sum(v0.to(tl.float32) * weights[:, None], 0)
        if D1 > 0:
            sum1 = sum1 * shrink + tl.sum(v1.to(tl.float32) * weights[:, None], 0)
        peak = higher
    place = pair * tl.num_programs(0) + part
    tl.store(peaks + place + tl.arange(0, 1), peak)
    tl.store(totals + place + tl.arange(0, 1), total)
    tl.store(sums + place.to(tl.int64) * D + tl.arange(0, D0), sum0)
    if D1 > 0:
        tl.store(sums + place.to(tl.int64) * D + D0 + tl.arange(0, D1), sum1)


@triton.jit
def join_parts(
    peaks, totals, sums, output, parts,
    D0: tl.constexpr, D1: tl.constexpr, PARTS: tl.constexpr,
):  # fmt: skip
    """The output from `parts` parts, at most PARTS; grid (B * H)."""
    pair = tl.program_id(0)
    D: tl.constexpr = D0 + D1
    numbers = tl.arange(0, PARTS)
    there = numbers < parts
    peak = tl.load(peaks + pair * parts + numbers, mask=there, other=float("-inf"))
    highest = tl.max(peak, 0)
    weights = tl.exp2(peak - tl.where(highest == float("-inf"), 0.0, highest))
    total = tl.sum(weights * tl.load(totals + pair * parts + numbers, mask=there, other=0.0), 0)
    s0, s1 = load_rows(sums + pair.to(tl.int64) * parts * D, numbers, parts, D0, D1)
    inverse = tl.where(total == 0.0, 0.0, 1.0 / tl.where(total == 0.0, 1.0, total))
    at = output + pair.to(tl.int64) * D
    result = tl.sum(s0 * weights[:, None], 0) * inverse
    tl.store(at + tl.arange(0, D0), result.to(output.dtype.element_ty))
    if D1 > 0:
        result = tl.sum(s1 * weights[:, None], 0) * inverse
        tl.store(at + D0 + tl.arange(0, D1), result.to(output.dtype.element_ty))
