"""Answer a file of questions with an adapter: JSON lines in, JSON lines out.

    {"id": "7", "question": "...", "options": {"A": "...", "B": "..."}, "text": "...", "image": "xray.png"}
    {"id": "7", "answer": "...", "choice": "B", "scores": {"A": -7.1, "B": -3.2}, "normalized_scores": {...}}

`options` may be a mapping or a list; without it the answer is open, or one of the labels that the adapter was
trained to choose among. `text` is a document that the prompt may ask for; text understanding and summarization
need it, and no question.
`image` is a file below the input's directory, or an absolute path; a row with one needs no question if the
adapter's prompt asks for none. Rows without an id get their line number.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bmpeft.adapters import atomic
from bmpeft.adapters.artifact import load_artifact, remembered_backbone, with_settings_as_trained
from bmpeft.adapters.manifest import Manifest
from bmpeft.datasets.rows import text_problem
from bmpeft.errors import DataError, UsageError, did_you_mean
from bmpeft.images import ImageFile
from bmpeft.progress import Progress
from bmpeft.recipe import BackboneSection
from bmpeft.records import Prediction, Record

_KEYS = ("id", "question", "options", "text", "image")
_ABOUT_A_TEXT = ("text_understanding", "summarization")
_BY_LABELS = ("text_understanding", "image_classification")


@dataclass(frozen=True, slots=True)
class _Question:
    """One line of the input: the record, and the names of its options (letters, or numbers from 0)."""

    record: Record
    names: tuple[str, ...]


def predict_file(
    adapter: str | Path,
    input_path: str | Path,
    output_path: str | Path,
    *,
    progress: Progress,
    backbone: BackboneSection | None = None,
    batch_size: int = 32,
) -> int:
    """Answer every question of a file, in its order; returns how many.

    Args:
        adapter: directory of the artifact.
        input_path: JSON lines, UTF-8.
        output_path: written whole at the end, or not at all; a file that was there is replaced.
        progress: shows how far it is.
        backbone: default: the one that the adapter names; images as it was trained, if this does not say how.
        batch_size: questions at once.

    Raises:
        ArtifactError: the adapter is unusable or of another backbone.
        DataError: names the input's first wrong row.
        UsageError: the output is the input, or a question lacks what the adapter's prompt asks for.
    """
    input_path, output_path = Path(input_path), Path(output_path)
    if output_path.exists() and input_path.exists() and output_path.samefile(input_path):
        raise UsageError(f"{output_path}: is the input too; name another output")
    if not output_path.parent.is_dir():
        raise UsageError(f"{output_path.parent}: no such directory for the output")
    artifact = load_artifact(adapter)
    questions = read_questions(
        input_path,
        task=artifact.manifest.task.name,
        labels=_labels(artifact.manifest),
        closed=artifact.manifest.task.decoding.method == "candidates",
    )
    section = remembered_backbone(artifact) if backbone is None else with_settings_as_trained(artifact, backbone)
    from bmpeft.adapters.runtime import Backbone
    from bmpeft.backbones import load_frozen_backbone

    runtime = Backbone(load_frozen_backbone(section))
    name = runtime.load_adapter(adapter)
    with progress.task("predicting", total=len(questions)) as task:
        predictions = runtime.predict(
            [question.record for question in questions],
            adapter=name,
            batch_size=batch_size,
            on_progress=task.advance,
        )
    lines = [json.dumps(_answer(q, p), ensure_ascii=False) for q, p in zip(questions, predictions, strict=True)]
    try:
        atomic.write_file(output_path, ("\n".join(lines) + "\n").encode())
    except OSError as error:
        raise UsageError(f"{output_path}: cannot be written: {error.strerror or error}") from None
    return len(questions)


def _labels(manifest: Manifest) -> Mapping[str, str] | None:
    """What an adapter that chooses among the same labels in every row chooses among: label -> name."""
    if manifest.task.name in _BY_LABELS and manifest.recipe["data"]["label_names"] is not None:
        labels: Mapping[str, str] = manifest.recipe["data"]["label_names"]
        return labels
    return None if manifest.data.choices is None else {name: name for name in manifest.data.choices}


def read_questions(
    path: Path,
    *,
    task: str = "question_answering",
    labels: Mapping[str, str] | None = None,
    closed: bool = False,
) -> list[_Question]:
    """Read and check a file of questions for a task.

    Args:
        path: of the file.
        task: its name decides what a row needs.
        labels: label -> name: the options of rows that have none.
        closed: whether every row must have options, since the adapter chooses among them.

    Raises:
        DataError: a missing or empty file, broken JSON, a wrong field, an image that is not there, or an id that
            occurs twice.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(path, error.strerror or str(error)) from None
    questions = [_question(path, row, value, task, labels) for row, value in _json_lines(path, content)]
    if not questions:
        raise DataError(path, "holds no questions")
    seen: set[str] = set()
    for question in questions:
        if closed and question.record.choices is None:
            problem = f"record {question.record.id!r} has no options, and the adapter chooses among options: name them"
            raise DataError(path, problem)
        if question.record.id in seen:
            raise DataError(path, f"the id {question.record.id!r} occurs twice")
        seen.add(question.record.id)
    return questions


