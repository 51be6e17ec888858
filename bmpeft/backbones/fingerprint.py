"""Names for weights: SHA-256 over tensors, independent of how they are stored."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


def fingerprint_of(tensors: Mapping[str, Tensor], *, context: Mapping[str, Any] | None = None) -> str:
    """SHA-256 over name, dtype, shape and bytes of every tensor in the order of their names.

    Args:
        tensors: the canonical tensors; of tied ones the first name only.
        context: what else the weights depend on (configuration and seed of random weights).
    """
    digest = hashlib.sha256()
    digest.update(json.dumps(context or {}, sort_keys=True).encode())
    for name in sorted(tensors):
        tensor = tensors[name].detach().contiguous().cpu()
        header = f"{name}\0{str(tensor.dtype).removeprefix('torch.')}\0{tuple(tensor.shape)}\0"
        digest.update(header.encode())
        # A view as bytes: numpy has no bfloat16.
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data if tensor.numel() else b"")
    return digest.hexdigest()


def canonical_state(model: torch.nn.Module) -> dict[str, Tensor]:
    """The state of a model without the second and later names of tied tensors."""
    seen: set[tuple[int, tuple[int, ...]]] = set()
    state = {}
    for name, tensor in model.state_dict().items():
        storage = (tensor.data_ptr(), tuple(tensor.shape))
        if tensor.numel() and storage in seen:
            continue
        seen.add(storage)
        state[name] = tensor
    return state
