"""`bmpeft train`: from a recipe to an adapter with its score card.

    dataset -> backbone -> task -> token ids -> adapter attached -> trained -> artifact -> evaluated

What cannot work is refused before anything is loaded. The artifact is written before the evaluation, so
that nothing of the training is lost if that fails. Nothing that was there is touched until then.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from bmpeft.adaptation import Attached, attach, count_parameters, method_of
from bmpeft.adapters.artifact import Artifact, check_writable, save_artifact, update_score_card
from bmpeft.adapters.canary import record_canary
from bmpeft.adapters.manifest import DataOrigin, Limits, TrainingSummary
from bmpeft.attention import describe_choices
from bmpeft.backbones import FrozenBackbone, load_frozen_backbone
from bmpeft.datasets import LoadedDataset, read_dataset
from bmpeft.datasets.contamination import find_contamination
from bmpeft.datasets.leakage import Leakage, find_leakage, images_in, require_no_leakage
from bmpeft.datasets.splits import first_of_shuffle, with_balanced_labels
from bmpeft.errors import RecipeError
from bmpeft.evaluation.kept import RunStore, kept_directory
from bmpeft.evaluation.metrics import fixed_labels
from bmpeft.evaluation.run import answers_identity, check_evaluation, evaluate, trained_on
from bmpeft.evaluation.score_card import ScoreCard, to_markdown
from bmpeft.progress import Progress
from bmpeft.recipe import Recipe, TrainingSection, match_splits
from bmpeft.records import Record
from bmpeft.tasks import Task, make_task, predict_examples, spell_out_answers
from bmpeft.training.batches import EncodedDataset, training_rows
from bmpeft.training.callbacks import (
    EvaluationSchedule,
    LogCallback,
    ProgressCallback,
    RunLog,
    TensorBoardCallback,
    evaluation_steps,
)
from bmpeft.training.checkpoints import Checkpoint, CheckpointStore, recipe_identity, require_checkpoints
from bmpeft.training.encoding import EncodedSplit, encode_split
from bmpeft.training.patch_sampling import check_patch_sampling
from bmpeft.training.run_directory import MEBIBYTE, require_room, set_aside
from bmpeft.training.trainer import SequenceTrainer

LOG_FILE = "log.jsonl"
CHECKPOINTS = "checkpoints"
_ROOM_AT_START = 64 * MEBIBYTE
_COPIES_ON_DISK = 14  # four checkpoints while one is written, each with two moments; the artifact and its predecessor


@dataclass(frozen=True)
class TrainOutcome:
    """What a training run left behind."""

    directory: Path
    log: Path
    score_card: ScoreCard
    summary: TrainingSummary
    untrained_backbone: bool
    contamination: str | None
    leakage: Leakage

    @property
    def seconds(self) -> float:
        return self.summary.seconds

    @property
    def trainable_parameters(self) -> int:
        return self.summary.trainable_parameters


def train(recipe: Recipe, *, recipe_name: str, progress: Progress, resume: bool = False) -> TrainOutcome:
    """Train, store and evaluate the adapter of a recipe; `resume` goes on from the run's last checkpoint.

    Raises:
        UsageError: the recipe asks for a split that the dataset does not have, or there is no checkpoint of
            this recipe to go on from.
        Interrupted: a signal came during training; a checkpoint is written.
        ArtifactError: the adapter exists and may not be overwritten.
        BmpeftError: another failure, in one line; what was there before is unchanged.
    """
    directory = Path(recipe.output.directory) / recipe.output.name
    run_directory = Path(recipe.output.runs) / recipe.output.name
    check_writable(directory, overwrite=recipe.output.overwrite)
    if resume:
        require_checkpoints(run_directory / CHECKPOINTS)
    require_room(directory.parent, _ROOM_AT_START)
    require_room(run_directory.parent, _ROOM_AT_START)

    task = make_task(recipe.task, recipe.data.dataset)
    dataset = read_dataset(recipe.data, recipe.task.name)
    train_records, validation_records = _training_records(recipe, dataset)
    task = make_task(spell_out_answers(task, train_records), recipe.data.dataset)
    check_evaluation(task, dataset, recipe.evaluation, train_records)
    leakage = _leakage(recipe, dataset, train_records, progress)
    backbone = load_frozen_backbone(recipe.backbone)
    origin = _origin(dataset, train_records, validation_records, leakage)
    _announce(backbone, origin, dataset.skipped_rows, progress)

    taught = train_records
    if recipe.data.balance_labels:
        taught = with_balanced_labels(train_records, recipe.data.split.seed)
    train_split = _encode(recipe, backbone, task, taught, progress)
    check_patch_sampling(recipe.training.sample_patch_num, train_split.encoded)
    rows = _training_rows(recipe, backbone, train_split)
    validation_split = _encode(recipe, backbone, task, validation_records, progress)
    attached = attach(backbone, recipe.adaptation, with_images=train_split.has_images, seed=recipe.training.seed)
    for remark in method_of(recipe.adaptation).remarks(attached, backbone):
        progress.line(remark)
    tensor_bytes = 4 * count_parameters(attached.model)[0]
    require_room(directory.parent, _COPIES_ON_DISK * tensor_bytes + _ROOM_AT_START)
    require_room(run_directory.parent, _COPIES_ON_DISK * tensor_bytes + _ROOM_AT_START)

    identity = {
        **recipe_identity(recipe.model_dump(mode="json")),
        "backbone fingerprint": backbone.fingerprint,
        "training rows": dataset.split_digests["train"],
    }
    checkpoints = CheckpointStore(run_directory / CHECKPOINTS, identity)
    checkpoint = checkpoints.latest(progress.line) if resume else None
    if checkpoint is None:
        set_aside(run_directory)
        run_directory.mkdir(parents=True)
    summary = _fit(
        recipe, backbone, attached, task, train_split, rows, validation_split, checkpoints, checkpoint, progress
    )
    artifact = save_artifact(
        directory,
        backbone=backbone,
        recipe=recipe,
        recipe_name=recipe_name,
        task=task.section(),
        data=origin,
        limits=_limits(recipe, train_split),
        with_images=train_split.has_images,
        training=summary,
        canary=record_canary(backbone, attached),
        tensors=attached.tensors(),
        overwrite=recipe.output.overwrite,
    )
    progress.line(f"adapter written to {artifact.directory}")
    card = _evaluate(recipe, backbone, attached, task, dataset, train_records, artifact, leakage, progress)
    update_score_card(artifact.directory, card.model_dump(mode="json"), markdown=to_markdown(card))
    return TrainOutcome(
        directory=artifact.directory,
        log=run_directory / LOG_FILE,
        score_card=card,
        summary=summary,
        untrained_backbone=backbone.init == "random",
        contamination=origin.contamination.get("train"),
        leakage=leakage,
    )


def _training_records(recipe: Recipe, dataset: LoadedDataset) -> tuple[tuple[Record, ...], tuple[Record, ...]]:
    match_splits(recipe.evaluation.splits, dataset.splits)
    train_records = dataset.splits.get("train", ())
    if not train_records:
        raise RecipeError(f"data.path: dataset {dataset.name} has no training rows here")
    validation_records = dataset.splits.get("validation", ())
    if recipe.training.select_by == "accuracy" and not validation_records:
        raise RecipeError("training.select_by=accuracy needs validation rows (data.split.validation)")
    if recipe.training.patience is not None and not validation_records:
        raise RecipeError("training.patience needs validation rows (data.split.validation)")
    return first_of_shuffle(train_records, recipe.data.train_rows, recipe.data.split.seed), validation_records


def _leakage(recipe: Recipe, dataset: LoadedDataset, train_records: tuple[Record, ...], progress: Progress) -> Leakage:
    """What the other splits share with the rows that are trained on; refuses a leak that the recipe does not accept."""
    others = {split: records for split, records in dataset.splits.items() if split != "train"}
    with progress.task("looking for leakage", total=images_in(train_records, others)) as bar:
        leakage = find_leakage(
            train_records,
            others,
            scored=match_splits(recipe.evaluation.splits, dataset.splits),
            on_image=lambda: bar.advance(1),
        )
    require_no_leakage(leakage, dataset.name, accept=recipe.data.accept_leakage)
    for line in leakage.lines():
        progress.line(f"overlap with training rows: {line}")
    return leakage


def _announce(backbone: FrozenBackbone, origin: DataOrigin, skipped_rows: int, progress: Progress) -> None:
    """Say before the long work what its result will be worth."""
    if backbone.init == "random":
        progress.line(f"backbone {backbone.name}: untrained (random weights, seed {backbone.init_seed})")
    if origin.synthetic:
        progress.line(f"dataset {origin.dataset}: synthetic")
    if "train" in origin.contamination:
        progress.line(f"contaminated: {origin.contamination['train']}")
    if skipped_rows:
        progress.line(f"{skipped_rows:,} bad rows left out; `bmpeft data check` names them")
    if not origin.validation_rows:
        progress.line("no validation rows: the adapter of the last step is kept")


def _attention_lines(backbone: FrozenBackbone, split: EncodedSplit) -> tuple[str, ...]:
    """What computes the attention of the split's longest source and target."""
    source = max(row.source_length for row in split.encoded)
    target = max(len(row.labels or ()) + len(row.decoder_prefix) for row in split.encoded)
    return describe_choices(backbone.attention_layers(source, target))


