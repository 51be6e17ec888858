"""Every tensor that trains must learn: the check stops a run that would leave one as it was."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from bmpeft.adaptation.lora import adapter_tensors
from bmpeft.errors import BmpeftError
from bmpeft.training.gradients import GradientCheck
from tests.backbones.tiny import tiny_backbone
from tests.training.test_trainer import make_trainer


def parameters(**gradients: list[float] | None) -> dict[str, nn.Parameter]:
    made = {name: nn.Parameter(torch.zeros(2)) for name in gradients}
    set_gradients(made, **gradients)
    return made


def set_gradients(made: dict[str, nn.Parameter], **gradients: list[float] | None) -> None:
    for name, gradient in gradients.items():
        made[name].grad = None if gradient is None else torch.tensor(gradient)


def test_the_a_of_a_lora_learns_from_the_second_step_on_and_warm_up_does_not_count() -> None:
    said: list[str] = []
    made = parameters(a=[0.0, 0.0], b=[0.0, 1.0])
    check = GradientCheck(made, drop_path=0.0, rows=4, say=said.append)
    check.before_step(1, 0.0)
    check.before_step(2, 1e-3)
    set_gradients(made, a=[0.0, 0.5])
    check.before_step(3, 2e-3)
    assert not said
    assert all(parameter.requires_grad for parameter in made.values())


def test_tensors_without_a_gradient_are_named() -> None:
    made = parameters(a=[0.0, 0.0], b=[0.0, 1.0], c=[0.0, 0.0])
    check = GradientCheck(made, drop_path=0.0, rows=4, say=print)
    check.before_step(1, 1e-3)
    with pytest.raises(BmpeftError, match=r"^step 2: 2 of 3 trainable tensors have had no gradient .*: a, c$"):
        check.before_step(2, 1e-3)


def test_what_no_input_reaches_is_said_once_and_frozen() -> None:
    said: list[str] = []
    made = parameters(a=[1.0, 0.0], image=None)
    check = GradientCheck(made, drop_path=0.0, rows=4, say=said.append)
    for step in range(1, 5):
        check.before_step(step, 1e-3)
    assert said == ["not reached by this task's inputs, frozen: 1 tensors: image"]
    assert made["a"].requires_grad and not made["image"].requires_grad
    again = parameters(a=[1.0, 0.0], image=None)
    restored = GradientCheck(again, drop_path=0.0, rows=4, say=said.append)
    restored.restore(check.content())
    assert not again["image"].requires_grad
    assert len(said) == 1


def test_stochastic_depth_gets_time_until_a_dropped_layer_is_no_accident() -> None:
    made = parameters(a=[0.0, 0.0])
    check = GradientCheck(made, drop_path=0.5, rows=4, say=print)
    for step in range(1, 10):  # 0.5 ** 32 is below one in a billion
        check.before_step(step, 1e-3)
    with pytest.raises(BmpeftError, match="step 10"):
        check.before_step(10, 1e-3)


def test_a_training_whose_adapter_is_cut_off_stops(tmp_path: Path) -> None:
    """A layer whose output is multiplied by zero: its adapters would never learn, and the loss looks fine."""
    backbone = tiny_backbone(dropout=0.0)
    with torch.no_grad():
        backbone.model.encoder.layers[1].self_attn_mid_layer_norm.weight.zero_()
    trainer, _ = make_trainer(tmp_path, backbone=backbone, max_steps=3)
    with pytest.raises(BmpeftError, match=r"step 2: 8 of 64 .*encoder\.layers\.1\.self_attn\.k_proj\.lora_A") as error:
        trainer.fit()
    assert "\n" not in str(error.value)


def test_unreached_tensors_of_a_training_stay_as_they_are(tmp_path: Path) -> None:
    said: list[str] = []
    trainer, _ = make_trainer(tmp_path, max_steps=3, say=said.append)
    extra = nn.Parameter(torch.ones(2))
    trainer.adapted.register_parameter("unused", extra)
    trainer._parameters["unused"] = extra
    before = adapter_tensors(trainer.adapted)
    trainer.fit()
    assert [line for line in said if "unused" in line]
    assert torch.equal(extra, torch.ones(2)), "weight decay must not touch it either"
    assert not any(torch.equal(before[name], tensor) for name, tensor in adapter_tensors(trainer.adapted).items())


def test_a_gradient_that_is_not_finite_stops_before_it_does_harm(tmp_path: Path) -> None:
    trainer, _ = make_trainer(tmp_path, logging_steps=100)
    next(iter(trainer._parameters.values())).register_hook(lambda gradient: gradient * float("nan"))
    before = adapter_tensors(trainer.adapted)
    with pytest.raises(BmpeftError, match=r"step 1: the gradient's norm is nan"):
        trainer.fit()
    assert all(torch.equal(before[name], tensor) for name, tensor in adapter_tensors(trainer.adapted).items())
