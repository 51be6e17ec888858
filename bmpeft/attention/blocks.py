"""The bias of some queries only, rebuilt from `PositionBias`'s factors and tables; never a whole L x L matrix.

The rows of a block are taken *last query first*. The token part depends on key - query alone, so that in this
order each row begins one place further in one padded line of values: the block is a view of that line with
strides (1, 1), and nothing is gathered. Its gradient is the sums along the block's anti-diagonals, again a view.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from bmpeft.attention.bias import PositionBias, image_bucket, token_bucket, token_line


class BlockwiseBias:
    """A bias [1 or B, H, Lq, Lk] by blocks of queries, and the gradients of its parts from those of the blocks.

    Args:
        bias: factors, tables and layout.
        num_queries: Lq.
        num_keys: Lk.
        dtype: of the blocks.
    """

    def __init__(self, bias: PositionBias, num_queries: int, num_keys: int, dtype: torch.dtype) -> None:
        layout = bias.layout
        self.layout, self.num_queries, self.num_keys, self.dtype = layout, num_queries, num_keys, dtype
        self._query_factor = None if bias.query_factor is None else bias.query_factor.to(dtype)
        self._key_factor = None if bias.key_factor is None else bias.key_factor.to(dtype)
        self._token_table = None if bias.token_table is None else bias.token_table.to(dtype)
        self._image_table = None if bias.image_table is None else bias.image_table.to(dtype)
        # Of the queries in this call, how many lead with an image patch.
        self.image_queries = min(max(layout.num_image - layout.query_offset, 0), num_queries)
        self._has_factors = self._query_factor is not None and self._key_factor is not None
        self._last_query = layout.query_offset + num_queries - 1 - layout.num_image  # among the text
        self._line_index: Tensor | None = None
        self._line: Tensor | None = None
        if self._token_table is not None and layout.text_positions is None and num_queries > self.image_queries:
            self._line_index = token_line(layout, num_queries, num_keys).to(self._token_table.device)
            self._line = self._token_table[:, self._line_index].contiguous()  # [H, M]

    def blocks(self, longest: int) -> Iterator[BiasRows]:
        """All queries in blocks of at most `longest`; no block has image patches and text."""
        for first, last in ((0, self.image_queries), (self.image_queries, self.num_queries)):
            for start in range(first, last, longest):
                yield BiasRows(self, start, min(start + longest, last))


class BiasRows:
    """One block of a `BlockwiseBias`: queries `start` to `stop`, last first."""

    def __init__(self, whole: BlockwiseBias, start: int, stop: int) -> None:
        self.whole, self.start, self.stop = whole, start, stop
        self.is_image = stop <= whole.image_queries
        self._index = self._gathered_index()  # the same for all heads

    def of(self, x: Tensor) -> Tensor:
        """Rows of [..., Lq, D] that belong to this block, in its order."""
        return x[..., self.start : self.stop, :].flip(-2)

    def bias(self, heads: slice, first: int, last: int) -> Tensor | None:
        """[1 or B, heads, n, last - first] for some keys, or None where there is no bias."""
        whole = self.whole
        block = self._factors(heads, first, last)
        table, columns = self._table(heads, first, last)
        if table is None:
            return block
        if block is None or block.shape[0] < table.shape[0]:
            shape = (table.shape[0], table.shape[1], self.stop - self.start, last - first)
            block = table.new_zeros(shape) if block is None else block.expand(shape).contiguous()
        block[..., columns].add_(table)
        return block.to(whole.dtype)

    def _factors(self, heads: slice, first: int, last: int) -> Tensor | None:
        query, key = self.whole._query_factor, self.whole._key_factor
        if query is None or key is None:
            return None
        return self.of(query[:, heads]) @ key[:, heads, first:last].transpose(-1, -2)

    def _table(self, heads: slice, first: int, last: int) -> tuple[Tensor | None, slice]:
        """The table part [1 or B, heads, n, columns] and where among the keys first ... last it belongs."""
        whole, num_image = self.whole, self.whole.layout.num_image
        if self._index is not None:
            table = whole._image_table if self.is_image else whole._token_table
            assert table is not None
            index = self._index[..., first:last]  # [1 or B, n, columns]
            part = table[heads].index_select(1, index.reshape(-1)).unflatten(1, index.shape)
            return part.transpose(0, 1), slice(0, index.shape[-1])
        begin = max(first, num_image)
        if self.is_image or whole._line is None or begin >= last:
            return None, slice(0)
        line = whole._line[heads]  # [heads, M]
        view = line.as_strided(
            (line.shape[0], self.stop - self.start, last - begin),
            (line.stride(0), 1, 1),
            line.storage_offset() + self._line_offset(begin),
        )
        return view[None], slice(begin - first, last - first)

    def _line_offset(self, key: int) -> int:
        """Where in the line the first row (the last query) meets this key."""
        return (key - self.whole.layout.num_image) + self.whole.num_queries - self.stop

    def _gathered_index(self) -> Tensor | None:
        """[1 or B, n, P or Lk]: table indices of what is no line: pairs of patches, tokens of a tree."""
        whole, layout = self.whole, self.whole.layout
        if self.is_image:
            if whole._image_table is None or layout.image_ids is None:
                return None
            ids = layout.image_ids[:, layout.query_offset + self.start : layout.query_offset + self.stop].flip(1)
            return image_bucket(ids, layout.image_ids, layout.image_bucket_size)
        if whole._token_table is None or layout.text_positions is None:
            return None
        positions = layout.text_positions
        distance = positions[:, self.start : self.stop].flip(1)[:, :, None] - positions[:, None, :]
        longest = max(whole.num_queries, whole.num_keys, layout.max_positions)
        buckets = token_bucket(longest, layout.token_bucket_size, layout.max_positions).to(distance.device)
        return buckets[distance + longest - 1]


class BiasGradient:
    """Gradients of a bias's parts, summed over blocks in float32 (float64 for float64); only those that are wanted.

    Args:
        whole: the bias.
        bias: its parts in their own dtypes.
        factors: gradients of both factors are wanted.
        tables: gradients of both tables are wanted.
        accumulator: dtype of the sums.
    """

    def __init__(
        self, whole: BlockwiseBias, bias: PositionBias, *, factors: bool, tables: bool, accumulator: torch.dtype
    ) -> None:
        self.whole = whole
        self._bias = bias
        self._query_factor = _zeros(bias.query_factor if factors and whole._has_factors else None, accumulator)
        self._key_factor = _zeros(bias.key_factor if factors and whole._has_factors else None, accumulator)
        self._token_table = _zeros(bias.token_table if tables else None, accumulator)
        self._image_table = _zeros(bias.image_table if tables else None, accumulator)
        self._line = _zeros(whole._line if tables else None, accumulator)

    def add(self, rows: BiasRows, row: int, heads: slice, first: int, last: int, gradient: Tensor) -> None:
        """Add the gradient [heads, n, last - first] of one row of the batch, in the order of `rows`."""
        if self._query_factor is not None and self._key_factor is not None:
            self._add_factors(rows, row, heads, first, last, gradient)
        if rows._index is not None:
            table = self._image_table if rows.is_image else self._token_table
            if table is not None:
                index = rows._index[row if len(rows._index) > 1 else 0][:, first:last]
                part = gradient[..., : index.shape[-1]]
                table[heads].index_add_(1, index.reshape(-1), part.reshape(len(part), -1).to(table.dtype))
        elif self._line is not None and not rows.is_image:
            begin = max(first, self.whole.layout.num_image)
            if begin < last:
                sums = antidiagonal_sums(gradient[..., begin - first :].to(self._line.dtype))
                self._line[heads].narrow(1, rows._line_offset(begin), sums.shape[-1]).add_(sums)

    def _add_factors(self, rows: BiasRows, row: int, heads: slice, first: int, last: int, gradient: Tensor) -> None:
        query, key = self.whole._query_factor, self.whole._key_factor
        assert query is not None
        assert key is not None
        assert self._query_factor is not None
        assert self._key_factor is not None
        query_row, key_row = min(row, len(query) - 1), min(row, len(key) - 1)
        gradient = gradient.to(query.dtype)
        of_query = gradient @ key[key_row, heads, first:last]
        self._query_factor[query_row, heads, rows.start : rows.stop] += of_query.flip(-2)
        of_key = gradient.transpose(-1, -2) @ rows.of(query[query_row, heads])
        self._key_factor[key_row, heads, first:last] += of_key

    def result(self) -> tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]:
        """Gradients of query factor, key factor, token table and image table, in the dtype of each."""
        if self._line is not None and self._token_table is not None:
            assert self.whole._line_index is not None
            self._token_table.index_add_(1, self.whole._line_index, self._line)
        sums = (self._query_factor, self._key_factor, self._token_table, self._image_table)
        parts = (
            self._bias.query_factor,
            self._bias.key_factor,
            self._bias.token_table,
            self._bias.image_table,
        )
        of_query, of_key, token, image = (
            None if x is None or part is None else x.to(part.dtype) for x, part in zip(sums, parts, strict=True)
        )
        return of_query, of_key, token, image


def antidiagonal_sums(x: Tensor) -> Tensor:
    """Sums of x[..., i, j] over i + j = m: [..., n, k] -> [..., n + k - 1].

    Padded by n zeros and read with rows that are one shorter, each row stands one place further right.
    """
    n, k = x.shape[-2:]
    padded = torch.nn.functional.pad(x, (0, n)).flatten(-2)  # [..., n * (k + n)]
    sums: Tensor = padded[..., : n * (k + n - 1)].unflatten(-1, (n, k + n - 1)).sum(-2)
    return sums


def _zeros(like: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    return None if like is None else torch.zeros_like(like, dtype=dtype, memory_format=torch.contiguous_format)
