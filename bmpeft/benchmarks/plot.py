"""Benchmark rows as a picture: each metric over the length, both axes logarithmic."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bmpeft.errors import BmpeftError, UsageError


def plot_rows(file: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write a PNG with a panel for each metric and a line, with the range from p20 to p80, for each case.

    Raises:
        UsageError: matplotlib is not installed.
        BmpeftError: the file cannot be written.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise UsageError("--plot: matplotlib is not installed (the extra plot has it)") from None
    differing = [name for name in ("case", "dtype", "pass") if len({row[name] for row in rows}) > 1]
    metrics = list(dict.fromkeys((row["metric"], row["unit"]) for row in rows))
    figure = Figure(figsize=(6 * len(metrics), 4.5), layout="constrained")
    for axes, (metric, unit) in zip(figure.subplots(1, len(metrics), squeeze=False)[0], metrics, strict=True):
        lines = defaultdict(list)
        for row in rows:
            if row["metric"] == metric:
                lines[", ".join(row[name] for name in ("backend", *differing))].append(row)
        for label, points in lines.items():
            lengths = [row["length"] for row in points]
            axes.plot(lengths, [row["p50"] for row in points], marker="o", label=label)
            axes.fill_between(lengths, [row["p20"] for row in points], [row["p80"] for row in points], alpha=0.2)
        axes.set(xscale="log", yscale="log", xlabel="length", ylabel=f"{metric.replace('_', ' ')} ({unit})")
        axes.legend(fontsize="x-small")
    try:
        figure.savefig(file, format="png", dpi=120)
    except OSError as error:
        raise BmpeftError(f"{file}: cannot be written: {error.strerror}") from None
