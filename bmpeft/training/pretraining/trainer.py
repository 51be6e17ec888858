"""`SequenceTrainer` on an endless mixture: every parameter that the mixture reaches trains."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from bmpeft.backbones.biomedgpt.modeling import IGNORED_LABEL
from bmpeft.pretrain_recipe import PretrainTrainingSection
from bmpeft.training.pretraining.batches import MixtureBatches
from bmpeft.training.pretraining.processes import (
    SharedBatches,
    StopTogether,
    process_count,
    process_number,
    random_states_of_all,
    set_random_state,
    share_statistics,
)
from bmpeft.training.pretraining.rows import IMAGE_TASKS, MixtureRow, MixtureRows, PretrainTask
from bmpeft.training.stopping import StopAtStep
from bmpeft.training.trainer import STATE_FILE, SequenceTrainer

BETAS = (0.9, 0.98)
"""Of AdamW; as in Vaswani et al. 2017, section 5.3: early steps are forgotten sooner than by the default 0.999."""
TOWER_PARAMETERS = ("embed_images.", "image_proj.", "patch_layernorm_embedding.")
"""Of the encoder: from pixels to what the encoder's layers read."""
_TASK = "task"
_PART, _DECODER, _ENCODER, _TOWER = "part", "decoder", "encoder", "tower"


class MixtureDataset(Dataset[MixtureRow]):
    """Rows of the mixture for a DataLoader, by (number, whether its loss counts); Trainer asks for the `length`."""

    def __init__(self, rows: MixtureRows, length: int) -> None:
        self._rows, self._length = rows, length

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, item: tuple[int, bool]) -> MixtureRow:
        number, counts = item
        row = self._rows.row(number)
        if counts:
            return row
        return replace(row, example=replace(row.example, labels=(IGNORED_LABEL,) * len(row.example.labels or ())))

    @property
    def has_images(self) -> bool:
        """Whether rows may have an image."""
        return any(task in IMAGE_TASKS for task in self._rows.tasks)