def _encode(
    recipe: Recipe, backbone: FrozenBackbone, task: Task, records: tuple[Record, ...], progress: Progress
) -> EncodedSplit:
    return encode_split(
        backbone,
        task,
        records,
        max_source_length=recipe.data.max_source_length,
        max_target_length=recipe.data.max_target_length,
        progress=progress,
    )


def _training_rows(recipe: Recipe, backbone: FrozenBackbone, split: EncodedSplit) -> EncodedDataset:
    """See `bmpeft.training.batches.training_rows`."""
    processor, section = backbone.image_processor, recipe.training
    side = None if processor is None else processor.image_size
    return training_rows(split.encoded, section.augmentation, side=side, seed=section.seed)


def _fit(
    recipe: Recipe,
    backbone: FrozenBackbone,
    attached: Attached,
    task: Task,
    train_split: EncodedSplit,
    rows: EncodedDataset,
    validation_split: EncodedSplit,
    checkpoints: CheckpointStore,
    resume: Checkpoint | None,
    progress: Progress,
) -> TrainingSummary:
    """Train the attached adapter and leave the best one in the model."""
    section = recipe.training
    run_directory = checkpoints.directory.parent
    trainable, total = count_parameters(attached.model)
    trainer = SequenceTrainer(
        attached.model,
        backbone=backbone,
        section=section,
        train_rows=rows,
        validation_rows=EncodedDataset(validation_split.encoded),
        accuracy=_accuracy_of(recipe, backbone, attached, task, validation_split, progress),
        checkpoints=checkpoints,
        say=progress.line,
    )
    steps = trainer.total_steps
    with RunLog(run_directory / LOG_FILE) as log, progress.task("training", total=steps) as bar:
        log.write(
            "start",
            recipe_digest=recipe.digest(),
            backbone=backbone.fingerprint,
            train_rows=len(train_split.encoded),
            validation_rows=len(validation_split.encoded),
            rows_cut=train_split.rows_cut,
            document_tokens_cut=train_split.document_tokens_cut,
            steps=steps,
            trainable_parameters=trainable,
            precision=trainer.precision,
            attention=_attention_lines(backbone, train_split),
        )
        if resume is not None:
            log.write("resume", step=resume.step)
            bar.advance(resume.step)
            progress.line(f"going on from {resume.directory}")
        trainer.add_callback(EvaluationSchedule(_schedule(steps, section, validation_split)))
        trainer.add_callback(LogCallback(log))
        trainer.add_callback(ProgressCallback(bar))
        with _tensorboard(trainer, run_directory, enabled=section.tensorboard):
            train_loss = trainer.fit(resume)
        seconds = trainer.seconds
        steps = trainer.state.global_step
        if trainer.stopped_early:
            progress.line(f"stopped early after step {steps} of {trainer.total_steps}")
        selected = trainer.selected
        selected_step = steps if selected is None else selected.step
        log.write(
            "end",
            steps=steps,
            stopped_early=trainer.stopped_early,
            selected_step=selected_step,
            loss=train_loss,
            seconds=seconds,
        )
    return TrainingSummary(
        seed=section.seed,
        device=backbone.device.type,
        precision=trainer.precision,
        steps=steps,
        epochs=float(trainer.state.epoch or 0.0),
        seconds=seconds,
        supervised_tokens=trainer.supervised_tokens,
        trainable_parameters=trainable,
        total_parameters=total,
        train_loss=train_loss,
        selected_step=selected_step,
        selected_by=_selected_by(section, selected is not None),
        validation_loss=selected.loss if selected else None,
        validation_accuracy=selected.accuracy if selected else None,
    )


