"""Evaluation: a model on the splits of a dataset, beside its controls, to a score card."""

from __future__ import annotations

import platform
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from typing import TYPE_CHECKING, Any

from bmpeft.errors import BmpeftError
from bmpeft.evaluation.controls import fitting_controls
from bmpeft.evaluation.metrics import accepted_answers
from bmpeft.evaluation.score_card import BackboneStamp, ScoreCard, TrainedOn
from bmpeft.evaluation.split_run import MeasuredSplit, SplitRun, WithoutAdapter
from bmpeft.recipe import match_splits
from bmpeft.recipe_decoding import without_answers

if TYPE_CHECKING:
    from bmpeft.adapters.manifest import DataOrigin
    from bmpeft.backbones.base import FrozenBackbone
    from bmpeft.datasets import LoadedDataset
    from bmpeft.datasets.leakage import Leakage
    from bmpeft.evaluation.kept import RunStore
    from bmpeft.progress import Progress
    from bmpeft.recipe import BackboneSection, EvaluationSection
    from bmpeft.recipe_controls import ControlName
    from bmpeft.records import Record
    from bmpeft.tasks import Task

OnSplit = Callable[[MeasuredSplit], None]


def evaluate(
    backbone: FrozenBackbone,
    model: Any,
    *,
    adapter: str | None,
    task: Task,
    dataset: LoadedDataset,
    evaluation: EvaluationSection,
    max_source_length: int,
    seed: int,
    trained_on: TrainedOn | None,
    leakage: Leakage | None = None,
    without_adapter: WithoutAdapter | None,
    progress: Progress,
    train_records: Sequence[Record] | None = None,
    balance_labels: bool = False,
    store: RunStore | None = None,
    on_split: OnSplit | None = None,
) -> ScoreCard:
    """Measure a model.

    Args:
        backbone: gives tokens and scores.
        model: the backbone's model, bare or adapted.
        adapter: name of the active adapter; None for the bare backbone.
        task: makes the examples; with its decoding and the rows it decides the metrics.
        dataset: has the splits of `evaluation.splits`.
        evaluation: splits, limit, controls and bootstrap of the recipe.
        max_source_length: tokens.
        seed: of the shuffle behind `evaluation.limit`, of the bootstrap and of the controls that draw.
        trained_on: the rows that the adapter was trained on; None for the bare backbone.
        leakage: what its splits share with those rows; None: not known.
        without_adapter: a context in which `model` is the bare backbone, for the control frozen_backbone.
            Without an adapter that control would compare the model with itself; it is left out then.
        progress: shows the passes over the rows.
        train_records: the rows that controls learn from; default: the training split.
        balance_labels: whether the model was taught every label equally often; the control classic is then, too.
        store: where finished answers and the values of rows are kept; None: nowhere.
        on_split: gets each split's rows, answers and figures, which no card ever holds.

    Raises:
        UsageError: a split that the dataset does not have, or a control that cannot be made.
        BmpeftError: a row without an answer to compare with; names split and row.
    """
    train = dataset.splits.get("train", ()) if train_records is None else train_records
    controls = check_evaluation(task, dataset, evaluation, train)
    run = SplitRun(
        backbone=backbone,
        model=model,
        adapter=adapter,
        task=task,
        dataset=dataset,
        evaluation=evaluation,
        controls=tuple(name for name in controls if name != "frozen_backbone" or adapter is not None),
        train=train,
        balance_labels=balance_labels,
        max_source_length=max_source_length,
        seed=seed,
        without_adapter=without_adapter,
        progress=progress,
        store=store,
    )
    results = []
    for split in match_splits(evaluation.splits, dataset.splits):
        measured = run.measure(split)
        results.append(measured.result)
        if on_split is not None:
            on_split(measured)
    return ScoreCard(
        task=task.name,
        prompt=task.prompt,
        decoding=without_answers(task.decoding),
        dataset=dataset.name,
        synthetic=dataset.synthetic,
        split_method=dataset.split_method,
        skipped_rows=dataset.skipped_rows,
        limit=evaluation.limit,
        results=tuple(results),
        backbone=BackboneStamp.of(backbone),
        adapter=adapter,
        trained_on=trained_on,
        leakage=None if leakage is None else leakage.of([result.split for result in results]),
        max_source_length=max_source_length,
        seed=seed,
        bootstrap_samples=evaluation.bootstrap_samples,
        versions=_versions(),
    )


def check_evaluation(
    task: Task, dataset: LoadedDataset, evaluation: EvaluationSection, train: Sequence[Record]
) -> tuple[ControlName, ...]:
    """The controls that `evaluate` will run; refuses what it would refuse, for callers with long work before it.

    Raises:
        UsageError: a split that the dataset does not have, or a control that cannot be made.
        BmpeftError: a row without an answer to compare with; names split and row.
    """
    splits = {name: dataset.splits[name] for name in match_splits(evaluation.splits, dataset.splits)}
    closed = task.decoding.method == "candidates"
    for split, rows in splits.items():
        unknown = next((r for r in rows if (r.label is None if closed else not accepted_answers(r))), None)
        if unknown is not None:
            raise BmpeftError(
                f"split {split}, record {unknown.id!r}: its right answer is not known, so it has no score"
            )
    return fitting_controls(
        evaluation.controls, task=task.name, method=task.decoding.method, splits=splits, train=train
    )


def trained_on(data: DataOrigin) -> TrainedOn:
    """The part of a score card that says what the adapter was trained on."""
    return TrainedOn(
        dataset=data.dataset,
        split_digest=data.split_digests["train"],
        contamination=data.contamination.get("train"),
        rows=data.train_rows,
        contaminated_rows=data.contaminated_rows.get("train"),
    )


def known_leakage(data: DataOrigin, dataset: LoadedDataset) -> Leakage | None:
    """What was found when the adapter was trained, for the splits of a dataset that are still the same rows."""
    if data.leakage is None:
        return None
    same = [split for split in data.leakage.splits if data.split_digests[split] == dataset.split_digests.get(split)]
    return data.leakage.of(same)


def answers_identity(section: BackboneSection) -> Mapping[str, Any]:
    """What answers depend on beside rows, task, weights and adapter, for `RunStore.identity`.

    Of the backbone's section the places are left out: its fingerprint says which weights they are.
    """
    options = section.model_dump(mode="json", exclude={"name", "tokenizer"})
    return {"backbone options": options, "versions": _versions()}


def _versions() -> dict[str, str]:
    from bmpeft import __version__

    libraries = {name: metadata.version(name) for name in ("torch", "transformers", "peft")}
    return {"bmpeft": __version__, "python": platform.python_version(), **libraries}
