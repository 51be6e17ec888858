"""Biased attention in blocks of queries: memory grows linearly with the length, forward and backward.

For each block of queries the bias is rebuilt from its factors and tables (`bmpeft.attention.blocks`), used and
dropped; the backward pass rebuilds it again and recomputes the probabilities from the saved log-sum-exp
(Dao et al. 2022, arXiv:2205.14135, section 3.1; Rabe and Staats 2021, arXiv:2112.05682).

Two ways to compute a block:

- fused: torch's flash kernel for the CPU, with the block's bias as its mask. It returns no gradient of the mask and
  has no dropout, so it serves frozen positions (LoRA, inference).
- written out: matrix products with a softmax in float32, everywhere else.

Dropout: the masks are drawn, block by block, by a generator that is seeded with one number from the default
generator of the CPU, so that a seed fixes them and the backward pass draws them again instead of storing them. They
are not the masks that `eager` draws from the same seed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import is_fake
from torch.autograd.function import once_differentiable

from bmpeft.attention.bias import PositionBias
from bmpeft.attention.blocks import BiasGradient, BiasRows, BlockwiseBias
from bmpeft.attention.masks import visible_keys


@dataclass(frozen=True)
class BlockSize:
    """How much is computed at a time.

    Attributes:
        scores: of one row of the batch, over queries, keys and as many heads as fit.
        longest: most queries.
        shortest: fewest queries, however many keys there are.
    """

    scores: int = 2**20
    longest: int = 512
    shortest: int = 64

    def of(self, num_queries: int, num_keys: int, num_heads: int) -> tuple[int, int]:
        """Queries and heads of a block."""
        queries = min(max(self.scores // max(num_keys, 1), self.shortest), self.longest, num_queries)
        return queries, min(max(self.scores // max(queries * num_keys, 1), 1), num_heads)


def chunked_attention(
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
    block_size: BlockSize = BlockSize(),
) -> Tensor:
    """softmax(scale * q k^T + bias) v, see `bmpeft.attention.attention`."""
    parts = (bias.query_factor, bias.key_factor, bias.token_table, bias.image_table)
    task = _Task(
        bias=replace(bias, query_factor=None, key_factor=None, token_table=None, image_table=None),
        key_padding_mask=key_padding_mask,
        causal=causal,
        segment_ids=segment_ids,
        visible_until=visible_until,
        scale=scale,
        dropout=dropout,
        block_size=block_size,
        seed=int(torch.randint(2**62, ())) if dropout > 0.0 and not is_fake(query) else 0,
        fused=query.device.type == "cpu"
        and dropout == 0.0
        and not (torch.is_grad_enabled() and any(part is not None and part.requires_grad for part in parts)),
    )
    # Where autocast mixes dtypes, the value's is that of the result.
    query, key = query.to(value.dtype), key.to(value.dtype)
    output: Tensor = _ChunkedAttention.apply(query, key, value, *parts, task)
    return output


@dataclass(frozen=True)
class _Task:
    """Everything that has no gradient; `bias` is the layout without factors and tables."""

    bias: PositionBias
    key_padding_mask: Tensor | None
    causal: bool
    segment_ids: tuple[Tensor, Tensor] | None
    visible_until: Tensor | None
    scale: float
    dropout: float
    block_size: BlockSize
    seed: int
    fused: bool

    def visible(self, rows: BiasRows, num_keys: int, device: torch.device) -> Tensor | None:
        """[1 or B, 1, 1 or n, Lk] boolean in the order of `rows`, or None where the block sees all keys."""
        start, stop = rows.start, rows.stop
        segments = None if self.segment_ids is None else (self.segment_ids[0][:, start:stop], self.segment_ids[1])
        visible = visible_keys(
            stop - start,
            num_keys,
            device=device,
            query_offset=self.bias.layout.query_offset + start,
            key_padding_mask=self.key_padding_mask,
            causal=self.causal,
            segment_ids=segments,
            visible_until=self.visible_until,
        )
        return None if visible is None else visible.flip(2)


@dataclass(frozen=True)
class _Rows:
    """Rows of the batch whose queries of a block see keys between `first` and `last` only.

    `visible` [1 or rows, 1, 1 or n, last - first] says which of them; None: all.
    """

    rows: slice
    first: int
    last: int
    visible: Tensor | None

    def hide(self, scores: Tensor) -> Tensor:
        """Scores or bias [.., heads, n, last - first] with the dtype's lowest value where nothing is seen."""
        if self.visible is None:
            return scores
        # finfo.min, not -inf: a query without any visible key must not become NaN.
        return scores.masked_fill(~self.visible, torch.finfo(scores.dtype).min)

    def keep_seeing(self, x: Tensor) -> Tensor:
        """x [rows, heads, n, D] with zeros for queries that see no key."""
        if self.visible is None:
            return x
        return x.masked_fill(~self.visible.any(-1, keepdim=True), 0.0)


