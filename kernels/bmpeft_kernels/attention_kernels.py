"""The tiles of biased attention, as Triton kernels.

    scores[i, j] = scale * q[i] . k[j] + pos_q[i] . pos_k[j] + line[last_query + j - i] + image[place[i] - place[j]]

`line` has one value for every diagonal of the text block; beyond the last bucket it is constant, and a tile there
loads one number instead of gathering. The image part is read by the difference of two patch places. All sums are in
float32. A head dimension of 80 is computed as 64 + 16 (D0 + D1), since a tile's width is a power of two.

Tensors are contiguous: q, k, v, output and their gradients [B, H, L, D]; pos_q, pos_k [1 or B, H, L, D]; line [H, M]
and image [H, N] float32; place [1 or B, P] int32; segments [B, L] int32, negative for keys that nobody sees.
"""

# The arguments are what Triton makes of them.
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import triton
import triton.language as tl

LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit
def load_rows(base, rows, length, D0: tl.constexpr, D1: tl.constexpr):
    """The first D0 and the other D1 columns of some rows of [length, D0 + D1]; zeros beyond the length."""
    at = base + rows[:, None] * (D0 + D1)
    inside = ((rows >= 0) & (rows < length))[:, None]
    first = tl.load(at + tl.arange(0, D0)[None, :], mask=inside, other=0.0)
    second = first
    if D1 > 0:
        second = tl.load(at + D0 + tl.arange(0, D1)[None, :], mask=inside, other=0.0)
    return first, second


@triton.jit
def store_rows(base, rows, length, first, second, D0: tl.constexpr, D1: tl.constexpr):
    """The inverse of `load_rows`, cast to what `base` holds."""
    at = base + rows[:, None] * (D0 + D1)
    inside = (rows < length)[:, None]
    tl.store(at + tl.arange(0, D0)[None, :], first.to(base.dtype.element_ty), mask=inside)
    if D1 > 0:
        tl.store(at + D0 + tl.arange(0, D1)[None, :], second.to(base.dtype.element_ty), mask=inside)


@triton.jit
def products(a0, a1, b0, b1, D1: tl.constexpr):
    """a b^T over both parts of the head dimension, in float32."""
    result = tl.dot(a0, tl.trans(b0), input_precision="ieee")
    if D1 > 0:
        result = tl.dot(a1, tl.trans(b1), acc=result, input_precision="ieee")
    return result


@triton.jit
def add_line(scores, row, column, rows, columns, line, head, num_queries, num_keys, num_image, offset, far, BM: tl.constexpr, BN: tl.constexpr):  # fmt: skip  # noqa: E501
    """The token table's part of a tile whose first query is `row` and first key `column`."""
    query, key = offset + row - num_image, column - num_image  # among the text
    if (query + BM > 0) & (key + BN > 0):
        last_query = offset + num_queries - 1 - num_image
        base = line + head * (num_queries - tl.maximum(num_image - offset, 0) + num_keys - num_image - 1)
        nearest, farthest = query - (key + BN - 1), query + BM - 1 - key
        if (query >= 0) & (key >= 0) & ((nearest >= far) | (farthest <= -far)):
            scores += tl.load(base + last_query + key - query)  # one bucket for the whole tile
        else:
            text_rows, text_columns = offset + rows - num_image, columns - num_image
            is_text = (text_rows >= 0) & (rows < num_queries) & (text_columns >= 0) & (columns < num_keys)
            diagonal = last_query + text_columns - text_rows
            scores += tl.load(base + diagonal, mask=is_text, other=0.0)
    return scores


@triton.jit
def add_image(scores, row, column, rows, columns, image, place, head, num_image, offset, zero, size):
    """The image table's part of a tile; `zero` is the table index of a difference of nothing."""
    if (offset + row < num_image) & (column < num_image):
        of_rows = tl.load(place + offset + rows, mask=offset + rows < num_image, other=0)
        is_patch = (columns >= 0) & (columns < num_image)
        of_columns = tl.load(place + columns, mask=is_patch, other=0)
        both = (offset + rows < num_image) & is_patch
        index = of_rows - of_columns + zero
        scores += tl.load(image + head * size + index, mask=both, other=0.0)
    return scores


