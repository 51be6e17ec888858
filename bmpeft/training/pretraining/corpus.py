"""The texts of a pretraining recipe: files of several formats, read strictly, split at sentences."""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from bmpeft.datasets.embedded import clozes, statements
from bmpeft.errors import DataError
from bmpeft.pretrain_recipe import CorpusSection, PretrainRecipe

GAP = "\N{OBJECT REPLACEMENT CHARACTER}"
"""Stands for the mask token in a question."""
_FORMATS = (".txt", ".jsonl", ".json", ".csv", ".tsv")
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+")
_CSV_FIELD_LIMIT = 2**24
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Source:
    """One source in memory: texts to infill and (question, answer) pairs, divided by a stable hash.

    A `GAP` in a question becomes the mask token.
    """

    name: str
    weight: float
    texts: tuple[str, ...]
    questions: tuple[tuple[str, str], ...]
    held_out_texts: tuple[str, ...]
    held_out_questions: tuple[tuple[str, str], ...]


def read_corpus(recipe: PretrainRecipe) -> tuple[Source, ...]:
    """Read every source of a recipe.

    Raises:
        DataError: a file is missing (says where it comes from), of an unknown format, broken, or
            without a column that the recipe names.
    """
    share = recipe.training.validation_share
    return tuple(_read_source(section, Path(recipe.data_root), share) for section in recipe.corpus)


def split_at_sentences(text: str, max_characters: int) -> list[str]:
    """Pieces of whole sentences up to a length; a longer sentence is split between words."""
    pieces: list[str] = []
    for sentence in _SENTENCE_END.split(" ".join(text.split())):
        if pieces and len(pieces[-1]) + 1 + len(sentence) <= max_characters:
            pieces[-1] += " " + sentence
        else:
            pieces.extend(_by_words(sentence, max_characters))
    return [piece for piece in pieces if piece]


def _by_words(sentence: str, max_characters: int) -> list[str]:
    pieces = [""]
    for word in sentence.split():
        if pieces[-1] and len(pieces[-1]) + 1 + len(word) > max_characters:
            pieces.append("")
        pieces[-1] = f"{pieces[-1]} {word}".strip()
    return pieces


def _read_source(section: CorpusSection, root: Path, share: float) -> Source:
    if section.embedded is not None:
        # Statements of one fact say the same thing: none is held out, the embedded test questions measure them.
        return Source(section.name, section.weight, tuple(statements()), tuple(_cloze_questions()), (), ())
    assert section.path is not None
    path = root / section.path
    excluded = _excluded_ids(root, section)
    texts: dict[str, None] = {}
    questions: dict[tuple[str, str], None] = {}
    for number, row in _rows(path, section):
        if row.get("id") in excluded:
            continue
        for column in section.text:
            texts.update(dict.fromkeys(_texts(path, number, row, column)))
        if section.question is not None and section.answer is not None:
            asked = " ".join(_texts(path, number, row, section.question))
            answered = " ".join(_texts(path, number, row, section.answer))
            if asked and answered:
                questions[asked, answered] = None
    if not texts and not questions:
        raise DataError(path, "no texts in the columns that the recipe names")
    kept, held = _divide(list(texts), share)
    kept_questions, held_questions = _divide(list(questions), share)
    return Source(section.name, section.weight, tuple(kept), tuple(kept_questions), tuple(held), tuple(held_questions))


def _cloze_questions() -> Iterator[tuple[str, str]]:
    """Statements with one side masked, and that side: few target tokens, none to be had without the source.

    Masking what a sentence is about, instead of any span, is salient span masking (Guu et al. 2020,
    arXiv:2002.08909). The answer begins with a capital letter, as answers do.
    """
    for before, side, after in clozes():
        yield f"{before}{GAP}{after}", side[0].upper() + side[1:]


def _divide(items: list[T], share: float) -> tuple[list[T], list[T]]:
    """Items to train on, and those held out by a stable hash."""
    limit = int(share * 2**32)
    held = [int.from_bytes(hashlib.sha256(repr(item).encode()).digest()[:4], "big") < limit for item in items]
    return (
        [item for item, out in zip(items, held, strict=True) if not out],
        [item for item, out in zip(items, held, strict=True) if out],
    )


def _excluded_ids(root: Path, section: CorpusSection) -> frozenset[str]:
    if section.without_ids is None:
        return frozenset()
    path = root / section.without_ids
    content = _json(path, _read_text(path, section), None)
    return frozenset(content if isinstance(content, list | dict) else ())


def _rows(path: Path, section: CorpusSection) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """Every row with its 1-based number; columns by name, or by number as text."""
    suffix = path.with_suffix("").suffix if path.suffix == ".gz" else path.suffix
    if suffix not in _FORMATS:
        raise DataError(path, f"format {suffix!r} is not one of {', '.join(_FORMATS)}")
    content = _read_text(path, section)
    if suffix == ".txt":
        yield from ((n, {"text": line}) for n, line in enumerate(content.splitlines(), 1))
    elif suffix == ".jsonl":
        yield from ((n, _json(path, line, n)) for n, line in enumerate(content.splitlines(), 1) if line.strip())
    elif suffix == ".json":
        items = _json(path, content, None)
        if isinstance(items, dict):
            items = [{**item, "id": key} if isinstance(item, dict) else item for key, item in items.items()]
        yield from enumerate(items, 1)
    elif suffix == ".tsv":
        lines = enumerate(content.splitlines(), 1)
        yield from ((n, {str(i): cell for i, cell in enumerate(line.split("\t"))}) for n, line in lines)
    else:
        csv.field_size_limit(_CSV_FIELD_LIMIT)
        yield from enumerate(csv.DictReader(io.StringIO(content)), 1)


def _read_text(path: Path, section: CorpusSection) -> str:
    try:
        raw = path.read_bytes()
        return (gzip.decompress(raw) if path.suffix == ".gz" else raw).decode("utf-8")
    except FileNotFoundError:
        where = f"; {section.obtain}" if section.obtain else ""
        raise DataError(path, f"no such file (corpus {section.name}){where}") from None
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise DataError(path, f"cannot be read: {error}") from None


def _json(path: Path, text: str, row: int | None) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise DataError(path, f"not JSON: {error}", row=row) from None


def _texts(path: Path, number: int, row: Mapping[str, Any], column: str) -> list[str]:
    """The non-empty texts of a cell, which may hold a list."""
    if not isinstance(row, Mapping) or column not in row:
        raise DataError(path, f"no column {column!r}", row=number)
    cell = row[column]
    cells = cell if isinstance(cell, list) else [cell]
    if not all(isinstance(item, str | None) for item in cells):
        raise DataError(path, f"column {column!r} is not text", row=number)
    return [" ".join(item.split()) for item in cells if item and item.strip()]