def _groups(visible: Tensor | None, batch: int, num_keys: int) -> Iterator[_Rows]:
    """Rows of the batch by the keys that they see, so that padding and future keys cost nothing."""
    if visible is None:
        yield _Rows(slice(0, batch), 0, num_keys, None)
        return
    if is_fake(visible):  # a planner's tensors have no values to look at
        yield _Rows(slice(0, batch), 0, num_keys, visible)
        return
    any_query = visible.any(dim=2)[:, 0].to(torch.int8)  # [1 or B, Lk]
    count = any_query.sum(1)
    first = any_query.argmax(1)
    last = torch.where(count > 0, num_keys - any_query.flip(1).argmax(1), first)
    spans = list(zip(first.tolist(), last.tolist(), strict=True))
    if len(set(spans)) == 1:
        begin, end = spans[0]
        part = visible[..., begin:end]
        yield _Rows(slice(0, batch), begin, end, None if bool(part.all()) else part)
        return
    for row, (begin, end) in enumerate(spans):
        part = visible[row : row + 1, ..., begin:end]
        yield _Rows(slice(row, row + 1), begin, end, None if bool(part.all()) else part)


class _ChunkedAttention(torch.autograd.Function):
    """Forward and backward over blocks of queries, then heads, then rows of the batch, in the same order."""

    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        query_factor: Tensor | None,
        key_factor: Tensor | None,
        token_table: Tensor | None,
        image_table: Tensor | None,
        task: _Task,
    ) -> Tensor:
        # Blocks whose queries see no key are never visited: they are zeros from the start.
        hides = any(mask is not None for mask in (task.key_padding_mask, task.segment_ids, task.visible_until))
        new = torch.zeros if hides else torch.empty
        output = new(*query.shape[:3], value.shape[3], dtype=value.dtype, device=value.device)
        lse = new(query.shape[:3], dtype=_accumulator(query.dtype), device=query.device)  # [B, H, Lq]
        bias = replace(
            task.bias,
            query_factor=query_factor,
            key_factor=key_factor,
            token_table=token_table,
            image_table=image_table,
        )
        forward = _Forward(query, key, value, output, lse, task, _generator(task, query.device))
        with torch.autocast(query.device.type, enabled=False):
            for rows, heads, matrix, group in _walk(query, key, bias, task):
                forward.block(rows, heads, matrix, group)
        ctx.save_for_backward(query, key, value, output, lse, query_factor, key_factor, token_table, image_table)
        ctx.task = task
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, output, lse, *parts = ctx.saved_tensors
        task: _Task = ctx.task
        needs: tuple[bool, ...] = ctx.needs_input_grad
        bias = replace(
            task.bias, query_factor=parts[0], key_factor=parts[1], token_table=parts[2], image_table=parts[3]
        )
        backward = _Backward(
            query, key, value, output, lse, gradient.contiguous(), bias, needs, task, _generator(task, query.device)
        )
        with torch.autocast(query.device.type, enabled=False):
            for rows, heads, matrix, group in _walk(query, key, bias, task, backward.whole):
                backward.block(rows, heads, matrix, group)
            return (*backward.result(), None)