def _selected_by(section: TrainingSection, validated: bool) -> str:
    what = f"validation {section.select_by}" if validated else "last step (no validation rows)"
    return what if section.ema_decay is None else f"{what}, moving average of the tensors (EMA {section.ema_decay})"


def _schedule(steps: int, section: TrainingSection, validation_split: EncodedSplit) -> tuple[int, ...]:
    if not validation_split.encoded:
        return ()
    return evaluation_steps(steps, evaluations=section.evaluations, every=section.evaluate_every)


def _accuracy_of(
    recipe: Recipe,
    backbone: FrozenBackbone,
    attached: Attached,
    task: Task,
    split: EncodedSplit,
    progress: Progress,
) -> Callable[[], float] | None:
    """How to measure the accuracy of closed answers with the model as it is; None for open answers."""
    if task.decoding.method != "candidates":
        return None

    def accuracy() -> float:
        with progress.task("validating", total=len(split.examples)) as bar:
            predictions = predict_examples(
                backbone,
                attached.model,
                split.examples,
                task.decoding,
                batch_size=recipe.evaluation.batch_size,
                max_source_length=recipe.data.max_source_length,
                on_progress=bar.advance,
            )
        pairs = zip(predictions, split.examples, strict=True)
        return sum(prediction.choice == example.record.label for prediction, example in pairs) / len(predictions)

    return accuracy


