"""Nothing that is measured is trained on: texts, images and groups of excluded splits leave the corpus, counted."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bmpeft.datasets import read_dataset
from bmpeft.errors import DataError, UsageError
from bmpeft.recipe import DataSection
from bmpeft.training.pretraining.corpus import Removed, read_corpus
from bmpeft.training.pretraining.images import ShownImage
from tests.training.pretraining_sets import IMAGES, MEASURED, write_images
from tests.training.test_pretraining import recipe

LONG = "the patient has had a dry cough for three weeks and no fever at all since last monday morning"


def medquad_rows() -> list[dict[str, str]]:
    return [
        {
            "id": str(n),
            "source": "notes",
            "focus": f"disease {n}",
            "question": f"What is disease {n}?",
            "answer": f"Disease {n} is an illness of organ {n * 7}.",
        }
        for n in range(60)
    ]


def write_medquad(root: Path) -> None:
    (root / "medquad.jsonl").write_text("\n".join(map(json.dumps, medquad_rows())), encoding="utf-8")


def test_texts_of_measured_splits_leave_the_corpus_as_their_recipe_divides_them(tmp_path: Path) -> None:
    write_medquad(tmp_path)
    source = {
        "name": "medquad",
        "path": "medquad.jsonl",
        "text": ["answer"],
        "prompt": " {question}",
        "answer": "answer",
        "weight": 1,
        "licence": "CC BY 4.0",
    }
    asked = recipe(tmp_path, [source], exclude=[{"dataset": "medquad", "path": "medquad.jsonl"}])
    (one,) = read_corpus(asked)
    splits = read_dataset(DataSection(dataset="medquad", path=str(tmp_path / "medquad.jsonl"))).splits
    measured = [record for name in ("validation", "test") for record in splits[name]]
    assert measured and one.removed == Removed(texts=len(measured), questions=len(measured))
    assert {*one.texts, *one.held_out_texts} == {r.answers[0] for r in splits["train"] if r.answers}
    assert {q for q, _ in (*one.questions, *one.held_out_questions)} == {f" {r.question}" for r in splits["train"]}


@pytest.mark.parametrize(
    ("text", "removed"),
    [
        (LONG, True),
        (LONG.upper().replace(" ", "  ") + "!", True),  # the same words
        ("She writes: " + LONG, True),  # most of its 13-word sequences
        (LONG[:40], False),
        ("Another text about another patient, who has had no cough and a fever for four weeks on end.", False),
    ],
)
def test_a_text_is_recognised_by_its_words(tmp_path: Path, text: str, removed: bool) -> None:
    rows = [{"text": f"A question of other words, number {n}?", "summary": f"Short one {n}"} for n in range(30)]
    directory = tmp_path / "measured"
    directory.mkdir()
    for split in ("train", "val", "test"):
        lines = "".join(f"{row['text']} {split}\t{row['summary']} {split}\n" for row in rows)
        (directory / f"{split}.tsv").write_text(
            lines + (f"{LONG}\tCough?\n" if split == "test" else ""), encoding="utf-8"
        )
    (tmp_path / "mine.txt").write_text(f"{text}\nSomething else entirely.\n", encoding="utf-8")
    mine = {"name": "mine", "path": "mine.txt", "text": ["text"], "weight": 1, "licence": "CC0"}
    (one,) = read_corpus(recipe(tmp_path, [mine], exclude=[{"dataset": "meqsum", "path": "measured"}]))
    left = {*one.texts, *one.held_out_texts}
    assert one.removed.texts == removed and (" ".join(text.split()) not in left) == removed
    assert "Something else entirely." in left


def test_images_of_measured_splits_leave_the_corpus(tmp_path: Path) -> None:
    write_images(tmp_path, shared=3)
    (without,) = read_corpus(recipe(tmp_path, [IMAGES]))
    (one,) = read_corpus(recipe(tmp_path, [IMAGES], exclude=[MEASURED]))
    assert one.removed == Removed(images=3) and without.removed == Removed()
    assert len(one.images) + len(one.held_out_images) == 37

    def digests(images: tuple[ShownImage, ...]) -> set[str]:
        return {image.image.digest for image in images}

    splits = read_dataset(DataSection(dataset="medmnist", path=str(tmp_path / "pneumoniamnist.npz"))).splits
    measured = {record.image.digest for name in ("validation", "test") for record in splits[name] if record.image}
    assert digests(without.images) & measured and not digests((*one.images, *one.held_out_images)) & measured


def test_other_images_of_a_measured_patient_leave_the_corpus(tmp_path: Path) -> None:
    images = tmp_path / "images"
    images.mkdir()
    lines = ["patient_id,image_id,projection,icu_admission_offset,icu_release_offset"]
    for n in range(60):
        Image.fromarray(np.random.default_rng(n).integers(0, 255, (16, 16), np.uint8)).save(images / f"i{n}.png")
        lines.append(f"p{n // 2},i{n},{'ap' if n % 3 else 'pa'},,")
    (tmp_path / "data.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    section = {
        **{key: IMAGES[key] for key in ("name", "shows", "weight", "licence")},
        "dataset": "hannover_cxr",
        "path": "data.csv",
        "label_shows": {"ap": {"view": "ap"}},
    }
    excluded = {"dataset": "hannover_cxr", "path": "data.csv"}
    (one,) = read_corpus(recipe(tmp_path, [section], exclude=[excluded]))
    splits = read_dataset(DataSection(dataset="hannover_cxr", path=str(tmp_path / "data.csv"))).splits
    patients = {record.group for record in splits["train"]}
    assert {image.group for image in (*one.images, *one.held_out_images)} == patients and one.removed.images == 0
    # Divided by image, a measured image may be of a patient whose other images were not.
    (less,) = read_corpus(recipe(tmp_path, [section], exclude=[{**excluded, "split_by": "image", "splits": ["test"]}]))
    by_image = DataSection(dataset="hannover_cxr", path=str(tmp_path / "data.csv"), split_by="image")
    measured = {record.group for record in read_dataset(by_image).splits["test"]}
    left = {image.group for image in (*less.images, *less.held_out_images)}
    assert left == patients - measured != patients


@pytest.mark.parametrize(
    ("excluded", "error", "message"),
    [
        ({"dataset": "medmnist", "path": "absent.npz"}, DataError, "absent.npz"),
        ({"dataset": "medmnst", "path": "x.npz"}, UsageError, "did you mean 'medmnist'"),
        ({**MEASURED, "splits": ["tset"]}, UsageError, "tset"),
    ],
)
def test_what_cannot_be_checked_is_refused(
    tmp_path: Path, excluded: dict[str, str], error: type[Exception], message: str
) -> None:
    write_images(tmp_path)
    with pytest.raises(error, match=message):
        read_corpus(recipe(tmp_path, [IMAGES], exclude=[excluded]))
