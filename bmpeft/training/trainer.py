"""The sequence-to-sequence trainer: transformers' Trainer on encoded examples, with checkpoints of its own.

What Trainer does: the loop, AdamW, the schedule, clipping, accumulation (the loss of a step is the sum over
its supervised tokens divided by their number, so that every token weighs the same whatever row it is in).
What is here: length-grouped batches, a token-weighted validation loss, accuracy of closed answers, atomic
checkpoints from which a run goes on bit for bit, the best of them at the end, and figures such as tokens per second.

The frozen layers run in training mode, so that the backbone's own dropout is active as in the published
recipes of BiomedGPT; the BatchNorm statistics of its image tower stay frozen with its weights.
"""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainerState
from transformers.trainer import TRAINER_STATE_NAME

from bmpeft.backbones.base import FrozenBackbone
from bmpeft.errors import BmpeftError
from bmpeft.recipe import TrainingSection
from bmpeft.training import training_state
from bmpeft.training.arguments import resolve_precision, training_arguments
from bmpeft.training.batches import EncodedDataset, EpochLoader, LengthGroupedBatches
from bmpeft.training.checkpoints import Checkpoint, CheckpointStore
from bmpeft.training.early_stopping import out_of_patience
from bmpeft.training.ema import AverageAfterStep, MovingAverage
from bmpeft.training.gradients import GradientCheck
from bmpeft.training.linear_loss import linear_cross_entropy
from bmpeft.training.losses import IGNORED_LABEL, make_objective
from bmpeft.training.meter import Meter, Stopwatch
from bmpeft.training.patch_sampling import patch_sampling
from bmpeft.training.stochastic_depth import highest_rate, stochastic_depth
from bmpeft.training.stopping import StopAtStep, StopSignals

TENSORS_FILE = "trainable.safetensors"
AVERAGE_FILE = "average.safetensors"
OPTIMIZER_FILE = "optimizer.safetensors"
RANDOM_FILE = "random.safetensors"
STATE_FILE = "state.json"
TASK_PREFIX = "loss/"
"""Stands in logs before the name of a mixture's task."""


@dataclass(frozen=True, slots=True)
class Validation:
    """The validation split measured after an optimizer step.

    With a moving average `loss` and `accuracy` are those of the averaged tensors, which are the ones that are
    stored; those of the tensors as they were trained stand beside them. `by_task` has the losses of a mixture's tasks.
    """

    step: int
    loss: float
    accuracy: float | None
    loss_without_average: float | None = None
    accuracy_without_average: float | None = None
    by_task: Mapping[str, float] | None = None


