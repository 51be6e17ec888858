"""An adapter that learns to see: images through training, the artifact, inspection and the real command.

The question is the same in every row with an image, so that the image alone says the answer; a few rows have no image.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from torch import nn

from bmpeft.adapters.artifact import load_artifact
from bmpeft.adapters.model_card import model_card
from bmpeft.adapters.predict_file import predict_file, read_questions
from bmpeft.adapters.runtime import load_backbone
from bmpeft.datasets import LoadedDataset
from bmpeft.errors import ArtifactError, DataError, ImageError, UsageError
from bmpeft.images import ImageFile, NpzImage
from bmpeft.progress import Progress
from bmpeft.recipe import BackboneSection, Recipe
from bmpeft.records import Record
from bmpeft.tasks import make_task
from bmpeft.training import inspection, run
from bmpeft.training.batches import EncodedDataset
from bmpeft.training.encoding import encode_split
from bmpeft.training.gradients import GradientCheck
from bmpeft.training.inspection_view import plain_text
from tests.backbones.tiny import tiny_backbone
from tests.training.small import small_recipe
from tests.training.test_gradients import parameters, set_gradients
from tests.training.test_trainer import make_trainer

QUIET = Progress(quiet=True)
SHADES = ("no", "yes")
QUESTION = "Is it bright?"


def pixels(number: int) -> np.ndarray:
    """28 x 28 noise; dark for even numbers, bright for odd ones."""
    return np.random.default_rng(number).integers(0, 80, (28, 28), np.uint8) + np.uint8(170 * (number % 2))


def rows(directory: Path, split: str, count: int) -> tuple[Record, ...]:
    """`directory` gets an array of images; every tenth row has none."""
    path = directory / f"{split}.npz"
    np.savez_compressed(path, images=np.stack([pixels(number) for number in range(count)]))
    return tuple(
        Record(
            id=f"{split}-{number}",
            task="question_answering",
            split=split,
            group=f"{split}-{number}",
            question=QUESTION if number % 10 else "Is nothing something?",
            image=NpzImage(path, "images", number) if number % 10 else None,
            choices=SHADES,
            label=number % 2,
        )
        for number in range(count)
    )


@contextmanager
def dataset_of(train: tuple[Record, ...], validation: tuple[Record, ...] = ()) -> Iterator[None]:
    """These records instead of files, for training and inspection."""
    splits = {"train": train, "validation": validation, "test": validation or train}
    dataset = LoadedDataset(
        name="made-up", licence="", synthetic=True, splits=splits, split_method="made up",
        split_digests=dict.fromkeys(splits, "a" * 64), contamination={}, contamination_counts={},
    )  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        for module in (run, inspection):
            patch.setattr(module, "read_dataset", lambda data, task: dataset)
        yield


def recipe_for(directory: Path, *overrides: str) -> Recipe:
    settings = (
        "backbone.image_size=32",
        "data.accept_leakage=true",  # the made-up rows are as good as equal
        "training.evaluations=1",
        "output.name=sees",
        "evaluation.controls=[]",
    )
    return small_recipe(directory, *settings, *overrides)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory in which an adapter that sees was trained."""
    directory = tmp_path_factory.mktemp("images")
    settings = ["adaptation.rank=8", "training.max_steps=60", "training.batch_size=16", "training.learning_rate=3e-3"]
    with dataset_of(rows(directory, "train", 60), rows(directory, "validation", 20)):
        run.train(recipe_for(directory, *settings), recipe_name="sees", progress=QUIET)
    return directory


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    """Four files of images, as a user has them, and the questions about them."""
    lines = []
    (tmp_path / "scans").mkdir()
    for number in range(1001, 1005):
        path = tmp_path / "scans" / f"{number}.png"
        image = Image.fromarray(pixels(number))
        (image.convert("RGBA") if number % 3 else image).save(path)
        named = str(path) if number > 1002 else f"scans/{number}.png"
        lines.append({"id": number, "question": QUESTION, "options": list(SHADES), "image": named})
    (tmp_path / "questions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return tmp_path / "questions.jsonl"


def test_the_adapter_learns_what_only_the_image_says(trained: Path) -> None:
    card = load_artifact(trained / "adapters" / "sees").manifest.score_card
    assert card is not None
    accuracy = card["results"][0]["metrics"][0]
    assert accuracy["id"].startswith("accuracy") and accuracy["value"] >= 0.9


def test_what_it_chooses_among_is_stored(trained: Path, questions: Path, tmp_path: Path) -> None:
    """So that a file of images alone can be answered."""
    rows = [json.loads(line) for line in questions.read_text().splitlines()]
    assert load_artifact(trained / "adapters" / "sees").manifest.data.choices == SHADES
    without = questions.with_name("without.jsonl")
    without.write_text("".join(json.dumps({k: v for k, v in row.items() if k != "options"}) + "\n" for row in rows))
    predict(trained, questions, tmp_path / "a.jsonl")
    predict(trained, without, tmp_path / "b.jsonl")
    found = [
        [json.loads(line)["answer"] for line in (tmp_path / name).read_text().splitlines()]
        for name in ("a.jsonl", "b.jsonl")
    ]
    assert found[0] == found[1]


def test_its_image_settings_are_stored_and_checked_at_load(trained: Path) -> None:
    artifact = load_artifact(trained / "adapters" / "sees")
    images = artifact.manifest.backbone.images
    assert images is not None and (images.image_size, images.image_mean_std) == (32, "half")
    assert 'image_size=32, image_mean_std="half"' in model_card(artifact.manifest)
    other = load_backbone(str(trained / "tiny-backbone"), image_size=48)
    with pytest.raises(ArtifactError, match=r"images of 32 pixels, .*backbone\.image_size=32"):
        other.load_adapter(trained / "adapters" / "sees")
    fitting = load_backbone(str(trained / "tiny-backbone"), image_size=32)
    assert fitting.load_adapter(trained / "adapters" / "sees") == "sees"


def test_the_real_command_answers_about_images(trained: Path, questions: Path, tmp_path: Path) -> None:
    """In a process of its own, on a backbone that was loaded anew: nothing of the frozen image tower has moved."""
    command = [sys.executable, "-m", "bmpeft", "predict", "--adapter", str(trained / "adapters" / "sees")]
    command += ["--input", str(questions), "--output", str(tmp_path / "a.jsonl"), "--quiet"]
    command += ["--backbone", str(trained / "tiny-backbone")]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONWARNINGS"}
    result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0 and result.stderr == "", result.stderr
    answers = [json.loads(line) for line in (tmp_path / "a.jsonl").read_text().splitlines()]
    assert [answer["answer"] for answer in answers] == ["yes", "no", "yes", "no"]


def predict(trained: Path, questions: Path, output: Path) -> None:
    section = BackboneSection(name=str(trained / "tiny-backbone"), attention="eager")
    predict_file(trained / "adapters" / "sees", questions, output, backbone=section, progress=QUIET)


def test_a_damaged_image_is_named_and_nothing_is_written(trained: Path, questions: Path, tmp_path: Path) -> None:
    path = tmp_path / "scans" / "1002.png"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ImageError, match=r"scans/1002\.png: a damaged or truncated image$"):
        predict(trained, questions, tmp_path / "a.jsonl")
    assert not (tmp_path / "a.jsonl").exists()


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (7, "image: expected the path of a file"),
        ("  ", "image: expected the path of a file"),
        ("a\0b.png", "image: expected the path of a file"),
        ("none.png", "image: no such file: 'none.png'"),
        ("/none.png", "image: no such file: '/none.png'"),
        ("scans", "image: no such file: 'scans'"),
        ("a" * 5000, f"image: no such file: {'a' * 200!r}"),
        ("scans/../../secret.png", "image: expected a path below this file's directory, or an absolute one"),
    ],
    ids=["number", "empty", "null", "missing", "absolute", "directory", "too long", "outside"],
)
def test_a_wrong_image_field_is_named(questions: Path, image: Any, message: str) -> None:
    content = questions.read_text() + json.dumps({"question": "?", "image": image}) + "\n"
    questions.write_text(content)
    with pytest.raises(DataError) as caught:
        read_questions(questions)
    assert str(caught.value) == f"{questions}, row 5: {message}"


