"""Two adapters on the same rows: the difference is paired, by rows or by groups, and never of other rows."""

from __future__ import annotations

import numpy as np
import pytest

from bmpeft.errors import UsageError
from bmpeft.evaluation.compare import compare_values
from bmpeft.evaluation.kept import RowValues

METRIC = "accuracy/choices-sum@1"


def values(
    right: list[float | None],
    *,
    digest: str = "d",
    metric: str = METRIC,
    groups: list[str] | None = None,
    start: int = 0,
) -> dict[str, RowValues]:
    rows = tuple(f"r{number}" for number in range(start, start + len(right)))
    return {"test": RowValues(digest, rows, tuple(groups or rows), {metric: tuple(right)})}


def test_a_small_difference_that_no_row_contradicts_is_sure() -> None:
    one, other = [1.0] * 38 + [0.0] * 22, [1.0] * 30 + [0.0] * 30
    (found,) = compare_values(values(one), values(other))
    assert (found.first, found.second, found.n) == (pytest.approx(38 / 60), 0.5, 60)
    assert found.difference == pytest.approx(8 / 60)
    assert 0.0 < found.low < found.difference < found.high
    assert found.verdict == "first is better"
    (turned,) = compare_values(values(other), values(one))
    assert turned.verdict == "second is better"
    assert turned.difference == pytest.approx(-found.difference)


def test_the_same_means_of_unlike_rows_are_no_sure_difference() -> None:
    (found,) = compare_values(values([1.0, 0.0] * 30), values([0.0, 1.0] * 30))
    assert found.verdict == "no sure difference"
    assert found.low < 0.0 < found.high


def test_rows_of_one_group_count_as_one() -> None:
    generator = np.random.default_rng(0)
    one = np.repeat((generator.random(20) < 0.6).astype(float), 5).tolist()
    groups = [str(number) for number in range(20) for _ in range(5)]
    other = [0.4] * 100
    (by_rows,) = compare_values(values(one), values(other))
    (by_groups,) = compare_values(values(one, groups=groups), values(other, groups=groups))
    assert (by_rows.groups, by_groups.groups) == (None, 20)
    assert by_groups.high - by_groups.low > 1.8 * (by_rows.high - by_rows.low)


def test_only_rows_that_both_have_and_that_are_defined_are_compared() -> None:
    (found,) = compare_values(values([1.0, None, 1.0, 1.0]), values([0.0, 0.0, None, 1.0, 1.0], start=1))
    assert (found.n, found.first, found.second) == (1, 1.0, 0.0)


@pytest.mark.parametrize(
    ("second", "problem"),
    [
        (values([1.0], digest="e"), "the two were measured on other rows; measure both on the same data"),
        ({"other": values([1.0])["test"]}, r"the two were measured on other splits \(test and other\)"),
        (values([1.0], metric="rouge-l/f-stem@1"), "the two have no metric and row in common"),
        (values([1.0], start=5), "the two have no metric and row in common"),
        (values([None]), "the two have no metric and row in common"),
    ],
    ids=["digest", "split", "metric", "rows", "undefined"],
)
def test_what_cannot_be_compared_is_refused(second: dict[str, RowValues], problem: str) -> None:
    with pytest.raises(UsageError, match=problem):
        compare_values(values([1.0]), second)
