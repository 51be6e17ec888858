"""`bmpeft train` with a recipe of `kind: pretrain`: from texts and images to a backbone directory.

Corpus, mixture of rows, model with all parameters trained that the mixture reaches, backbone directory with its
report.
"""

from __future__ import annotations

import json
import math
import os
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from bmpeft.backbones import FrozenBackbone, load_frozen_backbone
from bmpeft.backbones.biomedgpt.backbone import BiomedGPTBackbone
from bmpeft.backbones.biomedgpt.image_tower import STRIDE
from bmpeft.errors import BmpeftError, UsageError
from bmpeft.images.augmentation import Augmentation
from bmpeft.machine import describe_machine, package_versions
from bmpeft.pretrain_recipe import PretrainRecipe, PretrainTrainingSection
from bmpeft.progress import Progress
from bmpeft.recipe import TrainingSection
from bmpeft.training.batches import EncodedDataset
from bmpeft.training.callbacks import EvaluationSchedule, LogCallback, ProgressCallback, RunLog
from bmpeft.training.checkpoints import CheckpointStore, recipe_identity, require_checkpoints
from bmpeft.training.patch_sampling import check_patch_sampling
from bmpeft.training.pretraining.batches import MixtureBatches
from bmpeft.training.pretraining.corpus import Source, read_corpus
from bmpeft.training.pretraining.processes import process_count, process_number, require_enough_rows, use_own_device
from bmpeft.training.pretraining.rows import ImageReading, MixtureRow, MixtureRows, PretrainTask
from bmpeft.training.pretraining.trainer import MixtureDataset, PretrainTrainer
from bmpeft.training.run_directory import set_aside

REPORT_FILE = "pretraining.json"
VALIDATION_ROWS = 100
"""Of each task."""
_VALIDATION_DRAWS = 20_000


@dataclass(frozen=True)
class PretrainOutcome:
    """What a pretraining run left behind."""

    directory: Path
    fingerprint: str
    report: dict[str, Any]


def pretrain(recipe: PretrainRecipe, *, progress: Progress, resume: bool = False) -> PretrainOutcome:
    """Pretrain and store a backbone; `resume` goes on from the last checkpoint of the same recipe.

    Under ``torchrun`` the processes share each batch; the first one alone shows progress and
    writes logs, checkpoints and the backbone.

    Raises:
        UsageError: the directory exists, or there is no checkpoint of this recipe to go on from.
        Interrupted: a signal came; a checkpoint is written.
        DataError: a source is missing or broken.
    """
    use_own_device()
    first = process_number() == 0
    progress = progress if first else Progress(quiet=True)
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
        rows = mixture_rows(sources, backbone, recipe)
        validation = _validation_rows(sources, backbone, recipe)
        bar.advance(1)
    images = any(source.images for source in sources)
    _check_images(rows, recipe, images)
    if images:
        require_enough_rows(recipe.training.batch_images, process_count())
    _open_parameters(backbone, recipe.training.dropout, images)

    batches = MixtureBatches(
        rows,
        batch_tokens=recipe.training.batch_tokens,
        batch_images=recipe.training.batch_images,
        batches=recipe.training.steps,
        seed=recipe.training.seed,
        final=round(recipe.training.final_share * recipe.training.steps),
    )
    identity = {**recipe_identity(recipe.model_dump(mode="json")), "backbone fingerprint": backbone.fingerprint}
    identity["processes"] = str(process_count())
    checkpoints = CheckpointStore(run_directory / "checkpoints", identity)
    checkpoint = checkpoints.latest(progress.line) if resume else None
    if checkpoint is None and first:
        set_aside(run_directory)
        run_directory.mkdir(parents=True)
    trainer = PretrainTrainer(
        backbone.model,
        backbone=backbone,
        section=_training_section(recipe.training),
        train_rows=MixtureDataset(rows, recipe.training.steps),
        validation_rows=EncodedDataset([row.example for row in validation]),
        checkpoints=checkpoints,
        say=progress.line,
        batches=batches,
        validation=validation,
        pretraining=recipe.training,
    )
    steps = range(recipe.training.checkpoint_steps, recipe.training.steps + 1, recipe.training.checkpoint_steps)
    trainer.add_callback(EvaluationSchedule({*steps, recipe.training.steps}, evaluate=bool(validation)))
    log_file = run_directory / "log.jsonl" if first else Path(os.devnull)
    with RunLog(log_file) as log, progress.task("pretraining", total=recipe.training.steps) as bar:
        trainer.add_callback(LogCallback(log))
        trainer.add_callback(ProgressCallback(bar))
        if checkpoint is not None:
            log.write("resume", step=checkpoint.step)
            bar.advance(checkpoint.step)
        trainer.fit(checkpoint)
    backbone.model.config.dropout = fine_tuning_dropout
    return _store(recipe, backbone, sources, rows, trainer, directory)


