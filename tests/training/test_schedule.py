"""How fast, how often measured, how long: schedules of the learning rate, evaluations and early stopping."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bmpeft.errors import RecipeError
from bmpeft.training.callbacks import evaluation_steps
from bmpeft.training.early_stopping import out_of_patience
from tests.training.small import small_recipe
from tests.training.test_trainer import make_trainer


@pytest.mark.parametrize(
    ("options", "shares"),
    [
        ({"schedule": "linear"}, [0.0, 1.0, 0.75, 0.5, 0.25]),
        ({"schedule": "polynomial", "schedule_power": 1.0}, [0.0, 1.0, 0.75, 0.5, 0.25]),
        ({"schedule": "polynomial", "schedule_power": 2.0}, [0.0, 1.0, 0.5625, 0.25, 0.0625]),
        ({"schedule": "cosine"}, [0.0, 1.0, 0.853553, 0.5, 0.146447]),
        ({"schedule": "constant"}, [0.0, 1.0, 1.0, 1.0, 1.0]),
    ],
)
def test_the_learning_rate_follows_its_schedule(tmp_path: Path, options: dict[str, Any], shares: list[float]) -> None:
    trainer, losses = make_trainer(tmp_path, max_steps=5, warmup=0.2, learning_rate=2e-3, batch_size=1, **options)
    trainer.fit()
    assert [log["learning_rate"] / 2e-3 for log in losses.logs] == pytest.approx(shares, abs=1e-5)


@given(st.integers(1, 300), st.integers(1, 400))
def test_evaluations_every_n_steps_end_with_the_run(total: int, every: int) -> None:
    steps = evaluation_steps(total, every=every)
    assert steps[-1] == total
    assert all(step % every == 0 for step in steps[:-1])
    assert len(set(steps)) == len(steps) == -(-total // every)


def test_three_evaluations_where_nothing_is_said() -> None:
    assert evaluation_steps(9) == (3, 6, 9)


FIGURES = [1.0, 0.9, 0.95, 0.89, 0.91, 0.92, 0.8]


@pytest.mark.parametrize(
    ("patience", "min_delta", "stop"), [(1, 0.0, 3), (2, 0.0, 6), (3, 0.0, None), (3, 0.05, 5), (1, 0.2, 2)]
)
@pytest.mark.parametrize("sign", [1, -1])
def test_patience_counts_evaluations_without_a_better_figure(
    patience: int, min_delta: float, stop: int | None, sign: int
) -> None:
    stops = [
        count
        for count in range(1, len(FIGURES) + 1)
        if out_of_patience(
            [sign * figure for figure in FIGURES[:count]],
            patience=patience,
            min_delta=min_delta,
            greater_is_better=sign < 0,
        )
    ]
    assert (stops[0] if stops else None) == stop


def test_a_run_stops_early_with_the_best_and_goes_on_no_further(tmp_path: Path) -> None:
    options = {"patience": 2, "max_steps": 9, "select_by": "accuracy", "evaluate_after": range(1, 10), "batch_size": 2}
    figures = iter([0.2, 0.6, 0.5, 0.6, 0.9])
    trainer, _ = make_trainer(tmp_path, accuracy=lambda: next(figures), **options)
    trainer.fit()
    assert trainer.stopped_early
    assert trainer.state.global_step == 4
    assert trainer.selected is not None
    assert trainer.selected.step == 2
    again, _ = make_trainer(tmp_path, accuracy=lambda: 1.0, **options)
    again.fit(again.checkpoints.latest(print))
    assert again.state.global_step == 4, "a resumed run was over, too"
    assert again.selected == trainer.selected


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("training.evaluations=2", "training.evaluate_every=5"), "evaluations and evaluate_every"),
        (("training.schedule=polynomial",), "schedule=polynomial and schedule_power need each other"),
        (("training.schedule_power=2",), "schedule=polynomial and schedule_power need each other"),
        (("training.min_delta=0.1",), "min_delta needs patience"),
        (("training.patience=0",), "training.patience: 0 is out of range"),
    ],
)
def test_options_that_contradict_each_other_are_refused(
    tmp_path: Path, overrides: tuple[str, ...], message: str
) -> None:
    with pytest.raises(RecipeError, match=message):
        small_recipe(tmp_path, *overrides)
