"""The sequence-to-sequence trainer: transformers' Trainer on encoded examples, with an adapter's checkpoints.

What Trainer does: the loop, AdamW, the schedule, clipping, accumulation (the loss of a step is the sum over
its supervised tokens divided by their number, so that every token weighs the same whatever row it is in).
What is here: length-grouped batches, a token-weighted validation loss, accuracy of closed answers, atomic
checkpoints of the adapter alone, the best of them at the end, and figures such as tokens per second.

The frozen layers run in training mode, so that the backbone's own dropout is active as in the published
recipes of BiomedGPT; the BatchNorm statistics of its image tower stay frozen with its weights.
"""

from __future__ import annotations

import contextlib
import json
import math
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from bmpeft.adaptation import adapter_tensors, set_adapter_tensors
from bmpeft.adapters import atomic
from bmpeft.adapters.manifest import CONFIG_FILE, TENSORS_FILE
from bmpeft.backbones.base import FrozenBackbone
from bmpeft.devices import has_fast_bfloat16
from bmpeft.errors import BmpeftError
from bmpeft.recipe import TrainingSection
from bmpeft.training.batches import EncodedDataset, EpochLoader, LengthGroupedBatches

CHECKPOINT_STATE = "state.json"
_SCHEDULES = {"linear": "linear", "cosine": "cosine", "constant": "constant_with_warmup"}
_NEVER = 2**62


@dataclass(frozen=True, slots=True)
class Validation:
    """The validation split measured after an optimizer step."""

    step: int
    loss: float
    accuracy: float | None


