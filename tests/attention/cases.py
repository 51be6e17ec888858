"""Problems for attention backends, and their solution in float64 with all gradients."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from bmpeft.attention import Layout, PositionBias
from bmpeft.attention.bias import image_position_ids
from bmpeft.attention.masks import visible_keys

SIDE, BUCKETS, POSITIONS = 4, 8, 16
HEADS, HEAD_DIM = 2, 8


@dataclass(frozen=True)
class Case:
    """One call of an attention backend in float64."""

    query: Tensor
    key: Tensor
    value: Tensor
    bias: PositionBias
    masks: dict[str, Any]

    def tensors(self) -> dict[str, Tensor]:
        """Everything that has a gradient."""
        named = {"query": self.query, "key": self.key, "value": self.value}
        names = ("query_factor", "key_factor", "token_table", "image_table")
        return named | {name: part for name in names if (part := getattr(self.bias, name)) is not None}

    def to(self, dtype: torch.dtype) -> Case:
        """The same in another number type; new leaves."""
        moved = {name: x.detach().to(dtype).clone() for name, x in self.tensors().items()}
        query, key, value = (moved.pop(name) for name in ("query", "key", "value"))
        return Case(query, key, value, replace(self.bias, **moved), self.masks)


def make_case(
    seed: int,
    *,
    batch: int = 2,
    text: int = 20,
    grid: tuple[int, int] | None = None,
    cross_keys: int | None = None,
    factors: bool = True,
    tables: bool = True,
    causal: bool = False,
    padding: list[int] | None = None,
    hidden_row: bool = False,
    segments: bool = False,
    sampled: bool = False,
    heads: int = HEADS,
    head_dim: int = HEAD_DIM,
) -> Case:
    """A random case: self-attention over [image ; text], or cross-attention to `cross_keys` keys without tables.

    padding: real keys of each row. hidden_row: the last row sees no key at all. segments: pieces of seven
    positions see only themselves. sampled: each row has other patches.
    """
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    image_ids = None if grid is None else image_position_ids(*grid, SIDE)[None]
    if image_ids is not None and sampled:
        image_ids = torch.stack([image_ids[0].roll(row) for row in range(batch)])
    queries = text + (0 if image_ids is None else image_ids.shape[1])
    keys = queries if cross_keys is None else cross_keys
    factor_rows = batch if sampled else 1
    bias = PositionBias(
        query_factor=random(factor_rows, heads, queries, head_dim) / head_dim**0.5 if factors else None,
        key_factor=random(factor_rows, heads, keys, head_dim) if factors else None,
        token_table=random(heads, 2 * BUCKETS - 1) if tables and cross_keys is None else None,
        image_table=random(heads, (2 * SIDE - 1) ** 2 + 3) if tables and image_ids is not None else None,
        layout=Layout(image_ids=image_ids, token_bucket_size=BUCKETS, image_bucket_size=SIDE, max_positions=POSITIONS),
    )
    masks: dict[str, Any] = {"causal": causal, "key_padding_mask": None, "segment_ids": None, "visible_until": None}
    if padding is not None or hidden_row:
        lengths = torch.tensor((padding or [keys] * batch)[:batch])
        if hidden_row:
            lengths[-1] = 0
        masks["key_padding_mask"] = torch.arange(keys)[None] < lengths[:, None]
    if segments:
        ids = torch.arange(max(queries, keys)).div(7, rounding_mode="floor").expand(batch, -1)
        masks["segment_ids"] = (ids[:, :queries], ids[:, :keys])
    return Case(
        random(batch, heads, queries, head_dim),
        random(batch, heads, keys, head_dim),
        random(batch, heads, keys, head_dim),
        bias,
        masks,
    )


def specification(
    query: Tensor, key: Tensor, value: Tensor, *, bias: PositionBias, scale: float, **masks: Any
) -> Tensor:
    """The definition in the dtype of its arguments throughout."""
    scores = scale * query @ key.transpose(-1, -2)
    matrix = bias.materialize(query.shape[2], key.shape[2])
    scores = scores if matrix is None else scores + matrix
    visible = visible_keys(query.shape[2], key.shape[2], device=query.device, **masks)
    if visible is None:
        return scores.softmax(-1) @ value
    lowest = torch.finfo(scores.dtype).min
    return scores.masked_fill(~visible, lowest).softmax(-1).masked_fill(~visible, 0.0) @ value


def solve(case: Case, backend: Callable[..., Tensor], **options: Any) -> dict[str, Tensor]:
    """The output and the gradient of every part, for one fixed gradient of the output."""
    leaves = case.tensors()
    for leaf in leaves.values():
        leaf.requires_grad_()
    output = backend(
        case.query, case.key, case.value, bias=case.bias, scale=case.query.shape[-1] ** -0.5, **case.masks, **options
    )
    weights = torch.randn(output.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    (output * weights.to(output.dtype)).sum().backward()
    none = {name: torch.zeros_like(leaf) for name, leaf in leaves.items()}  # a table that no position uses
    gradients = {f"gradient of {k}": none[k] if leaf.grad is None else leaf.grad for k, leaf in leaves.items()}
    return {"output": output.detach(), **gradients}


def check_errors(
    found: dict[str, Tensor], reference: dict[str, Tensor], exact: dict[str, Tensor], dtype: torch.dtype
) -> None:
    """Each error at most twice (output) or three times (gradients) that of the reference in the same dtype."""
    assert found.keys() == reference.keys() == exact.keys()
    largest = torch.stack([value.abs().max() for value in exact.values() if value.numel()]).max()
    for name, value in exact.items():
        error = (found[name].double() - value).abs().max()
        allowed = (reference[name].double() - value).abs().max() * (2 if name == "output" else 3)
        # Where the reference is right by luck, or terms cancel, one rounding of the largest term is no error.
        # A gradient that is zero because all terms cancel (one key) keeps the rounding of sums over the head.
        floor = torch.finfo(dtype).eps * largest * (1 if value.any() else found["output"].shape[-1])
        assert error <= torch.maximum(allowed, floor), (name, float(error), float(allowed), float(floor))


def all_cases() -> list[tuple[str, dict[str, Any]]]:
    """Named arguments of `make_case`: every layout with every mask."""
    layouts: dict[str, dict[str, Any]] = {
        "text": {"text": 37},
        "image and text": {"text": 19, "grid": (3, 4)},
        "sampled patches": {"text": 9, "grid": (2, 4), "sampled": True},
        "cross": {"text": 11, "cross_keys": 40},
        "no factors": {"text": 21, "factors": False},
        "no tables": {"text": 21, "tables": False},
    }
    masks: dict[str, dict[str, Any]] = {
        "all": {},
        "causal": {"causal": True},
        "padding": {"padding": [40, 13]},
        "hidden row": {"hidden_row": True},
        "packed": {"segments": True},
        "packed and causal": {"segments": True, "causal": True},
    }
    return [(f"{a}, {b}", {**layouts[a], **masks[b]}) for a, b in itertools.product(layouts, masks)]
