"""A question set that ships inside the package: textbook medical facts turned into MedQA-format questions.

The facts (``facts.tsv``) and the sentences they are put into (``wordings.tsv``) were written by the project;
every row is labelled ``synthetic``. Only the standard library is used and nothing is read at import time.
See ``docs/embedded_medqa.md`` for the counts, the way the splits are made, and the limits.
"""

from __future__ import annotations

from bmpeft.datasets.embedded.generate import SPLITS, Fact, clozes, digest, facts, rows, statements

__all__ = ["SPLITS", "Fact", "clozes", "digest", "facts", "rows", "statements"]