def _walk(
    query: Tensor, key: Tensor, bias: PositionBias, task: _Task, whole: BlockwiseBias | None = None
) -> Iterator[tuple[BiasRows, slice, Tensor | None, _Rows]]:
    """Every (queries, heads, rows of the batch) with its bias [1 or rows, heads, n, keys seen]."""
    batch, num_heads, num_queries, _ = query.shape
    num_keys = key.shape[2]
    if whole is None:
        whole = BlockwiseBias(bias, num_queries, num_keys, query.dtype)
    longest, head_count = task.block_size.of(num_queries, num_keys, num_heads)
    for rows in whole.blocks(longest):
        groups = list(_groups(task.visible(rows, num_keys, query.device), batch, num_keys))
        groups = [group for group in groups if group.last > group.first]
        if not groups:
            continue  # queries that see no key
        first, last = min(group.first for group in groups), max(group.last for group in groups)
        for head in range(0, num_heads, head_count):
            heads = slice(head, min(head + head_count, num_heads))
            matrix = rows.bias(heads, first, last)
            for group in groups:
                part = matrix
                if matrix is not None:
                    part = matrix[..., group.first - first : group.last - first]
                    part = part if len(part) == 1 else part[group.rows]
                yield rows, heads, part, group


@dataclass(frozen=True)
class _Forward:
    query: Tensor
    key: Tensor
    value: Tensor
    output: Tensor
    lse: Tensor
    task: _Task
    generator: torch.Generator | None

    def block(self, rows: BiasRows, heads: slice, matrix: Tensor | None, group: _Rows) -> None:
        """Output and log-sum-exp of one block."""
        query = rows.of(self.query[group.rows, heads])
        key, value = _keys(self.key, heads, group), _keys(self.value, heads, group)
        if self.task.fused:
            mask = _fused_mask(query, key, matrix, group)
            output, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
                query, key, value, 0.0, False, attn_mask=mask, scale=self.task.scale
            )
        else:
            output, lse = self._written_out(query, key, value, matrix, group)
        place = (group.rows, heads, slice(rows.start, rows.stop))
        self.output[place] = group.keep_seeing(output).flip(-2)
        self.lse[place] = lse.flip(-1)

    def _written_out(
        self, query: Tensor, key: Tensor, value: Tensor, matrix: Tensor | None, group: _Rows
    ) -> tuple[Tensor, Tensor]:
        scores = _scores(query, key, matrix, group, self.task.scale)
        lse = torch.logsumexp(scores, -1)
        probabilities = scores.sub_(lse[..., None]).exp_()
        if self.generator is not None:
            probabilities.mul_(_kept(probabilities, self.task.dropout, self.generator))
        return probabilities.to(value.dtype) @ value, lse


class _Backward:
    """Gradients of one call, summed over blocks in float32 (float64 for float64)."""

    def __init__(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        output: Tensor,
        lse: Tensor,
        gradient: Tensor,
        bias: PositionBias,
        needs: tuple[bool, ...],
        task: _Task,
        generator: torch.Generator | None,
    ) -> None:
        self.query, self.key, self.value, self.output, self.lse = query, key, value, output, lse
        self.gradient, self.needs, self.task, self.generator = gradient, needs, task, generator
        accumulator = _accumulator(query.dtype)
        self.whole = BlockwiseBias(bias, query.shape[2], key.shape[2], query.dtype)
        self.of_bias = BiasGradient(
            self.whole, bias, factors=needs[3] or needs[4], tables=needs[5] or needs[6], accumulator=accumulator
        )
        self.of_query = _Sum(query.shape, query.dtype)
        self.of_key = _Sum(key.shape, accumulator)
        self.of_value = _Sum(value.shape, accumulator)

    def block(self, rows: BiasRows, heads: slice, matrix: Tensor | None, group: _Rows) -> None:
        """Add one block's share."""
        query = rows.of(self.query[group.rows, heads])
        key, value = _keys(self.key, heads, group), _keys(self.value, heads, group)
        gradient = group.keep_seeing(rows.of(self.gradient[group.rows, heads]))
        output = rows.of(self.output[group.rows, heads])
        lse = self.lse[group.rows, heads, rows.start : rows.stop].flip(-1)
        if self.task.fused:
            of_query, of_key, of_value = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
                gradient,
                query,
                key,
                value,
                output,
                lse,
                0.0,
                False,
                attn_mask=_fused_mask(query, key, matrix, group),
                scale=self.task.scale,
            )
        else:
            scores = _scores(query, key, matrix, group, self.task.scale)
            probabilities = scores.sub_(lse[..., None]).exp_()
            of_scores = (gradient @ value.transpose(-1, -2)).to(probabilities.dtype)
            # The sum over keys of p * dp, since sum p * dp = sum_d dO * O (dropout included).
            delta = (gradient.to(lse.dtype) * output.to(lse.dtype)).sum(-1, keepdim=True)
            dropped = probabilities
            if self.generator is not None:
                kept = _kept(probabilities, self.task.dropout, self.generator)
                dropped = probabilities * kept
                of_scores.mul_(kept)
            of_value = dropped.to(value.dtype).transpose(-1, -2) @ gradient
            of_scores = of_scores.sub_(delta).mul_(probabilities)
            for row in range(len(of_scores)):
                self.of_bias.add(rows, group.rows.start + row, heads, group.first, group.last, of_scores[row])
            of_scores = of_scores.to(query.dtype)
            of_query = (of_scores @ key) * self.task.scale
            of_key = of_scores.transpose(-1, -2) @ (query * self.task.scale)
        self.of_query.add(of_query.flip(-2), group.rows, heads, slice(rows.start, rows.stop))
        self.of_key.add(of_key, group.rows, heads, slice(group.first, group.last))
        self.of_value.add(of_value, group.rows, heads, slice(group.first, group.last))

    def result(self) -> tuple[Tensor | None, ...]:
        """Gradients of query, key, value, both factors and both tables; None where none is wanted."""
        found = (
            self.of_query.total(self.query),
            self.of_key.total(self.key),
            self.of_value.total(self.value),
            *self.of_bias.result(),
        )
        return tuple(x if needed else None for x, needed in zip(found, self.needs, strict=False))


