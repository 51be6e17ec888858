"""Pretraining on images: what is said of them, batches of one task, a tower that learns and is then frozen."""

from __future__ import annotations

import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bmpeft.backbones import load_frozen_backbone
from bmpeft.backbones.biomedgpt.backbone import CODE_PARAMETERS
from bmpeft.errors import RecipeError, UsageError
from bmpeft.images.augmentation import AugmentedImage
from bmpeft.pretrain_recipe import ObjectiveSection, PretrainRecipe
from bmpeft.progress import Progress
from bmpeft.recipe import BackboneSection
from bmpeft.training.pretraining.batches import MixtureBatches
from bmpeft.training.pretraining.corpus import read_corpus
from bmpeft.training.pretraining.images import ImageTexts, ShownImage
from bmpeft.training.pretraining.rows import IMAGE_TASKS, ImageReading, MixtureRows
from bmpeft.training.pretraining.run import pretrain
from bmpeft.training.pretraining.trainer import PretrainTrainer
from bmpeft.training.pretraining.wordings import ATTRIBUTES, CLOSED, OPEN, caption, question
from tests.backbones.tiny import tiny_backbone, tiny_directory
from tests.training.pretraining_sets import IMAGES, MEASURED, write_images
from tests.training.test_pretraining import recipe, source, write_notes

QUIET = Progress(quiet=True)
WORDS = st.sampled_from(["left", "right", "upper", "lower"])
SHOWN = st.dictionaries(st.sampled_from(ATTRIBUTES), WORDS, min_size=1)
READING = ImageReading(side=32, patches=4)


def image_rows(root: Path, objective: dict[str, Any] | None = None, **fields: Any) -> MixtureRows:
    asked = recipe(root, [{**IMAGES, **fields}], objective=objective or {})
    return MixtureRows(read_corpus(asked), tiny_backbone().tokenizer, asked.objective, 0, READING)


# --- what is said of an image ---------------------------------------------------------------------------------------


@given(shown=SHOWN, seed=st.integers(0, 10_000))
def test_a_whole_caption_says_all_that_is_known(shown: dict[str, str], seed: int) -> None:
    text = caption(shown, random.Random(seed), whole=True)
    said = Counter(word.strip(",") for word in text.split())
    assert not Counter(shown.values()) - said and "{" not in text


@given(shown=SHOWN, seed=st.integers(0, 10_000))
def test_a_question_is_answered_by_what_is_shown(shown: dict[str, str], seed: int) -> None:
    others = {name: ["something else"] for name in shown}
    asked, answer = question(shown, others, random.Random(seed))
    if asked in {wording for name in shown for wording in OPEN[name]}:
        assert any(asked in OPEN[name] and answer == value for name, value in shown.items())
    else:
        right = {w.format(value) for name, value in shown.items() for w in CLOSED[name]}
        wrong = {w.format("something else") for name in shown for w in CLOSED[name]}
        assert asked in (right if answer == "yes" else wrong) and answer in ("yes", "no")


def test_yes_and_no_are_even_and_a_mismatch_shows_something_else() -> None:
    image: Any = None
    ill, well = ((("organ", "chest"), ("finding", finding)) for finding in ("pneumonia", "clear lungs"))
    breast = (("organ", "breast"), ("finding", "tumour"))
    sources = [[ShownImage(image, "x", shown, False, "g") for shown in row] for row in ((ill, well), (breast,))]
    texts, generator = ImageTexts(sources), random.Random(0)
    pairs = [texts.matching(0, sources[0][0], generator) for _ in range(400)]
    assert 160 <= sum(agrees for _, agrees in pairs) <= 240
    assert all(("pneumonia" in text and "chest" in text) == agrees for text, agrees in pairs)
    assert {word for text, agrees in pairs if not agrees for word in ("clear", "tumour") if word in text} == {
        "clear",
        "tumour",
    }
    asked = [texts.question(0, sources[0][0], generator) for _ in range(800)]
    closed = [answer for _, answer in asked if answer in ("yes", "no")]
    assert 300 <= len(closed) <= 500 and 0.4 <= closed.count("yes") / len(closed) <= 0.6
    # A finding of another dataset may be there as well: nobody has looked for it.
    assert not any("tumour" in text for text, _ in asked)


