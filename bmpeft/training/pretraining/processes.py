"""Data-parallel pretraining: each process takes its share of every batch, and the result is that of one process.

Started by ``torchrun`` or a launcher that sets the same variables (RANK, WORLD_SIZE, LOCAL_RANK). What makes the
result equal: every process makes the same batches and keeps every n-th row of them; the loss of a step is divided by
the tokens of all shares; BatchNorm normalises by the statistics of all shares. Random numbers of the model itself
(dropout, sampled patches) are each process's own.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.distributed.nn.functional import all_reduce
from torch.utils.data import Sampler
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from bmpeft.errors import UsageError
from bmpeft.training.stopping import StopSignals
from bmpeft.training.training_state import random_content, random_tensors, set_random

Share = list[tuple[int, bool]]
"""Row numbers, and whether a row counts."""


def process_number() -> int:
    """Of this process, from 0; 0 without a launcher."""
    return int(os.environ.get("RANK", "0"))


def process_count() -> int:
    """Of all processes; 1 without a launcher."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def use_own_device() -> None:
    """Let "the GPU" be that of this process, where there are several."""
    if process_count() > 1 and torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))


def require_enough_rows(rows: int, processes: int) -> None:
    """Every process needs an image of its own in a batch. Raises UsageError."""
    if rows < processes:
        raise UsageError(f"training.batch_images={rows}: fewer than the {processes} processes that share a batch")


class SharedBatches(Sampler[Share]):
    """One process's share of each batch: every n-th row. Where none is left, the first row without its loss."""

    def __init__(self, batches: Iterable[list[int]], count: int, *, process: int, processes: int) -> None:
        self._batches, self._count = batches, count
        self._process, self._processes = process, processes

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Share]:
        for batch in self._batches:
            share = batch[self._process :: self._processes]
            yield [(number, True) for number in share] or [(batch[0], False)]


class SharedBatchNorm2d(nn.BatchNorm2d):
    """BatchNorm whose batch in training is that of all processes, on any device (`SyncBatchNorm` needs GPUs)."""

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] to the same; in evaluation mode as `nn.BatchNorm2d`."""
        if not self.training:
            return super().forward(x)
        values = x.float()
        dims = (0, 2, 3)
        count = all_reduce(values.new_tensor(values.numel() / values.shape[1]))
        mean = all_reduce(values.sum(dims)) / count
        centred = values - mean[:, None, None]
        variance = all_reduce(centred.square().sum(dims)) / count
        with torch.no_grad():
            assert self.running_mean is not None
            assert self.running_var is not None
            assert self.momentum is not None
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * count / (count - 1), self.momentum)
            if self.num_batches_tracked is not None:
                self.num_batches_tracked.add_(1)
        scale = self.weight * torch.rsqrt(variance + self.eps)
        return (centred * scale[:, None, None] + self.bias[:, None, None]).to(x.dtype)


class StopTogether(TrainerCallback):
    """`StopAtStep` of several processes: all end with the step in which one of them got a signal."""

    def __init__(self, signals: StopSignals) -> None:
        self._signals = signals

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> TrainerControl:
        highest = torch.tensor(int(self._signals.received or 0), device=args.device)
        distributed.all_reduce(highest, distributed.ReduceOp.MAX)
        if int(highest):
            self._signals.received = signal.Signals(int(highest))
            control.should_save = control.should_training_stop = True
        return control


def random_states_of_all() -> list[dict[str, Any]]:
    """The random generators' states of every process, fit for JSON."""
    tensors = {name: bytes(state.tolist()).hex() for name, state in random_tensors().items()}
    states: list[dict[str, Any]] = [{} for _ in range(process_count())]
    distributed.all_gather_object(states, {"tensors": tensors, "content": random_content()})
    return states


def set_random_state(state: Mapping[str, Any]) -> None:
    """Put this process's generators back."""
    tensors = {
        name: torch.tensor(list(bytes.fromhex(text)), dtype=torch.uint8) for name, text in state["tensors"].items()
    }
    set_random(tensors, state["content"])


def share_statistics(module: nn.Module) -> None:
    """Put a `SharedBatchNorm2d` with the same tensors in the place of every `nn.BatchNorm2d` below a module."""
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm2d):
            replacement = SharedBatchNorm2d(child.num_features, child.eps, device="meta")
            replacement._parameters, replacement._buffers = child._parameters, child._buffers
            replacement.train(child.training)
            setattr(module, name, replacement)
        else:
            share_statistics(child)
