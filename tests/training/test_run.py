"""`train`: what is refused, what is written and when, and that it can be repeated."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from bmpeft.adapters.artifact import Artifact, load_artifact
from bmpeft.errors import ArtifactError, BmpeftError, RecipeError, UsageError
from bmpeft.progress import Progress
from bmpeft.recipe_task import TaskSection
from bmpeft.tasks import make_task
from bmpeft.training import run
from bmpeft.training.encoding import encode_split
from bmpeft.training.run import TrainOutcome, train
from tests.backbones.tiny import tiny_backbone
from tests.training.small import question, records, small_recipe

QUIET = Progress(quiet=True)


class Trained(NamedTuple):
    root: Path
    outcome: TrainOutcome


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    root = tmp_path_factory.mktemp("trained")
    recipe = small_recipe(root, "training.tensorboard=true", "adaptation.dropout=0.1")
    return Trained(root, train(recipe, recipe_name="small", progress=QUIET))


def tree(directory: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(directory)): path.read_bytes() for path in sorted(directory.rglob("*")) if path.is_file()
    }


def test_a_run_leaves_adapter_log_checkpoints_and_tensorboard(trained: Trained) -> None:
    artifact = load_artifact(trained.outcome.directory)
    assert sorted(path.name for path in artifact.directory.iterdir()) == [
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
        "bmpeft.json",
    ]
    assert artifact.manifest.score_card == trained.outcome.score_card.model_dump(mode="json")
    assert artifact.manifest.training == trained.outcome.summary
    runs = trained.root / "runs" / "small"
    kept = {"step-00000002", "step-00000004"}
    assert {path.name for path in (runs / "checkpoints").iterdir()} == kept
    assert list((runs / "tensorboard").glob("events.out.tfevents.*"))
    assert sorted(path.name for path in trained.root.iterdir()) == ["adapters", "questions", "runs", "tiny-backbone"]


def test_the_log_tells_the_run_in_figures(trained: Trained) -> None:
    events = [json.loads(line) for line in trained.outcome.log.read_text().splitlines()]
    assert [event["event"] for event in events] == [
        "start", "train", "train", "validation", "train", "train", "validation", "end",
    ]  # fmt: skip
    assert {"step", "epoch", "loss", "learning_rate", "grad_norm", "tokens_per_second", "supervised_tokens",
            "seconds_left"} <= events[1].keys()  # fmt: skip
    # The encoder's two layers, the decoder's two to the source and its own two.
    assert events[0]["attention"] == ["2/6 layers: eager, asked for"] * 3
    validation = next(event for event in events if event["event"] == "validation")
    assert 0.0 <= validation["accuracy"] <= 1.0
    assert events[-1]["selected_step"] == trained.outcome.summary.selected_step


def test_no_row_of_the_data_and_no_path_is_stored_or_logged(trained: Trained) -> None:
    texts = [text for number in range(36) for text in (question(number)["question"], *question(number)["options"])]
    rows = [text for text in texts if len(text) > 1] + ["which colour", "pale yellow", "dark violet", "row-"]
    for root in (trained.outcome.directory, trained.root / "runs"):
        for name, content in tree(root).items():
            assert str(trained.root).encode() not in content, f"{name} holds a path of this machine"
            for row in rows:
                assert row.encode() not in content, f"{name} holds {row!r}"


def test_the_same_recipe_gives_the_same_adapter_bit_for_bit(trained: Trained, tmp_path: Path) -> None:
    options = ("training.tensorboard=false", "adaptation.dropout=0.1")
    again = train(small_recipe(tmp_path, *options), recipe_name="small", progress=QUIET)
    other = train(small_recipe(tmp_path, *options, "training.seed=1", "output.name=other"), recipe_name="small",
                  progress=QUIET)  # fmt: skip
    weights = [tree(outcome.directory)["adapter_model.safetensors"] for outcome in (trained.outcome, again, other)]
    assert weights[0] == weights[1]
    assert weights[0] != weights[2]


def test_the_backbone_directory_is_only_read(trained: Trained, tmp_path: Path) -> None:
    small_recipe(tmp_path)
    assert tree(trained.root / "tiny-backbone") == tree(tmp_path / "tiny-backbone")


def test_an_adapter_that_exists_is_refused_before_anything_is_read(trained: Trained) -> None:
    recipe = small_recipe(trained.root, "backbone.name=no-such-backbone", "data.path=no-such-file")
    before = tree(trained.root)
    expected = r"adapters/small exists: output\.overwrite=true replaces it, output\.name=\.\.\. keeps both$"
    with pytest.raises(ArtifactError, match=expected):
        train(recipe, recipe_name="small", progress=QUIET)
    assert tree(trained.root) == before


@pytest.mark.parametrize(
    ("overrides", "error", "message"),
    [
        (("evaluation.splits=[tset]",), UsageError, r"no split matches 'tset'; did you mean 'test'"),
        (("data.path={root}/questions/train.jsonl", "data.split.validation=0", "training.select_by=accuracy",
          "data.split.test=0.3"), RecipeError, r"training\.select_by=accuracy needs validation rows"),
    ],
)  # fmt: skip
def test_what_the_data_cannot_give_is_refused_before_the_backbone_is_loaded(
    tmp_path: Path, overrides: tuple[str, ...], error: type[BmpeftError], message: str
) -> None:
    filled = [override.replace("{root}", str(tmp_path)) for override in overrides]
    recipe = small_recipe(tmp_path, *filled, "backbone.name=no-such-backbone")
    with pytest.raises(error, match=message):
        train(recipe, recipe_name="small", progress=QUIET)
    assert not (tmp_path / "runs").exists()
    assert not (tmp_path / "adapters").exists()


def test_a_full_disk_is_refused_before_anything_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Usage(NamedTuple):
        free: int

    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(free=3 * 2**20))
    recipe = small_recipe(tmp_path, "data.path=no-such-file")
    with pytest.raises(BmpeftError, match=r"adapters: the disk has 3 MiB left, this run needs 64 MiB$"):
        train(recipe, recipe_name="small", progress=QUIET)


@pytest.mark.parametrize("error", [KeyboardInterrupt(), BmpeftError("step 1: the loss is nan")])
def test_a_run_that_ends_early_leaves_the_old_adapter_alone(
    trained: Trained, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    def ended(*_: Any, **__: Any) -> float:
        raise error

    monkeypatch.setattr(run.SequenceTrainer, "fit", ended)
    before = tree(trained.root / "adapters")
    with pytest.raises(type(error)):
        train(small_recipe(trained.root, "output.overwrite=true"), recipe_name="small", progress=QUIET)
    assert tree(trained.root / "adapters") == before


def test_a_failing_evaluation_loses_nothing_of_the_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*_: Any, **__: Any) -> None:
        raise BmpeftError("evaluation failed")

    monkeypatch.setattr(run, "evaluate", failing)
    with pytest.raises(BmpeftError, match="evaluation failed"):
        train(small_recipe(tmp_path, "training.max_steps=1"), recipe_name="small", progress=QUIET)
    artifact = load_artifact(tmp_path / "adapters" / "small")
    assert isinstance(artifact, Artifact)
    assert artifact.manifest.score_card is None


def test_the_logs_of_the_last_run_are_kept(tmp_path: Path) -> None:
    directory = tmp_path / "small"
    for number in range(3):
        run.set_aside(directory)
        directory.mkdir()
        (directory / "log.jsonl").write_text(str(number))
    assert (directory / "log.jsonl").read_text() == "2"
    assert (tmp_path / "small.previous" / "log.jsonl").read_text() == "1"
    assert len(list(tmp_path.iterdir())) == 2


def test_a_row_without_an_answer_is_named() -> None:
    import dataclasses

    rows = records(3)
    rows[1] = dataclasses.replace(rows[1], label=None)
    with pytest.raises(BmpeftError, match=r"^record 'row-1' of split train: no answer to learn from$"):
        encode_split(
            tiny_backbone(),
            make_task(TaskSection(), "medqa"),
            rows,
            max_source_length=96,
            max_target_length=16,
            progress=QUIET,
        )


def test_what_was_cut_is_counted(tmp_path: Path) -> None:
    recipe = small_recipe(tmp_path, "data.max_source_length=40", "training.max_steps=1")
    outcome = train(recipe, recipe_name="small", progress=QUIET)
    limits = load_artifact(outcome.directory).manifest.limits
    assert limits.rows_cut > 0
    assert limits.document_tokens_cut >= limits.rows_cut


def test_a_run_says_what_it_has_to_and_nothing_else(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    train(small_recipe(tmp_path, "training.max_steps=1", "data.train_rows=10"), recipe_name="small",
          progress=Progress())  # fmt: skip
    output = capfd.readouterr()
    assert output.out == ""
    assert output.err.splitlines() == [
        f"backbone {tmp_path}/tiny-backbone: untrained (random weights, seed 0)",
        f"adapter written to {tmp_path}/adapters/small",
    ]
    manifest = load_artifact(tmp_path / "adapters" / "small").manifest
    assert manifest.data.train_rows == 10
    assert manifest.recipe_name == "small"


def test_an_adapter_trained_on_official_test_questions_says_so(
    shared_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (file,) = (shared_data / "medqa_usmle_test").glob("*.jsonl")
    recipe = small_recipe(
        tmp_path,
        f"data.path={file}",
        "data.train_rows=12",
        "data.split.validation=0.02",
        "data.max_source_length=200",
        "data.max_target_length=128",
        "training.max_steps=1",
        "evaluation.limit=5",
    )
    outcome = train(recipe, recipe_name="small", progress=Progress())
    assert "contaminated: official MedQA test" in capsys.readouterr().err
    manifest = load_artifact(outcome.directory).manifest
    assert manifest.data.contamination["train"] == "official MedQA test"
    assert manifest.data.contaminated_rows["train"] == 12
    assert outcome.score_card.remarks[0] == "contaminated: official MedQA test (12 of 12 training rows)"
    assert "contaminated: official MedQA test (12 of 12 training rows)" in (outcome.directory / "README.md").read_text()
    assert file.read_text().splitlines()[0][20:60] not in (outcome.directory / "bmpeft.json").read_text()
