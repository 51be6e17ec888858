"""Every task through a whole evaluation with all controls that fit: the figures that are known without a network."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from bmpeft.evaluation.metrics import meteor
from bmpeft.evaluation.score_card import SplitResult, read_card, to_markdown
from bmpeft.recipe_task import TaskSection
from bmpeft.records import Example, Record
from tests.evaluation.test_controls import Plain
from tests.evaluation.test_run import only, run, toy
from tests.fakes import FakeModel

TASKS = ("image_classification", "text_understanding", "summarization", "visual_question_answering", "captioning")
DECIDING = {
    "image_classification": "accuracy/choices-sum@1",
    "text_understanding": "accuracy/choices-sum@1",
    "summarization": "rouge-l/f-stem@1",
    "visual_question_answering": "exact-match/vqa@1",
    "captioning": "cider-d/tokens@1",
}
CONTROLS = {
    "image_classification": ["majority", "shuffled_images", "classic", "frozen_backbone"],
    "text_understanding": ["majority", "classic", "frozen_backbone"],
    "summarization": ["best_constant", "lead_sentence", "frozen_backbone"],
    "visual_question_answering": ["majority", "question_only", "shuffled_images", "frozen_backbone"],
    "captioning": ["best_constant", "shuffled_images", "frozen_backbone"],
}


def record(task: str, split: str, n: int) -> Record:
    """Row `n` of a task; half of the questions are closed, as many rows have either of two labels."""
    label, words = n % 2, f"finding {n} in organ {n % 5}"
    fields: dict[str, Any] = {"image": Plain(n, split)} if task not in ("text_understanding", "summarization") else {}
    if task in ("image_classification", "text_understanding"):
        fields |= {"choices": ("healthy", "ill"), "label": label}
        fields |= {"text": f"{'fever' if label else 'well'} {words}"} if task == "text_understanding" else {}
    elif task == "visual_question_answering":
        closed = {"choices": ("yes", "no"), "label": label, "answers": (("yes", "no")[label],)}
        fields |= {"question": f"Is it {n}?" if n % 4 < 2 else f"What is {n}?"}
        fields |= {**closed, "meta": {"answer_type": "closed"}} if n % 4 < 2 else {"answers": (words,)}
    else:
        fields |= {"text": f"Seen: {words}. And more."} if task == "summarization" else {}
        fields |= {"answers": (words,)}
    return Record(id=f"{split}{n}", task=task, split=split, group=f"{split}{n // 2}", **fields)


def known(example: Example) -> str:
    row = example.record
    return row.choices[row.label or 0] if row.choices else (row.answers or ("",))[0]


def sees_everything(example: Example) -> bool:
    """Whether the example still has all that its record has."""
    return example.image == example.record.image


@pytest.fixture(scope="module", params=TASKS)
def measured(request: pytest.FixtureRequest) -> tuple[str, SplitResult, str]:
    """A model that knows every answer, as long as it sees the image; without its adapter it knows none."""
    task = request.param
    model = FakeModel(
        lambda example, choice: 0.0 if sees_everything(example) and choice.strip() == known(example) else -9.0,
        lambda example: known(example) if sees_everything(example) else "unknown",
    )
    knowing = model.score, model.write

    @contextmanager
    def without_adapter() -> Iterator[None]:
        model.score, model.write = (lambda example, choice: 0.0), (lambda example: "unknown")
        yield
        model.score, model.write = knowing

    dataset = toy(tuple(record(task, "test", n) for n in range(24)), tuple(record(task, "train", n) for n in range(24)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(meteor, "missing", lambda: "METEOR is absent: it needs Java")
        card = run(
            dataset, model, task=TaskSection(name=task), controls=None, without_adapter=without_adapter, batch_size=5
        )
    return task, only(card), to_markdown(read_card(card.model_dump(mode="json")))


def test_the_deciding_metric_and_the_controls_are_those_of_the_task(measured: tuple[str, SplitResult, str]) -> None:
    task, result, _ = measured
    assert result.metrics[0].id == DECIDING[task]
    assert [control.name for control in result.controls] == CONTROLS[task]
    assert result.groups == 12


def test_a_model_that_knows_everything_has_the_best_figures(measured: tuple[str, SplitResult, str]) -> None:
    result = measured[1]
    for metric in result.metrics:
        # n-grams of a single row weigh most: CIDEr-D is below 10 where answers share words
        best = {"ece/15-equal-width-bins@1": 0.0, "cider-d/tokens@1": metric.value}.get(metric.id, 1.0)
        assert metric.value == pytest.approx(best, abs=2e-4), metric.id


def test_controls_without_the_image_or_the_adapter_are_beaten(measured: tuple[str, SplitResult, str]) -> None:
    task, result, markdown = measured
    blind = {"shuffled_images", "question_only", "frozen_backbone", "best_constant"}
    unbeaten = {control.name for control in result.controls if not control.beaten}
    assert not unbeaten & blind
    assert ("classic" in unbeaten) == (task == "text_understanding"), "fever and well are all that the text has to say"
    assert (f"does not beat control {', '.join(unbeaten)} on test" in markdown.splitlines()[0]) == bool(unbeaten)


def test_the_card_says_what_it_lacks_and_tells_kinds_apart(measured: tuple[str, SplitResult, str]) -> None:
    task, result, markdown = measured
    assert ("METEOR is absent" in markdown) == (task == "captioning")
    assert (result.confusion == ((12, 0), (0, 12))) == (task in ("image_classification", "text_understanding"))
    kinds = [(part.name, part.metric.n) for part in result.parts if part.by == "answer type"]
    assert kinds == ([("closed", 12), ("open", 12)] if task == "visual_question_answering" else [])
    assert ("control classic: 24 of 24 training rows" in markdown) == ("classic" in CONTROLS[task])