def _json_lines(path: Path, content: bytes) -> Iterator[tuple[int, Any]]:
    for row, line in enumerate(content.removeprefix(b"\xef\xbb\xbf").split(b"\n"), start=1):
        if not line.strip():
            continue
        try:
            yield row, json.loads(line.decode())
        except UnicodeDecodeError:
            raise DataError(path, "not UTF-8", row=row) from None
        except (ValueError, RecursionError) as error:
            problem = getattr(error, "msg", "nested too deeply, or a number with too many digits")
            raise DataError(path, f"not JSON: {problem}", row=row) from None


def _question(path: Path, row: int, value: Any, task: str, options: Mapping[str, str] | None) -> _Question:
    if not isinstance(value, dict):
        raise DataError(path, "expected a JSON object", row=row)
    for key in value:
        if key not in _KEYS:
            raise DataError(path, f"unknown key {key[:50]!r}{did_you_mean(key, _KEYS)}", row=row)
    identity = value.get("id", str(row))
    if isinstance(identity, bool) or not isinstance(identity, str | int):
        raise DataError(path, "id: expected text or a whole number", row=row)
    image = _image(path, row, value.get("image"))
    names, choices = _options(path, row, value.get("options", options))
    about_a_text = task in _ABOUT_A_TEXT
    record = Record(
        id=str(identity),
        task=task,
        split="questions",
        group=str(identity),
        question=_text(path, row, value, "question", required=image is None and not about_a_text),
        text=_text(path, row, value, "text", required=about_a_text),
        image=image,
        choices=choices,
    )
    return _Question(record, names)


def _image(path: Path, row: int, value: Any) -> ImageFile | None:
    """The file that a row names. It is looked for now, so that a typing error does not end a long run at its end."""
    if value is None:
        return None
    if not isinstance(value, str) or not value.strip() or "\0" in value:
        raise DataError(path, "image: expected the path of a file", row=row)
    named = Path(value)
    if not named.is_absolute():
        if ".." in named.parts:
            raise DataError(path, "image: expected a path below this file's directory, or an absolute one", row=row)
        named = path.parent / named
    try:
        there = named.is_file()
    except OSError:  # a name that is too long, or not allowed
        there = False
    if not there:
        raise DataError(path, f"image: no such file: {value[:200]!r}", row=row)
    return ImageFile(named)


def _text(path: Path, row: int, value: dict[str, Any], key: str, *, required: bool) -> str | None:
    if value.get(key) is None and not required:
        return None
    if not isinstance(value.get(key), str) or not value[key].strip():
        raise DataError(path, f"{key}: expected text that is not empty", row=row)
    _check(path, row, key, value[key])
    return str(value[key])


def _check(path: Path, row: int, key: str, text: str) -> None:
    problem = text_problem(text)
    if problem is not None:
        raise DataError(path, f"{key}: holds {problem}", row=row)


def _options(path: Path, row: int, value: Any) -> tuple[tuple[str, ...], tuple[str, ...] | None]:
    if value is None:
        return (), None
    if isinstance(value, list):
        value = {str(number): option for number, option in enumerate(value)}
    if not isinstance(value, dict) or len(value) < 2:
        raise DataError(path, "options: expected a mapping or a list of at least two", row=row)
    for name, option in value.items():
        if not isinstance(option, str) or not option.strip():
            raise DataError(path, f"options: {name[:50]!r} is not text, or empty", row=row)
        _check(path, row, "options", option)
    return tuple(value), tuple(value.values())


def _answer(question: _Question, prediction: Prediction) -> dict[str, Any]:
    answer: dict[str, Any] = {"id": prediction.id, "answer": prediction.text}
    if prediction.choice is not None and prediction.choice_scores is not None:
        answer["choice"] = question.names[prediction.choice]
        answer["scores"] = dict(zip(question.names, prediction.choice_scores, strict=True))
        answer["normalized_scores"] = dict(zip(question.names, prediction.normalized_scores or (), strict=True))
    return answer
