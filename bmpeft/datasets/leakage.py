"""Leakage: what training rows and evaluation rows share, and when that forbids training.

    leakage = find_leakage(train, {"test": rows}, scored=("test",))
    require_no_leakage(leakage, "vqa_rad", accept=False)

What is looked for, and what follows for a split that is scored:

    group      the row's patient, image, document ... is one of the training rows'     refused
    image      the row's image, byte for byte (or value for value), is in training     refused
    row        the row's whole input (image, question, document, options) is           refused
    similar    the row's image is almost one of training's (`perceptual`)              reported
    question   the row's question is asked in training about something else            reported
    document   half of the 13-grams of the row's document are in training documents    reported

Texts are compared by their words, whatever case and punctuation. What is only reported also happens without a
copy: two films of one patient, "is there a fracture?", a common phrase. A validation split is never refused,
since no figure of a score card is measured on it. Finding takes time that is linear in words and images (each
image is read and decoded once, however many rows show it); similar images are searched among `MAX_IMAGES` at
most, and where there are more the result says so.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from bmpeft.datasets.perceptual import BITS, SIMILAR_BITS, perceptual_hash, rows_with_similar
from bmpeft.datasets.splits import normalize_words
from bmpeft.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Hashable

    import numpy as np
    import numpy.typing as npt

    from bmpeft.records import ImageReference, Record

OverlapKind = Literal["group", "image", "row", "similar", "question", "document"]
GRAM_WORDS = 13
"""As in the overlap analysis of GPT-3 (Brown et al. 2020, appendix C)."""
GRAM_SHARE = 0.5
MAX_IMAGES = 20_000
MAX_GRAMS = 5_000_000
"""n-grams of evaluation documents held at once, some hundreds of megabytes; of more, a fixed part is compared."""

_REFUSED: frozenset[OverlapKind] = frozenset({"group", "image", "row"})
_WORDS: dict[OverlapKind, str] = {
    "group": "share their group (patient, image, document ...) with training rows",
    "image": "show an image of the training rows",
    "row": "are in the training rows word for word",
    "similar": f"show almost an image of the training rows (perceptual hash, at most {SIMILAR_BITS} of {BITS} bits)",
    "question": "ask a question of the training rows about something else",
    "document": f"have a document of which half the {GRAM_WORDS}-word sequences are in training documents",
}


@dataclass(frozen=True, slots=True)
class Overlap:
    """One kind of overlap of a split with the training rows: `rows` of its `of` rows have it.

    A `leak` forbids training, unless the recipe accepts it.
    """

    __pydantic_config__: ClassVar = {"extra": "forbid"}  # as strict as the manifest that it is stored in

    kind: OverlapKind
    split: str
    rows: int
    of: int
    leak: bool

    def line(self) -> str:
        """The overlap in words."""
        return f"{self.split}: {self.rows:,} of {self.of:,} rows {_WORDS[self.kind]}"


@dataclass(frozen=True, slots=True)
class Leakage:
    """Every overlap of `splits` with the training rows; `not_searched` says what was too much to look for."""

    __pydantic_config__: ClassVar = {"extra": "forbid"}

    splits: tuple[str, ...]
    overlaps: tuple[Overlap, ...] = ()
    not_searched: tuple[str, ...] = ()

    @property
    def leaks(self) -> tuple[Overlap, ...]:
        """The overlaps that forbid training, unless the recipe accepts them."""
        return tuple(overlap for overlap in self.overlaps if overlap.leak)

    def of(self, splits: Collection[str]) -> Leakage | None:
        """What is known of some splits; None where one of them was not compared."""
        if not set(splits) <= set(self.splits):
            return None
        overlaps = tuple(overlap for overlap in self.overlaps if overlap.split in splits)
        return Leakage(tuple(splits), overlaps, self.not_searched)

    def lines(self) -> tuple[str, ...]:
        """One line for each overlap, leaks first; what was not searched at the end."""
        ordered = sorted(self.overlaps, key=lambda overlap: not overlap.leak)
        return (*(overlap.line() for overlap in ordered), *self.not_searched)


def find_leakage(
    train: Sequence[Record],
    splits: Mapping[str, Sequence[Record]],
    *,
    scored: Collection[str],
    on_image: Callable[[], None] = lambda: None,
) -> Leakage:
    """Compare splits with the training rows.

    Args:
        train: the rows that are trained on.
        splits: split -> rows, the training split not among them.
        scored: the splits of which figures are reported; only these can have leaks.
        on_image: called after each image that was read, `images_in(train, splits)` times.

    Raises:
        DataError: an image cannot be read; names it.
    """
    pictures = _Pictures([*train, *(record for rows in splits.values() for record in rows)], on_image)
    overlaps = []
    seen = _Seen.of(train, pictures)
    for split, rows in splits.items():
        for kind, hits in seen.hits(rows, pictures).items():
            if any(hits):
                leak = kind in _REFUSED and split in scored
                overlaps.append(Overlap(kind, split, rows=sum(hits), of=len(rows), leak=leak))
    return Leakage(tuple(splits), tuple(overlaps), pictures.not_searched)


def images_in(train: Sequence[Record], splits: Mapping[str, Sequence[Record]]) -> int:
    """How many different image references there are."""
    rows = [*train, *(record for records in splits.values() for record in records)]
    return len({record.image for record in rows if record.image is not None})


def require_no_leakage(leakage: Leakage, dataset: str, *, accept: bool) -> None:
    """Refuse training where scored rows leak, unless `accept`.

    Raises:
        UsageError: names the counts and what to do.
    """
    if leakage.leaks and not accept:
        found = "; ".join(overlap.line() for overlap in leakage.leaks)
        raise UsageError(
            f"{dataset}: evaluation rows leak into training ({found}): divide anew with data.split_by=image or group, "
            "or add data.accept_leakage=true, which the score card will say"
        )


class _Pictures:
    """Digests and perceptual hashes of all images, each read once."""

    def __init__(self, records: Iterable[Record], on_image: Callable[[], None]) -> None:
        references = dict.fromkeys(record.image for record in records if record.image is not None)
        similar = len(references) <= MAX_IMAGES
        self._digests: dict[ImageReference, str] = {}
        self._hashes: dict[str, npt.NDArray[np.uint64]] = {}
        for reference in references:
            digest = self._digests[reference] = reference.digest
            if similar and digest not in self._hashes:
                self._hashes[digest] = perceptual_hash(reference.load())
            on_image()
        self.not_searched = (
            ()
            if similar
            else (f"similar images were not searched: {len(references):,} images, the limit is {MAX_IMAGES:,}",)
        )

    def digest(self, record: Record) -> str | None:
        return None if record.image is None else self._digests[record.image]

    def similar(self, rows: Sequence[Record], others: Collection[str]) -> list[bool]:
        """Whether each row's image is similar to one of the digests `others`, without being one of them."""
        asked = list(dict.fromkeys(d for d in map(self.digest, rows) if d in self._hashes and d not in others))
        found = rows_with_similar(
            [self._hashes[digest] for digest in asked], [self._hashes[d] for d in others if d in self._hashes]
        )
        similar = {digest for digest, hit in zip(asked, found, strict=True) if hit}
        return [self.digest(record) in similar for record in rows]


