"""The moving average: what it is, that validation measures it beside the trained tensors, and that it is stored."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import TrainerCallback

from bmpeft.adapters.artifact import load_artifact
from bmpeft.progress import Progress
from bmpeft.training.ema import MovingAverage
from bmpeft.training.run import train
from bmpeft.training.training_state import copies
from tests.training.small import small_recipe
from tests.training.test_trainer import make_trainer


def test_the_average_is_what_it_is_called() -> None:
    parameters = {"a": nn.Parameter(torch.tensor([1.0]))}
    average = MovingAverage(parameters, 0.9)
    for value in (2.0, 3.0):
        with torch.no_grad():
            parameters["a"].fill_(value)
        average.update()
    assert float(average.tensors()["a"]) == pytest.approx((1.0 * 0.9 + 2.0 * 0.1) * 0.9 + 3.0 * 0.1)
    with average.applied():
        assert torch.equal(parameters["a"], average.tensors()["a"])
    assert parameters["a"].item() == 3.0


class Steps(TrainerCallback):
    """Keeps the trained tensors after each step."""

    def __init__(self, parameters: dict[str, nn.Parameter]) -> None:
        self.parameters = parameters
        self.after: list[dict[str, torch.Tensor]] = [copies(parameters)]

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        self.after.append(copies(self.parameters))


def test_the_average_is_evaluated_beside_the_trained_tensors_and_stored(tmp_path: Path) -> None:
    trainer, _ = make_trainer(tmp_path, ema_decay=0.5, max_steps=3, evaluate_after=(3,), learning_rate=5e-2)
    steps = Steps(trainer._parameters)
    trainer.add_callback(steps)
    trainer.fit()
    start, one, two, three = steps.after
    expected = {name: start[name] / 8 + one[name] / 8 + two[name] / 4 + three[name] / 2 for name in start}
    for name, tensor in copies(trainer._parameters).items():
        torch.testing.assert_close(tensor, expected[name])
    (validation,) = trainer.validations
    assert validation.loss_without_average is not None
    assert validation.loss_without_average != validation.loss
    assert trainer._validation_loss() == pytest.approx(validation.loss, rel=1e-6)
    with torch.no_grad():
        for name, parameter in trainer._parameters.items():
            parameter.copy_(three[name])
    assert trainer._validation_loss() == pytest.approx(validation.loss_without_average, rel=1e-6)


def test_training_goes_on_from_the_trained_tensors(tmp_path: Path) -> None:
    """Evaluating the average, and keeping it, changes nothing of the training itself."""
    ends = []
    for decay in (None, 0.9):
        trainer, losses = make_trainer(tmp_path / str(decay), ema_decay=decay, max_steps=4, evaluate_after=(1, 2))
        trainer.fit()
        ends.append([log["loss"] for log in losses.logs])
    assert ends[0] == ends[1]


def test_the_average_of_the_best_step_survives_a_restart(tmp_path: Path) -> None:
    options = {"select_by": "accuracy", "max_steps": 4, "evaluate_after": (2, 4), "ema_decay": 0.7}
    figures = iter([0.1, 0.9, 0.1, 0.2])  # trained and averaged, twice
    whole, _ = make_trainer(tmp_path, accuracy=lambda: next(figures), **options)
    whole.fit()
    assert whole.selected is not None
    assert (whole.selected.step, whole.selected.accuracy, whole.selected.accuracy_without_average) == (2, 0.9, 0.1)
    last = whole.checkpoints.read(4).files["average.safetensors"]
    rest = iter([0.1, 0.2])
    resumed, _ = make_trainer(tmp_path, accuracy=lambda: next(rest), **options)
    resumed.fit(resumed.checkpoints.read(2))
    for one, other in zip(whole._parameters.values(), resumed._parameters.values(), strict=True):
        assert torch.equal(one, other)
    assert resumed.checkpoints.read(4).files["average.safetensors"] == last


def test_the_adapter_says_that_it_is_an_average(tmp_path: Path) -> None:
    outcome = train(
        small_recipe(tmp_path, "training.ema_decay=0.5"), recipe_name="small", progress=Progress(quiet=True)
    )
    assert outcome.summary.selected_by == "validation loss, moving average of the tensors (EMA 0.5)"
    assert "EMA 0.5" in (load_artifact(outcome.directory).directory / "README.md").read_text(encoding="utf-8")
    assert "loss_without_average" in outcome.log.read_text(encoding="utf-8")
