"""Intervals: their coverage, by rows and by groups, and that every metric is resampled as its library would."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import f1_score

from bmpeft.evaluation.metrics import Resampling, labels
from bmpeft.evaluation.metrics.bootstrap import MetricDefinition, row_figure
from bmpeft.records import Record

METRIC = MetricDefinition("m@1", "m", "")


def test_an_interval_covers_the_truth_19_times_in_20() -> None:
    generator, hits = np.random.default_rng(0), 0
    for trial in range(400):
        _, low, high = Resampling.of_rows(100, 400, trial).mean((generator.random(100) < 0.3).astype(float))
        hits += low <= 0.3 <= high
    assert 0.91 <= hits / 400 <= 0.98


def test_groups_of_equal_rows_need_the_cluster_bootstrap() -> None:
    """50 patients with 4 equal rows each are 50 observations: intervals over rows would be half as wide."""
    generator, hits, narrow = np.random.default_rng(0), 0, 0
    groups = [str(number) for number in range(50) for _ in range(4)]
    for trial in range(300):
        values = np.repeat((generator.random(50) < 0.3).astype(float), 4)
        _, low, high = Resampling.of_groups(groups, 300, trial).mean(values)
        hits += low <= 0.3 <= high
        _, low, high = Resampling.of_rows(200, 300, trial).mean(values)
        narrow += low <= 0.3 <= high
    assert 0.90 <= hits / 300 <= 0.98
    assert narrow / 300 < 0.8


def test_which_unit_is_drawn_is_known() -> None:
    rows = [Record(id=str(n), task="t", split="s", group=group) for n, group in enumerate("abca")]
    assert Resampling.of_records(rows, 10, 0).groups == 3
    assert Resampling.of_records(rows[:3], 10, 0).groups is None
    for weights in Resampling.of_records(rows, 50, 0).weights():
        assert (weights[:, 0] == weights[:, 3]).all()
        assert (weights[:, :3].sum(axis=1) == 3).all()


def test_the_bootstrap_is_seeded_and_independent_of_its_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.arange(50.0)
    whole = Resampling.of_rows(50, 500, 3).mean(values)
    assert whole == Resampling.of_rows(50, 500, 3).mean(values)
    assert whole != Resampling.of_rows(50, 500, 4).mean(values)
    monkeypatch.setattr("bmpeft.evaluation.metrics.bootstrap._CHUNK", 333)
    assert whole == Resampling.of_rows(50, 500, 3).mean(values)


def test_the_interval_of_macro_f1_is_that_of_resampled_scikit_learn() -> None:
    generator = np.random.default_rng(1)
    right = generator.integers(0, 3, 40)
    given = np.where(generator.random(40) < 0.6, right, generator.integers(0, 3, 40))
    resamples = np.random.default_rng(7).integers(0, 40, size=(300, 40))
    figures = [f1_score(right[rows], given[rows], average="macro") for rows in resamples]
    interval = Resampling.of_rows(40, 300, 7).interval(labels.macro_f1(right, given, 3))
    assert interval[1:] == pytest.approx(tuple(np.quantile(figures, [0.025, 0.975])))


def test_rows_without_a_value_do_not_count() -> None:
    values = np.array([1.0, np.nan, 0.0, 1.0, np.nan])
    figure = row_figure(METRIC, values, Resampling.of_rows(5, 400, 0))
    assert (figure.value, figure.n) == (pytest.approx(2 / 3), 3)
    assert 0.0 <= figure.low < figure.value < figure.high <= 1.0


def test_a_figure_that_no_resample_has_is_its_own_interval() -> None:
    interval = Resampling.of_rows(3, 100, 0).interval(lambda weights: np.where((weights == 1).all(axis=1), 0.5, np.nan))
    assert interval == (0.5, 0.5, 0.5)
