"""One attention function; the backend is chosen by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

from torch import Tensor

from bmpeft.attention.bias import PositionBias
from bmpeft.attention.choice import choose_backend
from bmpeft.attention.chunked import chunked_attention
from bmpeft.attention.eager import eager_attention
from bmpeft.attention.flash import flash_attention
from bmpeft.attention.flex import flex_attention
from bmpeft.attention.sdpa import sdpa_attention
from bmpeft.attention.triton import triton_attention

BACKENDS: Mapping[str, Callable[..., Tensor]] = MappingProxyType(
    {
        "eager": eager_attention,
        "sdpa": sdpa_attention,
        "chunked": chunked_attention,
        "flash": flash_attention,
        "flex": flex_attention,
        "triton": triton_attention,
    }
)


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    bias: PositionBias,
    key_padding_mask: Tensor | None = None,
    causal: bool = False,
    segment_ids: tuple[Tensor, Tensor] | None = None,
    visible_until: Tensor | None = None,
    dropout: float = 0.0,
    scale: float,
    head_scale: Tensor | None = None,
    backend: str = "auto",
) -> Tensor:
    """head_scale * softmax(scale * q k^T + bias, over visible keys) v.

    Args:
        query: [B, H, Lq, D], not scaled.
        key: [B, H, Lk, D].
        value: [B, H, Lk, D].
        bias: absolute and relative positions, added to the scores without a further scale.
        key_padding_mask: [B, Lk] boolean, true for real keys.
        causal: a query sees keys up to its own index (`bias.layout.query_offset` counted).
        segment_ids: ([B, Lq], [B, Lk]) integers of packed rows; a query sees its own segment.
        visible_until: [1 or B, Lk] int64; only queries of a smaller index see the key. With `causal` this is a
            token tree in depth-first order: a token is seen by its descendants, which end at that index.
        dropout: probability, applied to the attention probabilities.
        scale: of the content scores; ``(2 * D) ** -0.5`` in BiomedGPT.
        head_scale: [H] or None, multiplies each head's output (NormFormer).
        backend: "auto", "eager", "sdpa", "chunked", "flash" (where there are no tables, else what auto takes)
            "flex" or "triton" (a GPU, and no `visible_until`). All compute the same function; `eager` defines it.

    Returns:
        [B, H, Lq, D] in the dtype of `value`; zeros for a query that sees no key.

    Raises:
        ValueError: there is no such backend.
    """
    choice = choose_backend(backend, query.device.type, query.shape[2], key.shape[2], tables=bias.has_tables)
    output = BACKENDS[choice.backend](
        query,
        key,
        value,
        bias=bias,
        key_padding_mask=key_padding_mask,
        causal=causal,
        segment_ids=segment_ids,
        visible_until=visible_until,
        dropout=dropout,
        scale=scale,
    )
    return output if head_scale is None else output * head_scale.to(output.dtype)[None, :, None, None]
