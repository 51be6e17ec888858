"""Splits that depend on content alone: by a seeded hash, never by row order or a random generator's version."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from bmpeft.errors import DataError, UsageError

if TYPE_CHECKING:
    from bmpeft.recipe import SplitSection
    from bmpeft.records import ImageReference, Record

SPLIT_NAMES = {"train": ("train",), "validation": ("dev", "val"), "test": ("test",)}
_WORD = re.compile(r"[^\W_]+")


def group_of(*texts: str) -> str:
    """The group of records with this text: 16 hexadecimal digits over its words, whatever case and punctuation."""
    return hashlib.sha256("\n".join(normalize_words(text) for text in texts).encode()).hexdigest()[:16]


def normalize_words(text: str) -> str:
    """Lower-case runs of letters and digits, joined by single spaces (after Unicode NFKC)."""
    return " ".join(_WORD.findall(unicodedata.normalize("NFKC", text).casefold()))


def split_name(text: str) -> str | None:
    """The split that a word such as "dev" or "Training" stands for; names that begin with test stay; else None."""
    word = text.strip().casefold()
    if word.startswith("test"):
        return "test" if word in ("test", "testing") else word
    return next((split for split, words in SPLIT_NAMES.items() if word.startswith(words)), None)


def divide(
    records: Sequence[Record],
    shares: Mapping[str, float],
    seed: int,
    *,
    source: Path,
    rest: str = "train",
    unit: str = "question",
    key: Callable[[Record], str] = lambda record: record.group,
) -> dict[str, tuple[Record, ...]]:
    """Divide records by group; `shares` says which part of the groups each split gets, `rest` gets what is left.

    The hash of a group decides alone, so rows that are added or removed move no other row, and records
    of one group are always together. A share of 0 makes no split. The order of the rows is kept.

    Args:
        records: of all splits.
        shares: split -> share of the groups.
        seed: of the hash.
        source: named in errors.
        rest: the split of the other groups.
        unit: what a group is, for errors.
        key: the group of a record.

    Raises:
        DataError: a split that was asked for would be empty; names `source`.
    """
    members: dict[str, list[Record]] = {rest: [], **{name: [] for name, share in shares.items() if share > 0}}
    groups = set()
    for record in records:
        group = key(record)
        groups.add(group)
        split = _split_of(group, shares, seed) or rest
        members[split].append(dataclasses.replace(record, split=split))
    for name, rows in members.items():
        if not rows:
            share = shares.get(name, 1.0 - sum(shares.values()))
            raise DataError(
                source,
                f"the {name} split would be empty: a share of {share:g} of {len(groups)} {unit}s; "
                f"change data.split.seed or the shares (0 makes no split)",
            )
    return {name: tuple(rows) for name, rows in members.items()}


def describe(section: SplitSection, shares: Mapping[str, float], unit: str) -> str:
    """How rows were divided, as it is written on score cards."""
    parts = ", ".join(f"{name} {share:g}" for name, share in shares.items())
    what = "by" if "test" in shares else "validation by"
    return f"{what} {unit}, seeded hash (seed {section.seed}, {parts})"


def first_of_shuffle(records: Sequence[Record], n: int | None, seed: int) -> tuple[Record, ...]:
    """The first `n` records of a seeded shuffle, or all; the choice depends on ids alone and grows with `n`.

    They come in the order of the dataset.
    """
    if n is None or n >= len(records):
        return tuple(records)
    ranked = sorted(records, key=lambda record: _hash(seed, record.id))
    chosen = {record.id for record in ranked[:n]}
    return tuple(record for record in records if record.id in chosen)


def with_balanced_labels(records: Sequence[Record], seed: int) -> tuple[Record, ...]:
    """The records, then those of rarer labels again until every label that occurs does so equally often.

    Which rows come once more often than others of their label depends on seed and ids alone.

    Raises:
        UsageError: a row has no label.
    """
    by_label: dict[int, list[Record]] = {}
    for record in records:
        if record.label is None:
            raise UsageError(f"data.balance_labels: row {record.id!r} has no label")
        by_label.setdefault(record.label, []).append(record)
    target = max((len(rows) for rows in by_label.values()), default=0)
    added: list[Record] = []
    for _, rows in sorted(by_label.items()):
        times, rest = divmod(target, len(rows))
        ranked = sorted(rows, key=lambda record: _hash(seed, record.id))
        added += rows * (times - 1) + ranked[:rest]
    return (*records, *added)


def image_digests() -> Callable[[ImageReference], str]:
    """The digest of an image; one that several rows show is read once."""
    known: dict[ImageReference, str] = {}

    def digest_of(image: ImageReference) -> str:
        if image not in known:
            known[image] = image.digest
        return known[image]

    return digest_of


def split_digest(records: Iterable[Record]) -> str:
    """SHA-256 over ids and content of a split's records, independent of their order.

    The content is question, text, choices, answers, label and the image's digest, with Unicode in NFKC
    and runs of white space as one space, so that line ends and re-wrapping do not change the digest.
    """
    digest_of = image_digests()
    rows = sorted(json.dumps(_content(record, digest_of), sort_keys=True, ensure_ascii=True) for record in records)
    return hashlib.sha256("\n".join(rows).encode()).hexdigest()


def _content(record: Record, digest_of: Callable[[ImageReference], str]) -> list[object]:
    return [
        record.id,
        _plain(record.question),
        _plain(record.text),
        [_plain(choice) for choice in record.choices or ()],
        [_plain(answer) for answer in record.answers or ()],
        record.label,
        digest_of(record.image) if record.image else None,
    ]


def _plain(text: str | None) -> str | None:
    return None if text is None else " ".join(unicodedata.normalize("NFKC", text).split())


def _split_of(group: str, shares: Mapping[str, float], seed: int) -> str | None:
    position, border = _hash(seed, group) / 2.0**64, 0.0
    for name, share in shares.items():
        border += share
        if position < border:
            return name
    return None


def _hash(seed: int, text: str) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed}:{text}".encode()).digest()[:8], "big")