def test_an_image_needs_no_question_but_a_row_needs_one_of_both(questions: Path) -> None:
    questions.write_text(json.dumps({"image": "scans/1001.png"}) + "\n")
    (row,) = read_questions(questions, task="captioning")
    assert row.record.image == ImageFile(questions.parent / "scans" / "1001.png")
    assert row.record.question is None and row.record.task == "captioning"


def test_a_damaged_image_in_the_training_data_is_named(tmp_path: Path) -> None:
    train = rows(tmp_path, "train", 12)
    (tmp_path / "scan.png").write_bytes(b"no image")
    train = (*train[:-1], replace(train[-1], image=ImageFile(tmp_path / "scan.png")))
    with dataset_of(train), pytest.raises(DataError, match=r"scan\.png: not an image of a known kind"):
        run.train(recipe_for(tmp_path), recipe_name="sees", progress=QUIET)


def test_inspect_shows_the_size_of_images(tmp_path: Path) -> None:
    with dataset_of(rows(tmp_path, "train", 12)):
        found = inspection.inspect(recipe_for(tmp_path), split="train", rows=2, progress=QUIET)
    assert found.rows[0].image is None
    assert found.rows[1].image == inspection.InspectedImage(width=28, height=28, side=32, patches=4)
    assert found.summary.rows == 12 and found.summary.rows_with_image == 10
    text = plain_text(found)
    assert "image: 28 x 28 pixels, read as 32 x 32 (4 patches in front of the text)" in text
    assert "all 12 rows, 10 with an image" in text


