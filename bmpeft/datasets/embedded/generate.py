"""Turns the fact table into MedQA-format questions, the same ones on every machine.

The options must carry no signal of their own, or a model could score without reading the question. So the
facts of a pool (same relation, same kind, same side) are dealt into *blocks* of four facts whose answers
exclude one another, and a block yields four questions with the same four options, each of them right once.
Any rule that looks at the options alone is then right one time in four, whatever the frequency or the length
of the answers. This is why every pool holds a multiple of four facts and no answer may fill over a quarter
of one. Inside a block the four right letters are A, B, C and D in some order.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property
from typing import Any, Final, TypeVar

from bmpeft.datasets.embedded.relations import (
    PLACES,
    RELATIONS,
    Scene,
    Wording,
    capitalized,
    render,
    table,
    wordings,
)

SPLITS: Final = ("train", "validation", "test", "test_unknown")
LETTERS: Final = "ABCD"
BLOCK: Final = len(LETTERS)

# The passes of a split over its facts. Within a pass the blocks take the named wordings (direction, number)
# in turn, so a pass asks each fact once. Unknown facts are never asked in reverse: "Which drug is a statin?"
# would be the same question for a known and an unknown statin.
_PASSES: Final[dict[str, tuple[tuple[tuple[str, int], ...], ...]]] = {
    "train": (
        (("forward", 0),),
        (("forward", 1),),
        (("forward", 2),),
        (("forward", 3),),
        (("forward", 4),),
        (("reverse", 0),),
        (("reverse", 1),),
    ),
    "validation": ((("forward", 0), ("reverse", 0)),),
    "test": ((("forward", 0), ("forward", 1)), (("reverse", 0),)),
    "test_unknown": ((("forward", 0),), (("forward", 1),)),
}
_ATTEMPTS: Final = 100
_SWAPS: Final = 100

T = TypeVar("T")


@dataclass(frozen=True)
class Fact:
    """One fact. ``also`` holds further true objects of the subject; ``known`` facts are the taught ones.

    ``kind`` narrows the pool that wrong options come from, so that an antibiotic class is not offered for an
    antihypertensive drug.
    """

    relation: str
    subject: str
    object: str
    also: tuple[str, ...]
    known: bool
    kind: str = ""

    @property
    def id(self) -> str:
        """Stable name, unique because a relation has each subject once."""
        return f"{self.relation}:{self.subject.lower().replace(' ', '-')}"

    @cached_property
    def true_objects(self) -> frozenset[str]:
        """Every object that may never be a wrong option for this subject."""
        return frozenset((self.object, *self.also))


@dataclass(frozen=True)
class Question:
    """One question as generated, before it has a number within its split."""

    fact: Fact
    wording: Wording
    text: str
    options: tuple[str, ...]
    answer: int


@cache
def facts() -> tuple[Fact, ...]:
    """All facts in file order, each marked known or unknown; ValueError if the table breaks a rule."""
    loaded = _load()
    unknown = {fact.id for pool in _pools(loaded) for fact in _unknown(pool)}
    marked = tuple(replace(fact, known=fact.id not in unknown) for fact in loaded)
    for pool in _pools([fact for fact in marked if fact.known]):
        _check_pool(pool)
    return marked


def rows(split: str) -> list[dict[str, Any]]:
    """The questions of ``split`` as MedQA-format rows, always the same ones in the same (shuffled) order."""
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}; the embedded set has {', '.join(SPLITS)}")
    return [
        {
            "question": question.text,
            "options": dict(zip(LETTERS, question.options, strict=True)),
            "answer": question.options[question.answer],
            "answer_idx": LETTERS[question.answer],
            "meta_info": "synthetic",
            "id": f"embedded-{split}-{number:06d}",
            "fact": question.fact.id,
            "wording": question.wording.id,
            "relation": question.fact.relation,
        }
        for number, question in enumerate(_questions(split))
    ]


def statements(known_only: bool = True) -> list[str]:
    """Plain sentences that state the facts, several per fact: of known facts only unless told otherwise."""
    return [
        render(wording.text, fact.subject, fact.object)
        for fact in facts()
        if fact.known or not known_only
        for wording in wordings(fact.relation, "statement")
    ]


def clozes() -> list[tuple[str, str, str]]:
    """The statements of the known facts with one side taken out: what is before it, the side, what is after it.

    Each statement gives two, one without its subject and one without its object.
    """
    found = []
    for fact in facts():
        for wording in wordings(fact.relation, "statement") if fact.known else ():
            text = render(wording.text, fact.subject, fact.object)
            for side in (fact.subject, fact.object):
                start = text.lower().index(side.lower())
                found.append((text[:start], side, text[start + len(side) :]))
    return found


@cache
def digest() -> str:
    """SHA-256 over all rows of all splits, to tell whether two machines hold the same questions."""
    total = hashlib.sha256()
    for split in SPLITS:
        for row in rows(split):
            total.update(json.dumps([split, row], sort_keys=True).encode("ascii") + b"\n")
    return total.hexdigest()


@cache
def _questions(split: str) -> tuple[Question, ...]:
    side = [fact for fact in facts() if fact.known == (split != "test_unknown")]
    use = "test" if split == "test_unknown" else split
    found: list[Question] = []
    for pool in _pools(side):
        relation, kind = pool[0].relation, pool[0].kind
        for number, slots in enumerate(_PASSES[split]):
            rng = _rng(split, relation, kind, str(number))
            chosen = [wordings(relation, use, direction)[index] for direction, index in slots]
            for index, block in enumerate(_deal(pool, rng)):
                found += _ask(block, chosen[index % len(chosen)], rng)
    return tuple(_shuffled(found, _rng("order", split)))


def _ask(block: Sequence[Fact], wording: Wording, rng: random.Random) -> list[Question]:
    """The questions of one block: the same four options, each right once, each letter right once."""
    forward = wording.direction == "forward"
    answers = [fact.object if forward else fact.subject for fact in block]
    asked = []
    for fact, own, letter in zip(block, answers, _shuffled(range(BLOCK), rng), strict=True):
        options = _shuffled([answer for answer in answers if answer != own], rng)
        options.insert(letter, own)
        scene = Scene(
            age=19 + int(rng.random() * 66),
            sex=("man", "woman")[int(rng.random() * 2)],
            place=PLACES[int(rng.random() * len(PLACES))],
        )
        text = render(wording.text, fact.subject, fact.object, scene)
        asked.append(Question(fact, wording, text, tuple(map(capitalized, options)), letter))
    return asked


def _compatible(one: Fact, other: Fact) -> bool:
    """Whether both may sit in one block: neither's answer is true of the other, in either direction."""
    return one.object not in other.true_objects and other.object not in one.true_objects