@triton.jit
def scores_of(
    q0, q1, p0, p1, k0, k1, r0, r1, row, column, batch, head, scale, line, image, place, query_segment, key_segment,
    num_queries, num_keys, num_image, offset, far, zero, size,
    D1: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
    POSITIONS: tl.constexpr, LINE: tl.constexpr, IMAGE: tl.constexpr, CAUSAL: tl.constexpr, SEGMENTS: tl.constexpr,
    TRANSPOSED: tl.constexpr = False,
):  # fmt: skip
    """The scores [BM, BN] of one tile times log2(e), -inf where a key is hidden; TRANSPOSED: [BN, BM].

    The first factor of a product is spread over the warps and the second held by each of them, so that what stays
    for a whole loop has to come first: queries in the forward pass, keys where their gradients are summed.
    """
    if TRANSPOSED:
        rows, columns = row + tl.arange(0, BM)[None, :], column + tl.arange(0, BN)[:, None]
        scores = products(k0, k1, q0, q1, D1) * scale
        if POSITIONS:
            scores += products(r0, r1, p0, p1, D1)
    else:
        rows, columns = row + tl.arange(0, BM)[:, None], column + tl.arange(0, BN)[None, :]
        scores = products(q0, q1, k0, k1, D1) * scale
        if POSITIONS:
            scores += products(p0, p1, r0, r1, D1)
    if LINE:
        scores = add_line(
            scores, row, column, rows, columns, line, head, num_queries, num_keys, num_image, offset, far, BM, BN
        )
    if IMAGE:
        scores = add_image(scores, row, column, rows, columns, image, place, head, num_image, offset, zero, size)
    is_key = (columns >= 0) & (columns < num_keys)  # the table passes read tiles that begin before the first key
    visible = is_key & (rows < num_queries)
    if CAUSAL:
        visible = visible & (columns <= offset + rows)
    if SEGMENTS:
        of_rows = tl.load(query_segment + batch * num_queries + rows, mask=rows < num_queries, other=-2)
        of_columns = tl.load(key_segment + batch * num_keys + columns, mask=is_key, other=-1)
        visible = visible & (of_rows == of_columns) & (of_columns >= 0)
    return tl.where(visible, scores * LOG2_E, float("-inf"))


@triton.jit
def kept_scale(rows, columns, pair, num_queries, num_keys, seed, dropout):
    """1 / (1 - dropout) where a probability is kept, else 0; the same for an element in every kernel."""
    element = (pair.to(tl.int64) * num_queries + rows) * num_keys + columns
    return tl.where(tl.rand(seed, element) >= dropout, 1.0 / (1.0 - dropout), 0.0)


