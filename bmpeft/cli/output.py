"""What all commands print: JSON or tables on stdout, complaints on stderr."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import RenderableType

    from bmpeft.evaluation.score_card import ScoreCard
    from bmpeft.progress import Progress


@contextlib.contextmanager
def work(quiet: bool) -> Iterator[Progress]:
    """Long work: libraries are quiet, and whatever they print goes to stderr, so that stdout has results only."""
    from bmpeft.progress import Progress
    from bmpeft.quiet import quiet_libraries

    quiet_libraries()
    with contextlib.redirect_stdout(sys.stderr):
        yield Progress(quiet=quiet)


def complain(message: str) -> None:
    """One line on stderr."""
    print(f"bmpeft: {' '.join(message.split())}", file=sys.stderr)


def plain(model: Any) -> dict[str, Any]:
    """A pydantic model as JSON would hold it."""
    content: dict[str, Any] = model.model_dump(mode="json")
    return content


def print_json(content: Mapping[str, Any]) -> None:
    """One JSON object on stdout."""
    print(json.dumps(content, indent=2, ensure_ascii=False))


def print_rows(name: str, rows: Sequence[Mapping[str, Any]], as_json: bool) -> None:
    """A table with one column for each key of the rows, or as JSON an object with the list under `name`."""
    if as_json:
        print_json({name: list(rows)})
    elif rows:
        from rich.table import Table

        table = Table(*rows[0], box=None, pad_edge=False, header_style="bold")
        for row in rows:
            table.add_row(*_cells(row.values()))
        print_rich(table)
    else:
        print(f"no {name}")


def _cells(values: Iterable[Any]) -> list[str]:
    from rich.markup import escape

    return ["" if value is None else escape(str(value)) for value in values]


def print_card(card: ScoreCard) -> None:
    """A score card as a table."""
    from bmpeft.evaluation.score_card import rich_table

    print_rich(rich_table(card))


def print_rich(content: RenderableType) -> None:
    """Something that rich renders, as wide as the terminal; unbroken where there is none."""
    from rich.console import Console

    # A file or a pipe has no width to fit; rich would assume 80 columns and break the lines.
    Console(width=None if sys.stdout.isatty() else 10_000, highlight=False).print(content)