def _deal(pool: Sequence[Fact], rng: random.Random) -> list[list[Fact]]:
    """``pool`` in a random partition into blocks of four mutually compatible facts."""
    size = len(pool) // BLOCK
    for _ in range(_ATTEMPTS):
        # Facts with the same object stand together in the line, so dealing it out keeps them apart.
        by_object: dict[str, list[Fact]] = {}
        for fact in _shuffled(pool, rng):
            by_object.setdefault(fact.object, []).append(fact)
        line = [fact for group in by_object.values() for fact in group]
        blocks = [line[start::size] for start in range(size)]
        if _repair(blocks, rng):
            return blocks
    raise ValueError(f"the pool {pool[0].relation}/{pool[0].kind} has no partition into compatible blocks")


def _repair(blocks: list[list[Fact]], rng: random.Random) -> bool:
    """Swap facts between blocks, in place, until none clash; False if that takes too many swaps."""
    seats = [(block, seat) for block in blocks for seat in range(BLOCK)]
    for _ in range(_SWAPS):
        order = _shuffled(seats, rng)
        clashing = next(((b, s) for b, s in order if _clashes(b, s, b[s])), None)
        if clashing is None:
            return True
        block, seat = clashing
        fact, before = block[seat], _clashes(block, seat, block[seat])
        for there, other_seat in order:
            if there is block:
                continue
            other = there[other_seat]
            after = _clashes(block, seat, other) + _clashes(there, other_seat, fact)
            # A swap that changes nothing is taken too: it is the way out of a dead end.
            if after <= before + _clashes(there, other_seat, other):
                block[seat], there[other_seat] = other, fact
                break
    return False