@dataclass(frozen=True)
class _Seen:
    """What the training rows hold."""

    groups: frozenset[str]
    digests: frozenset[str]
    inputs: frozenset[Hashable]
    questions: frozenset[str]
    documents: tuple[str, ...]

    @classmethod
    def of(cls, train: Sequence[Record], pictures: _Pictures) -> _Seen:
        return cls(
            groups=frozenset(record.group for record in train),
            digests=frozenset(digest for digest in map(pictures.digest, train) if digest is not None),
            inputs=frozenset(_input(record, pictures) for record in train),
            questions=frozenset(normalize_words(record.question) for record in train if record.question),
            documents=tuple(dict.fromkeys(filter(None, map(_document, train)))),
        )

    def hits(self, rows: Sequence[Record], pictures: _Pictures) -> dict[OverlapKind, list[bool]]:
        """For each kind, which of the rows have it."""
        verbatim = [_has_text(record) and _input(record, pictures) in self.inputs for record in rows]
        others = ["" if whole else _document(record) for record, whole in zip(rows, verbatim, strict=True)]
        asked = [bool(record.question) and normalize_words(record.question or "") in self.questions for record in rows]
        return {
            "group": [record.group in self.groups for record in rows],
            "image": [pictures.digest(record) in self.digests for record in rows],
            "row": verbatim,
            "similar": pictures.similar(rows, self.digests),
            "question": [same and not whole for same, whole in zip(asked, verbatim, strict=True)],
            "document": documents_seen(others, self.documents),
        }


def _input(record: Record, pictures: _Pictures) -> Hashable:
    """All that a row is asked about; the order of its options does not matter."""
    return (
        pictures.digest(record),
        normalize_words(record.question or ""),
        normalize_words(record.text or ""),
        tuple(sorted(normalize_words(choice) for choice in record.choices or ())),
    )


def _has_text(record: Record) -> bool:
    return bool(record.question or record.text)


def _document(record: Record) -> str:
    """What a row is about: its text, or without one its question, since a vignette is a document too."""
    return record.text or record.question or ""


def documents_seen(documents: Sequence[str], known: Iterable[str]) -> list[bool]:
    """Whether at least `GRAM_SHARE` of each document's n-grams are in any of the known ones."""
    numbers: dict[str, int] = {}
    total = sum(max(0, len(document.split()) - GRAM_WORDS + 1) for document in documents)
    every = 1 + total // MAX_GRAMS
    grams = [_grams(document, numbers, every) for document in documents]
    wanted = set().union(*grams)
    found: set[int] = set()
    for document in known if wanted else ():
        found |= wanted & _grams(document, numbers, every)
    return [bool(own) and len(own & found) >= GRAM_SHARE * len(own) for own in grams]


def _grams(document: str, numbers: dict[str, int], every: int) -> set[int]:
    """Hashes of a document's runs of `GRAM_WORDS` words, those that `every` divides; `numbers` remembers words.

    Python's hash of a tuple of integers is the same in every process.
    """
    words = []
    for word in normalize_words(document).split():
        number = numbers.get(word)
        if number is None:
            number = numbers[word] = zlib.crc32(word.encode())
        words.append(number)
    hashes = {hash(tuple(words[i : i + GRAM_WORDS])) for i in range(len(words) - GRAM_WORDS + 1)}
    return hashes if every == 1 else {value for value in hashes if value % every == 0}
