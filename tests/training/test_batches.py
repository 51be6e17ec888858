"""Length-grouped batches: every row once, the same windows whatever the accumulation, seeded."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from bmpeft.training.batches import LengthGroupedBatches, length_grouped_batches

LENGTHS = st.lists(st.integers(1, 50), min_size=1, max_size=200)
SIZE = st.integers(1, 9)
ACCUMULATION = st.integers(1, 5)


@given(LENGTHS, SIZE, ACCUMULATION, st.integers(0, 5), st.integers(0, 3))
def test_an_epoch_is_every_row_once(lengths: list[int], size: int, accumulation: int, seed: int, epoch: int) -> None:
    batches = length_grouped_batches(lengths, batch_size=size, accumulation=accumulation, seed=seed, epoch=epoch)
    assert sorted(row for batch in batches for row in batch) == list(range(len(lengths)))
    assert all(1 <= len(batch) <= size for batch in batches)
    sampler = LengthGroupedBatches(lengths, batch_size=size, accumulation=accumulation, seed=seed)
    sampler.set_epoch(epoch)
    assert list(sampler) == batches
    assert len(sampler) == len(batches)


@given(LENGTHS, SIZE, ACCUMULATION, st.integers(0, 5))
def test_accumulated_batches_make_the_windows_of_the_larger_batch(
    lengths: list[int], size: int, accumulation: int, seed: int
) -> None:
    small = length_grouped_batches(lengths, batch_size=size, accumulation=accumulation, seed=seed, epoch=0)
    large = length_grouped_batches(lengths, batch_size=size * accumulation, accumulation=1, seed=seed, epoch=0)
    windows = [small[i : i + accumulation] for i in range(0, len(small), accumulation)]
    assert [[row for batch in window for row in batch] for window in windows] == large


def test_rows_of_a_batch_are_of_similar_length() -> None:
    lengths = list(range(1, 65)) * 4
    batches = length_grouped_batches(lengths, batch_size=8, accumulation=1, seed=0, epoch=0)
    spreads = [max(lengths[row] for row in batch) - min(lengths[row] for row in batch) for batch in batches]
    assert sum(spreads) / len(spreads) < 4, "random batches of eight would spread over about fifty"


def test_epochs_and_seeds_differ_and_repeat() -> None:
    lengths = [row % 13 for row in range(100)]

    def batches(seed: int, epoch: int) -> list[list[int]]:
        return length_grouped_batches(lengths, batch_size=8, accumulation=2, seed=seed, epoch=epoch)

    assert batches(0, 0) == batches(0, 0)
    assert batches(0, 0) != batches(0, 1)
    assert batches(0, 0) != batches(1, 0)
    # 1 and 23 against 12 and 3: the two numbers do not run into each other.
    assert batches(1, 23) != batches(12, 3)