class PretrainTrainer(SequenceTrainer):
    """Trains a plain model on a `MixtureDataset`; the last step's weights are the result.

    Args:
        batches: which rows make which batch.
        validation: rows that are measured, each task by itself.
        pretraining: the recipe's section.
    """

    def __init__(
        self,
        *args: Any,
        batches: MixtureBatches,
        validation: Sequence[MixtureRow],
        pretraining: PretrainTrainingSection,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, accuracy=None, **kwargs)
        self._mixture, self._pretraining = batches, pretraining
        self._validation_rows: defaultdict[PretrainTask, list[MixtureRow]] = defaultdict(list)
        for row in validation:
            self._validation_rows[row.task].append(row)
        self._tasks: list[PretrainTask] = []  # of the batches of this step that are still to come
        self._task_losses: defaultdict[str, list[float]] = defaultdict(list)  # since the last log
        self.steps_by_task: Counter[str] = Counter()
        self._processes = process_count()
        self._random_of_processes: list[dict[str, Any]] = []
        if self._processes > 1:
            encoder: Any = self.backbone.model.encoder
            share_statistics(encoder.embed_images)
            self.remove_callback(StopAtStep)
            self.add_callback(StopTogether(self._signals))

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """Trainer's AdamW; encoder and image tower in groups with rates of their own.

        The embedding that the encoder shares with the decoder is the decoder's. An untrained decoder takes
        whatever is constant in the encoder's output for a bias, and at the full rate the encoder gives it nothing
        else.
        """
        if self.optimizer is not None:
            return self.optimizer
        optimizer: torch.optim.Optimizer = super().create_optimizer(model)
        network: Any = self.backbone.model
        shared = {id(parameter) for parameter in network.decoder.parameters()}
        part_of = {
            id(parameter): _TOWER if name.startswith(TOWER_PARAMETERS) else _ENCODER
            for name, parameter in network.encoder.named_parameters()
            if id(parameter) not in shared
        }
        parts = {
            _DECODER: 1.0,
            _ENCODER: self._pretraining.encoder_learning_rate_factor,
            _TOWER: self._pretraining.tower_learning_rate_factor,
        }
        groups = optimizer.param_groups
        optimizer.param_groups = [
            {**group, "params": parameters, "lr": group["lr"] * factor, "betas": BETAS, _PART: part}
            for part, factor in parts.items()
            for group in groups
            if (parameters := [p for p in group["params"] if part_of.get(id(p), _DECODER) == part])
        ]
        return optimizer

    def create_scheduler(
        self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None
    ) -> torch.optim.lr_scheduler.LRScheduler:
        """Trainer's schedule; the encoder's rate rises to its later share on top of it."""
        if self.lr_scheduler is not None:
            return self.lr_scheduler
        scheduler = super().create_scheduler(num_training_steps, optimizer)
        assert isinstance(scheduler, torch.optim.lr_scheduler.LambdaLR)
        rise = _Rise(self._pretraining)
        scheduler.lr_lambdas = [
            _product(of_all, rise) if group[_PART] == _ENCODER else of_all
            for of_all, group in zip(scheduler.lr_lambdas, scheduler.optimizer.param_groups, strict=True)
        ]
        return scheduler

    def get_train_dataloader(self) -> DataLoader[Any]:
        """The batches of the mixture in their order."""
        assert self.train_dataset is not None
        batches = SharedBatches(self._mixture, len(self._mixture), process=process_number(), processes=self._processes)
        return DataLoader(self.train_dataset, batch_sampler=batches, collate_fn=self._collated)

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], Tensor | int | None]:
        """See `SequenceTrainer.get_batch_samples`; each batch's task is taken out of it."""
        batches, counted = super().get_batch_samples(epoch_iterator, num_batches, device)
        self._tasks = [batch.pop(_TASK) for batch in batches]
        assert isinstance(counted, int)
        counted_by_all = int(self.accelerator.reduce(torch.tensor(counted, device=self.args.device), "sum"))
        self.supervised_tokens += counted_by_all - counted
        return batches, counted_by_all

    def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
        """See `SequenceTrainer.compute_loss`; the mean over the processes' gradients becomes the sum."""
        loss = super().compute_loss(*args, **kwargs)
        assert isinstance(loss, Tensor)
        return loss * self._processes

    def training_step(
        self, model: nn.Module, inputs: dict[str, Tensor | Any], num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        """Forward and backward pass of one batch, its loss noted under its task."""
        step, steps = self.state.global_step, self._pretraining.steps
        network: Any = self.backbone.model
        network.encoder.embed_images.frozen_statistics = step >= round(self._pretraining.batch_statistics * steps)
        loss = super().training_step(model, inputs, num_items_in_batch)
        task = self._tasks.pop(0)
        self._task_losses[task].append(float(self.accelerator.reduce(loss.detach(), "mean")))
        self.steps_by_task[task] += 1
        return loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the mean loss of each task's steps since the last time."""
        if "loss" in logs:
            logs |= {f"loss/{task}": sum(v) / len(v) for task, v in sorted(self._task_losses.items())}
            self._task_losses.clear()
        super().log(logs, start_time)

    def _measure(self, step: int) -> dict[str, float]:
        """Nats per supervised token, of each task and over all of them."""
        totals = {task: self._sums(rows) for task, rows in sorted(self._validation_rows.items())}
        loss = sum(total for total, _ in totals.values()) / sum(tokens for _, tokens in totals.values())
        return {"loss": loss, **{f"loss/{task}": total / tokens for task, (total, tokens) in totals.items()}}

    def _sums(self, rows: Sequence[MixtureRow]) -> tuple[float, int]:
        """The summed loss of rows of one task, and how many tokens it covers."""
        examples = sorted((row.example for row in rows), key=lambda e: e.source_length, reverse=True)
        total, tokens = 0.0, 0
        with torch.inference_mode(), self.compute_loss_context_manager():
            for start in range(0, len(examples), self.section.batch_size):
                part = examples[start : start + self.section.batch_size]
                total += self.summed_loss(self.backbone.collate(part))
                tokens += sum(len(example.labels or ()) for example in part)
        return total, tokens

    def _collated(self, rows: Sequence[MixtureRow]) -> dict[str, Any]:
        """The batch of rows of one task, with the task's name in it."""
        return {**self.backbone.collate([row.example for row in rows]), _TASK: rows[0].task}

    def _own_state(self) -> dict[str, Any]:
        return {"steps_by_task": dict(self.steps_by_task), "random_of_processes": self._random_of_processes}

    def _restore_own_state(self, content: Mapping[str, Any]) -> None:
        self.steps_by_task = Counter(content["steps_by_task"])

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """The first process writes; where there are others, the checkpoint has each one's random state."""
        if self._processes > 1:
            self._random_of_processes = random_states_of_all()
        if process_number() == 0:
            super()._save_checkpoint(model, trial)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        super()._load_rng_state(checkpoint)
        if self._resume is not None and self._processes > 1:
            states = self._resume.content(STATE_FILE)["own"]["random_of_processes"]
            set_random_state(states[process_number()])

    def _take_best(self) -> None:
        """Not here: the weights of the last step are the result, whatever validation says."""


class _Rise:
    """The encoder's rate relative to its first one: 1, then in as many steps again up to the later factor's."""

    def __init__(self, section: PretrainTrainingSection) -> None:
        self._slow = section.encoder_slow_share * section.steps
        first = section.encoder_learning_rate_factor
        self._end = (section.encoder_late_factor or first) / first

    def __call__(self, step: int) -> float:
        share = 1.0 if self._slow == 0.0 else min(1.0, max(0.0, step / self._slow - 1.0))
        return 1.0 + share * (self._end - 1.0)


def _product(one: Callable[[int], float], other: Callable[[int], float]) -> Callable[[int], float]:
    return lambda step: one(step) * other(step)
