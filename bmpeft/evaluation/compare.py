"""Two adapters on the same rows: the paired bootstrap of their difference.

A card has means; whether one adapter is better than another is a question to the rows. `bmpeft eval` keeps each
row's values in the run's directory (`bmpeft.evaluation.kept`), and here they are put side by side.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np

from bmpeft.adapters.artifact import load_artifact
from bmpeft.errors import UsageError
from bmpeft.evaluation.kept import ROWS_SUFFIX, RowValues, kept_directory, read_rows
from bmpeft.evaluation.metrics.bootstrap import Resampling, Values
from bmpeft.recipe import OutputSection

SAMPLES = 10_000


@dataclass(frozen=True)
class Comparison:
    """One metric of two adapters on the rows of a split that both were measured on.

    Attributes:
        split: name of the split.
        metric: definition id.
        n: rows on which the metric is defined.
        groups: groups of rows that the bootstrap draws; None: it draws rows.
        first: mean of the first adapter.
        second: mean of the second adapter.
        difference: first minus second, the mean over rows.
        low: of the difference's 95 % interval.
        high: of the difference's 95 % interval.
        verdict: which one is better, if the interval excludes 0.
    """

    split: str
    metric: str
    n: int
    groups: int | None
    first: float
    second: float
    difference: float
    low: float
    high: float
    verdict: str


def compare(first: Path, second: Path, *, seed: int = 0) -> list[Comparison]:
    """Compare two adapters on every split that both were measured on, by every metric that rows have.

    Args:
        first: an adapter's directory.
        second: another's.
        seed: of the bootstrap.

    Raises:
        UsageError: no values of rows are kept for one of them, or none that can be compared; says what to run.
        ArtifactError: one of them is no sound adapter.
        BmpeftError: kept values are damaged, or of another adapter.
    """
    if first.resolve() == second.resolve():
        raise UsageError(f"--compare: {first} and {second} are the same adapter")
    return compare_values(_values(first), _values(second), seed=seed)


def compare_values(
    first: Mapping[str, RowValues], second: Mapping[str, RowValues], *, seed: int = 0
) -> list[Comparison]:
    """Compare the row values of two adapters, each by split.

    Raises:
        UsageError: there is nothing that can be compared.
    """
    common = [split for split in first if split in second]
    same = [split for split in common if first[split].split_digest == second[split].split_digest]
    if not same:
        why = "other rows" if common else f"other splits ({', '.join(first)} and {', '.join(second)})"
        raise UsageError(f"--compare: the two were measured on {why}; measure both on the same data")
    compared = [result for split in same for result in _split(split, first[split], second[split], seed)]
    if not compared:
        raise UsageError("--compare: the two have no metric and row in common")
    return compared


def as_rows(compared: list[Comparison]) -> list[dict[str, Any]]:
    """One table row for each comparison."""
    return [asdict(comparison) for comparison in compared]


def _values(directory: Path) -> dict[str, RowValues]:
    """The kept values of an adapter by split; its recipe says where, below the current directory."""
    artifact = load_artifact(directory)
    kept = kept_directory(OutputSection.model_validate(artifact.manifest.recipe["output"]))
    files = sorted(kept.glob(f"*{ROWS_SUFFIX}"))
    if not files:
        raise UsageError(
            f"--compare: {kept} keeps no values of single rows for {directory}, and cards have none: "
            f"run `bmpeft eval {directory}` here first"
        )
    return {
        unquote(file.name.removesuffix(ROWS_SUFFIX)): read_rows(file, adapter_digest=artifact.digest) for file in files
    }


def _split(split: str, first: RowValues, second: RowValues, seed: int) -> Iterator[Comparison]:
    """Every metric of both, on the rows of both; these may be fewer than each has where the limits differ."""
    places = {row: index for index, row in enumerate(second.rows)}
    shared = [(index, places[row]) for index, row in enumerate(first.rows) if row in places]
    for metric in first.metrics:
        if metric not in second.metrics or not shared:
            continue
        one = _numbers(first.metrics, metric)[[index for index, _ in shared]]
        other = _numbers(second.metrics, metric)[[index for _, index in shared]]
        defined = ~np.isnan(one - other)
        if not defined.any():
            continue
        groups = [first.groups[index] for (index, _), keep in zip(shared, defined, strict=True) if keep]
        resampling = Resampling.of_groups(groups, SAMPLES, seed)
        value, low, high = resampling.mean((one - other)[defined])
        yield Comparison(
            split=split,
            metric=metric,
            n=len(groups),
            groups=resampling.groups,
            first=float(one[defined].mean()),
            second=float(other[defined].mean()),
            difference=value,
            low=low,
            high=high,
            verdict="first is better" if low > 0.0 else "second is better" if high < 0.0 else "no sure difference",
        )


def _numbers(metrics: Mapping[str, tuple[float | None, ...]], metric: str) -> Values:
    return np.array(metrics[metric], dtype=np.float64)  # None becomes NaN