def _clashes(block: Sequence[Fact], seat: int, fact: Fact) -> int:
    """How many facts of ``block`` ``fact`` would clash with at ``seat``."""
    count = 0
    for place in range(BLOCK):
        count += place != seat and not _compatible(fact, block[place])
    return count


def _load() -> tuple[Fact, ...]:
    names = {relation.name for relation in RELATIONS}
    loaded: list[Fact] = []
    pairs: set[frozenset[str]] = set()
    ids: set[str] = set()
    for number, row in table("facts.tsv"):
        also = tuple(filter(None, row["also"].split("|")))
        fact = Fact(row["relation"], row["subject"], row["object"], also, True, row["kind"])
        pair = frozenset((fact.subject, fact.object))
        if fact.relation not in names:
            raise ValueError(f"facts.tsv:{number}: unknown relation {fact.relation!r}")
        # A pair stated twice could end up known under one relation and unknown under the other.
        if fact.id in ids or pair in pairs:
            raise ValueError(f"facts.tsv:{number}: {fact.id!r} or its pair of names occurs twice")
        ids.add(fact.id)
        pairs.add(pair)
        loaded.append(fact)
    for pool in _pools(loaded):
        _check_pool(pool)
    return tuple(loaded)


def _check_pool(pool: Sequence[Fact]) -> None:
    """ValueError unless ``pool`` can be dealt into blocks as far as numbers go."""
    where = f"the pool {pool[0].relation}/{pool[0].kind}"
    if len(pool) % BLOCK:
        raise ValueError(f"{where} holds {len(pool)} facts, which is no multiple of {BLOCK}")
    answer, count = Counter(fact.object for fact in pool).most_common(1)[0]
    if count * BLOCK > len(pool):
        raise ValueError(f"{answer!r} is the answer of over a quarter of {where}")


def _unknown(pool: Sequence[Fact]) -> list[Fact]:
    """The facts of ``pool`` to withhold: whole blocks, four for about every 32 facts, none from a small pool.

    Facts whose object stays the object of a known fact come first, so that the answer is not a new word.
    """
    shared = Counter(fact.object for fact in pool)
    ranked = sorted(pool, key=lambda fact: (shared[fact.object] < 2, _hash("unknown", fact.id)))
    chosen: list[Fact] = []
    for _ in range((len(pool) + 8) // 32):
        block: list[Fact] = []
        for fact in ranked:
            taken = [*chosen, *block]
            new = fact.object not in {other.object for other in taken}
            if len(block) < BLOCK and new and all(_compatible(fact, other) for other in block):
                block.append(fact)
        chosen += block
    return chosen


def _pools(some: Sequence[Fact]) -> list[list[Fact]]:
    """``some`` grouped by relation and kind, in file order."""
    pools: dict[tuple[str, str], list[Fact]] = {}
    for fact in some:
        pools.setdefault((fact.relation, fact.kind), []).append(fact)
    return list(pools.values())


def _hash(*parts: str) -> int:
    return int.from_bytes(hashlib.sha256("\x1f".join(parts).encode("utf-8")).digest(), "big")


def _rng(*parts: str) -> random.Random:
    """A generator seeded by an integer; only its ``random()`` is used, which Python promises to keep."""
    return random.Random(_hash("bmpeft-embedded", *parts))


def _shuffled(items: Sequence[T], rng: random.Random) -> list[T]:
    """A shuffled copy (Fisher-Yates; ``random.shuffle`` may change between Python versions)."""
    mixed = list(items)
    for last in range(len(mixed) - 1, 0, -1):
        pick = int(rng.random() * (last + 1))
        mixed[last], mixed[pick] = mixed[pick], mixed[last]
    return mixed
