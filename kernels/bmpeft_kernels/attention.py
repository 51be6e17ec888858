"""Attention with BiomedGPT's position bias as torch operators: forward, backward, and their shapes for fake tensors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import triton
from torch import Tensor

from bmpeft_kernels import attention_kernels, table_kernels
from bmpeft_kernels.tiles import INTERPRETER, Tile, tiles_for

HEAD_DIMS = {16: (16, 0), 32: (32, 0), 64: (64, 0), 80: (64, 16)}
"""Head dimensions, and the powers of two that they are computed as."""


def biased_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    scale: float,
    pos_query: Tensor | None = None,
    pos_key: Tensor | None = None,
    token_table: Tensor | None = None,
    token_index: Tensor | None = None,
    token_far: int = 0,
    image_table: Tensor | None = None,
    image_place: Tensor | None = None,
    image_side: int = 0,
    num_image: int = 0,
    query_segment: Tensor | None = None,
    key_segment: Tensor | None = None,
    causal: bool = False,
    query_offset: int = 0,
    dropout: float = 0.0,
    seed: int = 0,
) -> Tensor:
    """softmax(scale * q k^T + pos_q pos_k^T + tables) v in the sequence [image patches ; text].

    Gradients of query, key, value and, where they require one, of both factors and of both tables; everything is
    computed without atomics, so that two runs give the same bits.

    Args:
        query: [B, H, Lq, D], D one of `HEAD_DIMS`; float32, float16 or bfloat16.
        key: [B, H, Lk, D].
        value: [B, H, Lk, D].
        scale: of the content scores.
        pos_query: [1 or B, H, Lq, D] or None, in the dtype of `query`.
        pos_key: [1 or B, H, Lk, D].
        token_table: [H, T] or None.
        token_index: [M] int64 into the table, for key - query = -last_query, ... in the text; M is the number of text
            queries plus the number of text keys, less one.
        token_far: from this distance between query and key on, each side has one index.
        image_table: [H, (2 * side - 1)^2 or more] or None.
        image_place: [1 or B, P] int64, row * (2 * side - 1) + column of each patch.
        image_side: side of the largest grid.
        num_image: P, patches in front of the text.
        query_segment: [B, Lq] int64 or None; a query sees the keys of its own segment.
        key_segment: [B, Lk] int64, negative for keys that nobody sees (padding).
        causal: a query sees keys up to its own index, `query_offset` counted.
        query_offset: index of the first query among the keys.
        dropout: probability, applied to the attention probabilities; the masks are a function of `seed` and of the
            indices of row, head, query and key (Philox), and differ from those of other backends.
        seed: of the dropout.

    Returns:
        [B, H, Lq, D] in the dtype of `value`; zeros for a query that sees no key.

    Raises:
        ValueError: another head dimension.
        RuntimeError: no GPU that Triton has tensor-core code for, and no interpreter (TRITON_INTERPRET=1).
    """
    if query.shape[-1] not in HEAD_DIMS:
        raise ValueError(f"head dimension {query.shape[-1]}: the kernels have {', '.join(map(str, HEAD_DIMS))}")
    output, _ = _forward(
        *(x.contiguous() for x in (query, key, value)),
        _whole(pos_query),
        _whole(pos_key),
        _whole(token_table),
        _whole(token_index),
        _whole(image_table),
        _whole(image_place),
        _whole(query_segment),
        _whole(key_segment),
        scale,
        token_far,
        image_side,
        num_image,
        causal,
        query_offset,
        dropout,
        seed,
    )
    return output


def _whole(x: Tensor | None) -> Tensor | None:
    return None if x is None else x.contiguous()


@torch.library.custom_op("bmpeft_kernels::biased_attention", mutates_args=())
def _forward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    pos_query: Tensor | None,
    pos_key: Tensor | None,
    token_table: Tensor | None,
    token_index: Tensor | None,
    image_table: Tensor | None,
    image_place: Tensor | None,
    query_segment: Tensor | None,
    key_segment: Tensor | None,
    scale: float,
    token_far: int,
    image_side: int,
    num_image: int,
    causal: bool,
    query_offset: int,
    dropout: float,
    seed: int,
) -> tuple[Tensor, Tensor]:
    """Output and, in units of log(2), the log-sum-exp [B, H, Lq] float32 of each query."""
    call = _Call.of(
        query, key, pos_query, pos_key, token_table, token_index, image_table, image_place, query_segment, key_segment,
        scale, token_far, image_side, num_image, causal, query_offset, dropout, seed,
    )  # fmt: skip
    output = torch.empty_like(query, dtype=value.dtype)
    lse = query.new_empty(query.shape[:3], dtype=torch.float32)
    tile = call.tiles["forward"]
    grid = (triton.cdiv(query.shape[2], tile.queries), query.shape[0] * query.shape[1])
    attention_kernels.forward[grid](query, key, value, *call.parts, output, lse, *call.numbers, **call.options(tile))
    return output, lse


@_forward.register_fake
def _(query: Tensor, key: Tensor, value: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return torch.empty_like(query, dtype=value.dtype), query.new_empty(query.shape[:3], dtype=torch.float32)


@torch.library.custom_op("bmpeft_kernels::biased_attention_backward", mutates_args=())
def _backward(
    gradient: Tensor,
    output: Tensor,
    lse: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    pos_query: Tensor | None,
    pos_key: Tensor | None,
    token_table: Tensor | None,
    token_index: Tensor | None,
    image_table: Tensor | None,
    image_place: Tensor | None,
    query_segment: Tensor | None,
    key_segment: Tensor | None,
    scale: float,
    token_far: int,
    image_side: int,
    num_image: int,
    causal: bool,
    query_offset: int,
    dropout: float,
    seed: int,
    factors: bool,
    tables: bool,
) -> list[Tensor]:
    """Gradients of query, key, value, both factors and both tables; empty tensors for what is not wanted."""
    call = _Call.of(
        query, key, pos_query, pos_key, token_table, token_index, image_table, image_place, query_segment, key_segment,
        scale, token_far, image_side, num_image, causal, query_offset, dropout, seed,
    )  # fmt: skip
    delta = (gradient.float() * output.float()).sum(-1)
    inputs = (query, key, value, *call.parts, lse, delta, gradient)
    of_query, of_key, of_value = torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)
    factors = factors and pos_query is not None
    pos = [x.new_empty(x.shape if factors else (0,), dtype=torch.float32) for x in (query, key)]
    batch, heads, num_queries, _ = query.shape
    tile = call.tiles["backward_queries"]
    attention_kernels.backward_queries[(triton.cdiv(num_queries, tile.queries), batch * heads)](
        *inputs, of_query, pos[0], *call.numbers, **call.options(tile), WANTED=factors
    )
    tile = call.tiles["backward_keys"]
    attention_kernels.backward_keys[(triton.cdiv(key.shape[2], tile.keys), batch * heads)](
        *inputs, of_key, of_value, pos[1], *call.numbers, **call.options(tile), WANTED=factors
    )
    found = [of_query, of_key, of_value]
    for part, sums in ((pos_query, pos[0]), (pos_key, pos[1])):
        if part is None or not factors:
            found.append(query.new_empty(0))
        else:  # one factor for all rows: their sum, in one order
            found.append((sums if len(part) == batch else sums.sum(0, keepdim=True)).to(part.dtype))
    found.append(_of_token_table(call, inputs, batch) if tables and token_table is not None else query.new_empty(0))
    if not tables or image_table is None:
        found.append(query.new_empty(0))
    elif call.image_table is None:  # no query is a patch
        found.append(torch.zeros_like(image_table))
    else:
        found.append(_of_image_table(call, inputs, batch))
    return found


@_backward.register_fake
def _(gradient: Tensor, output: Tensor, lse: Tensor, query: Tensor, key: Tensor, value: Tensor, *rest: Any) -> Any:
    pos_query, pos_key, token_table, _, image_table = rest[:5]
    factors, tables = rest[-2] and pos_query is not None, rest[-1]
    wanted = ((pos_query, factors), (pos_key, factors), (token_table, tables), (image_table, tables))
    optional = [torch.empty_like(x) if keep and x is not None else query.new_empty(0) for x, keep in wanted]
    return [torch.empty_like(query), torch.empty_like(key), torch.empty_like(value), *optional]


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*output, *inputs[:11])
    ctx.settings = inputs[11:]


def _differentiate(context: Any, gradient: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    output, lse, *tensors = context.saved_tensors
    needs = context.needs_input_grad
    factors, tables = needs[3] or needs[4], needs[5] or needs[7]
    found = _backward(gradient.contiguous(), output, lse, *tensors, *context.settings, factors, tables)
    of_query, of_key, of_value, of_pos_query, of_pos_key, of_tokens, of_image = found
    ordered = (of_query, of_key, of_value, of_pos_query, of_pos_key, of_tokens, None, of_image)
    wanted = tuple(x if needed and x is not None else None for x, needed in zip(ordered, needs, strict=False))
    return wanted + (None,) * (len(needs) - len(wanted))


_forward.register_autograd(_differentiate, setup_context=_save)


@dataclass(frozen=True)
class _Call:
    """One call's arguments as the kernels want them."""

    parts: tuple[Tensor, ...]
    numbers: tuple[float | int, ...]
    flags: dict[str, int | bool]
    tiles: dict[str, Tile]
    token_table: Tensor | None
    token_index: Tensor | None
    image_table: Tensor | None
    image_place: Tensor | None
    side: int

    @classmethod
    def of(
        cls,
        query: Tensor,
        key: Tensor,
        pos_query: Tensor | None,
        pos_key: Tensor | None,
        token_table: Tensor | None,
        token_index: Tensor | None,
        image_table: Tensor | None,
        image_place: Tensor | None,
        query_segment: Tensor | None,
        key_segment: Tensor | None,
        scale: float,
        token_far: int,
        image_side: int,
        num_image: int,
        causal: bool,
        query_offset: int,
        dropout: float,
        seed: int,
    ) -> _Call:
        none = query  # a pointer that no kernel follows
        line = None if token_table is None or token_index is None else token_table.float()[:, token_index].contiguous()
        has_image = image_table is not None and num_image > query_offset
        image = image_table.float().contiguous() if has_image and image_table is not None else None
        integers = [None if x is None else x.to(torch.int32) for x in (image_place, query_segment, key_segment)]
        parts = (pos_query, pos_key, line, image, *integers)
        d0, d1 = HEAD_DIMS[query.shape[-1]]
        return cls(
            parts=tuple(none if x is None else x for x in parts),
            numbers=(
                scale,
                dropout,
                seed,
                query.shape[1],
                query.shape[2],
                key.shape[2],
                num_image,
                query_offset,
                token_far,
                2 * image_side * (image_side - 1),
                0 if image is None else image.shape[1],
            ),
            flags={
                "D0": d0,
                "D1": d1,
                "POSITIONS": pos_query is not None,
                "LINE": line is not None,
                "IMAGE": has_image,
                "CAUSAL": causal,
                "SEGMENTS": query_segment is not None,
                "DROPOUT": dropout > 0.0,
                "POSITION_ROWS": 1 if pos_query is None else len(pos_query),
                "PLACE_ROWS": 1 if image_place is None else len(image_place),
            },
            tiles=_tiles(query.device, query.shape[-1]),
            token_table=token_table,
            token_index=token_index,
            image_table=image_table if has_image else None,
            image_place=integers[0],
            side=image_side,
        )

    def options(self, tile: Tile) -> dict[str, Any]:
        """Compile-time arguments and launch options of a kernel."""
        return {
            **self.flags, "BM": tile.queries, "BN": tile.keys, "num_warps": tile.warps, "num_stages": tile.stages
        }  # fmt: skip