def mixture_rows(
    sources: Sequence[Source], backbone: FrozenBackbone, recipe: PretrainRecipe, *, augmented: bool = True
) -> MixtureRows:
    """The rows of a recipe's sources; `augmented` images are those that are trained on."""
    reading = None
    if backbone.image_processor is not None:
        side = backbone.image_processor.image_size
        limits = Augmentation(**recipe.training.augmentation.model_dump()) if augmented else None
        reading = ImageReading(side, (side // STRIDE) ** 2, limits)
    return MixtureRows(sources, backbone.tokenizer, recipe.objective, recipe.training.seed, reading)


def _validation_rows(
    sources: Sequence[Source], backbone: BiomedGPTBackbone, recipe: PretrainRecipe
) -> list[MixtureRow]:
    """Up to `VALIDATION_ROWS` of each task, drawn by the weights from what is held out."""
    held = [source.held_out() for source in sources]
    if not any(source.texts or source.questions or source.images for source in held):
        return []
    rows = mixture_rows(held, backbone, recipe, augmented=False)
    of_task: defaultdict[PretrainTask, list[MixtureRow]] = defaultdict(list)
    for number in range(_VALIDATION_DRAWS):
        row = rows.row(number)
        if len(of_task[row.task]) < VALIDATION_ROWS:
            of_task[row.task].append(row)
        if all(len(of_task[task]) >= VALIDATION_ROWS for task in rows.tasks):
            break
    return [row for found in of_task.values() for row in found]


def _check_images(rows: MixtureRows, recipe: PretrainRecipe, images: bool) -> None:
    """Whether `training.sample_patch_num` does anything. Raises UsageError."""
    if recipe.training.sample_patch_num is not None:
        first = next((row for row in map(rows.row, range(_VALIDATION_DRAWS)) if row.example.image), None)
        check_patch_sampling(recipe.training.sample_patch_num, [first.example] if images and first else [])


def _open_parameters(backbone: BiomedGPTBackbone, dropout: float, images: bool) -> None:
    backbone.model.config.dropout = dropout
    fixed = backbone.unreached_parameters(with_images=images)
    for name, parameter in backbone.model.named_parameters():
        parameter.requires_grad_(not name.startswith(fixed))


def _training_section(section: PretrainTrainingSection) -> TrainingSection:
    return TrainingSection(
        learning_rate=section.learning_rate,
        max_steps=section.steps,
        weight_decay=section.weight_decay,
        warmup=section.warmup,
        schedule="cosine",
        max_grad_norm=section.max_grad_norm,
        sample_patch_num=section.sample_patch_num,
        seed=section.seed,
        precision=section.precision,
        logging_steps=section.logging_steps,
        tensorboard=False,
    )


def _store(
    recipe: PretrainRecipe,
    backbone: BiomedGPTBackbone,
    sources: Sequence[Source],
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
            {
                "name": section.name,
                "licence": section.licence,
                "weight": section.weight,
                "final_weight": section.final_weight,
                **asdict(counts),
                "excluded": asdict(source.removed),
            }
            for section, source, counts in zip(recipe.corpus, sources, rows.counts, strict=True)
        ],
        "steps": recipe.training.steps,
        "processes": process_count(),
        "steps_by_task": dict(sorted(trainer.steps_by_task.items())),
        "precision": trainer.precision,
        "supervised_tokens": trainer.supervised_tokens,
        "seconds": round(trainer.seconds, 1),
        "validation_loss": None if last is None or not math.isfinite(last.loss) else last.loss,
        "validation_loss_by_task": None if last is None else last.by_task,
        "machine": describe_machine(),
        "versions": package_versions("torch", "transformers", "accelerate"),
        "fingerprint": trained.fingerprint,
    }
    if process_number() != 0:
        return PretrainOutcome(directory, trained.fingerprint, report)
    temporary = directory.with_name(f".{directory.name}.incomplete")
    temporary.mkdir(parents=True, exist_ok=True)
    trained.save_pretrained(temporary)
    (temporary / REPORT_FILE).write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    temporary.rename(directory)
    return PretrainOutcome(directory, trained.fingerprint, report)
