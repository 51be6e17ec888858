"""Training and leaks: refused before the backbone is loaded, or accepted and then said everywhere."""

from __future__ import annotations

from pathlib import Path

import pytest

from bmpeft.adapters.artifact import load_artifact
from bmpeft.errors import UsageError
from bmpeft.evaluation.command import evaluate_target
from bmpeft.progress import Progress
from bmpeft.training.run import train
from tests.training.small import small_recipe, write_questions

QUIET = Progress(quiet=True)


@pytest.fixture
def leaking(tmp_path: Path) -> Path:
    """Training questions of which two are test questions too."""
    questions = write_questions(tmp_path / "questions")
    test = (questions / "test.jsonl").read_text(encoding="utf-8").splitlines()
    with (questions / "train.jsonl").open("a", encoding="utf-8") as file:
        file.writelines(f"{line.replace('row-', 'again-')}\n" for line in test[:2])
    return tmp_path


def test_a_leak_is_refused_before_anything_is_loaded(leaking: Path) -> None:
    recipe = small_recipe(leaking, "backbone.name=no-such-directory")
    with pytest.raises(UsageError) as caught:
        train(recipe, recipe_name="small", progress=QUIET)
    message = str(caught.value)
    assert message.startswith("medqa: evaluation rows leak into training (test: 2 of 6 rows share their group")
    assert "test: 2 of 6 rows are in the training rows word for word" in message
    assert message.endswith("or add data.accept_leakage=true, which the score card will say")
    assert not (leaking / "runs").exists()


def test_an_accepted_leak_is_on_the_card_in_the_artifact_and_in_a_later_evaluation(
    leaking: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = small_recipe(leaking, "data.accept_leakage=true")
    outcome = train(recipe, recipe_name="small", progress=Progress())
    assert [(o.kind, o.split, o.rows, o.of, o.leak) for o in outcome.leakage.overlaps] == [
        ("group", "test", 2, 6, True),
        ("row", "test", 2, 6, True),
    ]
    said = "leakage accepted: test: 2 of 6 rows are in the training rows word for word"
    assert said in outcome.score_card.remarks
    assert "overlap with training rows: test: 2 of 6 rows share their group" in capsys.readouterr().err
    assert load_artifact(outcome.directory).manifest.data.leakage == outcome.leakage
    data = f"data.path={leaking / 'questions'}"
    backbone = f"backbone.name={leaking / 'tiny-backbone'}"
    again = evaluate_target(outcome.directory, overrides=[data, backbone], progress=QUIET)
    assert said in again.remarks
    elsewhere = write_questions(leaking / "others", train=3, dev=3, test=9)
    other = evaluate_target(
        outcome.directory, overrides=[f"data.path={elsewhere}", backbone], splits=["test"], progress=QUIET
    )
    assert other.leakage is None
