"""An inspection as text: coloured for a terminal, with marks that need no colour elsewhere."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.text import Text

    from bmpeft.training.inspection import InspectedRow, Inspection, Summary

Segment = tuple[str, str]
"""Text and its style, in the words of rich."""

# Neighbours differ, so that tokens can be told apart; bold and underline are there without colours too.
_LOSS_STYLES = ("bold green", "bold green underline")
_END_NAMES = {"head": "beginning", "tail": "end"}


def plain_text(inspection: Inspection) -> str:
    """For a file or a pipe: tokens that carry loss stand in brackets."""
    return "\n".join("".join(text for text, _ in line) for line in _lines(inspection, coloured=False))


def rich_text(inspection: Inspection) -> Text:
    """For a terminal: tokens that carry loss are green, every other one underlined."""
    from rich.text import Text

    return Text("\n").join(Text.assemble(*line) for line in _lines(inspection, coloured=True))


def _lines(inspection: Inspection, *, coloured: bool) -> Iterator[list[Segment]]:
    yield [(f"{inspection.dataset}, split {inspection.split}, as {inspection.backbone} reads it", "")]
    for row in inspection.rows:
        yield []
        yield from _row_lines(row, coloured=coloured)
    yield []
    yield from _summary_lines(inspection.summary)


def _row_lines(row: InspectedRow, *, coloured: bool) -> Iterator[list[Segment]]:
    yield [("row ", "bold"), (_visible(row.id), "bold")]
    if row.image is not None:
        size = f"{row.image.width} x {row.image.height} pixels, read as {row.image.side} x {row.image.side}"
        yield [(f"  image: {size} ({row.image.patches} patches in front of the text)", "dim")]
    yield [(f"  source ({row.source_tokens} tokens, none carries loss): ", "dim"), (_quoted(row.source), "")]
    if row.document_cut is not None:
        where = _END_NAMES[row.document_cut]
        yield [(f"  cut: {row.document_tokens_cut} tokens from the {where} of its document", "yellow")]
    yield _target_line(row, coloured=coloured)
    for index, option in enumerate(row.options or ()):
        remark, style = (" (right)", "bold") if index == row.label else ("", "")
        yield [(f"  option {index}: ", "dim"), (_quoted(option) + remark, style)]


def _target_line(row: InspectedRow, *, coloured: bool) -> list[Segment]:
    supervised = sum(token.loss for token in row.target_tokens)
    how = "green" if coloured else "in brackets"
    line = [(f"  target ({len(row.target_tokens)} tokens, {supervised} carry loss: {how}): ", "dim")]
    for position, token in enumerate(row.target_tokens):
        if coloured:
            line.append((_visible(token.text), _LOSS_STYLES[position % 2] if token.loss else "dim"))
        else:
            quoted = _quoted(token.text)
            line.append(((" " if position else "") + (f"[{quoted}]" if token.loss else quoted), ""))
    return line


def _summary_lines(summary: Summary) -> Iterator[list[Segment]]:
    if summary.endless:
        yield [(f"the first {summary.rows:,} rows of a mixture without end", "bold")]
        yield [("  texts and answers are shortened to the limits before rows are made of them", "")]
    else:
        images = f", {summary.rows_with_image:,} with an image" if summary.rows_with_image else ""
        yield [(f"all {summary.rows:,} rows{images}", "bold")]
        yield _cut_line(summary)
    before = summary.longest_source_before_cutting
    uncut = f", {before:,} before cutting" if before > summary.longest_source else ""
    yield [(f"  longest source: {summary.longest_source:,} tokens{uncut} (limit {summary.max_source_length:,})", "")]
    yield [(f"  longest target: {summary.longest_target:,} tokens (limit {summary.max_target_length:,})", "")]


def _cut_line(summary: Summary) -> list[Segment]:
    if not summary.rows_cut:
        return [("  no row cut", "")]
    return [(f"  {summary.rows_cut:,} rows cut, by {summary.document_tokens_cut:,} document tokens in all", "yellow")]


def _quoted(text: str) -> str:
    """In quotation marks: a space at the beginning or the end means something to a tokenizer."""
    escaped = text.replace("\\", r"\\").replace('"', r"\"")
    return f'"{_visible(escaped)}"'


def _visible(text: str) -> str:
    """In one line, and without the control characters by which a text could steer a terminal."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)