def require_target(device: torch.device, *, interpreted: bool) -> None:
    """Whether kernels run there. Raises RuntimeError."""
    if not interpreted and device.type != "cuda":
        raise RuntimeError(f"Triton compiles for no {device.type}: a GPU is needed, or TRITON_INTERPRET=1 to test")


def _tiles(device: torch.device, head_dim: int) -> dict[str, Tile]:
    interpreted = not isinstance(attention_kernels.forward, triton.JITFunction)
    require_target(device, interpreted=interpreted)
    if interpreted:
        return INTERPRETER
    properties = torch.cuda.get_device_properties(device)
    architecture = getattr(properties, "gcnArchName", "").split(":")[0]
    return tiles_for(architecture or f"sm_{properties.major}{properties.minor}", head_dim)


def _of_token_table(call: _Call, inputs: tuple[Tensor, ...], batch: int) -> Tensor:
    """[H, T] in the dtype of the table."""
    table, index = call.token_table, call.token_index
    assert table is not None
    assert index is not None
    tile = call.tiles["backward_line"]
    of_line = table.new_empty(len(table), len(index), dtype=torch.float32)
    table_kernels.backward_line[(triton.cdiv(len(index), tile.keys - tile.queries), len(table))](
        *inputs, of_line, *call.numbers[:3], batch, *call.numbers[3:], **call.options(tile)
    )
    result = table.new_empty(table.shape, dtype=torch.float32)
    table_kernels.fold_line[(triton.cdiv(table.shape[1], 32), len(table))](
        of_line, index.to(torch.int32), result, len(index), table.shape[1], BM=32, BN=128
    )
    return result.to(table.dtype)