# --- rows and batches -----------------------------------------------------------------------------------------------


def test_every_task_of_an_image_has_its_prompt_and_answer(tmp_path: Path) -> None:
    write_images(tmp_path)
    rows, tokenizer = image_rows(tmp_path), tiny_backbone().tokenizer
    seen: dict[str, set[str]] = {}
    for number in range(400):
        row = rows.row(number)
        assert row.example.image is not None and row.example.image_patches == 4
        source_text = tokenizer.decode(row.example.input_ids, skip_special_tokens=True)
        target = tokenizer.decode(row.example.labels, skip_special_tokens=True)
        assert source_text.startswith(" ") and target.startswith(" ")
        if row.task in ("image_classification", "captioning"):
            assert source_text == " what does the image describe?"
        if row.task == "image_text_matching":
            assert source_text.startswith(' does the image describe " ') and source_text.endswith(' "?')
        seen.setdefault(row.task, set()).add(target)
    assert set(seen) == set(IMAGE_TASKS) == set(rows.tasks)
    assert seen["image_classification"] == {" normal", " pneumonia"} and seen["image_text_matching"] == {" yes", " no"}
    assert all("clear lungs" in text or "pneumonia" in text for text in seen["captioning"])


@pytest.mark.parametrize(("balanced", "share"), [(False, 0.2), (True, 0.5)])
def test_balanced_labels_are_drawn_equally_often(tmp_path: Path, balanced: bool, share: float) -> None:
    write_images(tmp_path)
    with np.load(tmp_path / "pneumoniamnist.npz") as file:
        arrays = dict(file)
    arrays["train_labels"][:] = (np.arange(len(arrays["train_labels"])) % 5 == 0)[:, None]
    np.savez_compressed(tmp_path / "pneumoniamnist.npz", **arrays)
    rows, tokenizer = image_rows(tmp_path, balanced=balanced), tiny_backbone().tokenizer
    read = [row for row in map(rows.row, range(1500)) if row.task == "image_classification"]
    targets = Counter(tokenizer.decode(row.example.labels, skip_special_tokens=True) for row in read)
    assert targets[" pneumonia"] / len(read) == pytest.approx(share, abs=0.1)


def test_a_task_without_a_share_does_not_occur(tmp_path: Path) -> None:
    write_images(tmp_path)
    rows = image_rows(tmp_path, {"image_tasks": {"captioning": 0, "image_text_matching": 0}})
    expected = {"visual_question_answering", "image_classification"}
    assert {rows.row(number).task for number in range(100)} == set(rows.tasks) == expected
    with pytest.raises(ValueError, match="needs a share above 0"):
        ObjectiveSection.model_validate({"image_tasks": dict.fromkeys(IMAGE_TASKS, 0)})


def test_batches_are_of_one_task_and_images_of_mixed_labels(tmp_path: Path) -> None:
    write_images(tmp_path)
    write_notes(tmp_path)
    asked = recipe(tmp_path, [IMAGES, source(weight=2)])
    rows = MixtureRows(read_corpus(asked), tiny_backbone().tokenizer, asked.objective, 0, READING)
    batches = list(MixtureBatches(rows, batch_tokens=256, batch_images=16, batches=400, seed=0))
    numbers = [number for batch in batches for number in batch]
    assert len(set(numbers)) == len(numbers)
    found = Counter()
    for batch in batches:
        (task,) = {rows.row(number).task for number in batch}
        found[task] += 1
        if task == "image_classification":
            assert len(batch) == 16
            # A batch of one label would tell the label to the tower, which normalises by its batch.
            assert len({rows[number].labels for number in batch}) == 2
    assert set(found) == {"infilling", *IMAGE_TASKS}
    # Rows that did not fill a batch waited for the next window: none of the first windows' rows is lost.
    images = [n for n in range(2048) if rows.row(n).task == "captioning"]
    assert set(images) <= set(numbers)


