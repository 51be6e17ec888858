"""BiomedGPT's biased attention: one function, several backends, `eager` is the specification."""

from __future__ import annotations

from bmpeft.attention.bias import Layout, PositionBias
from bmpeft.attention.dispatch import BACKENDS, attention, resolve_backend

__all__ = ["BACKENDS", "Layout", "PositionBias", "attention", "resolve_backend"]