@triton.jit
def forward(
    query, key, value, pos_query, pos_key, line, image, place, query_segment, key_segment, output, lse,
    scale, dropout, seed, heads, num_queries, num_keys, num_image, offset, far, zero, size,
    D0: tl.constexpr, D1: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
    POSITIONS: tl.constexpr, LINE: tl.constexpr, IMAGE: tl.constexpr, CAUSAL: tl.constexpr, SEGMENTS: tl.constexpr,
    DROPOUT: tl.constexpr, POSITION_ROWS: tl.constexpr, PLACE_ROWS: tl.constexpr,
):  # fmt: skip
    """Output and log-sum-exp of BM queries; grid (query tiles, B * H)."""
    row, pair = tl.program_id(0) * BM, tl.program_id(1)
    batch, head = pair // heads, pair % heads
    D: tl.constexpr = D0 + D1
    rows = row + tl.arange(0, BM)
    of_queries, of_keys = pair.to(tl.int64) * num_queries, pair.to(tl.int64) * num_keys
    position = pair if POSITION_ROWS > 1 else head
    place += batch * num_image if PLACE_ROWS > 1 else 0
    q0, q1 = load_rows(query + of_queries * D, rows, num_queries, D0, D1)
    p0, p1 = q0, q1
    if POSITIONS:
        p0, p1 = load_rows(pos_query + position.to(tl.int64) * num_queries * D, rows, num_queries, D0, D1)
    peak = tl.full([BM], float("-inf"), tl.float32)
    total = tl.zeros([BM], tl.float32)
    sum0 = tl.zeros([BM, D0], tl.float32)
    sum1 = tl.zeros([BM, D1 if D1 > 0 else 1], tl.float32)
    end = num_keys
    if CAUSAL:
        end = tl.minimum(num_keys, offset + row + BM)
    for column in range(0, end, BN):
        columns = column + tl.arange(0, BN)
        k0, k1 = load_rows(key + of_keys * D, columns, num_keys, D0, D1)
        r0, r1 = k0, k1
        if POSITIONS:
            r0, r1 = load_rows(pos_key + position.to(tl.int64) * num_keys * D, columns, num_keys, D0, D1)
        scores = scores_of(
            q0, q1, p0, p1, k0, k1, r0, r1, row, column, batch, head, scale, line, image, place, query_segment,
            key_segment, num_queries, num_keys, num_image, offset, far, zero, size,
            D1, BM, BN, POSITIONS, LINE, IMAGE, CAUSAL, SEGMENTS,
        )  # fmt: skip
        higher = tl.maximum(peak, tl.max(scores, 1))
        safe = tl.where(higher == float("-inf"), 0.0, higher)  # nothing seen so far: no NaN from inf - inf
        weights = tl.exp2(scores - safe[:, None])
        shrink = tl.exp2(peak - safe)
        total = total * shrink + tl.sum(weights, 1)
        if DROPOUT:
            weights *= kept_scale(rows[:, None], columns[None, :], pair, num_queries, num_keys, seed, dropout)
        v0, v1 = load_rows(value + of_keys * D, columns, num_keys, D0, D1)
        weights = weights.to(v0.dtype)
        sum0 = tl.dot(weights, v0, acc=sum0 * shrink[:, None], input_precision="ieee")
        if D1 > 0:
            sum1 = tl.dot(weights, v1, acc=sum1 * shrink[:, None], input_precision="ieee")
        peak = higher
    # Infinite for a query that sees no key, so that its probabilities are zero in the backward pass.
    nothing = total == 0.0
    inverse = tl.where(nothing, 0.0, 1.0 / tl.where(nothing, 1.0, total))[:, None]
    store_rows(output + of_queries * D, rows, num_queries, sum0 * inverse, sum1 * inverse, D0, D1)
    logarithm = tl.where(nothing, float("inf"), peak + tl.log2(tl.where(nothing, 1.0, total)))
    tl.store(lse + of_queries + rows, logarithm, mask=rows < num_queries)


@triton.jit
def gradient_of_scores(
    scores, g0, g1, v0, v1, logarithm, delta, row, column, pair, num_queries, num_keys, seed, dropout,
    D1: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, DROPOUT: tl.constexpr,
    TRANSPOSED: tl.constexpr = False,
):  # fmt: skip
    """The gradient [BM, BN] of the scores and the probabilities after dropout, in float32; TRANSPOSED: [BN, BM]."""
    if TRANSPOSED:
        rows, columns = row + tl.arange(0, BM)[None, :], column + tl.arange(0, BN)[:, None]
        logarithm, delta = logarithm[None, :], delta[None, :]
        of_weights = products(v0, v1, g0, g1, D1)
    else:
        rows, columns = row + tl.arange(0, BM)[:, None], column + tl.arange(0, BN)[None, :]
        logarithm, delta = logarithm[:, None], delta[:, None]
        of_weights = products(g0, g1, v0, v1, D1)
    probabilities = tl.exp2(scores - logarithm)
    dropped = probabilities
    if DROPOUT:
        kept = kept_scale(rows, columns, pair, num_queries, num_keys, seed, dropout)
        of_weights *= kept
        dropped = probabilities * kept
    return probabilities * (of_weights - delta), dropped


