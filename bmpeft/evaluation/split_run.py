"""One split: the model's answers, its figures, its controls, and what was cut."""

from __future__ import annotations

import dataclasses
import hashlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from bmpeft.datasets.splits import first_of_shuffle
from bmpeft.evaluation import controls, metrics
from bmpeft.evaluation.kept import KeptAnswers, RowValues, RunStore
from bmpeft.evaluation.parts import by_answer_type, by_source_length, confusion
from bmpeft.evaluation.score_card import Control, Difference, Metric, SplitResult, Truncation
from bmpeft.records import Example, Prediction, Record
from bmpeft.tasks import predict_examples

if TYPE_CHECKING:
    from bmpeft.backbones.base import FrozenBackbone
    from bmpeft.datasets import LoadedDataset
    from bmpeft.progress import Progress, ProgressTask
    from bmpeft.recipe import EvaluationSection
    from bmpeft.recipe_controls import ControlName
    from bmpeft.tasks import Task

WithoutAdapter = Callable[[], AbstractContextManager[Any]]


@dataclass(frozen=True)
class MeasuredSplit:
    """Everything about one split; `records` and `predictions` hold texts and stay with the caller."""

    records: tuple[Record, ...]
    predictions: tuple[Prediction, ...]
    measured: metrics.Measured
    result: SplitResult


