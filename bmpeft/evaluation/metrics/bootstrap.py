"""Bootstrap intervals (Efron & Tibshirani 1993, chapter 13), by rows or by groups of rows.

A resample is a weight for each row: how often the row was drawn. Every metric is a function of such weights,
so that its value (all weights 1) and its interval come from the same code:

    statistic(weights [s, n]) -> [s]

Where rows share a group (a patient, an image, a question asked twice), groups are drawn instead of rows
(cluster bootstrap, Davison & Hinkley 1997, section 3.8): rows of one group are no independent evidence, and
intervals over rows would be too narrow. Intervals have no width where all rows have the same value.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from bmpeft.records import Record

Values = npt.NDArray[np.float64]
Labels = npt.NDArray[np.int64]
Statistic = Callable[[Values], Values]
CONFIDENCE = 0.95
# Weights held at once; bounds the memory to some tens of megabytes whatever the number of rows.
_CHUNK = 2_000_000


@dataclass(frozen=True, slots=True)
class MetricDefinition:
    """What a number means."""

    id: str
    name: str
    description: str


class Interval(NamedTuple):
    """A value with its 95 % interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Figure:
    """A measured metric.

    Attributes:
        definition: what it means.
        value: over the `n` rows that it is defined for.
        low: of the 95 % interval.
        high: of the 95 % interval.
        n: number of these rows.
        rows: the value of each row [N], NaN where the metric is not defined; None for a figure that exists
            only for a set of rows.
    """

    definition: MetricDefinition
    value: float
    low: float
    high: float
    n: int
    rows: Values | None


@dataclass(frozen=True)
class Resampling:
    """How rows are drawn again and again.

    Attributes:
        units: which unit each row belongs to, numbered from 0 [n].
        samples: how many resamples.
        seed: of the draws; equal seeds draw the same rows for every metric, so that differences are paired.
    """

    units: Labels
    samples: int
    seed: int

    @classmethod
    def of_rows(cls, n: int, samples: int, seed: int) -> Resampling:
        """Every row is a unit."""
        return cls(np.arange(n, dtype=np.int64), samples, seed)

    @classmethod
    def of_records(cls, records: Sequence[Record], samples: int, seed: int) -> Resampling:
        """Every group is a unit; the same as `of_rows` where no two rows share one."""
        return cls.of_groups([record.group for record in records], samples, seed)

    @classmethod
    def of_groups(cls, groups: Sequence[str], samples: int, seed: int) -> Resampling:
        """Groups are numbered in the order of their first rows."""
        numbers: dict[str, int] = {}
        units = [numbers.setdefault(group, len(numbers)) for group in groups]
        return cls(np.array(units, dtype=np.int64), samples, seed)

    @property
    def groups(self) -> int | None:
        """How many groups are drawn; None where it is rows that are drawn."""
        count = int(self.units.max()) + 1
        return None if count == len(self.units) else count

    def weights(self) -> Iterator[Values]:
        """How often each row was drawn, [s, n] at a time."""
        count = int(self.units.max()) + 1
        generator = np.random.default_rng(self.seed)
        at_once = max(1, _CHUNK // len(self.units))
        for start in range(0, self.samples, at_once):
            size = min(at_once, self.samples - start)
            drawn = generator.integers(0, count, size=(size, count))
            drawn += np.arange(size)[:, None] * count
            times = np.bincount(drawn.ravel(), minlength=size * count).reshape(size, count)
            yield times[:, self.units].astype(np.float64)

    def interval(self, statistic: Statistic) -> Interval:
        """The statistic of all rows and its 95 % percentile interval.

        Resamples that the statistic is not defined for (NaN) are left out; if there are no others, the
        interval is the value alone.
        """
        value = float(statistic(np.ones((1, len(self.units))))[0])
        figures = np.concatenate([statistic(weights) for weights in self.weights()])
        figures = figures[~np.isnan(figures)]
        if not len(figures):
            return Interval(value, value, value)
        tail = (1.0 - CONFIDENCE) / 2.0
        low, high = np.quantile(figures, [tail, 1.0 - tail])
        return Interval(value, float(low), float(high))

    def mean(self, rows: Values | Sequence[float]) -> Interval:
        """The mean of [n] values, NaN left out. For a paired comparison give the differences of two systems."""
        return self.interval(mean_of(np.asarray(rows, dtype=np.float64)))


def mean_of(rows: Values) -> Statistic:
    """The weighted mean of the values that are not NaN."""
    defined = ~np.isnan(rows)
    plain = np.where(defined, rows, 0.0)

    def mean(weights: Values) -> Values:
        return divided(weights @ plain, weights @ defined.astype(np.float64))

    return mean


def row_figure(definition: MetricDefinition, rows: Values, resampling: Resampling) -> Figure:
    """A metric whose value is the mean of its rows [n]."""
    return Figure(definition, *resampling.mean(rows), n=int((~np.isnan(rows)).sum()), rows=rows)


def set_figure(
    definition: MetricDefinition, statistic: Statistic, resampling: Resampling, *, rows: Values | None = None
) -> Figure:
    """A metric of a whole set of rows; `rows` where single rows have a value, too, but it is not their mean."""
    return Figure(definition, *resampling.interval(statistic), n=len(resampling.units), rows=rows)


def divided(numerator: Values, denominator: Values) -> Values:
    """The quotient, NaN where the denominator is 0."""
    result = np.full(np.broadcast_shapes(numerator.shape, denominator.shape), np.nan)
    return np.divide(numerator, denominator, out=result, where=denominator > 0)
