"""The position bias: buckets and blocks against definitions written out one pair at a time."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bmpeft.attention import Layout, PositionBias
from bmpeft.attention.bias import image_bucket, image_position_ids, token_bucket


def bucket_of(distance: int, size: int = 256, positions: int = 1024) -> int:
    """The published definition for one distance."""
    middle = size // 2
    if abs(distance) <= middle:
        return distance + size - 1
    logarithmic = math.ceil(math.log(abs(distance) / middle) / math.log((positions - 1) / middle) * (middle - 1))
    return int(math.copysign(logarithmic + middle, distance)) + size - 1


def test_token_buckets_follow_the_definition_at_every_distance() -> None:
    buckets = token_bucket(1024)
    assert buckets.tolist() == [bucket_of(d) for d in range(-1023, 1024)]
    assert buckets.min() == 0 and buckets.max() == 510


def test_token_buckets_are_constant_beyond_the_last_position() -> None:
    buckets = token_bucket(3000)
    middle = 2999
    assert (buckets[middle + 1023 :] == 510).all() and (buckets[: middle - 1022] == 0).all()
    assert torch.equal(buckets[middle - 1023 : middle + 1024], token_bucket(1024))


@settings(deadline=None)
@given(rows=st.integers(1, 6), columns=st.integers(1, 6))
def test_image_buckets_depend_on_the_difference_of_rows_and_columns_alone(rows: int, columns: int) -> None:
    side = 6
    ids = image_position_ids(rows, columns, side)[None]
    index = image_bucket(ids, ids, side)[0]
    for i in range(rows * columns):
        for j in range(rows * columns):
            down, right = i // columns - j // columns, i % columns - j % columns
            assert index[i, j] == (down + side - 1) * (2 * side - 1) + right + side - 1


def test_absent_patches_have_indices_of_their_own() -> None:
    ids = torch.tensor([[0, 1, 5]])
    index = image_bucket(ids, ids, 42)[0]
    assert index[0].tolist() == [6891, 6889, 6889] and index[1:, 0].tolist() == [6890, 6890]


@st.composite
def biases(draw: st.DrawFn) -> tuple[PositionBias, int, int]:
    """A bias over [image ; text] with some or all of its parts, its total length and number of patches."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 1000)))
    rows, columns, text, heads = draw(st.integers(0, 3)), draw(st.integers(1, 3)), draw(st.integers(1, 12)), 2
    ids = image_position_ids(rows, columns, 4)[None] if rows else None
    length = rows * columns + text

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    factors = draw(st.booleans())
    bias = PositionBias(
        query_factor=random(1, heads, length, 4) if factors else None,
        key_factor=random(1, heads, length, 4) if factors else None,
        token_table=random(heads, 15),
        image_table=random(heads, 52) if rows else None,
        layout=Layout(image_ids=ids, token_bucket_size=8, image_bucket_size=4, max_positions=16),
    )
    return bias, length, rows * columns


@settings(deadline=None)
@given(case=biases())
def test_materialised_bias_equals_its_parts_pair_by_pair(case: tuple[PositionBias, int, int]) -> None:
    bias, length, patches = case
    matrix = bias.materialize(length, length)
    assert matrix is not None and matrix.shape == (1, 2, length, length)
    assert bias.token_table is not None
    for i in range(length):
        for j in range(length):
            expected = torch.zeros(2)
            if bias.query_factor is not None and bias.key_factor is not None:
                expected = (bias.query_factor[0, :, i] * bias.key_factor[0, :, j]).sum(-1)
            if i >= patches and j >= patches:
                expected = expected + bias.token_table[:, min(max(bucket_of(i - j, 8, 16), 0), 14)]
            elif i < patches and j < patches and bias.image_table is not None and bias.layout.image_ids is not None:
                ids = bias.layout.image_ids
                expected = expected + bias.image_table[:, image_bucket(ids, ids, 4)[0, i, j]]
            torch.testing.assert_close(matrix[0, :, i, j], expected)


@settings(deadline=None)
@given(case=biases(), offset=st.integers(0, 11))
def test_new_rows_of_cached_decoding_are_the_last_rows_of_the_whole_bias(
    case: tuple[PositionBias, int, int], offset: int
) -> None:
    bias, length, patches = case
    offset = patches + min(offset, length - patches - 1)
    whole = bias.materialize(length, length)
    query_factor = None if bias.query_factor is None else bias.query_factor[:, :, offset:]
    layout = Layout(bias.layout.image_ids, 8, 4, 16, query_offset=offset)
    part = PositionBias(query_factor, bias.key_factor, bias.token_table, bias.image_table, layout)
    rows = part.materialize(length - offset, length)
    assert whole is not None and rows is not None
    torch.testing.assert_close(rows, whole[:, :, offset:])


@settings(deadline=None)
@given(positions=st.lists(st.integers(0, 20), min_size=1, max_size=8))
def test_tokens_of_a_tree_have_the_distances_of_their_depths(positions: list[int]) -> None:
    table = torch.randn(2, 15, generator=torch.Generator().manual_seed(0))
    layout = Layout(token_bucket_size=8, max_positions=21, text_positions=torch.tensor([positions, positions[::-1]]))
    matrix = PositionBias(token_table=table, layout=layout).materialize(len(positions), len(positions))
    assert matrix is not None and matrix.shape == (2, 2, len(positions), len(positions))
    for row, order in enumerate((positions, positions[::-1])):
        for i, query in enumerate(order):
            for j, key in enumerate(order):
                bucket = min(max(bucket_of(query - key, 8, 21), 0), 14)
                torch.testing.assert_close(matrix[row, :, i, j], table[:, bucket])


def test_an_empty_bias_is_none() -> None:
    assert PositionBias().materialize(3, 3) is None


@pytest.mark.parametrize("length", [1, 2, 129, 400])
def test_gradient_of_the_token_table_counts_each_distance(length: int) -> None:
    table = torch.zeros(1, 511, requires_grad=True)
    matrix = PositionBias(token_table=table).materialize(length, length)
    assert matrix is not None
    matrix.sum().backward()
    assert table.grad is not None
    assert table.grad.sum() == length * length and table.grad[0, 255] == length
