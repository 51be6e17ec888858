"""What watches a training run: the JSON-lines log, TensorBoard, the progress bar, the evaluation schedule.

Figures only; no text or row of a dataset is ever logged.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from bmpeft.progress import ProgressTask

DEFAULT_EVALUATIONS = 3


class RunLog:
    """Appends events to a JSON-lines file; each line is on the disk's way as soon as it happened."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("a", encoding="utf-8")

    def write(self, event: str, **figures: Any) -> None:
        line = json.dumps({"event": event, "time": round(time.time(), 3), **figures}, allow_nan=False)
        self._file.write(line + "\n")
        self._file.flush()

    def __enter__(self) -> RunLog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._file.close()


class LogCallback(TrainerCallback):
    """Trainer's figures to the run's log."""

    def __init__(self, log: RunLog) -> None:
        self._log = log

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        event, figures = _split(logs or {})
        if event is not None:
            self._log.write(event, step=state.global_step, **figures)


class TensorBoardCallback(TrainerCallback):
    """Trainer's figures to TensorBoard event files, under train/ and validation/."""

    def __init__(self, directory: Path) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(log_dir=str(directory))

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        event, figures = _split(logs or {})
        for name, value in figures.items():
            self._writer.add_scalar(f"{event}/{name}", value, state.global_step)

    def close(self) -> None:
        self._writer.close()


class ProgressCallback(TrainerCallback):
    """Steps, loss and speed to the progress bar."""

    def __init__(self, task: ProgressTask) -> None:
        self._task = task

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self._task.advance(1)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        event, figures = _split(logs or {})
        if event == "train":
            self._task.advance(0, loss=figures["loss"], tokens_per_second=figures["tokens_per_second"])


class EvaluationSchedule(TrainerCallback):
    """Asks for a checkpoint, and an evaluation if there are rows for one, after certain optimizer steps."""

    def __init__(self, steps: Iterable[int], *, evaluate: bool = True) -> None:
        self._steps, self._evaluate = frozenset(steps), evaluate

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> TrainerControl:
        if state.global_step in self._steps:
            control.should_evaluate, control.should_save = self._evaluate, True
        return control


def evaluation_steps(total_steps: int, *, evaluations: int | None = None, every: int | None = None) -> tuple[int, ...]:
    """Optimizer steps after which to evaluate, the last one included.

    After `every` so many steps; else `evaluations` times (default 3), evenly spaced, at most one per step.
    """
    if every is not None:
        return tuple(dict.fromkeys((*range(every, total_steps, every), total_steps)))
    count = min(evaluations or DEFAULT_EVALUATIONS, total_steps)
    return tuple(round(total_steps * (i + 1) / count) for i in range(count))


def _split(logs: dict[str, float]) -> tuple[str | None, dict[str, float]]:
    """Trainer's one dictionary for everything: which kind of event it is, and its figures."""
    if "eval_loss" in logs:
        return "validation", {name.removeprefix("eval_"): value for name, value in logs.items()}
    if "loss" in logs:
        return "train", dict(logs)
    return None, {}
