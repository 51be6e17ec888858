"""Ctrl-C and SIGTERM as requests: the step under way is finished, a checkpoint written, then the run ends."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from bmpeft.errors import Interrupted

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopSignals:
    """While the context is open, the first signal is remembered; a second one interrupts at once.

    Outside the main thread, where Python allows no handlers, signals act as they did before.
    """

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._remember) for number in _SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def raise_if_received(self, step: int, total: int) -> None:
        """Raises Interrupted if a signal came."""
        if self.received is not None:
            raise Interrupted(
                f"stopped by {self.received.name} after step {step} of {total}: a checkpoint is written, the same "
                "command with --resume goes on from it",
                signal_number=self.received,
            )

    def _remember(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None:
            raise KeyboardInterrupt
        self.received = signal.Signals(number)


class StopAtStep(TrainerCallback):
    """Ends the training with a checkpoint at the first step boundary after a signal."""

    def __init__(self, signals: StopSignals) -> None:
        self._signals = signals

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> TrainerControl:
        if self._signals.received is not None:
            control.should_save = control.should_training_stop = True
        return control
