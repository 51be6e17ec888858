"""Progress of long work: a bar on a terminal, now and then a plain line elsewhere, nothing when quiet.

    with progress.task("training", total=steps) as task:
        task.advance(1, loss=0.71)

Everything goes to stderr, so that standard output carries results only.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol, TextIO

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress

SECONDS_BETWEEN_LINES = 10.0


class ProgressTask(Protocol):
    """One piece of work that is under way."""

    def advance(self, n: int = 1, **fields: float) -> None:
        """`n` more units are done; `fields` are figures to show beside them (loss, tokens_per_second ...)."""


class Progress:
    """Shows tasks, which may be nested, and lines of text.

    On a terminal each task is a rich bar with the time left. Elsewhere a task prints at most one line
    in `SECONDS_BETWEEN_LINES` and none if it is over sooner. With `quiet` nothing is written at all.
    """

    def __init__(
        self, *, quiet: bool = False, stream: TextIO | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._quiet = quiet
        self._stream = sys.stderr if stream is None else stream
        self._clock = clock
        self._live: RichProgress | None = None

    def line(self, text: str) -> None:
        """Print one line, above the bars if there are any."""
        if self._quiet:
            return
        if self._live is not None:
            self._live.console.print(text, markup=False, highlight=False, soft_wrap=True)
        else:
            print(text, file=self._stream, flush=True)

    @contextmanager
    def task(self, description: str, total: int) -> Iterator[ProgressTask]:
        """Show a task of `total` units while the context is open."""
        if self._quiet:
            yield _SilentTask()
        elif not self._stream.isatty():
            yield _PlainTask(description, total, self.line, self._clock)
        else:
            with self._bars() as bars:
                identifier = bars.add_task(description, total=total, figures="")
                try:
                    yield _BarTask(bars, identifier)
                finally:
                    bars.remove_task(identifier)

    @contextmanager
    def _bars(self) -> Iterator[RichProgress]:
        """The live display: the outermost task starts and stops it, those inside share it."""
        if self._live is not None:
            yield self._live
            return
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as RichProgress

        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[figures]}"),
            TimeRemainingColumn(),
        )
        with RichProgress(*columns, console=Console(file=self._stream), transient=True) as bars:
            self._live = bars
            try:
                yield bars
            finally:
                self._live = None


class _SilentTask:
    def advance(self, n: int = 1, **fields: float) -> None:
        pass


class _PlainTask:
    def __init__(self, description: str, total: int, write: Callable[[str], None], clock: Callable[[], float]) -> None:
        self._description, self._total, self._write, self._clock = description, total, write, clock
        self._done = 0
        self._figures: dict[str, float] = {}
        self._started = self._last_line = clock()

    def advance(self, n: int = 1, **fields: float) -> None:
        self._done += n
        self._figures = fields or self._figures
        now = self._clock()
        if now - self._last_line < SECONDS_BETWEEN_LINES:
            return
        self._last_line = now
        left = (now - self._started) / max(self._done, 1) * (self._total - self._done)
        parts = (
            f"{self._description} {self._done:,}/{self._total:,}",
            _figures(self._figures),
            f"{_duration(left)} left",
        )
        self._write("  ".join(part for part in parts if part))


class _BarTask:
    def __init__(self, bars: RichProgress, identifier: Any) -> None:
        self._bars, self._identifier = bars, identifier

    def advance(self, n: int = 1, **fields: float) -> None:
        self._bars.advance(self._identifier, n)
        if fields:
            self._bars.update(self._identifier, figures=_figures(fields))


def _figures(fields: dict[str, float]) -> str:
    """``loss 0.7134  5,120 tokens/s``: per-second figures as whole numbers, others with four digits."""
    shown = []
    for name, value in fields.items():
        if name.endswith("_per_second"):
            shown.append(f"{value:,.0f} {name.removesuffix('_per_second').replace('_', ' ')}/s")
        else:
            shown.append(f"{name.replace('_', ' ')} {value:.4g}")
    return "  ".join(shown)


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