class SequenceTrainer(Trainer):
    """Trains the adapter of a `PeftModel` on encoded examples.

    Args:
        model: the backbone's model with its adapter attached.
        backbone: collates examples.
        section: how to train.
        train_rows: what to learn.
        validation_rows: what to measure; may be empty, then the last step is kept.
        accuracy: measures closed answers with the model as it is; None for open answers.
        adapter_config: peft's ``adapter_config.json``, for the checkpoints.
        directory: of the checkpoints.
        callbacks: what watches the run.
    """

    def __init__(
        self,
        model: PeftModel,
        *,
        backbone: FrozenBackbone,
        section: TrainingSection,
        train_rows: EncodedDataset,
        validation_rows: EncodedDataset,
        accuracy: Callable[[], float] | None,
        adapter_config: bytes,
        directory: Path,
        callbacks: Iterable[TrainerCallback] = (),
    ) -> None:
        super().__init__(
            model=model,
            args=_arguments(section, directory, backbone.device, use_cache=backbone.model.config.use_cache),
            data_collator=backbone.collate,
            train_dataset=train_rows,
            eval_dataset=validation_rows,
            callbacks=list(callbacks),
        )
        self.remove_callback(PrinterCallback)
        self.adapted = model
        self.backbone = backbone
        self.section = section
        self.directory = directory
        self.precision = resolve_precision(section.precision, backbone.device)
        self.validations: list[Validation] = []
        self.supervised_tokens = 0
        self._accuracy, self._adapter_config = accuracy, adapter_config
        self._meter = _Meter()

    @property
    def total_steps(self) -> int:
        """Optimizer steps of the whole run."""
        if self.section.max_steps is not None:
            return self.section.max_steps
        batches = -(-len(self.train_dataset) // self.section.batch_size)  # type: ignore[arg-type]
        return math.ceil(self.section.epochs * -(-batches // self.section.gradient_accumulation))

    def fit(self) -> float:
        """Train, then put the best checkpoint's adapter into the model; returns the mean training loss.

        Raises:
            BmpeftError: the loss is not finite, or a checkpoint cannot be written.
        """
        try:
            result = self.train()
        finally:
            self.backbone.model.activation_checkpointing_disable()
            self.adapted.eval()
        best = self.state.best_global_step
        if best is not None and best != self.state.global_step:
            set_adapter_tensors(self.adapted, self._read_checkpoint(best))
        return float(result.training_loss)

    @property
    def selected(self) -> Validation | None:
        """The validation of the step whose adapter the model has after `fit`."""
        return next((v for v in self.validations if v.step == self.state.best_global_step), None)

    # What Trainer calls.

    def get_train_dataloader(self) -> DataLoader[Any]:
        """Length-grouped batches, seeded by the recipe and the epoch alone."""
        rows = self.train_dataset
        assert isinstance(rows, EncodedDataset)
        sampler = LengthGroupedBatches(
            rows.lengths(),
            batch_size=self.section.batch_size,
            accumulation=self.section.gradient_accumulation,
            seed=self.section.seed,
        )
        return EpochLoader(rows, batch_sampler=sampler, collate_fn=self.backbone.collate)

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], Tensor | int | None]:
        """The batches of one optimizer step, and how many supervised tokens they hold together."""
        batches, items = super().get_batch_samples(epoch_iterator, num_batches, device)
        supervised = sum(int(batch["labels"].ne(-100).sum()) for batch in batches)
        self.supervised_tokens += supervised
        self._meter.count(supervised + sum(int(batch["attention_mask"].sum()) for batch in batches))
        return batches, items

    def training_step(
        self, model: nn.Module, inputs: dict[str, Tensor | Any], num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        """Forward and backward pass of one batch."""
        loss = super().training_step(model, inputs, num_items_in_batch)
        _require_finite("loss", loss.item(), self.state.global_step + 1)
        return loss

    def compute_loss_context_manager(self) -> contextlib.ExitStack:
        """Autocast of our own: Trainer's would replace the model's forward for good."""
        stack = contextlib.ExitStack()
        if self.precision == "bfloat16":
            stack.enter_context(torch.autocast(self.args.device.type, dtype=torch.bfloat16))
        return stack

    def floating_point_ops(self, inputs: dict[str, Tensor | Any]) -> int:
        """Not counted: Trainer would walk over all parameters in every step, for a rough figure."""
        return 0

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add speed, tokens and the time left to what Trainer reports of its steps."""
        if "loss" in logs:
            step = self.state.global_step
            _require_finite("gradient's norm", logs["grad_norm"], step)
            logs["tokens_per_second"] = self._meter.tokens_per_second()
            logs["supervised_tokens"] = self.supervised_tokens
            logs["seconds_left"] = self._meter.seconds_per_step(step) * (self.state.max_steps - step)
        super().log(logs, start_time)

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Measure the validation split: token-weighted loss and, for closed answers, accuracy."""
        self.adapted.eval()
        with self._meter.paused():
            metrics = {"eval_loss": self._validation_loss()}
            if self._accuracy is not None:
                metrics["eval_accuracy"] = self._accuracy()
        step = self.state.global_step
        _require_finite("validation loss", metrics["eval_loss"], step)
        self.validations.append(Validation(step, metrics["eval_loss"], metrics.get("eval_accuracy")))
        self.log(dict(metrics))
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def _validation_loss(self) -> float:
        """Nats per supervised token over the whole validation split."""
        rows = self.eval_dataset
        assert isinstance(rows, EncodedDataset)
        order = sorted(range(len(rows)), key=lambda row: len(rows[row].input_ids), reverse=True)
        total, tokens = 0.0, 0
        with torch.inference_mode(), self.compute_loss_context_manager():
            for start in range(0, len(order), self.section.batch_size):
                examples = [rows[row] for row in order[start : start + self.section.batch_size]]
                batch = self._prepare_inputs(self.backbone.collate(examples))
                total += float(self.adapted(**batch, num_items_in_batch=1).loss)
                tokens += sum(len(example.labels or ()) for example in examples)
        return total / tokens

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """Write the adapter of this step, whole or not at all; keep the best and the last one only."""
        from safetensors.torch import save

        state = {"step": self.state.global_step, "best_step": self.state.best_global_step}
        files = {
            CONFIG_FILE: self._adapter_config,
            TENSORS_FILE: save(adapter_tensors(self.adapted), metadata={"format": "pt"}),
            CHECKPOINT_STATE: (json.dumps(state) + "\n").encode(),
        }
        directory = self._checkpoint(self.state.global_step)
        try:
            atomic.write_directory(directory, files)
        except OSError as error:
            raise BmpeftError(f"{directory}: cannot be written: {error.strerror or error}") from None
        keep = {directory, self._checkpoint(self.state.best_global_step or 0)}
        for other in self.directory.glob("step-*"):
            if other not in keep:
                shutil.rmtree(other, ignore_errors=True)

    def _checkpoint(self, step: int) -> Path:
        return self.directory / f"step-{step:08d}"

    def _read_checkpoint(self, step: int) -> Mapping[str, Tensor]:
        from safetensors.torch import load

        path = self._checkpoint(step) / TENSORS_FILE
        try:
            return dict(load(path.read_bytes()))
        except OSError as error:
            raise BmpeftError(f"{path}: {error.strerror or error}") from None


class SingleDeviceArguments(TrainingArguments):
    """TrainingArguments that never spread a model over the GPUs that happen to be there."""

    @property
    def n_gpu(self) -> int:
        return min(int(super().n_gpu), 1)


def resolve_precision(asked: str, device: torch.device) -> str:
    """The computation's dtype, "float32" or "bfloat16"; auto is bfloat16 where the device has it in hardware."""
    if asked != "auto":
        return asked
    return "bfloat16" if has_fast_bfloat16(device) else "float32"


def _arguments(
    section: TrainingSection, directory: Path, device: torch.device, *, use_cache: bool
) -> TrainingArguments:
    return SingleDeviceArguments(
        output_dir=str(directory),
        use_cpu=device.type == "cpu",
        learning_rate=section.learning_rate,
        num_train_epochs=section.epochs,
        max_steps=section.max_steps or -1,
        per_device_train_batch_size=section.batch_size,
        per_device_eval_batch_size=section.batch_size,
        gradient_accumulation_steps=section.gradient_accumulation,
        optim="adamw_torch_fused",
        weight_decay=section.weight_decay,
        warmup_steps=section.warmup,  # a float below 1 is a share of the steps
        lr_scheduler_type=_SCHEDULES[section.schedule],
        max_grad_norm=section.max_grad_norm,
        seed=section.seed,
        activation_checkpointing=section.activation_checkpointing,
        activation_checkpointing_kwargs={"use_reentrant": False} if section.activation_checkpointing else None,
        logging_strategy="steps",
        logging_steps=section.logging_steps,
        logging_nan_inf_filter=False,  # a loss that is not finite stops the run instead
        # `EvaluationSchedule` says when; a strategy must be set for Trainer to remember the best step.
        eval_strategy="no",
        save_strategy="steps",
        save_steps=_NEVER,
        metric_for_best_model=f"eval_{section.select_by}",
        greater_is_better=section.select_by == "accuracy",
        use_cache=use_cache,  # Trainer writes it into the model's configuration
        remove_unused_columns=False,
        disable_tqdm=True,
        report_to="none",
        log_level="error",
        log_level_replica="error",
    )


def _require_finite(what: str, value: float, step: int) -> None:
    if not math.isfinite(value):
        raise BmpeftError(
            f"step {step}: the {what} is {value}; a lower training.learning_rate or training.precision=float32 may help"
        )


class _Meter:
    """Speed of training, without the time that evaluations take."""

    def __init__(self) -> None:
        self._start: float | None = None
        self._out = 0.0
        self._tokens = 0
        self._last = (0.0, 0)

    def count(self, tokens: int) -> None:
        if self._start is None:
            self._start = time.monotonic()
        self._tokens += tokens

    def tokens_per_second(self) -> float:
        """Since the last call."""
        seconds, tokens = self._last
        self._last = (self._elapsed(), self._tokens)
        return (self._tokens - tokens) / max(self._last[0] - seconds, 1e-9)

    def seconds_per_step(self, steps: int) -> float:
        return self._elapsed() / max(steps, 1)

    @contextmanager
    def paused(self) -> Iterator[None]:
        begin = time.monotonic()
        try:
            yield
        finally:
            self._out += time.monotonic() - begin

    def _elapsed(self) -> float:
        return 0.0 if self._start is None else time.monotonic() - self._start - self._out
