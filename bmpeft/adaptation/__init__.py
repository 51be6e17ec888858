"""Adaptation methods: which parameters train while the backbone stays frozen.

Importing the package is cheap, so that adapters can be listed without torch. `formats` says what an artifact of each
method holds; `methods` finds the module of each method, which follows the interface in `method`.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__all__ = ["Attached", "attach", "count_parameters", "method_of"]

if TYPE_CHECKING:
    from bmpeft.adaptation.method import Attached, count_parameters
    from bmpeft.adaptation.methods import attach, method_of

_MODULES = {"Attached": "method", "count_parameters": "method", "attach": "methods", "method_of": "methods"}


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return getattr(import_module(f"bmpeft.adaptation.{_MODULES[name]}"), name)
    raise AttributeError(f"module 'bmpeft.adaptation' has no attribute {name!r}")
