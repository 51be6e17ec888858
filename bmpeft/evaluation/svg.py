"""Two small charts as SVG, so that a page with them needs no library and no other file."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

WIDTH, HEIGHT = 420, 260
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 10, 10, 40
_COLOURS = ("#3b6ea5", "#c8553d")


def reliability(confidence: Sequence[float | None], accuracy: Sequence[float | None], counts: Sequence[int]) -> str:
    """Accuracy in bins of the largest probability; the diagonal is perfect calibration.

    Args:
        confidence: mean probability of each bin; None where it is empty.
        accuracy: share of right rows of each bin; None where it is empty.
        counts: rows of each bin.
    """
    width = 1.0 / len(counts)
    parts = [_line(0.0, 0.0, 1.0, 1.0, dash=True)]
    for number, (mean, right, count) in enumerate(zip(confidence, accuracy, counts, strict=True)):
        if right is not None and mean is not None:
            tip = f"{count:,} rows, probability {mean:.3f}, accuracy {right:.3f}"
            parts.append(_bar(number * width, width, 0.0, right, _COLOURS[0], tip))
    return _chart(parts, "largest probability", "accuracy", [0.0, 0.5, 1.0], [0.0, 0.5, 1.0], 1.0, 1.0)


def histogram(edges: Sequence[float], counts: Sequence[Sequence[int]], names: Sequence[str], label: str) -> str:
    """Stacked bars: `counts[series][bin]` between `edges`, one colour for each of the one or two series."""
    top = max((sum(column) for column in zip(*counts, strict=True)), default=0) or 1
    low, span = edges[0], (edges[-1] - edges[0]) or 1.0
    parts = []
    for number in range(len(edges) - 1):
        base = 0.0
        for series, name in enumerate(names):
            count = counts[series][number]
            if count:
                tip = f"{name}: {count:,} rows from {edges[number]:.3g} to {edges[number + 1]:.3g}"
                place, width = (edges[number] - low) / span, (edges[number + 1] - edges[number]) / span
                parts.append(_bar(place, width, base / top, count / top, _COLOURS[series], tip))
            base += count
    legend = "".join(
        _text(_LEFT + 8, _TOP + 14 + 16 * series, name, anchor="start", colour=_COLOURS[series])
        for series, name in enumerate(names)
    )
    return _chart([*parts, legend], label, "rows", [low, low + span / 2, low + span], [0, top], span, top, low)


def _chart(
    parts: Sequence[str],
    x_label: str,
    y_label: str,
    x_ticks: Sequence[float],
    y_ticks: Sequence[float],
    x_span: float,
    y_span: float,
    x_low: float = 0.0,
) -> str:
    ticks = [_text(_x((tick - x_low) / x_span), HEIGHT - _BOTTOM + 16, f"{tick:.3g}") for tick in x_ticks]
    ticks += [_text(_LEFT - 6, _y(tick / y_span) + 4, f"{tick:,.4g}", anchor="end") for tick in y_ticks]
    labels = _text(_x(0.5), HEIGHT - 6, x_label) + _text(12, _y(0.5), y_label, turned=True)
    axes = _line(0.0, 0.0, 1.0, 0.0) + _line(0.0, 0.0, 0.0, 1.0)
    inner = "".join([*parts, axes, *ticks, labels])
    return f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}" role="img">{inner}</svg>'


def _bar(place: float, width: float, base: float, height: float, colour: str, tip: str) -> str:
    """A rectangle in shares of the plot's area, with a tool tip."""
    x, y = _x(place) + 0.5, _y(base + height)
    across, up = _x(place + width) - _x(place) - 1.0, _y(base) - y
    return (
        f'<rect x="{x:.1f}" y="{y:.1f}" width="{across:.1f}" height="{up:.1f}" fill="{colour}">'
        f"<title>{escape(tip)}</title></rect>"
    )


def _text(x: float, y: float, text: str, *, anchor: str = "middle", colour: str = "#222", turned: bool = False) -> str:
    turn = f' transform="rotate(-90 {x:.1f} {y:.1f})"' if turned else ""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{colour}"{turn}>{escape(text)}</text>'


def _line(x1: float, y1: float, x2: float, y2: float, *, dash: bool = False) -> str:
    style = ' stroke-dasharray="4 4"' if dash else ""
    return f'<line x1="{_x(x1):.1f}" y1="{_y(y1):.1f}" x2="{_x(x2):.1f}" y2="{_y(y2):.1f}" stroke="#888"{style}></line>'


def _x(share: float) -> float:
    return _LEFT + share * (WIDTH - _LEFT - _RIGHT)


def _y(share: float) -> float:
    return HEIGHT - _BOTTOM - share * (HEIGHT - _TOP - _BOTTOM)
