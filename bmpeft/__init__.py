"""bmpeft: one frozen biomedical backbone, many small adapters.

Importing the package is cheap; torch is loaded by the first call that needs it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["__version__", "load_backbone"]

if TYPE_CHECKING:
    from bmpeft.adapters.runtime import load_backbone


def __getattr__(name: str) -> Any:
    if name == "load_backbone":
        from bmpeft.adapters.runtime import load_backbone

        return load_backbone
    raise AttributeError(f"module 'bmpeft' has no attribute {name!r}")