def test_an_adapter_that_saw_no_image_fits_any_image_size(tmp_path: Path) -> None:
    text_only = tuple(replace(row, image=None) for row in rows(tmp_path, "train", 12))
    with dataset_of(text_only):
        run.train(recipe_for(tmp_path, "training.max_steps=3"), recipe_name="blind", progress=QUIET)
    assert load_artifact(tmp_path / "adapters" / "sees").manifest.backbone.images is None
    load_backbone(str(tmp_path / "tiny-backbone"), image_size=64).load_adapter(tmp_path / "adapters" / "sees")


def test_rare_labels_are_read_more_often_and_an_adapter_of_the_projection_is_stored(tmp_path: Path) -> None:
    """30 rows with an image, of which six are bright, are taught as 48; what is stored computes the same again."""
    all_rows = [row for row in rows(tmp_path, "train", 60) if row.image is not None]
    kept = tuple(row for row in all_rows if row.label == 0)[:24] + tuple(row for row in all_rows if row.label == 1)[:6]
    settings = ("data.balance_labels=true", "training.max_steps=4", "adaptation.target_modules=[image_proj, q_proj]")
    with dataset_of(kept, kept[:4]):
        outcome = run.train(recipe_for(tmp_path, *settings), recipe_name="sees", progress=QUIET)
    log = (tmp_path / "runs" / "sees" / "log.jsonl").read_text(encoding="utf-8").splitlines()
    assert json.loads(log[0])["train_rows"] == 48
    backbone = load_backbone(str(recipe_for(tmp_path).backbone.name), image_size=32)
    name = backbone.load_adapter(outcome.directory)  # its canary is measured
    assert any("image_proj" in tensor for tensor in backbone.artifact(name).tensors)


@pytest.mark.parametrize(
    ("count", "images", "problem"),
    [(2, False, "no training row has an image"), (4, True, r"an image has 4 patches")],
    ids=["text-only", "too-many"],
)
def test_sampling_that_would_do_nothing_is_refused(tmp_path: Path, count: int, images: bool, problem: str) -> None:
    train = tuple(replace(row, image=row.image if images else None) for row in rows(tmp_path, "train", 12))
    recipe = recipe_for(tmp_path, f"training.sample_patch_num={count}")
    with dataset_of(train), pytest.raises(UsageError, match=rf"training\.sample_patch_num.*{problem}"):
        run.train(recipe, recipe_name="sees", progress=QUIET)


