"""transformers' and trl's own trainers take the model as it is, and their loss is the model's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from transformers import Seq2SeqTrainer, Seq2SeqTrainingArguments, Trainer
from trl import SFTConfig, SFTTrainer

from tests.backbones.tiny import tiny_backbone, tiny_model

ROWS = [
    {"input_ids": [0, 10, 11, 2], "attention_mask": [1, 1, 1, 1], "labels": [5, 2, -100]},
    {"input_ids": [0, 12, 2, 1], "attention_mask": [1, 1, 1, 0], "labels": [6, 7, 2]},
    {"input_ids": [0, 13, 14, 2], "attention_mask": [1, 1, 1, 1], "labels": [8, -100, -100]},
    {"input_ids": [0, 15, 2, 1], "attention_mask": [1, 1, 1, 0], "labels": [9, 2, -100]},
]


def collate(rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    return {name: torch.tensor([row[name] for row in rows]) for name in ROWS[0]}


def arguments(directory: Path, batch_size: int, accumulation: int) -> dict[str, Any]:
    return {
        "output_dir": str(directory),
        "per_device_train_batch_size": batch_size,
        "per_device_eval_batch_size": 2,
        "gradient_accumulation_steps": accumulation,
        "max_steps": 2,
        "learning_rate": 1e-2,
        "optim": "sgd",
        "use_cpu": True,
        "save_strategy": "no",
        "disable_tqdm": True,
        "report_to": "none",
        "remove_unused_columns": False,
        "seed": 0,
    }


def trained(directory: Path, batch_size: int, accumulation: int) -> dict[str, torch.Tensor]:
    """Weights after two steps of plain SGD, which no rescaling of the gradient leaves unnoticed."""
    model = tiny_model(dropout=0.0)
    trainer = Seq2SeqTrainer(
        model,
        Seq2SeqTrainingArguments(**arguments(directory, batch_size, accumulation), predict_with_generate=True),
        data_collator=collate,
        train_dataset=Dataset.from_list(ROWS),
    )
    trainer.train()
    predictions = trainer.predict(Dataset.from_list(ROWS), max_new_tokens=4).predictions
    assert predictions.shape[0] == len(ROWS)
    return {name: parameter.detach() for name, parameter in model.named_parameters()}


def test_seq2seq_trainer_accumulates_to_the_larger_batch(tmp_path: Path) -> None:
    whole, parts = trained(tmp_path, 4, 1), trained(tmp_path, 1, 4)
    start = dict(tiny_model().named_parameters())
    moved = 0.0
    for name, tensor in whole.items():
        torch.testing.assert_close(parts[name], tensor, atol=1e-6, rtol=1e-4)
        moved = max(moved, float((tensor - start[name]).detach().abs().max()))
    assert moved > 1e-4


class Seq2SeqSFTTrainer(SFTTrainer):  # type: ignore[misc]
    """trl's trainer without its causal loss, which shifts the labels."""

    def _set_signature_columns_if_needed(self) -> None:
        self._signature_columns = list(ROWS[0])

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        return Trainer.compute_loss(self, model, inputs, return_outputs, num_items_in_batch)


@pytest.mark.filterwarnings("ignore")
def test_trl_takes_the_model(tmp_path: Path) -> None:
    model = tiny_model(dropout=0.0)
    config = SFTConfig(
        **arguments(tmp_path, 2, 1),
        dataset_kwargs={"skip_prepare_dataset": True},
        max_length=None,
        bf16=False,
        activation_checkpointing=False,
    )
    trainer = Seq2SeqSFTTrainer(
        model,
        config,
        data_collator=collate,
        train_dataset=Dataset.from_list(ROWS),
        processing_class=tiny_backbone().tokenizer,
    )
    batch = collate(ROWS)
    with torch.no_grad():
        torch.testing.assert_close(trainer.compute_loss(model, dict(batch)), model(**batch).loss, atol=1e-6, rtol=0)
    trainer.train()
    assert trainer.state.global_step == 2
