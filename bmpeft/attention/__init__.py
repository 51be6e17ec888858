"""BiomedGPT's biased attention: one function, several backends, `eager` is the specification."""

from __future__ import annotations

from bmpeft.attention.bias import Layout, PositionBias
from bmpeft.attention.choice import AUTO, Choice, check_backend, choose_backend, describe_choices, why_unavailable
from bmpeft.attention.dispatch import BACKENDS, attention

__all__ = [
    "AUTO",
    "BACKENDS",
    "Choice",
    "Layout",
    "PositionBias",
    "attention",
    "check_backend",
    "choose_backend",
    "describe_choices",
    "why_unavailable",
]