def test_validation_reads_images_as_they_are(tmp_path: Path) -> None:
    write_images(tmp_path)
    backbone = tiny_backbone()
    from bmpeft.training.pretraining.run import mixture_rows

    asked = recipe(tmp_path, [IMAGES])
    sources = read_corpus(asked)
    augmented, plain = (mixture_rows(sources, backbone, asked, augmented=how) for how in (True, False))
    assert isinstance(augmented[0].image, AugmentedImage) and augmented[0].image.image == plain[0].image
    assert augmented[0].labels == plain[0].labels


# --- wrong recipes --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"label_shows": {"normall": {"finding": "x"}}},
            r"label_shows: no label is named 'normall'; did you mean 'normal'",
        ),
        ({"dataset": "meqsum", "path": "meqsum.tsv"}, "no training split of images with labels"),
    ],
)
def test_a_source_that_is_none_of_images_is_refused(tmp_path: Path, fields: dict[str, Any], message: str) -> None:
    write_images(tmp_path)
    (tmp_path / "meqsum.tsv").write_text("".join(f"Question {n}\tSummary {n}\n" for n in range(20)), encoding="utf-8")
    asked = {**IMAGES, **fields}
    if asked["dataset"] == "meqsum":
        asked = {**asked, "label_shows": {}}
    with pytest.raises(RecipeError, match=message):
        read_corpus(recipe(tmp_path, [asked]))


@pytest.mark.parametrize(
    "fields",
    [
        {"text": ["text"]},
        {"prompt": " {q}", "answer": "a"},
        {"shows": {"colour": "red"}},
        {"dataset": None},
        {"embedded": "facts"},
    ],
)
def test_keys_of_another_kind_of_source_are_refused(tmp_path: Path, fields: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="corpus"):
        recipe(tmp_path, [{**IMAGES, **fields}])


@pytest.mark.parametrize("prompt", ["no column", " {q} {q}", " {q", " {}"])
def test_a_prompt_names_columns(tmp_path: Path, prompt: str) -> None:
    with pytest.raises(ValueError, match="names columns in braces"):
        recipe(tmp_path, [source(prompt=prompt, answer="a")])


def test_patch_sampling_that_does_nothing_is_refused(tmp_path: Path) -> None:
    asked = learning(tmp_path, training={"sample_patch_num": 4})
    with pytest.raises(UsageError, match="an image has 4 patches"):
        pretrain(asked, progress=QUIET)


# --- the whole way --------------------------------------------------------------------------------------------------


def learning(root: Path, **sections: Any) -> PretrainRecipe:
    """A tiny backbone on images of two shades, which are told apart by their label alone."""
    write_images(root, 60)
    write_notes(root)
    directory = tiny_directory(root / "tiny", image_size=32)
    training = {
        "steps": 60,
        "batch_images": 8,
        "checkpoint_steps": 20,
        "validation_share": 0.2,
        "learning_rate": 2e-3,
        "encoder_learning_rate_factor": 0.5,
        "precision": "float32",
        **sections.pop("training", {}),
    }
    return recipe(
        root,
        [{**IMAGES, "weight": 4}, source()],
        backbone={"name": str(directory), "init": "pretrained"},
        objective={"image_tasks": {"captioning": 0, "visual_question_answering": 0, "image_text_matching": 0}},
        training=training,
        output={"dtype": "float32"},
        exclude=[MEASURED],
        **sections,
    )


def test_the_tower_learns_and_its_statistics_fit(tmp_path: Path) -> None:
    asked = learning(tmp_path, training={"steps": 100, "checkpoint_steps": 50})
    before = load_frozen_backbone(asked.backbone).model.state_dict()
    outcome = pretrain(asked, progress=QUIET)
    after = load_frozen_backbone(BackboneSection(name=str(outcome.directory)))
    new = after.model.state_dict()
    tower = [name for name in before if name.startswith("encoder.embed_images.")]
    assert all(not torch.equal(before[name], new[name]) for name in tower)
    assert all(torch.equal(before[n], new[n]) for n in before if n.startswith(CODE_PARAMETERS))
    # Of the label's tokens the first one alone is uncertain: without the image a token costs at least 0.2 nats
    # (ln 2 over three). Measured in evaluation mode, by running statistics.
    losses = outcome.report["validation_loss_by_task"]
    assert losses["image_classification"] < 0.2 < losses["infilling"]
    log = (tmp_path / "runs" / "backbone" / "log.jsonl").read_text(encoding="utf-8")
    events = [json.loads(line) for line in log.splitlines()]
    assert all("loss/infilling" in e or "loss/image_classification" in e for e in events)
    assert sum(outcome.report["steps_by_task"].values()) == 100


