"""What an evaluation keeps in the run's directory: finished answers, and the value of every row.

    runs/NAME/evaluation/SPLIT.SYSTEM.answers.jsonl    so that an interrupted evaluation goes on
    runs/NAME/evaluation/SPLIT.rows.json               so that two evaluations can be compared row by row

They stay on this machine: nothing of them goes into an artifact. Rows are named by hashes of their ids, closed
answers by number. Texts that the model wrote have to be kept as they are; only their owner can read the files.

Answers are taken up again only if all that they depend on is the same (`KeptAnswers.key`): then they are bit for
bit what would be computed again. A file that is damaged, or of another key, is replaced, and a line says so; a
last line that was cut off by a crash is dropped.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any
from urllib.parse import quote

from bmpeft.adapters.atomic import write_file
from bmpeft.errors import BmpeftError
from bmpeft.evaluation.metrics import Figure
from bmpeft.records import Example, Prediction, Record
from bmpeft.strict_json import parse_object

if TYPE_CHECKING:
    from bmpeft.recipe import OutputSection

SCHEMA_VERSION = 1
ROWS_SUFFIX = ".rows.json"
OWNER_ONLY = 0o600


class _Damaged(Exception):
    """A line of a file of answers that is not as it was written."""


@dataclass(frozen=True)
class RunStore:
    """The place of a run's evaluation.

    Attributes:
        directory: made when it is first needed.
        adapter_digest: of the adapter that is measured.
        identity: what answers depend on beside it and beyond what `SplitRun` adds.
        fresh: whether answers that are there are to be computed again.
    """

    directory: Path
    adapter_digest: str
    identity: Mapping[str, Any]
    fresh: bool = False

    def answers(self, split: str, system: str, key: Mapping[str, Any], say: Callable[[str], None]) -> KeptAnswers:
        """The file of one system's answers to one split."""
        path = self.directory / f"{quote(split, safe='')}.{system}.answers.jsonl"
        key = {**self.identity, **key, "adapter": self.adapter_digest, "system": system}
        return KeptAnswers(path, json.loads(json.dumps(key)), fresh=self.fresh, say=say)

    def write_rows(self, split: str, rows: RowValues) -> None:
        """Replace the file of a split's row values.

        Raises:
            BmpeftError: it cannot be written.
        """
        content = {"schema_version": SCHEMA_VERSION, "adapter": self.adapter_digest, **dataclasses.asdict(rows)}
        path = self.directory / rows_file(split)
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            write_file(path, json.dumps(content, allow_nan=False).encode())
        except OSError as error:
            raise _unwritable(path, error) from None


@dataclass(frozen=True)
class RowValues:
    """The value of every row in every metric that has such values.

    Attributes:
        split_digest: of the split.
        rows: hash of each row's id [n].
        groups: hash of each row's group [n].
        metrics: definition id -> value of each row [n]; None where it is not defined. The deciding one first.
    """

    split_digest: str
    rows: tuple[str, ...]
    groups: tuple[str, ...]
    metrics: Mapping[str, tuple[float | None, ...]]

    @classmethod
    def of(cls, split_digest: str, records: Sequence[Record], figures: Sequence[Figure]) -> RowValues:
        metrics = {
            figure.definition.id: tuple(None if math.isnan(value) else value for value in figure.rows.tolist())
            for figure in figures
            if figure.rows is not None
        }
        rows = tuple(row_hash(split_digest, record.id) for record in records)
        return cls(split_digest, rows, tuple(row_hash(split_digest, record.group) for record in records), metrics)


def kept_directory(output: OutputSection) -> Path:
    """Where the answers and row values of a recipe's adapter are kept."""
    return Path(output.runs) / output.name / "evaluation"


def rows_file(split: str) -> str:
    """Name of the file of a split's row values."""
    return f"{quote(split, safe='')}{ROWS_SUFFIX}"


def read_rows(path: Path, *, adapter_digest: str) -> RowValues:
    """The row values of a split.

    Raises:
        BmpeftError: they cannot be read, are damaged, or are of another adapter.
    """
    try:
        content = parse_object(path.read_bytes())
        if content["schema_version"] != SCHEMA_VERSION:
            raise BmpeftError(f"{path}: is of another version of bmpeft; `bmpeft eval` writes it again")
        if content["adapter"] != adapter_digest:
            raise BmpeftError(f"{path}: is of another adapter of that name; `bmpeft eval` writes it again")
        names = [tuple(map(str, content[key])) for key in ("rows", "groups")]
        metrics = {name: tuple(map(_value, values)) for name, values in content["metrics"].items()}
        if any(len(values) != len(names[0]) for values in (names[1], *metrics.values())) or not metrics:
            raise ValueError("lengths differ")
        return RowValues(str(content["split_digest"]), names[0], names[1], metrics)
    except OSError as error:
        raise BmpeftError(f"{path}: cannot be read: {error.strerror}") from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise BmpeftError(f"{path}: is damaged; `bmpeft eval` writes it again") from None


def row_hash(split_digest: str, identity: str) -> str:
    """What a row is called in these files; it differs from split to split. [32 hexadecimal digits]"""
    return hashlib.sha256(f"{split_digest}:{identity}".encode()).hexdigest()[:32]


