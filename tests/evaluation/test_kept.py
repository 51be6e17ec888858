"""Kept answers: an interrupted evaluation goes on bit for bit, and what is not whole or not the same is not used."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bmpeft.errors import BmpeftError
from bmpeft.evaluation.kept import RowValues, RunStore, read_rows
from bmpeft.progress import Progress
from bmpeft.recipe_decoding import BeamDecoding
from bmpeft.recipe_task import TaskSection
from bmpeft.records import Example
from tests.evaluation.test_run import rows, run, toy
from tests.fakes import FakeBackbone, FakeModel, hashed_score

OPEN = TaskSection(prompt=" {question}", decoding=BeamDecoding())


class Lines(Progress):
    """Remembers what was said."""

    def __init__(self) -> None:
        super().__init__(quiet=True)
        self.said: list[str] = []

    def line(self, text: str) -> None:
        self.said.append(text)


def store(directory: Path, **options: Any) -> RunStore:
    return RunStore(directory, "a" * 64, {"versions": {}}, **options)


def measured(directory: Path, **options: Any) -> tuple[Any, FakeBackbone, list[str]]:
    """An evaluation with kept answers: its figures, the backbone that was asked, and what was said."""
    lines, backbone = Lines(), FakeBackbone(options.pop("model", FakeModel()))
    options = {"controls": (), "batch_size": 8, "store": store(directory), **options}
    card = run(backbone=backbone, model=backbone.model, progress=lines, **options)  # type: ignore[arg-type]
    return [(r.metrics, r.controls) for r in card.results], backbone, lines.said


def answers_file(directory: Path, system: str = "model") -> Path:
    return directory / f"test.{system}.answers.jsonl"


def stopping_after(batches: int) -> FakeModel:
    """A model that is interrupted in the batch after so many."""
    seen: set[str] = set()

    def score(example: Example, choice: str) -> float:
        seen.add(example.record.id)
        if len(seen) > 8 * batches:
            raise KeyboardInterrupt
        return hashed_score(example, choice)

    return FakeModel(score)


def test_an_interrupted_evaluation_goes_on_bit_for_bit(tmp_path: Path) -> None:
    whole, reference, _ = measured(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        measured(tmp_path / "kept", model=stopping_after(3))
    resumed, backbone, said = measured(tmp_path / "kept")
    assert resumed == whole
    assert backbone.batches == reference.batches[3:]
    assert said == ["evaluating test: 24 of 60 answers are kept from before"]
    assert answers_file(tmp_path / "kept").read_bytes().count(b"\n") == answers_file(
        tmp_path / "whole"
    ).read_bytes().count(b"\n")


def test_finished_answers_of_controls_are_kept_too(tmp_path: Path) -> None:
    first, _, _ = measured(tmp_path, controls=("options_only", "majority"))
    second, backbone, said = measured(tmp_path, controls=("options_only", "majority"))
    assert second == first
    assert backbone.batches == []
    assert said[-1] == "control options_only on test: 60 of 60 answers are kept from before"


def test_written_answers_come_back_as_they_were(tmp_path: Path) -> None:
    texts = ["left lung", "", "\u2028 \x00 \\n", "línea\nzwei"]
    records = tuple(
        dataclasses.replace(record, choices=None, label=None, answers=("left lung",))
        for record in rows("test", [0] * len(texts))
    )
    model = FakeModel(write=lambda example: texts[int(example.record.id.removeprefix("test"))])
    first, _, _ = measured(tmp_path, dataset=toy(records), model=model, task=OPEN)
    second, backbone, _ = measured(tmp_path, dataset=toy(records), model=FakeModel(), task=OPEN)
    assert (second, backbone.batches) == (first, [])


def test_the_files_are_their_owners_and_name_no_row(tmp_path: Path) -> None:
    measured(tmp_path)
    file = answers_file(tmp_path)
    assert file.stat().st_mode & 0o777 == 0o600
    content = file.read_text() + (tmp_path / "test.rows.json").read_text()
    for record in toy().splits["test"]:
        assert f'"{record.id}"' not in content
        assert not any(f'"{choice}"' in content for choice in record.choices or ())


@pytest.mark.parametrize(
    ("options", "changed"),
    [
        ({"limit": 20}, "rows"),
        ({"batch_size": 4}, "batch_size"),
        ({"max_source_length": 90}, "max_source_length"),
        ({"task": TaskSection(prompt=" {question} {choices}")}, "task"),
        ({"dataset": toy(rows("test", [1] * 60))}, "rows?.*split_digest|split_digest"),
    ],
    ids=["limit", "batch", "length", "prompt", "data"],
)
def test_with_another_key_all_rows_are_answered_anew(tmp_path: Path, options: dict[str, Any], changed: str) -> None:
    measured(tmp_path)
    figures, _, said = measured(tmp_path, **options)
    assert figures == measured(tmp_path / "other", **options)[0]
    assert len(said) == 1
    assert said[0].endswith(" changed since; all rows are answered anew")
    assert changed.split("|")[-1] in said[0]
    assert measured(tmp_path, **options)[1].batches == [], "the file was replaced"


def test_another_adapter_shares_nothing(tmp_path: Path) -> None:
    measured(tmp_path)
    other = RunStore(tmp_path, "b" * 64, {"versions": {}})
    assert "adapter changed since" in measured(tmp_path, store=other)[2][0]


def test_fresh_answers_are_made_on_demand(tmp_path: Path) -> None:
    measured(tmp_path)
    _, backbone, said = measured(tmp_path, store=store(tmp_path, fresh=True))
    assert (sum(map(len, backbone.batches)), said) == (60, [])


def test_a_line_that_was_cut_off_is_made_again(tmp_path: Path) -> None:
    whole, reference, _ = measured(tmp_path)
    content = answers_file(tmp_path).read_bytes()
    lines = content.splitlines(keepends=True)
    answers_file(tmp_path).write_bytes(b"".join(lines[:4]) + lines[4][:-9])
    resumed, backbone, _ = measured(tmp_path)
    assert (resumed, backbone.batches) == (whole, reference.batches[3:])


def _changed(change: Callable[[dict[str, Any]], None], line: int = 2) -> Callable[[bytes], bytes]:
    def damage(content: bytes) -> bytes:
        lines = content.splitlines()
        value = json.loads(lines[line])
        change(value)
        lines[line] = json.dumps(value).encode()
        return b"\n".join(lines) + b"\n"

    return damage


DAMAGES = {
    "empty": lambda content: b"",
    "no-json": lambda content: b"garbage\n" + content,
    "half-a-line-within": lambda content: content.replace(b'"answers"', b'"ans', 1),
    "not-utf-8": lambda content: content[:-2] + b"\xff\n",
    "nan": lambda content: content.replace(b'"seconds":', b'"seconds":NaN,"x":', 1),
    "another-schema": _changed(lambda line: line.update(schema_version=7), 0),
    "unknown-row": _changed(lambda line: line["answers"][0].__setitem__(0, "0" * 32)),
    "choice-out-of-range": _changed(lambda line: line["answers"][0].__setitem__(1, 4)),
    "choice-is-no-number": _changed(lambda line: line["answers"][0].__setitem__(1, True)),
    "a-score-missing": _changed(lambda line: line["answers"][0][3].pop()),
    "a-length-of-0": _changed(lambda line: line["answers"][0][4].__setitem__(0, 0)),
    "no-choice-and-no-text": _changed(lambda line: line["answers"][0].__setitem__(slice(1, 5), [None] * 4)),
    "answers-are-no-list": _changed(lambda line: line.update(answers={})),
    "short-answer": _changed(lambda line: line["answers"][0].pop()),
    "negative-time": _changed(lambda line: line.update(seconds="1")),
}


@pytest.mark.parametrize("name", sorted(DAMAGES))
def test_a_damaged_file_is_not_used_and_is_replaced(tmp_path: Path, name: str) -> None:
    whole, _, _ = measured(tmp_path)
    file = answers_file(tmp_path)
    file.write_bytes(DAMAGES[name](file.read_bytes()))
    again, backbone, said = measured(tmp_path)
    assert again == whole
    assert sum(map(len, backbone.batches)) == 60
    assert len(said) == 1
    assert "all rows are answered anew" in said[0]
    assert "\n" not in said[0]
    assert measured(tmp_path)[1].batches == []


def test_a_place_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(BmpeftError, match=r"cannot be written: .*; output.runs=DIRECTORY names another place"):
        measured(tmp_path, store=store(tmp_path / "file", fresh=True))


def test_row_values_are_those_of_the_figures(tmp_path: Path) -> None:
    figures, _, _ = measured(tmp_path)
    values = read_rows(tmp_path / "test.rows.json", adapter_digest="a" * 64)
    assert len(set(values.rows)) == len(values.rows) == 60
    for metric in figures[0][0]:
        if metric.id in values.metrics:
            assert sum(v or 0.0 for v in values.metrics[metric.id]) / 60 == pytest.approx(metric.value)
    assert next(iter(values.metrics)) == figures[0][0][0].id


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"schema_version": 2}, "is of another version of bmpeft"),
        ({"adapter": "b" * 64}, "is of another adapter of that name"),
        ({"rows": ["a"]}, "is damaged"),
        ({"groups": None}, "is damaged"),
        ({"metrics": {}}, "is damaged"),
        ({"metrics": {"m@1": ["x"] * 60}}, "is damaged"),
        ({"metrics": []}, "is damaged"),
    ],
)
def test_damaged_row_values_are_one_line(tmp_path: Path, change: dict[str, Any], problem: str) -> None:
    measured(tmp_path)
    file = tmp_path / "test.rows.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **change}))
    with pytest.raises(BmpeftError, match=problem):
        read_rows(file, adapter_digest="a" * 64)


def test_missing_row_values_are_one_line(tmp_path: Path) -> None:
    with pytest.raises(BmpeftError, match="cannot be read: No such file"):
        read_rows(tmp_path / "test.rows.json", adapter_digest="a" * 64)


def test_the_store_can_hold_any_split_name(tmp_path: Path) -> None:
    store(tmp_path).write_rows("../a/b", RowValues("d", ("r",), ("g",), {"m@1": (1.0,)}))
    assert [file.name for file in tmp_path.iterdir()] == ["..%2Fa%2Fb.rows.json"]