class SequenceTrainer(Trainer):
    """Trains the parameters of a model that require gradients on encoded examples.

    Args:
        model: the backbone's model with an adapter attached, see `bmpeft.adaptation`, or with parameters of its own.
        backbone: collates examples.
        section: how to train.
        train_rows: what to learn.
        validation_rows: what to measure; may be empty, then the last step is kept.
        accuracy: measures closed answers with the model as it is; None for open answers.
        checkpoints: where the run's checkpoints go.
        callbacks: what watches the run.
        say: shows the user a line.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        backbone: FrozenBackbone,
        section: TrainingSection,
        train_rows: EncodedDataset,
        validation_rows: EncodedDataset,
        accuracy: Callable[[], float] | None,
        checkpoints: CheckpointStore,
        callbacks: Iterable[TrainerCallback] = (),
        say: Callable[[str], None],
    ) -> None:
        super().__init__(
            model=model,
            args=training_arguments(
                section, checkpoints.directory, backbone.device, use_cache=backbone.model.config.use_cache
            ),
            data_collator=backbone.collate,
            train_dataset=train_rows,
            eval_dataset=validation_rows,
            callbacks=list(callbacks),
        )
        self._signals = StopSignals()
        self.add_callback(StopAtStep(self._signals))
        self.remove_callback(PrinterCallback)
        self.adapted = model
        self.backbone = backbone
        self.section = section
        self.checkpoints = checkpoints
        self.precision = resolve_precision(section.precision, backbone.device)
        self.validations: list[Validation] = []
        self.supervised_tokens = 0
        self._accuracy = accuracy
        self._meter = Meter()
        self._images_in_step = False
        self._loss_sum = 0.0
        self._clock = Stopwatch()
        self._parameters = training_state.trainable(model)
        self._statistics = training_state.learned_statistics(model)
        self._gradients = GradientCheck(
            self._parameters,
            drop_path=highest_rate(backbone, section.drop_path),
            rows=section.batch_size * section.gradient_accumulation,
            images=train_rows.has_images,
            say=say,
        )
        self._objective = make_objective(section, backbone)
        self._average: MovingAverage | None = None
        if section.ema_decay is not None:
            self._average = MovingAverage(self._parameters, section.ema_decay)
            self.add_callback(AverageAfterStep(self._average))
        self._resume: Checkpoint | None = None

    @property
    def total_steps(self) -> int:
        """Optimizer steps of the whole run."""
        if self.section.max_steps is not None:
            return self.section.max_steps
        batches = -(-len(self.train_dataset) // self.section.batch_size)  # type: ignore[arg-type]
        return math.ceil(self.section.epochs * -(-batches // self.section.gradient_accumulation))

    def fit(self, resume: Checkpoint | None = None) -> float:
        """Train, from a checkpoint if there is one, then put the best tensors into the model.

        Returns:
            The mean training loss of all steps, those before the checkpoint included.

        Raises:
            Interrupted: SIGINT or SIGTERM came; a checkpoint of the last whole step is written.
            BmpeftError: the loss is not finite, or a checkpoint cannot be written.
        """
        self._resume = resume
        self._clock.start()
        try:
            with (
                self._signals,
                stochastic_depth(self.backbone, self.section.drop_path),
                patch_sampling(self.backbone, self.section.sample_patch_num),
            ):
                if resume is not None and self._is_over(resume):
                    self._restore_ended(resume)
                else:
                    self.train(resume_from_checkpoint=None if resume is None else str(resume.directory))
                self._signals.raise_if_received(self.state.global_step, self.total_steps)
        finally:
            self._resume = None
            self.backbone.model.activation_checkpointing_disable()
            self.adapted.eval()
        self._take_best()
        return self._loss_sum / max(self.state.global_step, 1)

    @property
    def seconds(self) -> float:
        """How long the training has taken, that before a checkpoint included."""
        return self._clock.seconds()

    @property
    def selected(self) -> Validation | None:
        """The validation of the step whose adapter the model has after `fit`."""
        return next((v for v in self.validations if v.step == self.state.best_global_step), None)

    @property
    def stopped_early(self) -> bool:
        """Whether validation has not become better for too long."""
        return self._out_of_patience(self.validations)

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
        """The batches of one optimizer step, and how many of their supervised tokens count in its loss."""
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        self._images_in_step = any("pixel_values" in batch for batch in batches)
        supervised = [int(batch["labels"].ne(-100).sum()) for batch in batches]
        self.supervised_tokens += sum(supervised)
        self._meter.count(sum(supervised) + sum(int(batch["attention_mask"].sum()) for batch in batches))
        return batches, sum(self._objective.counted(tokens, self.state.global_step) for tokens in supervised)

    def training_step(
        self, model: nn.Module, inputs: dict[str, Tensor | Any], num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        """Forward and backward pass of one batch."""
        loss = super().training_step(model, inputs, num_items_in_batch)
        value = loss.item()
        _require_finite("loss", value, self.state.global_step + 1)
        self._loss_sum += value
        return loss

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor | Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """The objective of one batch, as a share of the whole window's."""
        assert num_items_in_batch is not None
        states, labels = self._states(model, inputs, noisy=True)
        weight = self.backbone.model.get_output_embeddings().weight
        loss = self._objective.loss(states, weight, labels, step=self.state.global_step, total=num_items_in_batch)
        return (loss, None) if return_outputs else loss

    def summed_loss(self, batch: Mapping[str, Tensor]) -> float:
        """Plain cross-entropy of a batch of validation rows, summed over their supervised tokens, in nats."""
        states, labels = self._states(self.adapted, self._prepare_inputs(dict(batch)), noisy=False)
        supervised = labels.ne(IGNORED_LABEL)
        weight = self.backbone.model.get_output_embeddings().weight
        return float(linear_cross_entropy(states[supervised], weight, labels[supervised]).sum())

    def _states(self, model: nn.Module, inputs: Mapping[str, Tensor], *, noisy: bool) -> tuple[Tensor, Tensor]:
        """The decoder's last hidden states [B, T, D] and the labels [B, T]."""
        labels = inputs["labels"]
        bare: Any = self.backbone.model
        decoder_input_ids = inputs.get("decoder_input_ids")
        if decoder_input_ids is None:
            decoder_input_ids = bare.prepare_decoder_input_ids_from_labels(labels)
        if noisy:
            decoder_input_ids = self._objective.with_noise(decoder_input_ids, labels)
        outputs = model(
            **{name: value for name, value in inputs.items() if name not in ("labels", "decoder_input_ids")},
            decoder_input_ids=decoder_input_ids,
            output_logits=False,
        )
        return outputs.decoder_hidden_states[0], labels

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        """Trainer asks for it before each optimizer step: the last moment to look at the gradients."""
        norm = super()._get_grad_norm(model, grad_norm=grad_norm)
        step = self.state.global_step + 1
        _require_finite("gradient's norm", float(norm), step)
        rate = self._bare_optimizer().param_groups[0]["lr"]
        self._gradients.before_step(step, rate, images=self._images_in_step)
        return norm

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
            logs["tokens_per_second"] = self._meter.tokens_per_second()
            logs["supervised_tokens"] = self.supervised_tokens
            logs["seconds_left"] = self._meter.seconds_per_step(step - self._initial_global_step) * (
                self.state.max_steps - step
            )
        super().log(logs, start_time)

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Measure the validation split: token-weighted loss and, for closed answers, accuracy."""
        self.adapted.eval()
        step = self.state.global_step
        with self._meter.paused():
            as_trained = self._measure(step)
            averaged = None
            if self._average is not None:
                with self._average.applied():
                    averaged = self._measure(step)
        measured = averaged or as_trained
        metrics = {f"eval_{name}": value for name, value in measured.items()}
        if averaged is not None:
            metrics |= {f"eval_{name}_without_average": value for name, value in as_trained.items()}
        self.validations.append(_validation(step, metrics))
        self.log(dict(metrics))
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        if self.stopped_early:
            self.control.should_save = self.control.should_training_stop = True
        return metrics

    def _measure(self, step: int) -> dict[str, float]:
        """Loss and, for closed answers, accuracy with the tensors that the model has now."""
        figures = {"loss": self._validation_loss()}
        _require_finite("validation loss", figures["loss"], step)
        if self._accuracy is not None:
            figures["accuracy"] = self._accuracy()
        return figures

    def _validation_loss(self) -> float:
        """Nats per supervised token over the whole validation split."""
        rows = self.eval_dataset
        assert isinstance(rows, EncodedDataset)
        order = sorted(range(len(rows)), key=lambda row: rows[row].source_length, reverse=True)
        total, tokens = 0.0, 0
        with torch.inference_mode(), self.compute_loss_context_manager():
            for start in range(0, len(order), self.section.batch_size):
                examples = [rows[row] for row in order[start : start + self.section.batch_size]]
                total += self.summed_loss(self.backbone.collate(examples))
                tokens += sum(len(example.labels or ()) for example in examples)
        return total / tokens

    # Checkpoints: Trainer says when, what is in them is ours.

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """Write everything that the run needs to go on from this step, bit for bit."""
        from safetensors.torch import save

        optimizer = self._bare_optimizer()
        state = {
            "rates": training_state.optimizer_rates(optimizer),
            "schedule": self.lr_scheduler.state_dict(),  # type: ignore[union-attr]
            "random": training_state.random_content(),
            "validations": [asdict(validation) for validation in self.validations],
            "supervised_tokens": self.supervised_tokens,
            "loss_sum": self._loss_sum,
            "gradients": self._gradients.content(),
            "seconds": self.seconds,
            "own": self._own_state(),
        }
        files = {
            TENSORS_FILE: save(training_state.copies(self._learned())),
            OPTIMIZER_FILE: save(training_state.optimizer_tensors(optimizer, self._parameters)),
            RANDOM_FILE: save(training_state.random_tensors()),
            STATE_FILE: json.dumps(state).encode(),
            TRAINER_STATE_NAME: json.dumps(asdict(self.state)).encode(),
        }
        if self._average is not None:
            files[AVERAGE_FILE] = save(self._average.tensors())
        self.checkpoints.write(self.state.global_step, best_step=self.state.best_global_step, files=files)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        """Tensors, and what was measured until then."""
        assert self._resume is not None
        training_state.set_tensors(self._learned(), self._resume.tensors(TENSORS_FILE))
        state = self._resume.content(STATE_FILE)
        self.validations = [Validation(**validation) for validation in state["validations"]]
        self.supervised_tokens, self._loss_sum = state["supervised_tokens"], state["loss_sum"]
        self._gradients.restore(state["gradients"])
        self._restore_own_state(state["own"])
        self._clock.start(state["seconds"])
        if self._average is not None:
            self._average.restore(self._resume.tensors(AVERAGE_FILE))

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        assert self._resume is not None
        state = self._resume.content(STATE_FILE)
        memory = self._resume.tensors(OPTIMIZER_FILE)
        training_state.set_optimizer(self._bare_optimizer(), self._parameters, memory, state["rates"])
        self.lr_scheduler.load_state_dict(state["schedule"])  # type: ignore[union-attr]

    def _load_rng_state(self, checkpoint: str | None) -> None:
        """Last, after whatever a start draws from the generators."""
        if self._resume is not None:
            training_state.set_random(self._resume.tensors(RANDOM_FILE), self._resume.content(STATE_FILE)["random"])

    def _learned(self) -> dict[str, Tensor]:
        """Parameters and running statistics; buffers are looked up, since modules may exchange theirs."""
        buffers = dict(self.adapted.named_buffers())
        return {**self._parameters, **{name: buffers[name] for name in self._statistics}}

    def _own_state(self) -> dict[str, Any]:
        """What a subclass counts besides, for a checkpoint."""
        return {}

    def _restore_own_state(self, content: Mapping[str, Any]) -> None:
        """From a checkpoint."""

    def _out_of_patience(self, validations: Iterable[Validation]) -> bool:
        if self.section.patience is None:
            return False
        by_accuracy = self.section.select_by == "accuracy"
        figures = [v.accuracy if by_accuracy else v.loss for v in validations]
        return out_of_patience(
            [figure for figure in figures if figure is not None],
            patience=self.section.patience,
            min_delta=self.section.min_delta,
            greater_is_better=by_accuracy,
        )

    def _is_over(self, checkpoint: Checkpoint) -> bool:
        validations = [Validation(**validation) for validation in checkpoint.content(STATE_FILE)["validations"]]
        return checkpoint.step >= self.total_steps or self._out_of_patience(validations)

    def _restore_ended(self, checkpoint: Checkpoint) -> None:
        """A run whose training was over when it was interrupted: nothing is left to train."""
        self._load_from_checkpoint(str(checkpoint.directory))
        self.state = TrainerState.load_from_json(str(checkpoint.directory / TRAINER_STATE_NAME))

    def _take_best(self) -> None:
        """Leave the best step's tensors in the model; with a moving average, its."""
        best = self.state.best_global_step
        if best is not None and best != self.state.global_step:
            file = TENSORS_FILE if self._average is None else AVERAGE_FILE
            training_state.set_tensors(self._parameters, self.checkpoints.read(best).tensors(file))
        elif self._average is not None:
            training_state.set_tensors(self._parameters, self._average.tensors())

    def _bare_optimizer(self) -> torch.optim.Optimizer:
        """Without accelerate's wrapper."""
        optimizer: Any = self.optimizer
        bare: torch.optim.Optimizer = getattr(optimizer, "optimizer", optimizer)
        return bare


def _validation(step: int, metrics: Mapping[str, float]) -> Validation:
    figures = {name.removeprefix("eval_"): value for name, value in metrics.items()}
    of_tasks = {name: figures.pop(name) for name in list(figures) if name.startswith(TASK_PREFIX)}
    by_task = {name.removeprefix(TASK_PREFIX): loss for name, loss in of_tasks.items()}
    return Validation(step, **{"accuracy": None, **figures}, by_task=by_task or None)  # type: ignore[arg-type]


def _require_finite(what: str, value: float, step: int) -> None:
    if not math.isfinite(value):
        raise BmpeftError(
            f"step {step}: the {what} is {value}; a lower training.learning_rate or training.precision=float32 may help"
        )
