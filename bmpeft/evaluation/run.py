"""Evaluation: a model on the splits of a dataset, beside its controls, to a score card."""

from __future__ import annotations

import dataclasses
import platform
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from importlib import metadata
from typing import TYPE_CHECKING, Any

from bmpeft.datasets.splits import first_of_shuffle
from bmpeft.errors import BmpeftError, UsageError
from bmpeft.evaluation import metrics
from bmpeft.evaluation.controls import majority_predictions
from bmpeft.evaluation.score_card import (
    BackboneStamp,
    Control,
    Difference,
    Metric,
    ScoreCard,
    SplitResult,
    TrainedOn,
    Truncation,
)
from bmpeft.recipe import match_splits, without_answers
from bmpeft.records import Example, Prediction, Record
from bmpeft.tasks import predict_examples

if TYPE_CHECKING:
    from bmpeft.adapters.manifest import DataOrigin
    from bmpeft.backbones.base import FrozenBackbone
    from bmpeft.datasets import LoadedDataset
    from bmpeft.datasets.leakage import Leakage
    from bmpeft.progress import Progress
    from bmpeft.recipe import ControlName, EvaluationSection
    from bmpeft.tasks import Task

WithoutAdapter = Callable[[], AbstractContextManager[Any]]
OnPredictions = Callable[[str, Sequence[Prediction]], None]


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
    on_predictions: OnPredictions | None = None,
) -> ScoreCard:
    """Measure a model.

    Args:
        backbone: gives tokens and scores.
        model: the backbone's model, bare or wrapped by peft.
        adapter: name of the active adapter; None for the bare backbone.
        task: makes the examples; its decoding decides the metrics.
        dataset: has the splits of `evaluation.splits`; its training split serves the majority control.
        evaluation: splits, limit, controls and bootstrap of the recipe.
        max_source_length: tokens.
        seed: of the shuffle behind `evaluation.limit` and of the bootstrap.
        trained_on: the rows that the adapter was trained on; None for the bare backbone.
        leakage: what its splits share with those rows; None: not known.
        without_adapter: a context in which `model` is the bare backbone, for the control frozen_backbone.
            Without an adapter that control would compare the model with itself; it is left out then.
        progress: shows the passes over the rows.
        on_predictions: gets each split's name and the model's predictions, which no card ever holds.

    Raises:
        UsageError: a split that the dataset does not have, or a control that cannot be made.
        BmpeftError: a row without an answer to compare with; names split and row.
    """
    splits = match_splits(evaluation.splits, dataset.splits)
    _refuse_what_cannot_work(task, dataset, splits, evaluation.controls)
    run = _Run(backbone, model, adapter, task, dataset, evaluation, max_source_length, seed, without_adapter, progress)
    results = []
    for split in splits:
        result, predictions = run.measure(split)
        results.append(result)
        if on_predictions is not None:
            on_predictions(split, predictions)
    return ScoreCard(
        task=task.name,
        prompt=task.prompt,
        decoding=without_answers(task.decoding),
        dataset=dataset.name,
        synthetic=dataset.synthetic,
        split_method=dataset.split_method,
        limit=evaluation.limit,
        results=tuple(results),
        backbone=BackboneStamp.of(backbone),
        adapter=adapter,
        trained_on=trained_on,
        leakage=leakage.of(splits) if leakage is not None else None,
        max_source_length=max_source_length,
        seed=seed,
        bootstrap_samples=evaluation.bootstrap_samples,
        versions=_versions(),
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


@dataclass(frozen=True)
class _Run:
    """The arguments of `evaluate`, for its steps."""

    backbone: FrozenBackbone
    model: Any
    adapter: str | None
    task: Task
    dataset: LoadedDataset
    evaluation: EvaluationSection
    max_source_length: int
    seed: int
    without_adapter: WithoutAdapter | None
    progress: Progress

    def measure(self, split: str) -> tuple[SplitResult, list[Prediction]]:
        """The figures of one split and the model's predictions."""
        rows = self.dataset.splits[split]
        records = first_of_shuffle(rows, self.evaluation.limit, self.seed)
        examples = [self.task.example(record) for record in records]
        started = time.perf_counter()
        predictions = self._predict(examples, f"evaluating {split}", self.adapter)
        seconds = time.perf_counter() - started
        figures = self._figures(records, predictions)
        result = SplitResult(
            split=split,
            split_digest=self.dataset.split_digests[split],
            rows=len(rows),
            n=len(records),
            metrics=_metrics(figures),
            controls=tuple(self._controls(split, records, examples, _row_values(figures))),
            truncation=self._truncation(examples),
            seconds=seconds,
            rows_per_second=len(records) / max(seconds, 1e-9),
        )
        return result, predictions

    def _controls(
        self, split: str, records: Sequence[Record], examples: Sequence[Example], model_rows: metrics.Values
    ) -> Iterator[Control]:
        for name in self.evaluation.controls:
            if name == "frozen_backbone" and self.adapter is None:
                continue
            figures = self._figures(records, self._control_predictions(name, split, records, examples))
            difference = model_rows - _row_values(figures)
            low, high = metrics.bootstrap_interval(difference, self.evaluation.bootstrap_samples, self.seed)
            paired = Difference(value=float(difference.mean()), low=low, high=high)
            yield Control(name=name, metrics=_metrics(figures), difference=paired)

    def _control_predictions(
        self, name: ControlName, split: str, records: Sequence[Record], examples: Sequence[Example]
    ) -> list[Prediction]:
        description = f"control {name} on {split}"
        if name == "majority":
            return majority_predictions(self.dataset.splits["train"], records)
        if name == "options_only":
            without_question = [self.task.options_only(record) for record in records]
            return self._predict(without_question, description, self.adapter)
        if self.without_adapter is None:
            raise ValueError("the control frozen_backbone needs without_adapter")
        with self.without_adapter():
            return self._predict(examples, description, None)

    def _predict(self, examples: Sequence[Example], description: str, adapter: str | None) -> list[Prediction]:
        with self.progress.task(description, total=len(examples)) as task:
            return predict_examples(
                self.backbone,
                self.model,
                examples,
                self.task.decoding,
                batch_size=self.evaluation.batch_size,
                max_source_length=self.max_source_length,
                adapter=adapter,
                on_progress=task.advance,
            )

    def _figures(self, records: Sequence[Record], predictions: Sequence[Prediction]) -> list[metrics.Figure]:
        return metrics.measure(
            records, predictions, self.task.decoding, samples=self.evaluation.bootstrap_samples, seed=self.seed
        )

    def _truncation(self, examples: Sequence[Example]) -> Truncation:
        limit, cuts = self.max_source_length, []
        for example in examples:
            source = dataclasses.replace(example, target=None)  # how long right answers are does not matter here
            cuts.append(
                self.backbone.encode(source, max_source_length=limit, max_target_length=limit).document_tokens_cut
            )
        return Truncation(rows=len(cuts), rows_cut=sum(cut > 0 for cut in cuts), document_tokens_cut=sum(cuts))


def _refuse_what_cannot_work(
    task: Task, dataset: LoadedDataset, splits: Sequence[str], controls: Sequence[ControlName]
) -> None:
    closed = task.decoding.method == "candidates"
    for split in splits:
        rows = dataset.splits[split]
        unknown = next((r for r in rows if (r.label is None if closed else not metrics.accepted_answers(r))), None)
        if unknown is not None:
            raise BmpeftError(
                f"split {split}, record {unknown.id!r}: its right answer is not known, so it has no score"
            )
    if "majority" in controls and "train" not in dataset.splits:
        raise UsageError(
            f"evaluation.controls: majority needs a train split, but {dataset.name} has only "
            f"{', '.join(dataset.splits)}; leave it out (evaluation.controls=[options_only])"
        )
    if "options_only" in controls and not closed:
        raise UsageError("evaluation.controls: options_only needs task.decoding.method=candidates")


def _metrics(figures: Sequence[metrics.Figure]) -> tuple[Metric, ...]:
    return tuple(
        Metric(id=f.definition.id, name=f.definition.name, value=f.value, low=f.low, high=f.high, n=f.n)
        for f in figures
    )


def _row_values(figures: Sequence[metrics.Figure]) -> metrics.Values:
    """The row values of the deciding metric. [n]"""
    rows = figures[0].rows
    assert rows is not None, "measure() puts a metric of rows first"
    return rows


def _versions() -> dict[str, str]:
    from bmpeft import __version__

    libraries = {name: metadata.version(name) for name in ("torch", "transformers", "peft")}
    return {"bmpeft": __version__, "python": platform.python_version(), **libraries}