class KeptAnswers:
    """The answers of one system to the rows of one split, written batch by batch.

    Attributes:
        path: of the file.
        key: what the answers depend on; JSON.
    """

    def __init__(self, path: Path, key: Mapping[str, Any], *, fresh: bool, say: Callable[[str], None]) -> None:
        """`say` gets the lines about answers that are, or cannot be, taken up."""
        self.path, self.key, self.seconds = path, key, 0.0
        self._fresh, self._say = fresh, say
        self._end: int | None = None
        self._file: IO[bytes] | None = None

    def read(self, examples: Sequence[Example], *, adapter: str | None) -> dict[int, Prediction]:
        """The finished answers by index of their example; `seconds` is then the time that they took."""
        if self._fresh:
            return {}
        try:
            content = self.path.read_bytes()
        except FileNotFoundError:
            return {}
        except OSError as error:
            raise BmpeftError(f"{self.path}: cannot be read: {error.strerror}") from None
        try:
            return self._parsed(content, examples, adapter)
        except _Damaged as damage:
            self._end, self.seconds = None, 0.0
            self._say(f"{self.path}: {damage}; all rows are answered anew")
            return {}

    def write(self, predictions: Sequence[Prediction], seconds: float) -> None:
        """Add the answers of a batch, which took so many seconds.

        Raises:
            BmpeftError: the file cannot be written.
        """
        answers = [[self._name(p.id), *_content(p)] for p in predictions]
        try:
            self._append({"seconds": seconds, "answers": answers})
        except OSError as error:
            raise _unwritable(self.path, error) from None
        self.seconds += seconds

    def close(self) -> None:
        """Close the file, if it was written to."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _append(self, batch: Mapping[str, Any]) -> None:
        if self._file is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT, OWNER_ONLY)
            self._file = os.fdopen(descriptor, "r+b")
            self._file.truncate(self._end or 0)
            self._file.seek(0, os.SEEK_END)
            if self._end is None:
                self._file.write(_line({"schema_version": SCHEMA_VERSION, "key": self.key}))
        self._file.write(_line(batch))
        self._file.flush()

    def _parsed(self, content: bytes, examples: Sequence[Example], adapter: str | None) -> dict[int, Prediction]:
        whole = content[: content.rfind(b"\n") + 1]  # what follows the last line break was cut off
        lines = whole.splitlines()
        header = _object(lines[0], 1) if lines else {}
        if header.get("schema_version") != SCHEMA_VERSION or not isinstance(header.get("key"), dict):
            raise _Damaged("holds no answers of this version")
        if header["key"] != self.key:
            changed = sorted(k for k in {*header["key"], *self.key} if header["key"].get(k) != self.key.get(k))
            raise _Damaged(f"{' and '.join(changed)} changed since")
        places = {self._name(example.record.id): index for index, example in enumerate(examples)}
        found: dict[int, Prediction] = {}
        for number, line in enumerate(lines[1:], start=2):
            batch = _object(line, number)
            if not isinstance(batch.get("answers"), list) or not _is_number(batch.get("seconds")):
                raise _Damaged(f"line {number} is damaged")
            for answer in batch["answers"]:
                if not isinstance(answer, list) or len(answer) != 5 or answer[0] not in places:
                    raise _Damaged(f"line {number} is damaged")
                index = places[answer[0]]
                found[index] = _prediction(examples[index], answer[1:], adapter, number)
            self.seconds += batch["seconds"]
        self._end = len(whole)
        return found

    def _name(self, identity: str) -> str:
        return row_hash(self.key["split_digest"], identity)


def _content(prediction: Prediction) -> list[Any]:
    """Choice, text (of written answers only), scores and lengths."""
    text = None if prediction.choice is not None else prediction.text
    return [prediction.choice, text, prediction.choice_scores, prediction.choice_lengths]


def _prediction(example: Example, content: Sequence[Any], adapter: str | None, line: int) -> Prediction:
    choice, text, scores, lengths = content
    if choice is None:
        if not isinstance(text, str) or scores is not None or lengths is not None:
            raise _Damaged(f"line {line} is damaged")
        return Prediction(example.record.id, text, adapter=adapter)
    names = example.record.choices or example.choices or ()
    sound = (
        type(choice) is int
        and 0 <= choice < len(names)
        and isinstance(scores, list)
        and isinstance(lengths, list)
        and len(scores) == len(lengths) == len(names)
        and all(map(_is_number, scores))
        and all(type(length) is int and length > 0 for length in lengths)
    )
    if not sound:
        raise _Damaged(f"line {line} is damaged")
    return Prediction(
        id=example.record.id,
        text=names[choice].strip(),
        choice=choice,
        choice_scores=tuple(map(float, scores)),
        choice_lengths=tuple(lengths),
        adapter=adapter,
    )


def _value(value: Any) -> float | None:
    if value is not None and not _is_number(value):
        raise ValueError("no number")
    return None if value is None else float(value)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _object(line: bytes, number: int) -> dict[str, Any]:
    try:
        return parse_object(line)
    except ValueError:
        raise _Damaged(f"line {number} is damaged") from None


def _line(content: Mapping[str, Any]) -> bytes:
    return json.dumps(content, allow_nan=False, separators=(",", ":")).encode() + b"\n"


def _unwritable(path: Path, error: OSError) -> BmpeftError:
    return BmpeftError(f"{path}: cannot be written: {error.strerror}; output.runs=DIRECTORY names another place")