def test_statistics_are_of_the_batch_first_and_then_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = learning(tmp_path, training={"steps": 10, "batch_statistics": 0.6, "checkpoint_steps": 10})
    seen: list[bool] = []
    original = PretrainTrainer.training_step

    def watched(self: Any, *args: Any, **kwargs: Any) -> Any:
        result = original(self, *args, **kwargs)
        seen.append(self.backbone.model.encoder.embed_images.training)
        return result

    monkeypatch.setattr(PretrainTrainer, "training_step", watched)
    pretrain(asked, progress=QUIET)
    assert seen == [True] * 6 + [False] * 4


class _PowerCut(BaseException):
    pass


def test_a_run_with_images_goes_on_as_if_it_had_not_been_interrupted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = learning(
        tmp_path,
        training={"steps": 12, "checkpoint_steps": 4, "sample_patch_num": 3, "dropout": 0.1, "batch_statistics": 0.5},
    )
    elsewhere = asked.output.model_copy(update={"directory": str(tmp_path / "whole")})
    whole = pretrain(asked.model_copy(update={"output": elsewhere}), progress=QUIET)
    original = PretrainTrainer.training_step

    def cut(self: Any, *args: Any, **kwargs: Any) -> Any:
        if self.state.global_step == 5:
            raise _PowerCut
        return original(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(PretrainTrainer, "training_step", cut)
        with pytest.raises(_PowerCut):
            pretrain(asked, progress=QUIET)
    resumed = pretrain(asked, progress=QUIET, resume=True)
    assert resumed.fingerprint == whole.fingerprint
    assert resumed.report["steps_by_task"] == whole.report["steps_by_task"]


def test_parts_train_at_their_rates(tmp_path: Path) -> None:
    # The first step of Adam moves every tensor by about the learning rate, whatever its gradient.
    training = {
        "steps": 4,
        "warmup": 0.0,
        "weight_decay": 0.0,
        "checkpoint_steps": 4,
        "encoder_learning_rate_factor": 0.1,
        "tower_learning_rate_factor": 2.0,
    }
    asked = learning(tmp_path, training=training)
    one = PretrainRecipe.model_validate(
        {
            **asked.model_dump(),
            "corpus": asked.model_dump()["corpus"][:1],
            "training": {**asked.training.model_dump(), "steps": 1},
        }
    )
    before = load_frozen_backbone(one.backbone).model.state_dict()
    after = load_frozen_backbone(BackboneSection(name=str(pretrain(one, progress=QUIET).directory))).model.state_dict()
    parts = {"encoder.layers.0.fc1.weight": 1e-1, "encoder.image_proj.weight": 2.0, "decoder.layers.0.fc1.weight": 1.0}
    moved = {name: float((after[name] - before[name]).abs().max()) for name in parts}
    assert moved == pytest.approx({name: 2e-3 * factor for name, factor in parts.items()}, rel=0.05)


def test_the_encoder_is_slow_at_first_and_faster_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = learning(
        tmp_path,
        training={
            "steps": 40,
            "warmup": 0.0,
            "checkpoint_steps": 40,
            "encoder_learning_rate_factor": 0.05,
            "encoder_late_factor": 0.5,
            "encoder_slow_share": 0.25,
        },
    )
    rates: list[dict[str, float]] = []
    original = PretrainTrainer.training_step

    def watched(self: Any, *args: Any, **kwargs: Any) -> Any:
        rates.append({group["part"]: group["lr"] for group in self._bare_optimizer().param_groups})
        return original(self, *args, **kwargs)

    monkeypatch.setattr(PretrainTrainer, "training_step", watched)
    pretrain(asked, progress=QUIET)
    shares = np.array([step["encoder"] / step["decoder"] for step in rates[:39]])
    assert shares[:11] == pytest.approx(0.05) and shares[20:] == pytest.approx(0.5)
    assert shares[15] == pytest.approx(0.275)
    assert all(step["tower"] == step["decoder"] for step in rates)
