"""evaluate(): figures, controls and cuts on cases whose answers are known."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest

from bmpeft.datasets.base import DatasetInfo, LoadedDataset, assemble
from bmpeft.errors import BmpeftError, UsageError
from bmpeft.evaluation.run import evaluate
from bmpeft.evaluation.score_card import ScoreCard, SplitResult, TrainedOn, read_card, to_markdown
from bmpeft.evaluation.split_run import MeasuredSplit
from bmpeft.progress import Progress
from bmpeft.recipe import EvaluationSection
from bmpeft.recipe_decoding import BeamDecoding
from bmpeft.recipe_task import TaskSection
from bmpeft.records import Example, Record
from bmpeft.tasks import make_task
from tests.fakes import FakeBackbone, FakeModel

INFO = DatasetInfo("toy", "Toy", "question_answering", "MIT", "", "", "")
N = 60


def rows(split: str, labels: Sequence[int | None], choices: tuple[str, ...] | None = None) -> tuple[Record, ...]:
    return tuple(
        Record(
            id=f"{split}{n}",
            task="question_answering",
            split=split,
            group=f"{split}{n}",
            question=f"{split} question {n}?",
            choices=choices or (f"w{n}", f"x{n}", f"y{n}", f"z{n}"),
            label=label,
        )
        for n, label in enumerate(labels)
    )


def toy(
    test: tuple[Record, ...] | None = None, train: tuple[Record, ...] | None = None, **options: Any
) -> LoadedDataset:
    splits = {
        "train": rows("train", [2, 2, 1]) if train is None else train,
        "test": rows("test", [n % 4 for n in range(N)]) if test is None else test,
    }
    return assemble(INFO, splits, "official", **options)


def knowing(example: Example, choice: str) -> float:
    """Knows every answer, as long as it sees the question."""
    record = example.record
    assert record.choices is not None
    assert record.label is not None
    asked = record.question is not None and record.question in example.source
    return 0.0 if asked and choice.strip() == record.choices[record.label] else -1.0


def run(
    dataset: LoadedDataset | None = None,
    model: FakeModel | None = None,
    *,
    backbone: FakeBackbone | None = None,
    adapter: str | None = "mine",
    trained_on: TrainedOn | None = None,
    task: TaskSection | None = None,
    max_source_length: int = 100,
    without_adapter: Any = None,
    progress: Progress | None = None,
    **evaluation: Any,
) -> ScoreCard:
    model = model or FakeModel(knowing)
    passed_on = {name: evaluation.pop(name) for name in ("on_split", "store", "train_records") if name in evaluation}
    section = EvaluationSection(**{"controls": ("majority", "options_only"), "bootstrap_samples": 200, **evaluation})
    return evaluate(
        backbone or FakeBackbone(model),
        model,
        adapter=adapter,
        task=make_task(task or TaskSection(), "toy"),
        dataset=dataset or toy(),
        evaluation=section,
        max_source_length=max_source_length,
        seed=0,
        trained_on=trained_on,
        without_adapter=without_adapter,
        progress=progress or Progress(quiet=True),
        **passed_on,
    )


def only(card: ScoreCard) -> SplitResult:
    (result,) = card.results
    return result


def test_a_model_that_knows_beats_chance_and_needs_the_question() -> None:
    result = only(run())
    assert (result.split, result.n, result.rows) == ("test", N, N)
    assert [m.value for m in result.metrics[:2]] == [1.0, 1.0]
    by_name = {control.name: control for control in result.controls}
    assert by_name["options_only"].metrics[0].value == 0.25  # all equal: the first option
    assert by_name["majority"].metrics[0].value == 0.25  # position 2, the most frequent of train
    assert by_name["majority"].metrics[0].id == "accuracy/chosen@1"
    assert all(control.beaten for control in result.controls)
    assert by_name["majority"].difference.value == 0.75


def test_a_model_that_answers_like_the_control_does_not_beat_it() -> None:
    def third(example: Example, choice: str) -> float:
        return 0.0 if choice.startswith(" y") else -1.0

    card = run(model=FakeModel(third))
    assert not any(control.beaten for control in only(card).controls)
    assert "does not beat control majority, options_only on test" in card.remarks


def test_the_comparison_is_paired() -> None:
    """Eight rows better and none worse is a sure difference, though the two intervals overlap widely."""
    labels = [2] * 30 + [0] * 30

    def slightly_better(example: Example, choice: str) -> float:
        record = example.record
        known = record.id in {f"test{n}" for n in range(30, 38)}
        return 0.0 if choice.startswith(" w" if known else " y") else -1.0

    result = only(run(toy(rows("test", labels)), FakeModel(slightly_better), controls=("majority",)))
    control = result.controls[0]
    assert result.metrics[0].low < control.metrics[0].high
    assert control.beaten


def test_with_fixed_labels_the_majority_is_a_label_and_macro_f1_is_measured() -> None:
    labels = ("yes", "no", "maybe")
    test, train = rows("test", [0, 1, 2, 1] * 10, labels), rows("train", [1, 1, 0], labels)
    result = only(run(toy(test, train), controls=("majority",)))
    assert result.controls[0].metrics[0].value == 0.5
    by_id = {metric.id: metric.value for metric in result.metrics}
    assert [m.id for m in result.controls[0].metrics] == [
        "accuracy/chosen@1",
        "balanced-accuracy/labels@1",
        "macro-f1/labels@1",
    ]
    assert by_id["macro-f1/labels@1"] == by_id["auroc/one-vs-rest-macro@1"] == 1.0
    assert result.confusion == ((10, 0, 0), (0, 20, 0), (0, 0, 10))


def test_the_majority_position_is_one_that_the_row_has() -> None:
    result = only(
        run(toy(rows("test", [0, 1] * 10, ("p", "q")), rows("train", [3, 3, 3, 1, 1, 0])), controls=("majority",))
    )
    assert result.controls[0].metrics[0].value == 0.5


def test_frozen_backbone_is_the_same_examples_without_the_adapter() -> None:
    model = FakeModel(knowing)
    backbone = FakeBackbone(model)

    @contextmanager
    def without_adapter() -> Iterator[None]:
        model.score = lambda example, choice: 0.0
        yield
        model.score = knowing

    result = only(run(model=model, backbone=backbone, controls=("frozen_backbone",), without_adapter=without_adapter))
    assert (result.metrics[0].value, result.controls[0].metrics[0].value) == (1.0, 0.25)
    half = len(backbone.batches) // 2
    assert backbone.batches[:half] == backbone.batches[half:]


def test_a_bare_backbone_is_not_its_own_control() -> None:
    result = only(run(adapter=None, controls=("frozen_backbone", "majority")))
    assert [control.name for control in result.controls] == ["majority"]


def test_a_limit_measures_some_rows_and_says_so() -> None:
    card = run(limit=20)
    assert (only(card).n, only(card).rows, card.limit) == (20, N, 20)
    assert only(card).metrics[0].n == 20


def test_predictions_go_to_the_caller_and_not_into_the_card() -> None:
    seen: list[MeasuredSplit] = []
    card = run(on_split=seen.append)
    assert [p.id for p in seen[0].predictions] == [r.id for r in seen[0].records] == [f"test{n}" for n in range(N)]
    assert all(p.adapter == "mine" for p in seen[0].predictions)
    assert (seen[0].result,) == card.results
    assert "question" not in card.model_dump_json().replace("question_answering", "").replace("{question}", "")


def test_cut_documents_are_counted() -> None:
    long = dataclasses.replace(rows("test", [0])[0], question="word " * 50)
    truncation = only(run(toy((long, *rows("more", [1, 2]))), max_source_length=20)).truncation
    assert (truncation.rows, truncation.rows_cut) == (3, 1)
    assert truncation.document_tokens_cut == 50 + 5 - 20


def test_split_patterns_name_all_test_splits() -> None:
    dataset = toy()
    both = dataclasses.replace(
        dataset,
        splits={**dataset.splits, "test_unknown": rows("u", [0] * 5)},
        split_digests={**dataset.split_digests, "test_unknown": "0" * 64},
    )
    assert [result.split for result in run(both).results] == ["test", "test_unknown"]


def test_a_run_is_repeatable() -> None:
    def stable(card: ScoreCard) -> list[Any]:
        return [(r.metrics, r.controls, r.split_digest) for r in card.results]

    assert stable(run(model=FakeModel())) == stable(run(model=FakeModel()))


@pytest.mark.parametrize(
    ("options", "error", "problem"),
    [
        ({"splits": ("tset",)}, UsageError, "no split matches 'tset'; did you mean 'test'?"),
        (
            {"dataset": toy(rows("test", [0, None]))},
            BmpeftError,
            "split test, record 'test1': its right answer is not known",
        ),
        (
            {"task": TaskSection(decoding=BeamDecoding())},
            UsageError,
            "options_only needs task.decoding.method=candidates; leave it out (evaluation.controls=[majority])",
        ),
        ({"controls": ("lead_sentence",)}, UsageError, "lead_sentence is a control of summarization, not of"),
        ({"controls": ("question_only",)}, UsageError, "question_only needs a question and an image or a text"),
    ],
)
def test_what_cannot_be_measured_is_refused_before_the_model_runs(
    options: Any, error: type[Exception], problem: str
) -> None:
    backbone = FakeBackbone()
    with pytest.raises(error) as caught:
        run(backbone=backbone, **options)
    assert problem in str(caught.value)
    assert backbone.batches == []


def test_majority_needs_training_rows() -> None:
    dataset = toy()
    alone = dataclasses.replace(dataset, splits={"test": dataset.splits["test"]})
    with pytest.raises(
        UsageError, match="majority needs a train split with answers, and there is none here; leave it out"
    ):
        run(alone)
    assert only(run(alone, controls=("options_only",))).controls
    assert [control.name for control in only(run(alone, adapter=None, controls=None)).controls] == ["options_only"]


def test_open_answers_are_measured_by_text() -> None:
    answers = tuple(
        dataclasses.replace(r, choices=None, label=None, answers=(f"answer {n}",))
        for n, r in enumerate(rows("test", [0] * 10))
    )
    train = tuple(
        dataclasses.replace(r, choices=None, label=None, answers=("answer 3",)) for r in rows("train", [0] * 4)
    )
    model = FakeModel(write=lambda example: f" Answer {example.record.id.removeprefix('test')}.")
    result = only(
        run(
            toy(answers, train),
            model,
            task=TaskSection(prompt=" {question}", decoding=BeamDecoding()),
            controls=("majority",),
        )
    )
    assert [m.value for m in result.metrics] == [1.0, 1.0]
    assert result.controls[0].metrics[0].value == 0.1


def test_the_card_carries_what_it_was_made_with() -> None:
    card = run(toy(synthetic=True), backbone=FakeBackbone(name="/somewhere/fake-big", init="random"))
    assert (card.dataset, card.synthetic, card.split_method) == ("toy", True, "official")
    assert card.backbone.name == "fake-big"
    assert (card.backbone.init, card.backbone.init_seed, card.backbone.fingerprint) == ("random", 0, "f" * 64)
    assert card.prompt == " {question} choices: {choices}"
    assert card.decoding == {"method": "candidates", "normalization": "sum"}
    assert {"bmpeft", "torch", "python"} <= card.versions.keys()
    assert card.remarks[:2] == ("synthetic data", "untrained backbone")


def test_bad_rows_that_were_left_out_are_counted_on_the_card_and_not_named() -> None:
    card = run(toy(bad_rows=("/home/me/rows.csv, row 7: broken", "/home/me/rows.csv, row 9: broken")))
    assert card.skipped_rows == 2
    markdown = to_markdown(read_card(card.model_dump(mode="json")))
    assert "data: toy, split official; 2 bad rows left out" in markdown
    assert "rows.csv" not in markdown + card.model_dump_json()
    assert "left out" not in to_markdown(run())


def test_rows_of_one_group_are_drawn_together() -> None:
    """Each question twice: half as many observations, and an interval that is wider by the root of two."""
    alone = rows("test", [n % 4 for n in range(40)])
    twice = tuple(dataclasses.replace(row, id=f"{row.id}-{n}") for row in alone for n in (1, 2))
    model = FakeModel(lambda example, choice: 0.0)
    one, two = (only(run(toy(test), model, controls=())) for test in (alone, twice))
    assert (one.groups, two.groups) == (None, 40)
    assert two.metrics[0].low == pytest.approx(one.metrics[0].low, abs=0.02)
    assert two.metrics[0].high == pytest.approx(one.metrics[0].high, abs=0.02)


def test_the_deciding_metric_is_told_apart_by_source_length() -> None:
    short = rows("test", [0] * 10)
    long = tuple(dataclasses.replace(row, id=f"long-{row.id}", question="word " * 70) for row in short)
    parts = only(run(toy((*short, *long)), FakeModel(lambda example, choice: -len(example.source.split()) % 2))).parts
    assert [(part.by, part.name, part.metric.n) for part in parts] == [
        ("source length", "1-32", 10),
        ("source length", "65-128", 10),
    ]
    assert {part.metric.id for part in parts} == {"accuracy/choices-sum@1"}


def test_controls_learn_from_the_rows_that_the_adapter_was_trained_on() -> None:
    labels = ("yes", "no")
    train = rows("train", [0] * 5 + [1] * 20, labels)
    dataset = toy(rows("test", [0, 1] * 10, labels), train)
    result = only(run(dataset, controls=("majority",), train_records=train[:5]))
    assert result.metrics[0].value - result.controls[0].difference.value == 0.5
    assert (
        only(run(toy(rows("test", [0] * 5, labels), train), controls=("majority",), train_records=train[:5]))
        .controls[0]
        .metrics[0]
        .value
        == 1.0
    )