class _Sum:
    """A tensor [B, H, L, D] to which parts are added; a first part that covers it all is taken as it is."""

    def __init__(self, shape: torch.Size, dtype: torch.dtype) -> None:
        self._shape, self._dtype = shape, dtype
        self._sum: Tensor | None = None

    def add(self, part: Tensor, rows: slice, heads: slice, places: slice) -> None:
        """Add a part [rows, heads, places, D]."""
        if self._sum is None:
            if part.shape == self._shape:
                self._sum = part.to(self._dtype)
                return
            self._sum = torch.zeros(self._shape, dtype=self._dtype, device=part.device)
        self._sum[rows, heads, places] += part

    def total(self, like: Tensor) -> Tensor:
        """The sum in the dtype of `like`, which has its shape."""
        return torch.zeros_like(like) if self._sum is None else self._sum.to(like.dtype)


def _keys(x: Tensor, heads: slice, group: _Rows) -> Tensor:
    return x[group.rows, heads, group.first : group.last]


def _fused_mask(query: Tensor, key: Tensor, matrix: Tensor | None, group: _Rows) -> Tensor | None:
    """The bias of a block with hidden keys, as the mask [rows, heads, n, keys] of torch's kernel."""
    if matrix is None and group.visible is None:
        return None
    shape = (*query.shape[:3], key.shape[2])
    base = query.new_zeros(1, 1, *shape[2:]) if matrix is None else matrix
    return group.hide(base).expand(shape)


def _scores(query: Tensor, key: Tensor, matrix: Tensor | None, group: _Rows, scale: float) -> Tensor:
    """Scores [rows, heads, n, keys] in float32 or float64, in memory of their own."""
    scores = (query * scale) @ key.transpose(-1, -2)
    if matrix is not None:
        scores.add_(matrix)
    return group.hide(scores).to(_accumulator(scores.dtype))


def _kept(like: Tensor, dropout: float, generator: torch.Generator) -> Tensor:
    """1 / (1 - dropout) where a probability is kept, else 0."""
    kept = torch.empty_like(like).bernoulli_(1.0 - dropout, generator=generator)
    return kept.div_(1.0 - dropout) if dropout < 1.0 else kept


def _generator(task: _Task, device: torch.device) -> torch.Generator | None:
    if task.dropout == 0.0:
        return None
    return torch.Generator(device=device).manual_seed(task.seed)


def _accumulator(dtype: torch.dtype) -> torch.dtype:
    return dtype if dtype == torch.float64 else torch.float32