@contextmanager
def _tensorboard(trainer: SequenceTrainer, run_directory: Path, *, enabled: bool) -> Iterator[None]:
    if not enabled:
        yield
        return
    callback = TensorBoardCallback(run_directory / "tensorboard")
    trainer.add_callback(callback)
    try:
        yield
    finally:
        callback.close()


def _origin(
    dataset: LoadedDataset,
    train_records: tuple[Record, ...],
    validation_records: tuple[Record, ...],
    leakage: Leakage,
) -> DataOrigin:
    """Where the rows came from; of the training split only those count that were trained on."""
    names, counts = dict(dataset.contamination), dict(dataset.contamination_counts)
    if "train" in names:
        del names["train"], counts["train"]
        found = find_contamination(train_records)
        if found is not None:
            names["train"], counts["train"] = found.name, found.rows
    return DataOrigin(
        dataset=dataset.name,
        licence=dataset.licence,
        synthetic=dataset.synthetic,
        split_method=dataset.split_method,
        split_digests=dict(dataset.split_digests),
        contamination=names,
        contaminated_rows=counts,
        train_rows=len(train_records),
        validation_rows=len(validation_records),
        choices=fixed_labels(train_records),
        leakage=leakage,
    )


def _limits(recipe: Recipe, split: EncodedSplit) -> Limits:
    return Limits(
        max_source_length=recipe.data.max_source_length,
        max_target_length=recipe.data.max_target_length,
        rows_cut=split.rows_cut,
        document_tokens_cut=split.document_tokens_cut,
    )


def _evaluate(
    recipe: Recipe,
    backbone: FrozenBackbone,
    attached: Attached,
    task: Task,
    dataset: LoadedDataset,
    train_records: tuple[Record, ...],
    artifact: Artifact,
    leakage: Leakage,
    progress: Progress,
) -> ScoreCard:
    """Evaluate the very model that was trained."""
    with torch.inference_mode():
        return evaluate(
            backbone,
            attached.model,
            adapter=artifact.name,
            task=task,
            dataset=dataset,
            evaluation=recipe.evaluation,
            max_source_length=recipe.data.max_source_length,
            seed=recipe.training.seed,
            trained_on=trained_on(artifact.manifest.data),
            leakage=leakage,
            without_adapter=attached.disabled,
            progress=progress,
            balance_labels=recipe.data.balance_labels,
            train_records=train_records,
            store=RunStore(kept_directory(recipe.output), artifact.digest, answers_identity(recipe.backbone)),
        )
