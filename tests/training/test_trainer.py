"""The trainer: what a step's loss is, what stays frozen, which checkpoint is kept, what is reported."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from transformers import TrainerCallback

from bmpeft.adaptation import attach
from bmpeft.adaptation.lora import adapter_tensors
from bmpeft.backbones.base import EncodedExample
from bmpeft.backbones.biomedgpt.backbone import BiomedGPTBackbone
from bmpeft.errors import BmpeftError
from bmpeft.recipe import TrainingSection
from bmpeft.recipe_adaptation import FullSection, LoraSection
from bmpeft.training.batches import EncodedDataset
from bmpeft.training.callbacks import EvaluationSchedule, evaluation_steps
from bmpeft.training.checkpoints import CheckpointStore
from bmpeft.training.trainer import SequenceTrainer
from bmpeft.training.training_state import trainable
from tests.backbones.tiny import tiny_backbone
from tests.training.small import encoded_rows

ROWS = 11  # no multiple of the batch sizes below


class Losses(TrainerCallback):
    """Keeps what Trainer logs of its steps."""

    def __init__(self) -> None:
        self.logs: list[dict[str, float]] = []

    def on_log(self, *args: Any, logs: dict[str, float] | None = None, **kwargs: Any) -> None:
        if logs and "loss" in logs:
            self.logs.append(dict(logs))


def make_trainer(
    directory: Path,
    *,
    backbone: BiomedGPTBackbone | None = None,
    rows: Iterable[EncodedExample] | None = None,
    validation: Iterable[EncodedExample] | None = None,
    accuracy: Callable[[], float] | None = None,
    evaluate_after: Iterable[int] = (),
    lora_dropout: float = 0.0,
    adaptation: FullSection | None = None,
    say: Callable[[str], None] = print,
    **options: Any,
) -> tuple[SequenceTrainer, Losses]:
    """A trainer without any dropout, unless the test says otherwise."""
    backbone = backbone or tiny_backbone(dropout=0.0)
    defaults = {"max_steps": 2, "batch_size": 4, "learning_rate": 1e-2, "warmup": 0.0, "logging_steps": 1}
    options = {**defaults, "precision": "float32", **options}
    losses = Losses()
    train_rows = EncodedDataset(tuple(rows or encoded_rows(backbone, ROWS).encoded))
    section = adaptation or LoraSection(rank=4, dropout=lora_dropout)
    trainer = SequenceTrainer(
        attach(backbone, section, with_images=train_rows.has_images).model,
        backbone=backbone,
        section=TrainingSection(**options),
        train_rows=train_rows,
        validation_rows=EncodedDataset(tuple(validation or encoded_rows(backbone, 5).encoded)),
        accuracy=accuracy,
        checkpoints=CheckpointStore(directory, {}),
        callbacks=[EvaluationSchedule(evaluate_after), losses],
        say=say,
    )
    return trainer, losses


def nats_per_token(backbone: BiomedGPTBackbone, rows: Iterable[EncodedExample]) -> float:
    """The loss by its definition: each row on its own, summed over tokens, divided by their number."""
    total, count = 0.0, 0
    for row in rows:
        assert row.labels is not None
        with torch.inference_mode():
            logits = backbone.model(**backbone.collate([row])).logits[0].double()
        labels = torch.tensor(row.labels)
        total -= float(logits.log_softmax(-1)[torch.arange(len(labels)), labels].sum())
        count += len(labels)
    return total / count


def test_the_loss_weighs_tokens_and_not_rows(tmp_path: Path) -> None:
    backbone = tiny_backbone(dropout=0.0)
    rows = encoded_rows(backbone, ROWS).encoded
    assert len({len(row.labels or ()) for row in rows}) > 1
    expected = nats_per_token(backbone, rows)
    trainer, losses = make_trainer(tmp_path, backbone=backbone, rows=rows, batch_size=ROWS, max_steps=1)
    trainer.fit()
    assert losses.logs[0]["loss"] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_the_validation_loss_is_the_same_in_any_batches(tmp_path: Path, batch_size: int) -> None:
    backbone = tiny_backbone(dropout=0.0)
    rows = encoded_rows(backbone, 7).encoded
    expected = nats_per_token(backbone, rows)
    trainer, _ = make_trainer(tmp_path, backbone=backbone, validation=rows, batch_size=batch_size)
    assert trainer.evaluate()["eval_loss"] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(("batch_size", "accumulation"), [(2, 4), (1, 6), (3, 3), (5, 2), (4, 3)])
def test_accumulation_equals_the_larger_batch_also_in_the_short_last_window(
    tmp_path: Path, batch_size: int, accumulation: int
) -> None:
    """Eleven rows of different lengths: the last window is short, and in it the last batch."""
    results = []
    for name, size, times in (("large", batch_size * accumulation, 1), ("accumulated", batch_size, accumulation)):
        trainer, losses = make_trainer(
            tmp_path / name, batch_size=size, gradient_accumulation=times, max_steps=None, epochs=2.0
        )
        trainer.fit()
        assert trainer.state.global_step == trainer.total_steps == 2 * -(-ROWS // (size * times))
        results.append((adapter_tensors(trainer.adapted), losses.logs))
    (large, large_logs), (accumulated, accumulated_logs) = results
    for name, tensor in large.items():
        torch.testing.assert_close(accumulated[name], tensor, rtol=1e-3, atol=1e-4)  # of steps of 1e-2
    for one, other in zip(large_logs, accumulated_logs, strict=True):
        assert other["loss"] == pytest.approx(one["loss"], rel=1e-5)
        assert other["grad_norm"] == pytest.approx(one["grad_norm"], rel=1e-3)
        assert other["supervised_tokens"] == one["supervised_tokens"]


@pytest.mark.parametrize(
    "options",
    [
        {"max_steps": 3, "epochs": 1.0},
        {"max_steps": None, "epochs": 1.5, "batch_size": 2, "gradient_accumulation": 3},
        {"max_steps": None, "epochs": 0.1},
    ],
)
def test_the_steps_that_are_announced_are_the_steps_that_are_taken(tmp_path: Path, options: dict[str, Any]) -> None:
    trainer, _ = make_trainer(tmp_path, **options)
    announced = trainer.total_steps
    trainer.fit()
    assert trainer.state.global_step == announced


def test_no_tensor_of_the_backbone_changes(tmp_path: Path) -> None:
    backbone = tiny_backbone()
    before = {name: tensor.clone() for name, tensor in backbone.model.state_dict().items()}
    before |= {name: tensor.clone() for name, tensor in backbone.model.named_buffers()}
    cache = backbone.model.config.use_cache
    trainer, _ = make_trainer(tmp_path, backbone=backbone, lora_dropout=0.1)
    fresh = adapter_tensors(trainer.adapted)
    trainer.fit()
    moved = adapter_tensors(trainer.adapted)
    assert all(not torch.equal(fresh[name], moved[name]) for name in moved), "every adapter tensor should have trained"
    model = trainer.adapted.unload()
    after = {**dict(model.state_dict()), **dict(model.named_buffers())}
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert backbone.model.config.use_cache is cache
    assert not backbone.model.training


def test_the_backbone_s_dropout_is_active_in_training_as_in_the_published_recipes(tmp_path: Path) -> None:
    losses = {}
    for dropout in (0.0, 0.1):
        trainer, seen = make_trainer(tmp_path / str(dropout), backbone=tiny_backbone(dropout=dropout), max_steps=1)
        trainer.fit()
        losses[dropout] = seen.logs[0]["loss"]
    assert losses[0.0] != losses[0.1]


def test_activation_checkpointing_recomputes_the_layers_and_gives_the_same_adapter(tmp_path: Path) -> None:
    tensors, calls = [], []
    for checkpointing in (False, True):
        backbone = tiny_backbone(dropout=0.0)
        counted: list[int] = []
        backbone.model.encoder.layers[0].self_attn_layer_norm.register_forward_hook(
            lambda *_, counted=counted: counted.append(1)
        )
        trainer, _ = make_trainer(
            tmp_path / str(checkpointing), backbone=backbone, activation_checkpointing=checkpointing
        )
        trainer.fit()
        tensors.append(adapter_tensors(trainer.adapted))
        calls.append(len(counted))
        assert not backbone.model.is_activation_checkpointing
    assert calls[1] == 2 * calls[0]
    for name, tensor in tensors[0].items():
        torch.testing.assert_close(tensors[1][name], tensor, rtol=1e-5, atol=1e-7)


def test_bfloat16_computes_differently_and_leaves_adapters_and_model_as_they_are(tmp_path: Path) -> None:
    losses = {}
    for precision in ("float32", "bfloat16"):
        trainer, seen = make_trainer(tmp_path / precision, precision=precision, max_steps=1)
        trainer.fit()
        losses[precision] = seen.logs[0]["loss"]
        assert {tensor.dtype for tensor in adapter_tensors(trainer.adapted).values()} == {torch.float32}
        assert "forward" not in vars(trainer.adapted), "Trainer's autocast would stay on the model for good"
    assert losses["bfloat16"] != losses["float32"]
    assert losses["bfloat16"] == pytest.approx(losses["float32"], rel=0.02)


def test_the_best_validation_s_adapter_is_kept(tmp_path: Path) -> None:
    figures = iter([0.2, 0.9, 0.9, 0.3])
    trainer, _ = make_trainer(
        tmp_path,
        accuracy=lambda: next(figures),
        evaluate_after=(1, 2, 3, 4),
        select_by="accuracy",
        max_steps=4,
    )
    trainer.fit()
    assert [validation.accuracy for validation in trainer.validations] == [0.2, 0.9, 0.9, 0.3]
    assert trainer.selected is not None
    assert trainer.selected.step == 2, "of equals the first"
    kept = sorted(path.name for path in tmp_path.iterdir())
    assert kept == ["step-00000002", "step-00000003", "step-00000004"], "the best and the last two"
    best = load_file(tmp_path / "step-00000002" / "trainable.safetensors")
    last = load_file(tmp_path / "step-00000004" / "trainable.safetensors")
    in_model = trainable(trainer.adapted)
    assert all(torch.equal(in_model[name], best[name]) for name in best)
    assert not all(torch.equal(in_model[name], last[name]) for name in last)


def test_selection_by_loss_takes_the_lowest(tmp_path: Path) -> None:
    # A learning rate whose second step ruins what the first gave.
    trainer, _ = make_trainer(tmp_path, evaluate_after=(1, 2), learning_rate=1.0, schedule="constant")
    trainer.fit()
    losses = [validation.loss for validation in trainer.validations]
    assert trainer.selected is not None
    assert trainer.selected.loss == min(losses) < losses[-1]
    assert trainer.evaluate()["eval_loss"] == pytest.approx(min(losses), rel=1e-6)


def test_without_validation_rows_the_last_step_is_kept(tmp_path: Path) -> None:
    trainer, _ = make_trainer(tmp_path)
    trainer.fit()
    assert trainer.selected is None
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000002"]


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path: Path) -> None:
    trainer, _ = make_trainer(tmp_path)
    with torch.no_grad():
        next(p for p in trainer.adapted.parameters() if p.requires_grad).fill_(float("nan"))
    with pytest.raises(BmpeftError, match=r"step 1: the loss is nan; a lower training\.learning_rate"):
        trainer.fit()


def test_steps_report_speed_and_what_is_left(tmp_path: Path) -> None:
    trainer, losses = make_trainer(tmp_path, max_steps=3)
    trainer.fit()
    assert [log["seconds_left"] > 0 for log in losses.logs] == [True, True, False]
    assert all(log["tokens_per_second"] > 0 for log in losses.logs)
    supervised = [log["supervised_tokens"] for log in losses.logs]
    assert supervised == sorted(supervised)
    assert supervised[-1] == sum(len(row.labels or ()) for row in encoded_rows(tiny_backbone(), ROWS).encoded)
    assert [log["learning_rate"] for log in losses.logs] == pytest.approx([1e-2, 2e-2 / 3, 1e-2 / 3])


@given(st.integers(1, 500), st.integers(1, 60))
def test_evaluations_are_spread_evenly_and_end_with_the_run(total: int, evaluations: int) -> None:
    steps = evaluation_steps(total, evaluations=evaluations)
    assert len(set(steps)) == len(steps) == min(total, evaluations)
    assert steps[0] >= 1
    assert steps[-1] == total
    gaps = [b - a for a, b in zip((0, *steps), steps, strict=False)]
    assert max(gaps) - min(gaps) <= 1


def test_every_epoch_has_every_row_in_another_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    backbone = tiny_backbone(dropout=0.0)
    rows = encoded_rows(backbone, ROWS).encoded
    seen: list[EncodedExample] = []
    original = backbone.collate

    def spy(examples: list[EncodedExample]) -> dict[str, torch.Tensor]:
        seen.extend(examples)
        return original(examples)

    monkeypatch.setattr(backbone, "collate", spy)
    trainer, _ = make_trainer(tmp_path, backbone=backbone, rows=rows, max_steps=None, epochs=2.0)
    trainer.fit()
    first, second = seen[:ROWS], seen[ROWS:]
    assert sorted(map(rows.index, first)) == sorted(map(rows.index, second)) == list(range(ROWS))
    assert first != second
