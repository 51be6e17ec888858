"""Every backend computes the function that `eager` defines."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bmpeft.attention import BACKENDS, Layout, PositionBias, attention, check_backend

CPU_BACKENDS = sorted(set(BACKENDS) - {"flex", "triton"})


def inputs(seed: int, batch: int, queries: int, keys: int, offset: int, dtype: torch.dtype) -> dict[str, Any]:
    """Random arguments; head dimension 8, two heads."""
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    bias = PositionBias(
        query_factor=random(1, 2, queries, 4),
        key_factor=random(1, 2, keys, 4),
        token_table=random(2, 15),
        layout=Layout(token_bucket_size=8, max_positions=16, query_offset=offset),
    )
    return {
        "query": random(batch, 2, queries, 8),
        "key": random(batch, 2, keys, 8),
        "value": random(batch, 2, keys, 8),
        "bias": bias,
        "scale": 0.25,
        "head_scale": random(2),
    }


def written_out(
    arguments: dict[str, Any], padding: torch.Tensor | None, causal: bool, segments: Any, until: Any = None
) -> torch.Tensor:
    """The definition in float64 with loops over rows, heads and queries."""
    q, k, v = (arguments[name].double() for name in ("query", "key", "value"))
    matrix = arguments["bias"].materialize(q.shape[2], k.shape[2]).double()
    output = torch.zeros_like(q)
    for b in range(q.shape[0]):
        for h in range(q.shape[1]):
            for i in range(q.shape[2]):
                seen = [
                    j
                    for j in range(k.shape[2])
                    if (padding is None or padding[b, j])
                    and (not causal or j <= i + arguments["bias"].layout.query_offset)
                    and (segments is None or segments[0][b, i] == segments[1][b, j])
                    and (until is None or i + arguments["bias"].layout.query_offset < until[b % len(until), j])
                ]
                if seen:
                    scores = arguments["scale"] * (k[b, h, seen] @ q[b, h, i]) + matrix[0, h, i, seen]
                    output[b, h, i] = arguments["head_scale"][h].double() * (scores.softmax(0) @ v[b, h, seen])
    return output


@settings(max_examples=60, deadline=None)
@given(data=st.data(), backend=st.sampled_from(CPU_BACKENDS))
def test_backends_equal_the_written_out_definition(data: st.DataObject, backend: str) -> None:
    seed, batch = data.draw(st.integers(0, 99)), data.draw(st.integers(1, 3))
    queries, offset = data.draw(st.integers(1, 7)), data.draw(st.integers(0, 3))
    keys = queries + offset
    causal = data.draw(st.booleans())
    rows = st.lists(st.booleans(), min_size=keys, max_size=keys)
    padding = data.draw(st.none() | st.lists(rows, min_size=batch, max_size=batch).map(torch.tensor))
    packed = data.draw(st.booleans())
    ids = torch.arange(keys).div(3, rounding_mode="floor").expand(batch, keys)
    segments = (ids[:, offset:], ids) if packed else None
    ends = st.lists(st.integers(0, keys), min_size=keys, max_size=keys)
    until = data.draw(st.none() | st.lists(ends, min_size=1, max_size=1).map(torch.tensor))
    arguments = inputs(seed, batch, queries, keys, offset, torch.float32)
    output = attention(
        **arguments,
        key_padding_mask=padding,
        causal=causal,
        segment_ids=segments,
        visible_until=until,
        backend=backend,
    )
    expected = written_out(arguments, padding, causal, segments, until)
    torch.testing.assert_close(output.double(), expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("backend", sorted(set(CPU_BACKENDS) - {"eager"}))
def test_low_precision_error_is_within_twice_that_of_eager(backend: str) -> None:
    exact = written_out(inputs(0, 2, 40, 40, 0, torch.float64), None, True, None)
    arguments = inputs(0, 2, 40, 40, 0, torch.bfloat16)
    errors = {
        name: (attention(**arguments, causal=True, backend=name).double() - exact).abs().max()
        for name in ("eager", backend)
    }
    assert errors[backend] <= 2 * errors["eager"]


@pytest.mark.parametrize("backend", CPU_BACKENDS)
def test_gradients_equal_those_of_the_specification(backend: str) -> None:
    def gradients(name: str) -> list[torch.Tensor]:
        arguments = inputs(3, 2, 9, 9, 0, torch.float64)
        bias = arguments["bias"]
        leaves = [arguments["query"], arguments["key"], arguments["value"], arguments["head_scale"]]
        leaves += [bias.query_factor, bias.key_factor, bias.token_table]
        for leaf in leaves:
            leaf.requires_grad_()
        padding = torch.tensor([[True] * 9, [True] * 5 + [False] * 4])
        attention(**arguments, key_padding_mask=padding, causal=True, backend=name).square().sum().backward()
        return [leaf.grad for leaf in leaves if leaf.grad is not None]

    expected = gradients("eager")
    assert len(expected) == 7
    for actual, reference in zip(gradients(backend), expected, strict=True):
        torch.testing.assert_close(actual, reference, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("backend", CPU_BACKENDS)
def test_dropout_keeps_the_mean_and_is_off_by_default(backend: str) -> None:
    arguments = inputs(0, 1, 4, 64, 0, torch.float32)
    torch.manual_seed(0)
    samples = torch.stack([attention(**arguments, dropout=0.5, backend=backend) for _ in range(800)])
    exact = attention(**arguments, backend=backend)
    assert torch.equal(exact, attention(**arguments, backend=backend))
    spread = samples.std(0) / samples.shape[0] ** 0.5
    assert ((samples.mean(0) - exact).abs() <= 5 * spread).all()


def test_unknown_backend_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="'flahs' is not one of auto, eager, sdpa, chunked, flash, flex, triton"):
        check_backend("flahs")
