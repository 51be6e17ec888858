"""When to stop early: a function of the validations so far, so that a resumed run decides as the first would have."""

from __future__ import annotations

from collections.abc import Iterable


def out_of_patience(figures: Iterable[float], *, patience: int, min_delta: float, greater_is_better: bool) -> bool:
    """Whether the last `patience` figures in a row were not better than the best before by more than `min_delta`."""
    best, waited = None, 0
    for figure in figures:
        value = figure if greater_is_better else -figure
        if best is None or value > best + min_delta:
            best, waited = value, 0
        else:
            waited += 1
    return waited >= patience
