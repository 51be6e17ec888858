"""What kinds of fact the embedded set holds, and the sentences each kind is asked and stated in.

A *relation* links a subject to an object ("metoprolol" -> "beta blocker"). A *forward* wording names the
subject and asks for the object; a *reverse* wording names the object and asks for the subject. Templates use
these placeholders:

``{s}`` ``{S}``            the subject, as written or with a capital first letter; ``{o}`` ``{O}`` likewise
``{an o}`` ``{An o}``      the same with the right indefinite article (``{an s}`` ``{An s}`` too)
``{person}`` ``{Person}``  "a 54-year-old man"; ``{place}`` is "a teaching hospital" and the like
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Final

PACKAGE: Final = "bmpeft.datasets.embedded"
USES: Final = ("train", "validation", "test", "statement")
DIRECTIONS: Final = ("forward", "reverse")
PLACES: Final = (
    "a teaching hospital",
    "a community hospital",
    "a rural hospital",
    "a university clinic",
    "a large medical center",
    "a regional referral center",
)

_PLACEHOLDER: Final = re.compile(r"\{([^{}]*)\}")
# Letters whose *names* begin with a vowel sound: "an SGLT2 inhibitor", but "a DPP-4 inhibitor".
_VOWEL_NAMED: Final = frozenset("AEFHILMNORSX")
_AN_NUMBERS: Final = re.compile(r"(8|11$|18$|8\d)")


@dataclass(frozen=True)
class Relation:
    """One kind of fact: what its subjects are and what its answers are."""

    name: str
    subject: str
    answer: str


@dataclass(frozen=True)
class Wording:
    """One template; ``id`` is stable as long as the order inside ``wordings.tsv`` is kept."""

    id: str
    relation: str
    use: str
    direction: str
    text: str


@dataclass(frozen=True)
class Scene:
    """The decor of a vignette. It never bears on the answer."""

    age: int
    sex: str
    place: str

    @property
    def person(self) -> str:
        """Such as "an 81-year-old woman"."""
        noun = f"{self.age}-year-old {self.sex}"
        return f"{article(noun)} {noun}"


RELATIONS: Final = (
    Relation("drug_class", "drug", "drug class"),
    Relation("drug_target", "drug", "molecular target"),
    Relation("adverse_effect", "drug", "characteristic adverse effect"),
    Relation("antidote", "poison or drug", "antidote"),
    Relation("first_line", "condition", "first-line treatment"),
    Relation("deficiency", "nutrient", "deficiency disease"),
    Relation("muscle_nerve", "muscle", "motor nerve"),
    Relation("organism", "infectious disease", "causative organism"),
    Relation("vector", "infectious disease", "arthropod vector"),
    Relation("enzyme", "inborn error", "deficient enzyme"),
    Relation("gene", "inherited disorder", "mutated gene"),
    Relation("karyotype", "disorder", "chromosomal abnormality"),
    Relation("hormone", "hormone", "gland or cell of origin"),
    Relation("autoantibody", "autoantibody", "disease"),
    Relation("tumor_marker", "tumor marker", "tumor"),
    Relation("artery", "structure", "artery"),
    Relation("sign", "physical sign", "condition"),
    Relation("histology", "microscopic finding", "condition"),
    Relation("embryology", "adult structure", "embryonic precursor"),
    Relation("dermatome", "skin area", "spinal level"),
    Relation("hypersensitivity", "immune disorder", "type of hypersensitivity"),
)


def capitalized(text: str) -> str:
    """``text`` with a capital first letter, leaving names such as "mTOR" as they are written."""
    return text if text[1:2].isupper() else text[:1].upper() + text[1:]


def article(noun: str) -> str:
    """The indefinite article ``noun`` takes when read aloud."""
    first = noun.split()[0]
    if first[0].isdigit():
        return "an" if _AN_NUMBERS.match(first.partition("-")[0]) else "a"
    if first[1:2].isupper() or first[1:2].isdigit():
        return "an" if first[0] in _VOWEL_NAMED else "a"
    return "an" if first[0].lower() in "aeiou" else "a"


def render(text: str, subject: str, object: str, scene: Scene | None = None) -> str:
    """``text`` with every placeholder filled in; ValueError on a placeholder this module does not know."""
    values = {"s": subject, "o": object}
    if scene is not None:
        values |= {"person": scene.person, "place": scene.place}

    def fill(match: re.Match[str]) -> str:
        words = match[1].split(" ")
        value = values.get(words[-1].lower())
        if value is None or len(words) > 2 or (len(words) == 2 and words[0] not in ("an", "An")):
            raise ValueError(f"placeholder {match[0]!r} cannot be filled in {text!r}")
        if len(words) == 2:
            value = f"{article(value)} {value}"
        return capitalized(value) if match[1][0].isupper() else value

    return _PLACEHOLDER.sub(fill, text)


def table(name: str) -> tuple[tuple[int, dict[str, str]], ...]:
    """The rows of the packaged ``name``, each with its line number and keyed by the column titles."""
    lines = resources.files(PACKAGE).joinpath(name).read_text(encoding="utf-8").splitlines()
    titles = lines[0].split("\t")
    rows = []
    for number, line in enumerate(lines[1:], start=2):
        cells = line.split("\t")
        if len(cells) != len(titles):
            raise ValueError(f"{name}:{number}: {len(cells)} columns where {len(titles)} are needed")
        rows.append((number, dict(zip(titles, cells, strict=True))))
    return tuple(rows)


@cache
def wordings(relation: str, use: str, direction: str | None = None) -> tuple[Wording, ...]:
    """The templates of ``relation`` for ``use``, in file order; of both directions unless one is named."""
    return tuple(
        wording
        for wording in _all_wordings()
        if (wording.relation, wording.use) == (relation, use) and direction in (None, wording.direction)
    )


@cache
def _all_wordings() -> tuple[Wording, ...]:
    known = {relation.name for relation in RELATIONS}
    found: list[Wording] = []
    counts: dict[str, int] = {}
    for number, row in table("wordings.tsv"):
        if row["relation"] not in known or row["use"] not in USES or row["direction"] not in DIRECTIONS:
            raise ValueError(f"wordings.tsv:{number}: unknown relation, use or direction")
        stem = f"{row['relation']}.{row['use']}.{row['direction']}"
        counts[stem] = counts.get(stem, 0) + 1
        found.append(Wording(id=f"{stem}.{counts[stem]}", **row))
    return tuple(found)
