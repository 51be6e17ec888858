"""`bmpeft bench step`: one LoRA step of a whole model of a size: forward pass, loss, backward pass, AdamW.

Weights are random (times and memory do not depend on them), rows are of full length. Memory is what the step holds at
once beyond model and optimizer. How is measured: `bmpeft.benchmarks.measure`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from peft import PeftModel

from bmpeft.adaptation import attach
from bmpeft.backbones import load_frozen_backbone
from bmpeft.benchmarks.attention import check_options
from bmpeft.benchmarks.measure import measure_in_turns
from bmpeft.benchmarks.rows import device_columns, make_row
from bmpeft.errors import UsageError
from bmpeft.progress import Progress
from bmpeft.recipe import BackboneSection
from bmpeft.recipe_adaptation import LoraSection
from bmpeft.training.linear_loss import linear_cross_entropy

LOSSES = ("matrix", "chunked")


def bench_step(
    *,
    size: str,
    backends: Sequence[str],
    dtypes: Sequence[str],
    losses: Sequence[str],
    checkpointing: bool,
    source: int,
    target: int,
    batch: int,
    repeats: int,
    progress: Progress,
) -> tuple[dict[str, Any], ...]:
    """Rows of a step with each attention backend, number type (of the computation) and loss.

    Raises:
        UsageError: there is no such size, backend, number type or loss.
    """
    check_options(backends, dtypes)
    for loss in losses:
        if loss not in LOSSES:
            raise UsageError(f"--loss {loss}: not one of {', '.join(LOSSES)}")
    rows = []
    cases = [(backend, dtype, loss) for dtype in dtypes for backend in backends for loss in losses]
    with progress.task("measuring", total=len(cases)) as bar:
        for backend, dtype, loss in cases:
            call, heads, head_dim = _step(size, backend, dtype, loss, checkpointing, source, target, batch)
            name = f"biomedgpt-{size} LoRA, target {target}, loss {loss}" + (", checkpointing" if checkpointing else "")
            case: dict[str, Any] = {"benchmark": "step", "case": name, "dtype": dtype, "pass": "step", "batch": batch}
            case |= {"length": source, "heads": heads, "head_dim": head_dim}
            rows += [make_row(case, device_columns(), found) for found in measure_in_turns({backend: call}, repeats)]
            bar.advance(1)
    return tuple(rows)


def _step(
    size: str, backend: str, dtype: str, loss: str, recomputed: bool, source: int, target: int, batch: int
) -> tuple[Callable[[], None], int, int]:
    """A step of a fresh model, and its heads and their dimension."""
    section = BackboneSection.model_validate({"name": f"biomedgpt-{size}", "init": "random", "attention": backend})
    backbone = load_frozen_backbone(section)
    model: Any = backbone.model
    if max(source, target) > model.max_text_positions:
        model.extend_positions(max(source, target))
    adapted = attach(backbone, LoraSection()).model
    if recomputed:
        model.activation_checkpointing_enable()
    adapted.train()
    trained = [parameter for parameter in adapted.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4)
    generator = torch.Generator().manual_seed(0)
    ids, labels = (torch.randint(4, 8000, (batch, length), generator=generator) for length in (source, target))

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == "bfloat16"):
            _loss(adapted, model, ids, labels, loss).backward()
        optimizer.step()
        optimizer.zero_grad()

    config = model.config
    return step, config.encoder_attention_heads, config.d_model // config.encoder_attention_heads


def _loss(adapted: PeftModel, model: Any, ids: torch.Tensor, labels: torch.Tensor, loss: str) -> torch.Tensor:
    given = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if loss == "matrix":
        result: torch.Tensor = adapted(**given, labels=labels).loss
        return result
    decoder_input_ids = model.prepare_decoder_input_ids_from_labels(labels)
    outputs = adapted(**given, decoder_input_ids=decoder_input_ids, output_logits=False)
    states = outputs.decoder_hidden_states[0].flatten(0, 1)
    return linear_cross_entropy(states, model.get_output_embeddings().weight, labels.flatten()).mean()
