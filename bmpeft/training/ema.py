"""Exponential moving average of the tensors that train (Polyak & Juditsky 1992; `--ema-decay` of OFA and BiomedGPT)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from bmpeft.training.training_state import copies, set_tensors


class MovingAverage:
    """average = decay * average + (1 - decay) * tensor after each optimizer step, from the first values on.

    Kept in the tensors' own type, which is float32 for everything that trains here.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], decay: float) -> None:
        self._parameters, self._decay = parameters, decay
        self._averages = {name: parameter.detach().clone() for name, parameter in parameters.items()}

    @torch.no_grad()
    def update(self) -> None:
        """Take the step that was just made into account."""
        for name, average in self._averages.items():
            average.lerp_(self._parameters[name], 1.0 - self._decay)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """The model has the averages while the context is open."""
        trained = {name: parameter.detach().clone() for name, parameter in self._parameters.items()}
        set_tensors(self._parameters, self._averages)
        try:
            yield
        finally:
            set_tensors(self._parameters, trained)

    def tensors(self) -> dict[str, Tensor]:
        """Copies of the averages, on the CPU."""
        return copies(self._averages)

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Averages of a checkpoint. Raises BmpeftError if they are not of these tensors."""
        set_tensors(self._averages, tensors)


class AverageAfterStep(TrainerCallback):
    """Updates the average after each optimizer step, before an evaluation can look at it."""

    def __init__(self, average: MovingAverage) -> None:
        self._average = average

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._average.update()
