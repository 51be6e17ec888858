"""Which rows are in the official evaluation set of a published benchmark.

A model trained on such rows must not be compared with others on that benchmark, so adapters and score
cards say it. The sets are recognised by fingerprints that the package ships: 48 bits of a SHA-256 for
each row, from which no text can be read back. With 182,822 rows (MedMCQA's training set) against 4,183
fingerprints, the chance of one false match is 3 in a million.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import TYPE_CHECKING

from bmpeft.datasets.splits import normalize_words

if TYPE_CHECKING:
    from bmpeft.records import Record

FINGERPRINT_DIGITS = 12


@dataclass(frozen=True, slots=True)
class EvaluationSet:
    """An official evaluation set.

    `with_options` says whether the options belong to the fingerprint. They do where short questions recur
    with other options; they do not where one question is published with four and with five options.
    """

    name: str
    file: str
    with_options: bool


EVALUATION_SETS = (
    EvaluationSet("official MedQA test", "medqa_test.txt", with_options=False),
    EvaluationSet("official MedMCQA validation", "medmcqa_validation.txt", with_options=True),
    EvaluationSet("official PubMedQA test", "pubmedqa_test.txt", with_options=False),
)


@dataclass(frozen=True, slots=True)
class Contamination:
    """The evaluation sets that were met, joined by "and", and how many rows are in any of them."""

    name: str
    rows: int


def find_contamination(records: Sequence[Record]) -> Contamination | None:
    """The official evaluation sets that hold any of these records; None where there are none."""
    names, rows = [], set()
    for evaluation_set in EVALUATION_SETS:
        known = _known(evaluation_set.file)
        hits = {
            i
            for i, record in enumerate(records)
            if record.question and fingerprint_of(record, with_options=evaluation_set.with_options) in known
        }
        if hits:
            names.append(evaluation_set.name)
            rows |= hits
    return Contamination(" and ".join(names), len(rows)) if names else None


def fingerprint_of(record: Record, *, with_options: bool) -> str:
    """12 hexadecimal digits of the SHA-256 over the question's words and, if asked, the words of the options.

    Case, punctuation and white space do not matter, and neither does the order of the options.
    """
    parts = [normalize_words(record.question or "")]
    if with_options:
        parts += sorted(normalize_words(choice) for choice in record.choices or ())
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:FINGERPRINT_DIGITS]


def fingerprint_list(evaluation_set: EvaluationSet, records: Iterable[Record]) -> str:
    """The content of a file of `official_tests`: a comment, then the sorted fingerprints, one a line.

    This made the shipped files: `records` were all rows of the set's official file, as the readers yield them.
    """
    what = "question and options" if evaluation_set.with_options else "question"
    lines = sorted({fingerprint_of(record, with_options=evaluation_set.with_options) for record in records})
    header = (
        f"# {evaluation_set.name}: {len(lines)} different rows, the first {FINGERPRINT_DIGITS} digits of the",
        f"# SHA-256 over {what}; made by bmpeft.datasets.contamination.fingerprint_list",
    )
    return "".join(f"{line}\n" for line in (*header, *lines))


@cache
def _known(file: str) -> frozenset[str]:
    text = resources.files("bmpeft.datasets").joinpath("official_tests", file).read_text(encoding="ascii")
    return frozenset(line for line in text.splitlines() if not line.startswith("#"))