@triton.jit
def backward_queries(
    query, key, value, pos_query, pos_key, line, image, place, query_segment, key_segment, lse, delta, gradient,
    of_query, of_position, scale, dropout, seed, heads, num_queries, num_keys, num_image, offset, far, zero, size,
    D0: tl.constexpr, D1: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
    POSITIONS: tl.constexpr, LINE: tl.constexpr, IMAGE: tl.constexpr, CAUSAL: tl.constexpr, SEGMENTS: tl.constexpr,
    DROPOUT: tl.constexpr, POSITION_ROWS: tl.constexpr, PLACE_ROWS: tl.constexpr, WANTED: tl.constexpr,
):  # fmt: skip
    """Gradients of BM queries and, where WANTED, of their position factor (float32, for each row of the batch)."""
    row, pair = tl.program_id(0) * BM, tl.program_id(1)
    batch, head = pair // heads, pair % heads
    D: tl.constexpr = D0 + D1
    rows = row + tl.arange(0, BM)
    of_queries, of_keys = pair.to(tl.int64) * num_queries, pair.to(tl.int64) * num_keys
    position = pair if POSITION_ROWS > 1 else head
    place += batch * num_image if PLACE_ROWS > 1 else 0
    q0, q1 = load_rows(query + of_queries * D, rows, num_queries, D0, D1)
    g0, g1 = load_rows(gradient + of_queries * D, rows, num_queries, D0, D1)
    p0, p1 = q0, q1
    if POSITIONS:
        p0, p1 = load_rows(pos_query + position.to(tl.int64) * num_queries * D, rows, num_queries, D0, D1)
    logarithm = tl.load(lse + of_queries + rows, mask=rows < num_queries, other=float("inf"))
    delta_rows = tl.load(delta + of_queries + rows, mask=rows < num_queries, other=0.0)
    sum0, pos0 = tl.zeros([BM, D0], tl.float32), tl.zeros([BM, D0], tl.float32)
    sum1, pos1 = tl.zeros([BM, D1 if D1 > 0 else 1], tl.float32), tl.zeros([BM, D1 if D1 > 0 else 1], tl.float32)
    end = num_keys
    if CAUSAL:
        end = tl.minimum(num_keys, offset + row + BM)
    for column in range(0, end, BN):
        columns = column + tl.arange(0, BN)
        k0, k1 = load_rows(key + of_keys * D, columns, num_keys, D0, D1)
        v0, v1 = load_rows(value + of_keys * D, columns, num_keys, D0, D1)
        r0, r1 = k0, k1
        if POSITIONS:
            r0, r1 = load_rows(pos_key + position.to(tl.int64) * num_keys * D, columns, num_keys, D0, D1)
        scores = scores_of(
            q0, q1, p0, p1, k0, k1, r0, r1, row, column, batch, head, scale, line, image, place, query_segment,
            key_segment, num_queries, num_keys, num_image, offset, far, zero, size,
            D1, BM, BN, POSITIONS, LINE, IMAGE, CAUSAL, SEGMENTS,
        )  # fmt: skip
        of_scores, _ = gradient_of_scores(
            scores, g0, g1, v0, v1, logarithm, delta_rows, row, column, pair, num_queries, num_keys, seed, dropout,
            D1, BM, BN, DROPOUT,
        )  # fmt: skip
        of_scores = of_scores.to(k0.dtype)
        sum0 = tl.dot(of_scores, k0, acc=sum0, input_precision="ieee")
        if D1 > 0:
            sum1 = tl.dot(of_scores, k1, acc=sum1, input_precision="ieee")
        if WANTED:
            pos0 = tl.dot(of_scores, r0, acc=pos0, input_precision="ieee")
            if D1 > 0:
                pos1 = tl.dot(of_scores, r1, acc=pos1, input_precision="ieee")
    store_rows(of_query + of_queries * D, rows, num_queries, sum0 * scale, sum1 * scale, D0, D1)
    if WANTED:
        store_rows(of_position + of_queries * D, rows, num_queries, pos0, pos1, D0, D1)


