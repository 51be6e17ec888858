"""The corpus of a pretraining recipe: files of several formats, read strictly, and images; without what is excluded."""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from bmpeft.datasets.embedded import clozes, statements
from bmpeft.errors import DataError
from bmpeft.pretrain_recipe import CorpusSection, PretrainRecipe
from bmpeft.tasks.template import Template, parse_template
from bmpeft.training.pretraining.exclusion import Excluded, read_excluded
from bmpeft.training.pretraining.images import ShownImage, read_images

GAP = "\N{OBJECT REPLACEMENT CHARACTER}"
"""Stands for the mask token in a question."""
_FORMATS = (".txt", ".jsonl", ".json", ".csv", ".tsv")
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+")
_COLUMN = re.compile(r"\{([^{}]*)\}")
_CSV_FIELD_LIMIT = 2**24
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Removed:
    """How many texts, questions and images of a source were removed because something is measured on them."""

    texts: int = 0
    questions: int = 0
    images: int = 0


@dataclass(frozen=True, slots=True)
class Source:
    """One source in memory: texts to infill, (prompt, answer) pairs and images, divided by a stable hash.

    A `GAP` in a prompt becomes the mask token. Of `balanced` images every label is drawn equally often. `final_weight`
    stands for `weight` at the end of a run; None: the same.
    """

    name: str
    weight: float
    texts: tuple[str, ...] = ()
    questions: tuple[tuple[str, str], ...] = ()
    images: tuple[ShownImage, ...] = ()
    balanced: bool = False
    final_weight: float | None = None
    held_out_texts: tuple[str, ...] = ()
    held_out_questions: tuple[tuple[str, str], ...] = ()
    held_out_images: tuple[ShownImage, ...] = ()
    removed: Removed = Removed()

    def held_out(self) -> Source:
        """The same source with what is not trained on."""
        return Source(
            self.name, self.weight, self.held_out_texts, self.held_out_questions, self.held_out_images, self.balanced
        )


def read_corpus(recipe: PretrainRecipe) -> tuple[Source, ...]:
    """Read every source of a recipe, and remove what its section `exclude` names.

    Raises:
        DataError: a file is missing (says where it comes from), of an unknown format, broken, or
            without a column that the recipe names.
        UsageError: no reader of that name, or it has no such split or option.
        RecipeError: a dataset is not one of images with labels.
    """
    root, share = Path(recipe.data_root), recipe.training.validation_share
    excluded = read_excluded(recipe.exclude, root)
    return tuple(
        replace(_read_source(section, root, share, excluded), final_weight=section.final_weight)
        for section in recipe.corpus
    )


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


def _parse_prompt(prompt: str) -> Template:
    """A prompt with columns in braces, as `CorpusSection` has checked it."""
    return parse_template(prompt, allowed=tuple(_COLUMN.findall(prompt)), required=None)


def _read_source(section: CorpusSection, root: Path, share: float, excluded: Excluded) -> Source:
    if section.embedded is not None:
        # Statements of one fact say the same thing: none is held out, the embedded test questions measure them.
        return Source(section.name, section.weight, tuple(statements()), tuple(_cloze_questions()))
    if section.dataset is not None:
        return _read_images(section, root, share, excluded)
    return _read_texts(section, root, share, excluded)


def _read_images(section: CorpusSection, root: Path, share: float, excluded: Excluded) -> Source:
    images = read_images(section, root)
    assert section.dataset is not None
    out = excluded.of_images(section.dataset, [record for _, record in images])
    left = [image for (image, _), removed in zip(images, out, strict=True) if not removed]
    if not left:
        raise DataError(root / str(section.path), f"corpus {section.name}: every image is excluded")
    kept, held = _divide(left, share, key=lambda image: image.group)
    return Source(
        section.name,
        section.weight,
        images=tuple(kept),
        balanced=section.balanced,
        held_out_images=tuple(held),
        removed=Removed(images=sum(out)),
    )


def _read_texts(section: CorpusSection, root: Path, share: float, excluded: Excluded) -> Source:
    assert section.path is not None
    path = root / section.path
    left_out_ids = _excluded_ids(root, section)
    texts: dict[str, None] = {}
    questions: dict[tuple[str, str], tuple[str, ...]] = {}
    template = None if section.prompt is None else _parse_prompt(section.prompt)
    for number, row in _rows(path, section):
        if row.get("id") in left_out_ids:
            continue
        for column in section.text:
            texts.update(dict.fromkeys(_texts(path, number, row, column)))
        if template is not None and section.answer is not None:
            values = {name: " ".join(_texts(path, number, row, name)) for name in template.names}
            answer = "; ".join(_texts(path, number, row, section.answer))
            if answer and all(values.values()):
                questions[template.render(values).text, answer] = (*values.values(), answer)
    if not texts and not questions:
        raise DataError(path, "no texts in the columns that the recipe names")
    left_texts = _without(list(texts), excluded.of_texts(list(texts)))
    parts = [part for values in questions.values() for part in values]
    out = dict(zip(parts, excluded.of_texts(parts), strict=True))
    left_questions = [pair for pair, values in questions.items() if not any(out[value] for value in values)]
    kept, held = _divide(left_texts, share)
    kept_questions, held_questions = _divide(left_questions, share)
    return Source(
        section.name,
        section.weight,
        texts=tuple(kept),
        questions=tuple(kept_questions),
        held_out_texts=tuple(held),
        held_out_questions=tuple(held_questions),
        removed=Removed(texts=len(texts) - len(left_texts), questions=len(questions) - len(left_questions)),
    )


def _without(items: list[T], out: list[bool]) -> list[T]:
    return [item for item, removed in zip(items, out, strict=True) if not removed]


def _cloze_questions() -> Iterator[tuple[str, str]]:
    """Statements with one side masked, and that side: few target tokens, none to be had without the source.

    Masking what a sentence is about, instead of any span, is salient span masking (Guu et al. 2020,
    arXiv:2002.08909). The answer begins with a capital letter, as answers do.
    """
    for before, side, after in clozes():
        yield f" {before}{GAP}{after}", side[0].upper() + side[1:]


def _divide(items: list[T], share: float, key: Callable[[T], object] = lambda item: item) -> tuple[list[T], list[T]]:
    """Items to train on, and those held out by a stable hash of their key."""
    limit = int(share * 2**32)
    held = [int.from_bytes(hashlib.sha256(repr(key(i)).encode()).digest()[:4], "big") < limit for i in items]
    return _without(items, held), [item for item, out in zip(items, held, strict=True) if out]


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