def encoded(directory: Path, backbone: Any, count: int = 12) -> EncodedDataset:
    task = make_task(small_recipe(directory).task, "medqa")
    records = rows(directory, "train", count)
    split = encode_split(backbone, task, records, max_source_length=64, max_target_length=8, progress=QUIET)
    return EncodedDataset(split.encoded)


def test_batches_count_patches_as_positions(tmp_path: Path) -> None:
    small, large = (encoded(tmp_path, tiny_backbone(image_size=side)) for side in (32, 64))
    assert small.has_images
    differences = [b - a for a, b in zip(small.lengths(), large.lengths(), strict=True)]
    assert differences == [16 - 4 if number % 10 else 0 for number in range(12)]


def test_sampling_is_in_force_while_training_only(tmp_path: Path) -> None:
    backbone = tiny_backbone(image_size=32, dropout=0.0)
    seen: list[tuple[bool, int]] = []

    def note(module: nn.Module, arguments: tuple[Any, ...], output: Any) -> None:
        if output.image_grid is not None:
            seen.append((module.training, int(output.attention_mask.shape[1])))

    data = encoded(tmp_path, backbone)
    longest = max(len(row.input_ids) for row in data.examples)
    backbone.model.encoder.register_forward_hook(note)
    trainer, _ = make_trainer(
        tmp_path / "run", backbone=backbone, rows=data.examples, validation=data.examples, evaluate_after=[1, 2],
        sample_patch_num=3,
    )  # fmt: skip
    trainer.fit()
    assert {length - longest for training, length in seen if training} == {3}
    assert {length - longest for training, length in seen if not training} == {4}
    assert backbone.model.encoder.sample_patch_num is None


def test_the_gradient_check_waits_for_images() -> None:
    said: list[str] = []
    made = parameters(a=[1.0, 0.0], image=None, never=None)
    check = GradientCheck(made, drop_path=0.0, rows=4, images=True, say=said.append)
    for step in range(1, 5):
        check.before_step(step, 1e-3, images=False)
    assert not said
    set_gradients(made, a=[1.0, 0.0], image=[0.0, 1.0], never=None)
    check.before_step(5, 1e-3, images=True)
    restored = GradientCheck(made, drop_path=0.0, rows=4, images=True, say=said.append)
    restored.restore(check.content())
    restored.before_step(6, 1e-3, images=True)
    assert said == ["not reached by this task's inputs, frozen: 1 tensors: never"]
    assert made["image"].requires_grad


@pytest.mark.parametrize("images", [True, False], ids=["with-images", "text-only"])
def test_image_tables_learn_where_images_are_and_are_frozen_where_not(tmp_path: Path, images: bool) -> None:
    """All parameters but the image tower's train here, as they do when everything is trained."""
    backbone = tiny_backbone(image_size=32, dropout=0.0)
    said: list[str] = []
    data = [row if images else replace(row, image=None) for row in encoded(tmp_path, backbone).examples]
    trainer, _ = make_trainer(tmp_path / "run", backbone=backbone, rows=data, say=said.append)
    tables = {n: p for n, p in backbone.model.encoder.named_parameters() if "image_rel" in n or "image_pos_ln" in n}
    for table in tables.values():
        table.requires_grad_(True)
    trainer._gradients = GradientCheck(tables, drop_path=0.0, rows=4, images=images, say=said.append)
    trainer.fit()
    if images:
        assert not said and all(table.requires_grad for table in tables.values())
    else:
        assert len(said) == 1 and said[0].startswith(
            f"not reached by this task's inputs, frozen: {len(tables)} tensors"
        )
        assert not any(table.requires_grad for table in tables.values())
