"""`bmpeft eval`: what it rebuilds from an adapter or a recipe, on a small trained one."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from bmpeft.adapters.artifact import load_artifact
from bmpeft.errors import BmpeftError, DataError, RecipeError, UsageError
from bmpeft.evaluation.command import evaluate_target
from bmpeft.evaluation.compare import compare
from bmpeft.evaluation.score_card import ScoreCard
from bmpeft.progress import Progress
from bmpeft.recipe import Recipe
from bmpeft.training.run import train
from tests.training.small import small_recipe, write_questions

QUIET = Progress(quiet=True)


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("run")


@pytest.fixture(scope="module")
def recipe(directory: Path) -> Recipe:
    controls = "evaluation.controls=[majority, options_only, frozen_backbone]"
    return small_recipe(directory, controls, "training.max_steps=2", "evaluation.limit=5")


@pytest.fixture(scope="module")
def trained(recipe: Recipe) -> tuple[Path, ScoreCard]:
    outcome = train(recipe, recipe_name="small", progress=QUIET)
    return outcome.directory, outcome.score_card


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An adapter remembers only the name of its runs' directory: it is made in the current one."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def adapter(trained: tuple[Path, ScoreCard], tmp_path: Path) -> Path:
    """A copy that a test may change."""
    return Path(shutil.copytree(trained[0], tmp_path / "adapters" / "small"))


@pytest.fixture
def places(directory: Path) -> list[str]:
    """Where the things are whose directories an adapter does not remember."""
    return [f"data.path={directory / 'questions'}", f"backbone.name={directory / 'tiny-backbone'}"]


def figures(card: ScoreCard) -> list[Any]:
    return [(r.split, r.split_digest, r.n, r.metrics, r.controls, r.truncation) for r in card.results]


def test_evaluating_an_adapter_again_gives_the_figures_of_its_training(
    trained: tuple[Path, ScoreCard], places: list[str]
) -> None:
    card = evaluate_target(trained[0], overrides=places, progress=QUIET)
    assert figures(card) == figures(trained[1])
    assert [c.name for c in card.results[0].controls] == ["majority", "options_only", "frozen_backbone"]
    assert (card.trained_on, card.prompt, card.adapter) == (trained[1].trained_on, trained[1].prompt, "small")


def test_a_recipe_names_the_adapter_that_it_trains(
    trained: tuple[Path, ScoreCard], recipe: Recipe, tmp_path: Path
) -> None:
    file = tmp_path / "small.yaml"
    file.write_text(yaml.safe_dump(recipe.model_dump(mode="json")))
    assert figures(evaluate_target(file, progress=QUIET)) == figures(trained[1])
    assert figures(evaluate_target(file, adapter=trained[0], overrides=["output.name=other"], progress=QUIET))
    with pytest.raises(
        UsageError, match=r"other: no adapter there; `bmpeft train .*` makes one, --adapter names another"
    ):
        evaluate_target(file, overrides=["output.name=other"], progress=QUIET)


def test_other_rows_splits_and_limits_are_measured_on_demand(adapter: Path, places: list[str], tmp_path: Path) -> None:
    card = evaluate_target(
        adapter,
        overrides=[*places, f"data.path={write_questions(tmp_path / 'more', test=9)}", "evaluation.controls=[]"],
        splits=["validation", "tes?"],
        limit=7,
        progress=QUIET,
    )
    assert [(r.split, r.n, r.rows) for r in card.results] == [("validation", 6, 6), ("test", 7, 9)]


def test_answers_are_kept_beside_the_run_and_compared_there(
    trained: tuple[Path, ScoreCard], adapter: Path, places: list[str]
) -> None:
    with pytest.raises(UsageError, match=r"runs/small/evaluation keeps no values .* run `bmpeft eval .*` here first"):
        compare(trained[0], adapter)
    overrides = [*places, "evaluation.controls=[]"]
    first = evaluate_target(adapter, overrides=overrides, progress=QUIET)
    assert sorted(file.name for file in Path("runs/small/evaluation").iterdir()) == [
        "test.model.answers.jsonl",
        "test.rows.json",
    ]
    found = compare(trained[0], adapter)
    assert {(c.split, c.metric, c.n) for c in found} == {
        ("test", "accuracy/choices-sum@1", 5),
        ("test", "accuracy/choices-mean@1", 5),
    }
    assert all((c.difference, c.low, c.high, c.verdict) == (0.0, 0.0, 0.0, "no sure difference") for c in found)
    elsewhere = evaluate_target(adapter, overrides=[*overrides, "output.runs=other"], fresh=True, progress=QUIET)
    assert elsewhere.results[0].metrics == first.results[0].metrics
    assert Path("other/small/evaluation/test.rows.json").exists()
    with pytest.raises(UsageError, match="are the same adapter"):
        compare(adapter, Path("adapters/small"))


def test_a_page_is_written_where_it_is_asked_for(adapter: Path, places: list[str]) -> None:
    overrides = [*places, "evaluation.controls=[]"]
    evaluate_target(adapter, overrides=overrides, page=Path("page.html"), progress=QUIET)
    assert "In box" in Path("page.html").read_text()
    with pytest.raises(UsageError, match="is inside the adapter small"):
        evaluate_target(adapter, overrides=overrides, page=adapter / "page.html", progress=QUIET)
    with pytest.raises(UsageError, match="must be a file in a directory that exists"):
        evaluate_target(adapter, overrides=overrides, page=Path("nowhere/page.html"), progress=QUIET)


def test_its_own_training_rows_are_remarked(adapter: Path, places: list[str]) -> None:
    card = evaluate_target(adapter, overrides=[*places, "evaluation.controls=[]"], splits=["train"], progress=QUIET)
    assert "train holds the rows that the adapter was trained on" in card.remarks


def test_the_card_is_stored_only_when_asked(adapter: Path, places: list[str]) -> None:
    before = (adapter / "bmpeft.json").read_bytes()
    card = evaluate_target(adapter, overrides=places, limit=3, progress=QUIET)
    assert (adapter / "bmpeft.json").read_bytes() == before
    evaluate_target(adapter, overrides=places, limit=3, save=True, progress=QUIET)
    stored = load_artifact(adapter).manifest.score_card
    assert stored is not None
    assert figures(ScoreCard.model_validate(stored)) == figures(card)
    assert "| test | small |" in (adapter / "README.md").read_text()


def test_data_that_is_not_where_it_was_is_asked_for(adapter: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(adapter)
    with pytest.raises(UsageError, match=r"remembers only the name of its data, 'questions'.* add data.path="):
        evaluate_target(adapter, progress=QUIET)


@pytest.mark.parametrize(
    ("overrides", "options", "error", "problem"),
    [
        (["training.epochs=2"], {}, UsageError, "'training.epochs=2': changes nothing in an evaluation"),
        (["evaluaton.limit=2"], {}, UsageError, "did you mean 'evaluation'?"),
        (["evaluation.limt=2"], {}, RecipeError, "did you mean 'limit'?"),
        ([], {"limit": 0}, RecipeError, "evaluation.limit: 0 is out of range"),
        ([], {"splits": ["tset"]}, UsageError, "no split matches 'tset'; did you mean 'test'?"),
        ([], {"adapter": "x"}, UsageError, "--adapter goes with a recipe"),
        (["data.path=/nowhere"], {}, UsageError, "add data.path="),
        (["data.dataset=medqq"], {}, UsageError, "no reader is named 'medqq'; did you mean 'medqa'?"),
        (["data.dataset=pubmedqa"], {}, DataError, "ori_pqal.json: not found"),
    ],
)
def test_what_cannot_be_evaluated_is_one_line(
    adapter: Path, places: list[str], overrides: list[str], options: Any, error: type[BmpeftError], problem: str
) -> None:
    with pytest.raises(error) as caught:
        evaluate_target(adapter, overrides=[*places, *overrides], progress=QUIET, **options)
    assert problem in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_target_that_is_neither_is_named() -> None:
    with pytest.raises(RecipeError, match="medqa_lorra: no such file, and no shipped recipe of that name"):
        evaluate_target("medqa_lorra", progress=QUIET)
