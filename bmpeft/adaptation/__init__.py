"""Adaptation methods: which parameters train while the backbone stays frozen.

Importing the package is cheap, so that adapters can be listed without torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__all__ = ["adapter_shapes", "adapter_tensors", "attach", "count_parameters", "set_adapter_tensors"]

if TYPE_CHECKING:
    from bmpeft.adaptation.lora import adapter_shapes, adapter_tensors, attach, count_parameters, set_adapter_tensors


def __getattr__(name: str) -> Any:
    if name in __all__:
        from bmpeft.adaptation import lora

        return getattr(lora, name)
    raise AttributeError(f"module 'bmpeft.adaptation' has no attribute {name!r}")
