"""METEOR 1.5 of captions (Denkowski & Lavie 2014): the authors' Java program, where it is there.

It comes with the package pycocoevalcap (`pip install 'bmpeft[meteor]'`) and needs Java. A row is turned into
counts, counts are added up over rows, and the program makes one figure of the sums, as publications report it.
"""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Self

import numpy as np

from bmpeft.errors import BmpeftError
from bmpeft.evaluation.metrics.answers import accepted_answers
from bmpeft.evaluation.metrics.bootstrap import MetricDefinition, Statistic, Values
from bmpeft.records import Prediction, Record

METEOR = MetricDefinition(
    "meteor/1.5-en@1",
    "METEOR",
    "METEOR 1.5 of all rows together, English, normalised text (the authors' Java program)",
)
_MEMORY = "-Xmx2G"


def missing() -> str | None:
    """What METEOR lacks here, as it is said on a card; None where it can be measured."""
    if shutil.which("java") is None:
        return "METEOR is absent: it needs Java"
    if _jar() is None:
        return "METEOR is absent: it needs the package pycocoevalcap (pip install 'bmpeft[meteor]')"
    return None


class MeteorProgram:
    """The running program; use it as a context.

    Raises:
        BmpeftError: it does not start, or ends unexpectedly.
    """

    def __init__(self, command: Sequence[str] | None = None) -> None:
        """`command` stands for the program in tests."""
        jar = _jar()
        self._command = command or ["java", _MEMORY, "-jar", str(jar), "-", "-", "-stdio", "-l", "en", "-norm"]

    def __enter__(self) -> Self:
        self._complaints = tempfile.TemporaryFile()
        try:
            self._process = subprocess.Popen(
                self._command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._complaints,  # a pipe that nobody reads would stop the program when it is full
                encoding="utf-8",
            )
        except OSError as error:
            self._complaints.close()
            raise BmpeftError(f"METEOR: {self._command[0]} cannot be started: {error.strerror}") from None
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()
        self._complaints.close()

    def counts(self, records: Sequence[Record], predictions: Sequence[Prediction]) -> Values:
        """What METEOR adds up over rows. [n, 23]"""
        lines = []
        for record, prediction in zip(records, predictions, strict=True):
            texts = [*accepted_answers(record), prediction.text]
            answer = self._ask(" ||| ".join(["SCORE", *map(_plain, texts)]))
            lines.append([float(number) for number in answer.split()])
        return np.array(lines, dtype=np.float64)

    def score(self, counts: Values) -> float:
        """The figure for counts [23] of one row or the sum of several."""
        self._ask("EVAL ||| " + " ".join(map(str, counts.tolist())))
        return float(self._line())  # the first line is the figure of each row, the second of all: one and the same

    def statistic(self, counts: Values) -> Statistic:
        """METEOR of the rows' `counts` [n, 23]."""
        return lambda weights: np.array([self.score(row) for row in weights @ counts])

    def _ask(self, line: str) -> str:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(f"{line}\n")
            self._process.stdin.flush()
        except OSError:
            raise BmpeftError("METEOR: the Java program ended unexpectedly") from None
        return self._line()

    def _line(self) -> str:
        assert self._process.stdout is not None
        answer = self._process.stdout.readline()
        if not answer:
            raise BmpeftError("METEOR: the Java program ended unexpectedly")
        return answer.strip()


def _plain(text: str) -> str:
    """A text on one line without what the program takes for a separator."""
    return " ".join(text.replace("|||", " ").split())


def _jar() -> Path | None:
    """The program's file, found without importing the package that brings it."""
    specification = importlib.util.find_spec("pycocoevalcap")
    for directory in (specification.submodule_search_locations or ()) if specification else ():
        jar = Path(directory) / "meteor" / "meteor-1.5.jar"
        if jar.is_file():
            return jar
    return None
