"""Stochastic depth while a model trains (Huang et al. 2016, arXiv:1603.09382)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from bmpeft.backbones.base import FrozenBackbone
from bmpeft.errors import BackboneError


@contextmanager
def stochastic_depth(backbone: FrozenBackbone, rate: float | None) -> Iterator[None]:
    """Drop residual branches of encoder and decoder layers at rates that rise linearly from 0 to `rate`.

    Layer l of L has rate * l / (L - 1), as in OFA and BiomedGPT. None leaves the rates as the backbone's
    configuration has them. The backbone's own rates come back at the end.

    Raises:
        BackboneError: the backbone's layers have no such rate.
    """
    stacks = [] if rate is None else _stacks(backbone)
    layers = [layer for stack in stacks for layer in stack]
    if any(not isinstance(getattr(layer, "drop_path", None), float) for layer in layers):
        raise BackboneError(f"{backbone.name}: training.drop_path: its layers have no stochastic depth")
    before = [layer.drop_path for layer in layers]
    for stack in stacks:
        for layer, layer_rate in zip(stack, torch.linspace(0, rate or 0.0, len(stack)).tolist(), strict=True):
            layer.drop_path = layer_rate
    try:
        yield
    finally:
        for layer, layer_rate in zip(layers, before, strict=True):
            layer.drop_path = layer_rate


def highest_rate(backbone: FrozenBackbone, rate: float | None) -> float:
    """The highest rate of a layer while `stochastic_depth` is in force."""
    if rate is not None:
        return rate
    return max((float(getattr(layer, "drop_path", 0.0)) for stack in _stacks(backbone) for layer in stack), default=0.0)


def _stacks(backbone: FrozenBackbone) -> list[list[Any]]:
    model: Any = backbone.model
    return [list(model.encoder.layers), list(model.decoder.layers)]
