"""The recipe's training section in the words of transformers' Trainer."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import TrainingArguments

from bmpeft.devices import has_fast_bfloat16
from bmpeft.recipe import TrainingSection

_SCHEDULES = {
    "linear": "linear",
    "cosine": "cosine",
    "polynomial": "polynomial",
    "constant": "constant_with_warmup",
}
_NEVER = 2**62


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


def training_arguments(
    section: TrainingSection, directory: Path, device: torch.device, *, use_cache: bool
) -> TrainingArguments:
    """What Trainer is told; `directory` is where it may write, `use_cache` the model's own setting."""
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
        lr_scheduler_kwargs={"power": section.schedule_power, "lr_end": 0.0} if section.schedule_power else {},
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