def _of_image_table(call: _Call, inputs: tuple[Tensor, ...], batch: int) -> Tensor:
    """[H, N] in the dtype of the table."""
    table, place = call.image_table, call.image_place
    assert table is not None
    assert place is not None
    rows, num_image = place.shape
    offset = int(call.numbers[7])
    patches = num_image - offset
    tile = call.tiles["backward_image"]
    pairs = table.new_empty(rows, len(table), patches, num_image, dtype=torch.float32)
    grid = (triton.cdiv(patches, tile.queries), triton.cdiv(num_image, tile.keys), rows * len(table))
    table_kernels.backward_image[grid](
        *inputs, pairs, *call.numbers[:3], batch, *call.numbers[3:], **call.options(tile)
    )
    places = 2 * call.side * (call.side - 1) + 1
    inverse = place.new_full((rows, places), -1)
    inverse.scatter_(1, place.long(), torch.arange(num_image, dtype=place.dtype, device=place.device).expand(rows, -1))
    result = table.new_empty(table.shape, dtype=torch.float32)
    table_kernels.fold_image[(triton.cdiv(table.shape[1], 256), len(table))](
        pairs, place, inverse, result, rows, len(table), offset, num_image, places - 1, places, table.shape[1], BN=256
    )
    return result.to(table.dtype)
