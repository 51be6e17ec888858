"""`bmpeft train` with a recipe of `kind: pretrain`: from texts to a backbone directory.

Corpus, mixture of rows, model with all text parameters trained, backbone directory with its report.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from bmpeft.backbones import FrozenBackbone, load_frozen_backbone
from bmpeft.backbones.biomedgpt.backbone import BiomedGPTBackbone
from bmpeft.errors import BmpeftError, UsageError
from bmpeft.pretrain_recipe import PretrainRecipe, PretrainTrainingSection
from bmpeft.progress import Progress
from bmpeft.recipe import TrainingSection
from bmpeft.training.batches import EncodedDataset
from bmpeft.training.callbacks import EvaluationSchedule, LogCallback, ProgressCallback, RunLog
from bmpeft.training.checkpoints import CheckpointStore, recipe_identity, require_checkpoints
from bmpeft.training.pretraining.corpus import Source, read_corpus
from bmpeft.training.pretraining.rows import MixtureRows
from bmpeft.training.pretraining.trainer import MixtureBatches, MixtureDataset, PretrainTrainer
from bmpeft.training.run_directory import set_aside

REPORT_FILE = "pretraining.json"
VALIDATION_ROWS = 400
IMAGE_PARAMETERS = (
    "encoder.embed_images.",
    "encoder.image_proj.",
    "encoder.patch_layernorm_embedding.",
    "encoder.embed_image_positions.",
    "encoder.image_pos_ln.",
    "encoder.image_rel_pos_table_list.",
    "decoder.embed_image_positions.",
    "decoder.image_pos_ln.",
    "decoder.image_rel_pos_table_list.",
    "decoder.code_layernorm_embedding.",
)
"""Not reachable from text alone: left as they are."""


@dataclass(frozen=True)
class PretrainOutcome:
    """What a pretraining run left behind."""

    directory: Path
    fingerprint: str
    report: dict[str, Any]


def pretrain(recipe: PretrainRecipe, *, progress: Progress, resume: bool = False) -> PretrainOutcome:
    """Pretrain and store a backbone; `resume` goes on from the last checkpoint of the same recipe.

    Raises:
        UsageError: the directory exists, or there is no checkpoint of this recipe to go on from.
        Interrupted: a signal came; a checkpoint is written.
        DataError: a source is missing or broken.
    """
    directory = Path(recipe.output.directory)
    if directory.exists():
        raise UsageError(f"{directory}: exists; output.directory=... names another one")
    run_directory = Path(recipe.output.runs) / directory.name
    if resume:
        require_checkpoints(run_directory / "checkpoints")

    sources = read_corpus(recipe)
    backbone = load_frozen_backbone(recipe.backbone)
    if not isinstance(backbone, BiomedGPTBackbone):
        raise BmpeftError(f"backbones of family {backbone.family} cannot be pretrained")
    fine_tuning_dropout = backbone.model.config.dropout
    with progress.task("tokenizing", total=1) as bar:
        rows = MixtureRows(sources, backbone.tokenizer, recipe.objective, recipe.training.seed)
        validation = _validation_rows(sources, backbone, recipe)
        bar.advance(1)
    _open_text_parameters(backbone, recipe.training.dropout)

    batches = MixtureBatches(
        rows, batch_tokens=recipe.training.batch_tokens, batches=recipe.training.steps, seed=recipe.training.seed
    )
    identity = {**recipe_identity(recipe.model_dump(mode="json")), "backbone fingerprint": backbone.fingerprint}
    checkpoints = CheckpointStore(run_directory / "checkpoints", identity)
    checkpoint = checkpoints.latest(progress.line) if resume else None
    if checkpoint is None:
        set_aside(run_directory)
        run_directory.mkdir(parents=True)
    trainer = PretrainTrainer(
        backbone.model,
        backbone=backbone,
        section=_training_section(recipe.training),
        train_rows=MixtureDataset(rows, recipe.training.steps),
        validation_rows=EncodedDataset(validation),
        checkpoints=checkpoints,
        say=progress.line,
        batches=batches,
        encoder_rate_factor=recipe.training.encoder_learning_rate_factor,
    )
    steps = range(recipe.training.checkpoint_steps, recipe.training.steps + 1, recipe.training.checkpoint_steps)
    trainer.add_callback(EvaluationSchedule({*steps, recipe.training.steps}, evaluate=bool(validation)))
    with RunLog(run_directory / "log.jsonl") as log, progress.task("pretraining", total=recipe.training.steps) as bar:
        trainer.add_callback(LogCallback(log))
        trainer.add_callback(ProgressCallback(bar))
        if checkpoint is not None:
            log.write("resume", step=checkpoint.step)
            bar.advance(checkpoint.step)
        trainer.fit(checkpoint)
    backbone.model.config.dropout = fine_tuning_dropout
    return _store(recipe, backbone, rows, trainer, directory)


def _validation_rows(sources: Sequence[Source], backbone: FrozenBackbone, recipe: PretrainRecipe) -> list[Any]:
    held = [replace(s, texts=s.held_out_texts, questions=s.held_out_questions) for s in sources]
    if not any(source.texts or source.questions for source in held):
        return []
    rows = MixtureRows(held, backbone.tokenizer, recipe.objective, recipe.training.seed)
    return [rows[number] for number in range(VALIDATION_ROWS)]


def _open_text_parameters(backbone: FrozenBackbone, dropout: float) -> None:
    backbone.model.config.dropout = dropout
    for name, parameter in backbone.model.named_parameters():
        parameter.requires_grad_(not name.startswith(IMAGE_PARAMETERS))


def _training_section(section: PretrainTrainingSection) -> TrainingSection:
    return TrainingSection(
        learning_rate=section.learning_rate,
        max_steps=section.steps,
        weight_decay=section.weight_decay,
        warmup=section.warmup,
        schedule="cosine",
        max_grad_norm=section.max_grad_norm,
        seed=section.seed,
        precision=section.precision,
        logging_steps=section.logging_steps,
        tensorboard=False,
    )


def _store(
    recipe: PretrainRecipe,
    backbone: BiomedGPTBackbone,
    rows: MixtureRows,
    trainer: PretrainTrainer,
    directory: Path,
) -> PretrainOutcome:
    """Write the trained backbone beside its place, with its report, and rename it."""
    trained = backbone.trained(directory.name, getattr(torch, recipe.output.dtype))
    last = trainer.validations[-1] if trainer.validations else None
    report = {
        "recipe": recipe.portable(),
        "recipe_digest": recipe.digest(),
        "sources": [
            {"name": source.name, "licence": source.licence, "weight": source.weight, **asdict(counts)}
            for source, counts in zip(recipe.corpus, rows.counts, strict=True)
        ],
        "steps": recipe.training.steps,
        "precision": trainer.precision,
        "supervised_tokens": trainer.supervised_tokens,
        "seconds": round(trainer.seconds, 1),
        "validation_loss": None if last is None or not math.isfinite(last.loss) else last.loss,
        "fingerprint": trained.fingerprint,
    }
    temporary = directory.with_name(f".{directory.name}.incomplete")
    temporary.mkdir(parents=True, exist_ok=True)
    trained.save_pretrained(temporary)
    (temporary / REPORT_FILE).write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    temporary.rename(directory)
    return PretrainOutcome(directory, trained.fingerprint, report)
