"""Gradients of the relative-position tables, in float32 and without atomics: the same bits in every run.

A program owns its part of the result and adds to it in one order: `backward_line` some diagonals of the text block,
over all queries and rows of the batch; `backward_image` some pairs of patches, over the batch. `fold_line` and
`fold_image` then sum what shares an entry of the table.
"""

# The arguments are what Triton makes of them.
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import triton
import triton.language as tl

from bmpeft_kernels.attention_kernels import gradient_of_scores, load_rows, scores_of


@triton.jit
def tile_gradient(
    query, key, value, pos_query, pos_key, line, image, place, query_segment, key_segment, lse, delta, gradient,
    row, column, batch, head, scale, dropout, seed, heads, num_queries, num_keys, num_image, offset, far, zero, size,
    D0: tl.constexpr, D1: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
    POSITIONS: tl.constexpr, LINE: tl.constexpr, IMAGE: tl.constexpr, CAUSAL: tl.constexpr, SEGMENTS: tl.constexpr,
    DROPOUT: tl.constexpr, POSITION_ROWS: tl.constexpr, PLACE_ROWS: tl.constexpr,
):  # fmt: skip
    """The gradient [BM, BN] of the scores of one tile, recomputed from the inputs."""
    pair = batch * heads + head
    D: tl.constexpr = D0 + D1
    rows, columns = row + tl.arange(0, BM), column + tl.arange(0, BN)
    of_queries, of_keys = pair.to(tl.int64) * num_queries, pair.to(tl.int64) * num_keys
    position = pair if POSITION_ROWS > 1 else head
    places = place + batch * num_image if PLACE_ROWS > 1 else place
    q0, q1 = load_rows(query + of_queries * D, rows, num_queries, D0, D1)
    g0, g1 = load_rows(gradient + of_queries * D, rows, num_queries, D0, D1)
    k0, k1 = load_rows(key + of_keys * D, columns, num_keys, D0, D1)
    v0, v1 = load_rows(value + of_keys * D, columns, num_keys, D0, D1)
    p0, p1, r0, r1 = q0, q1, k0, k1
    if POSITIONS:
        p0, p1 = load_rows(pos_query + position.to(tl.int64) * num_queries * D, rows, num_queries, D0, D1)
        r0, r1 = load_rows(pos_key + position.to(tl.int64) * num_keys * D, columns, num_keys, D0, D1)
    logarithm = tl.load(lse + of_queries + rows, mask=rows < num_queries, other=float("inf"))
    delta_rows = tl.load(delta + of_queries + rows, mask=rows < num_queries, other=0.0)
    scores = scores_of(
        q0, q1, p0, p1, k0, k1, r0, r1, row, column, batch, head, scale, line, image, places, query_segment,
        key_segment, num_queries, num_keys, num_image, offset, far, zero, size,
        D1, BM, BN, POSITIONS, LINE, IMAGE, CAUSAL, SEGMENTS,
    )  # fmt: skip
    of_scores, _ = gradient_of_scores(
        scores, g0, g1, v0, v1, logarithm, delta_rows, row, column, pair, num_queries, num_keys, seed, dropout,
        D1, BM, BN, DROPOUT,
    )  # fmt: skip
    return of_scores


@triton.jit
def backward_line(
    query, key, value, pos_query, pos_key, line, image, place, query_segment, key_segment, lse, delta, gradient,
    of_line, scale, dropout, seed, batches, heads, num_queries, num_keys, num_image, offset, far, zero, size,
    D0: tl.constexpr, D1: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
    POSITIONS: tl.constexpr, LINE: tl.constexpr, IMAGE: tl.constexpr, CAUSAL: tl.constexpr, SEGMENTS: tl.constexpr,
    DROPOUT: tl.constexpr, POSITION_ROWS: tl.constexpr, PLACE_ROWS: tl.constexpr,
):  # fmt: skip
    """The gradient of BN - BM diagonals of one head; grid (diagonals, H). BN is at least twice BM.

    The keys that BM queries meet on these diagonals span less than BN columns: each row of the tile is read one
    place further right than the one before it, then the rows are added.
    """
    WIDTH: tl.constexpr = BN - BM
    first, head = tl.program_id(0) * WIDTH, tl.program_id(1)
    last_query = offset + num_queries - 1 - num_image
    text_keys = num_keys - num_image
    begin = tl.maximum(num_image - offset, 0)  # the first query that is text
    skew = tl.arange(0, BM)[:, None] + tl.arange(0, WIDTH)[None, :]
    total = tl.zeros([WIDTH], tl.float32)
    for batch in range(0, batches):
        for row in range(begin, num_queries, BM):
            nearest = first - last_query + offset + row - num_image  # the first key, among the text
            if (nearest < text_keys) & (nearest + BN > 0):
                of_scores = tile_gradient(
                    query, key, value, pos_query, pos_key, line, image, place, query_segment, key_segment, lse, delta,
                    gradient, row, nearest + num_image, batch, head, scale, dropout, seed, heads, num_queries,
                    num_keys, num_image, offset, far, zero, size, D0, D1, BM, BN,
                    POSITIONS, LINE, IMAGE, CAUSAL, SEGMENTS, DROPOUT, POSITION_ROWS, PLACE_ROWS,
                )  # fmt: skip
                is_text = (nearest + tl.arange(0, BN) >= 0)[None, :]
                of_scores = tl.where(is_text, of_scores, 0.0)
                total += tl.sum(tl.gather(of_scores, skew, 1), 0)
    diagonals = num_queries - begin + text_keys - 1
    which = first + tl.arange(0, WIDTH)
    tl.store(of_line + head * diagonals + which, total, mask=which < diagonals)


