"""Time: how fast a training is, without its evaluations, and how long it takes, with them."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager


class Stopwatch:
    """Seconds since its start, and those before."""

    def __init__(self) -> None:
        self._before, self._start = 0.0, time.monotonic()

    def start(self, before: float = 0.0) -> None:
        self._before, self._start = before, time.monotonic()

    def seconds(self) -> float:
        return self._before + time.monotonic() - self._start


class Meter:
    """Counts tokens and seconds; `paused` seconds do not count."""

    def __init__(self) -> None:
        self._start: float | None = None
        self._out = 0.0
        self._tokens = 0
        self._last = (0.0, 0)

    def count(self, tokens: int) -> None:
        if self._start is None:
            self._start = time.monotonic()
        self._tokens += tokens

    def tokens_per_second(self) -> float:
        """Since the last call."""
        seconds, tokens = self._last
        self._last = (self._elapsed(), self._tokens)
        return (self._tokens - tokens) / max(self._last[0] - seconds, 1e-9)

    def seconds_per_step(self, steps: int) -> float:
        return self._elapsed() / max(steps, 1)

    @contextmanager
    def paused(self) -> Iterator[None]:
        begin = time.monotonic()
        try:
            yield
        finally:
            self._out += time.monotonic() - begin

    def _elapsed(self) -> float:
        return 0.0 if self._start is None else time.monotonic() - self._start - self._out