@dataclass(frozen=True)
class SplitRun:
    """The arguments of `bmpeft.evaluation.run.evaluate`, for its steps."""

    backbone: FrozenBackbone
    model: Any
    adapter: str | None
    task: Task
    dataset: LoadedDataset
    evaluation: EvaluationSection
    controls: tuple[ControlName, ...]
    train: Sequence[Record]
    balance_labels: bool
    max_source_length: int
    seed: int
    without_adapter: WithoutAdapter | None
    progress: Progress
    store: RunStore | None

    def measure(self, split: str) -> MeasuredSplit:
        """The figures of one split."""
        rows = self.dataset.splits[split]
        records = first_of_shuffle(rows, self.evaluation.limit, self.seed)
        examples = [self.task.example(record) for record in records]
        resampling = metrics.Resampling.of_records(records, self.evaluation.bootstrap_samples, self.seed)
        predictions, seconds = self._answers(split, "model", examples, f"evaluating {split}", self.adapter)
        measured = self._measured(records, predictions, resampling)
        lengths, truncation = self._lengths(examples)
        visual = self.task.name == "visual_question_answering"
        parts = by_answer_type(records, measured, resampling) if visual else ()
        result = SplitResult(
            split=split,
            split_digest=self.dataset.split_digests[split],
            rows=len(rows),
            n=len(records),
            metrics=_metrics(measured.figures),
            controls=tuple(self._controls(split, records, examples, measured, resampling)),
            truncation=truncation,
            seconds=seconds,
            rows_per_second=len(records) / max(seconds, 1e-9),
            groups=resampling.groups,
            parts=(*parts, *by_source_length(lengths, measured, resampling)),
            confusion=confusion(records, predictions),
            absent=measured.absent,
        )
        if self.store is not None:
            self.store.write_rows(split, RowValues.of(result.split_digest, records, measured.figures))
        return MeasuredSplit(tuple(records), tuple(predictions), measured, result)

    def _controls(
        self,
        split: str,
        records: Sequence[Record],
        examples: Sequence[Example],
        model: metrics.Measured,
        resampling: metrics.Resampling,
    ) -> Iterator[Control]:
        for name in self.controls:
            predictions, note = self._control_predictions(name, split, records, examples)
            control = self._measured(records, predictions, resampling)
            value, low, high = resampling.mean(model.deciding_rows - control.deciding_rows)
            yield Control(
                name=name,
                metrics=_metrics(control.figures),
                difference=Difference(value=value, low=low, high=high),
                note=note,
            )

    def _control_predictions(
        self, name: ControlName, split: str, records: Sequence[Record], examples: Sequence[Example]
    ) -> tuple[Sequence[Prediction], str | None]:
        """A control's answers and what they were made with."""
        if name == "majority":
            return controls.majority_predictions(self.train, records, task=self.task.name), None
        if name == "best_constant":
            constant = controls.best_constant(self.train, seed=self.seed)
            return [Prediction(record.id, constant) for record in records], None
        if name == "lead_sentence":
            return controls.lead_sentences(records), None
        if name == "classic":
            baseline = controls.ClassicBaseline(self.train, seed=self.seed, balance_labels=self.balance_labels)
            return baseline.predict(records), f"{baseline.rows:,} of {len(self.train):,} training rows"
        description = f"control {name} on {split}"
        if name == "frozen_backbone":
            if self.without_adapter is None:
                raise ValueError("the control frozen_backbone needs without_adapter")
            with self.without_adapter():
                return self._answers(split, name, examples, description, None)[0], None
        changed = self._changed_examples(name, records, examples)
        return self._answers(split, name, changed, description, self.adapter)[0], None

    def _changed_examples(
        self, name: ControlName, records: Sequence[Record], examples: Sequence[Example]
    ) -> list[Example]:
        if name == "options_only":
            return [self.task.options_only(record) for record in records]
        if name == "question_only":
            return [self.task.question_only(record) for record in records]
        assert name == "shuffled_images", "every other control is made in _control_predictions"
        return controls.with_shuffled_images(examples, seed=self.seed)

    def _answers(
        self, split: str, system: str, examples: Sequence[Example], description: str, adapter: str | None
    ) -> tuple[list[Prediction], float]:
        """The answers of the model as it is now, and the seconds that they took; kept ones are taken up."""
        kept = None if self.store is None else self._kept(self.store, split, system, examples)
        found = {} if kept is None else kept.read(examples, adapter=adapter)
        if found:
            self.progress.line(f"{description}: {len(found):,} of {len(examples):,} answers are kept from before")
        started = time.perf_counter()
        with self.progress.task(description, total=len(examples)) as bar:
            if found:
                bar.advance(len(found))
            try:
                predictions = predict_examples(
                    self.backbone,
                    self.model,
                    examples,
                    self.task.decoding,
                    batch_size=self.evaluation.batch_size,
                    max_source_length=self.max_source_length,
                    adapter=adapter,
                    known=found,
                    on_batch=_Batches(kept, bar),
                )
            finally:
                if kept is not None:
                    kept.close()
        return predictions, time.perf_counter() - started if kept is None else kept.seconds

    def _kept(self, store: RunStore, split: str, system: str, examples: Sequence[Example]) -> KeptAnswers:
        """The file of a system's answers; its key has all that a batch's numbers depend on, to the last bit."""
        rows = "\n".join(example.record.id for example in examples)
        key: Mapping[str, Any] = {
            "split_digest": self.dataset.split_digests[split],
            "rows": hashlib.sha256(rows.encode()).hexdigest(),
            "task": self.task.section().model_dump(mode="json"),
            "max_source_length": self.max_source_length,
            "batch_size": self.evaluation.batch_size,
            "seed": self.seed,
            "weights": self.backbone.fingerprint,
            "tokenizer": self.backbone.tokenizer_digest,
            "dtype": str(self.backbone.dtype),
            "attention": self.backbone.attention,
            "device": self.backbone.device.type,
        }
        return store.answers(split, system, key, self.progress.line)

    def _measured(
        self, records: Sequence[Record], predictions: Sequence[Prediction], resampling: metrics.Resampling
    ) -> metrics.Measured:
        return metrics.measure(
            records, predictions, task=self.task.name, decoding=self.task.decoding, resampling=resampling
        )

    def _lengths(self, examples: Sequence[Example]) -> tuple[list[int], Truncation]:
        """Tokens of each whole source, and what of them was cut."""
        limit, lengths, cuts = self.max_source_length, [], []
        for example in examples:
            source = dataclasses.replace(example, target=None)  # how long right answers are does not matter here
            encoded = self.backbone.encode(source, max_source_length=limit, max_target_length=limit)
            cuts.append(encoded.document_tokens_cut)
            lengths.append(len(encoded.input_ids) + encoded.document_tokens_cut)
        return lengths, Truncation(rows=len(cuts), rows_cut=sum(c > 0 for c in cuts), document_tokens_cut=sum(cuts))


class _Batches:
    """What happens with every finished batch: it is written down and shown."""

    def __init__(self, kept: KeptAnswers | None, bar: ProgressTask) -> None:
        self._kept, self._bar, self._last = kept, bar, time.perf_counter()

    def __call__(self, predictions: Sequence[Prediction]) -> None:
        now = time.perf_counter()
        seconds, self._last = now - self._last, now
        if self._kept is not None:
            self._kept.write(predictions, seconds)
        self._bar.advance(len(predictions), rows_per_second=len(predictions) / max(seconds, 1e-9))


def _metrics(figures: Sequence[metrics.Figure]) -> tuple[Metric, ...]:
    return tuple(
        Metric(id=f.definition.id, name=f.definition.name, value=f.value, low=f.low, high=f.high, n=f.n)
        for f in figures
    )