@triton.jit
def backward_image(
    query, key, value, pos_query, pos_key, line, image, place, query_segment, key_segment, lse, delta, gradient,
    of_pairs, scale, dropout, seed, batches, heads, num_queries, num_keys, num_image, offset, far, zero, size,
    D0: tl.constexpr, D1: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
    POSITIONS: tl.constexpr, LINE: tl.constexpr, IMAGE: tl.constexpr, CAUSAL: tl.constexpr, SEGMENTS: tl.constexpr,
    DROPOUT: tl.constexpr, POSITION_ROWS: tl.constexpr, PLACE_ROWS: tl.constexpr,
):  # fmt: skip
    """Gradients [1 or B, H, image queries, P] of pairs of patches; grid (query tiles, key tiles, rows * H)."""
    row, column = tl.program_id(0) * BM, tl.program_id(1) * BN
    owner = tl.program_id(2)
    head, own_row = owner % heads, owner // heads
    patches = num_image - offset  # queries that are patches
    first, last = 0, batches
    if PLACE_ROWS > 1:
        first, last = own_row, own_row + 1
    total = tl.zeros([BM, BN], tl.float32)
    for batch in range(first, last):
        total += tile_gradient(
            query, key, value, pos_query, pos_key, line, image, place, query_segment, key_segment, lse, delta,
            gradient, row, column, batch, head, scale, dropout, seed, heads, num_queries, num_keys, num_image, offset,
            far, zero, size, D0, D1, BM, BN,
            POSITIONS, LINE, IMAGE, CAUSAL, SEGMENTS, DROPOUT, POSITION_ROWS, PLACE_ROWS,
        )  # fmt: skip
    rows, columns = row + tl.arange(0, BM), column + tl.arange(0, BN)
    at = of_pairs + (owner.to(tl.int64) * patches + rows)[:, None] * num_image + columns[None, :]
    tl.store(at, total, mask=(rows < patches)[:, None] & (columns < num_image)[None, :])


@triton.jit
def fold_line(of_line, index, of_table, diagonals, entries, BM: tl.constexpr, BN: tl.constexpr):
    """Sum the diagonals that share an entry: [H, M] -> [H, T]; grid (tiles of BM entries, H)."""
    entry, head = tl.program_id(0) * BM + tl.arange(0, BM), tl.program_id(1)
    total = tl.zeros([BM], tl.float32)
    for start in range(0, diagonals, BN):
        which = start + tl.arange(0, BN)
        value = tl.load(of_line + head * diagonals + which, mask=which < diagonals, other=0.0)
        bucket = tl.load(index + which, mask=which < diagonals, other=-1)
        total += tl.sum(tl.where(bucket[None, :] == entry[:, None], value[None, :], 0.0), 1)
    tl.store(of_table + head * entries + entry, total, mask=entry < entries)


@triton.jit
def fold_image(
    of_pairs, place, inverse, of_table, place_rows, heads, offset, num_image, zero, places, entries, BN: tl.constexpr
):
    """Sum the pairs of patches that share an entry: [1 or B, H, image queries, P] -> [H, N].

    `inverse` [1 or B, places] int32 is the patch at a place, or -1: an entry and a query determine the key.
    """
    entry, head = tl.program_id(0) * BN + tl.arange(0, BN), tl.program_id(1)
    patches = num_image - offset
    total = tl.zeros([BN], tl.float32)
    for row in range(0, place_rows):
        for patch in range(0, patches):
            own = tl.load(place + row * num_image + offset + patch)
            other = own - (entry - zero)
            known = (other >= 0) & (other < places)
            found = tl.load(inverse + row * places + other, mask=known, other=-1)
            at = of_pairs + ((row * heads + head).to(tl.int64) * patches + patch) * num_image + found
            total += tl.load(at, mask=found >= 0, other=0.0)
    tl.store(of_table + head * entries + entry, total, mask=entry < entries)