@triton.jit
def backward_keys(
    query, key, value, pos_query, pos_key, line, image, place, query_segment, key_segment, lse, delta, gradient,
    of_key, of_value, of_position, scale, dropout, seed, heads, num_queries, num_keys, num_image, offset, far, zero,
    size,
    D0: tl.constexpr, D1: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
    POSITIONS: tl.constexpr, LINE: tl.constexpr, IMAGE: tl.constexpr, CAUSAL: tl.constexpr, SEGMENTS: tl.constexpr,
    DROPOUT: tl.constexpr, POSITION_ROWS: tl.constexpr, PLACE_ROWS: tl.constexpr, WANTED: tl.constexpr,
):  # fmt: skip
    """Gradients of BN keys, of their values and, where WANTED, of their position factor (float32)."""
    column, pair = tl.program_id(0) * BN, tl.program_id(1)
    batch, head = pair // heads, pair % heads
    D: tl.constexpr = D0 + D1
    columns = column + tl.arange(0, BN)
    of_queries, of_keys = pair.to(tl.int64) * num_queries, pair.to(tl.int64) * num_keys
    position = pair if POSITION_ROWS > 1 else head
    place += batch * num_image if PLACE_ROWS > 1 else 0
    k0, k1 = load_rows(key + of_keys * D, columns, num_keys, D0, D1)
    v0, v1 = load_rows(value + of_keys * D, columns, num_keys, D0, D1)
    r0, r1 = k0, k1
    if POSITIONS:
        r0, r1 = load_rows(pos_key + position.to(tl.int64) * num_keys * D, columns, num_keys, D0, D1)
    key0, value0, pos0 = tl.zeros([BN, D0], tl.float32), tl.zeros([BN, D0], tl.float32), tl.zeros([BN, D0], tl.float32)
    key1 = tl.zeros([BN, D1 if D1 > 0 else 1], tl.float32)
    value1, pos1 = key1, key1
    begin = 0
    if CAUSAL:  # the first tile with a query that sees the first of these keys
        begin = tl.maximum(column - offset, 0) // BM * BM
    for row in range(begin, num_queries, BM):
        rows = row + tl.arange(0, BM)
        q0, q1 = load_rows(query + of_queries * D, rows, num_queries, D0, D1)
        g0, g1 = load_rows(gradient + of_queries * D, rows, num_queries, D0, D1)
        p0, p1 = q0, q1
        if POSITIONS:
            p0, p1 = load_rows(pos_query + position.to(tl.int64) * num_queries * D, rows, num_queries, D0, D1)
        logarithm = tl.load(lse + of_queries + rows, mask=rows < num_queries, other=float("inf"))
        delta_rows = tl.load(delta + of_queries + rows, mask=rows < num_queries, other=0.0)
        scores = scores_of(
            q0, q1, p0, p1, k0, k1, r0, r1, row, column, batch, head, scale, line, image, place, query_segment,
            key_segment, num_queries, num_keys, num_image, offset, far, zero, size,
            D1, BM, BN, POSITIONS, LINE, IMAGE, CAUSAL, SEGMENTS, True,
        )  # fmt: skip
        of_scores, weights = gradient_of_scores(
            scores, g0, g1, v0, v1, logarithm, delta_rows, row, column, pair, num_queries, num_keys, seed, dropout,
            D1, BM, BN, DROPOUT, True,
        )  # fmt: skip
        weights, of_scores = weights.to(g0.dtype), of_scores.to(q0.dtype)  # [BN, BM]
        value0 = tl.dot(weights, g0, acc=value0, input_precision="ieee")
        key0 = tl.dot(of_scores, q0, acc=key0, input_precision="ieee")
        if D1 > 0:
            value1 = tl.dot(weights, g1, acc=value1, input_precision="ieee")
            key1 = tl.dot(of_scores, q1, acc=key1, input_precision="ieee")
        if WANTED:
            pos0 = tl.dot(of_scores, p0, acc=pos0, input_precision="ieee")
            if D1 > 0:
                pos1 = tl.dot(of_scores, p1, acc=pos1, input_precision="ieee")
    store_rows(of_key + of_keys * D, columns, num_keys, key0 * scale, key1 * scale, D0, D1)
    store_rows(of_value + of_keys * D, columns, num_keys, value0, value1, D0, D1)
    if WANTED:
        store_rows(of_position + of_keys * D, columns, num_keys, pos0, pos1, D0, D1)
