"""A training run that takes seconds: the tiny backbone and a handful of made-up questions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from bmpeft.backbones.base import FrozenBackbone
from bmpeft.progress import Progress
from bmpeft.recipe import Recipe, parse_recipe
from bmpeft.recipe_task import TaskSection
from bmpeft.records import Record
from bmpeft.tasks import make_task
from bmpeft.training.encoding import EncodedSplit, encode_split
from tests.backbones.tiny import tiny_directory

STONES = ("agate", "beryl", "coral", "diamond", "emerald", "flint", "garnet", "halite", "iolite", "jade")
COLOURS = ("red", "blue", "green", "dark violet", "pale yellow and white")


def question(number: int) -> dict[str, Any]:
    """One row in MedQA's format; source and target lengths vary with the number."""
    stone, right = STONES[number % len(STONES)], number % 4
    options = {letter: COLOURS[(number + i) % len(COLOURS)] for i, letter in enumerate("ABCD")}
    filler = " ".join(["very"] * (number % 7))
    return {
        "id": f"row-{number}",
        "question": f"In box {number}, which colour has the {filler} old {stone}?",
        "options": options,
        "answer_idx": "ABCD"[right],
        "answer": options["ABCD"[right]],
    }


def write_questions(directory: Path, *, train: int = 24, dev: int = 6, test: int = 6) -> Path:
    """A directory with train.jsonl, dev.jsonl and test.jsonl."""
    directory.mkdir(parents=True, exist_ok=True)
    start = 0
    for split, rows in (("train", train), ("dev", dev), ("test", test)):
        lines = [json.dumps(question(number)) for number in range(start, start + rows)]
        (directory / f"{split}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
        start += rows
    return directory


def small_recipe(directory: Path, *overrides: str, backbone: Path | None = None) -> Recipe:
    """A recipe whose every path is below `directory`; writes data and backbone there if they are not there yet."""
    data = directory / "questions"
    if not data.exists():
        write_questions(data)
    backbone = backbone or directory / "tiny-backbone"
    if not backbone.exists():
        tiny_directory(backbone)
    content = {
        "backbone": {"name": str(backbone), "attention": "eager"},
        "adaptation": {"rank": 4},
        "data": {"dataset": "medqa", "path": str(data), "max_source_length": 96, "max_target_length": 16},
        "training": {
            "max_steps": 4,
            "batch_size": 8,
            "learning_rate": 5e-3,
            "evaluations": 2,
            "logging_steps": 1,
            "tensorboard": False,
        },
        "evaluation": {"controls": ["frozen_backbone"], "bootstrap_samples": 100},
        "output": {"name": "small", "directory": str(directory / "adapters"), "runs": str(directory / "runs")},
    }
    return parse_recipe(content, source="small", overrides=overrides)


def records(count: int, split: str = "train") -> list[Record]:
    """The rows as records."""
    rows = [question(number) for number in range(count)]
    return [
        Record(
            id=row["id"],
            task="question_answering",
            split=split,
            group=row["id"],
            question=row["question"],
            choices=tuple(row["options"].values()),
            label="ABCD".index(row["answer_idx"]),
        )
        for row in rows
    ]


def encoded_rows(backbone: FrozenBackbone, count: int) -> EncodedSplit:
    """`count` rows as the backbone reads them."""
    return encode_split(
        backbone,
        make_task(TaskSection(), "medqa"),
        records(count),
        max_source_length=96,
        max_target_length=16,
        progress=Progress(quiet=True),
    )
