"""Is everything that should learn learning? Asked once, at the start, because nothing else would ever show it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import nn

from bmpeft.errors import BmpeftError

_NAMED = 5
_STEPS = 2
_FALSE_ALARM = 1e-9


class GradientCheck:
    """Watches the gradients of the first optimizer steps.

    After the second step at a learning rate above zero each tensor that the inputs reach must have had a
    gradient that is not zero. Two, because the A of a LoRA has none in the first: its B is still zero. A
    tensor that no input reached (its gradient is None: image tables where all rows are text) is reported
    and frozen. Where only some rows have an image, two of the steps must have had one before that is judged.

    Args:
        parameters: what trains, by name.
        drop_path: rate of stochastic depth, which gives a layer that it drops a gradient of zero. The
            check then waits for so many rows that a layer that was dropped in all of them is no accident.
        rows: of an optimizer step.
        images: whether some of the training's rows have an image.
        say: gets one line if tensors are frozen.
    """

    def __init__(
        self,
        parameters: Mapping[str, nn.Parameter],
        *,
        drop_path: float,
        rows: int,
        images: bool = False,
        say: Callable[[str], None],
    ) -> None:
        self._parameters, self._say = parameters, say
        self._steps_left = _STEPS
        if drop_path > 0.0:
            self._steps_left += math.ceil(math.log(_FALSE_ALARM) / math.log(drop_path) / rows)
        self._image_steps_left = _STEPS if images else 0
        self._reached: set[str] = set()
        self._learning: set[str] = set()

    def before_step(self, step: int, learning_rate: float, *, images: bool = False) -> None:
        """Look at the gradients of optimizer step `step`; `images`: whether a row of it had one.

        Raises:
            BmpeftError: tensors never had a gradient other than zero; names them.
        """
        if self._is_over():
            return
        for name, parameter in self._parameters.items():
            if parameter.grad is not None:
                self._reached.add(name)
                if name not in self._learning and bool(torch.any(parameter.grad != 0)):
                    self._learning.add(name)
        if learning_rate > 0.0:
            self._steps_left = max(self._steps_left - 1, 0)
            self._image_steps_left = max(self._image_steps_left - images, 0)
        if self._is_over():
            self._judge(step)

    def content(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {
            "left": self._steps_left,
            "images_left": self._image_steps_left,
            "reached": sorted(self._reached),
            "learning": sorted(self._learning),
        }

    def restore(self, content: Mapping[str, Any]) -> None:
        """From a checkpoint: what was frozen is frozen again."""
        self._steps_left, self._image_steps_left = content["left"], content.get("images_left", 0)
        self._reached, self._learning = set(content["reached"]), set(content["learning"])
        if self._is_over():
            self._freeze()

    def _is_over(self) -> bool:
        return self._steps_left == self._image_steps_left == 0

    def _judge(self, step: int) -> None:
        idle = [name for name in self._parameters if name in self._reached - self._learning]
        if idle:
            raise BmpeftError(
                f"step {step}: {len(idle)} of {len(self._parameters)} trainable tensors have had no gradient other "
                f"than zero and would never change: {_listed(idle)}"
            )
        frozen = self._freeze()
        if frozen:
            self._say(f"not reached by this task's inputs, frozen: {len(frozen)} tensors: {_listed(frozen)}")

    def _freeze(self) -> list[str]:
        unreached = [name for name in self._parameters if name not in self._reached]
        for name in unreached:
            self._parameters[name].requires_grad_(False)
        return unreached


def _listed(names: Iterable[str]) -> str:
    names = list(names)
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more
