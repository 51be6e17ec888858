"""Which attention backend is taken where the recipe leaves it open."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Sequence
from dataclasses import dataclass

AUTO = "auto"
NAMES = ("eager", "sdpa", "chunked", "flash", "flex", "triton")
CHUNKED_FROM = 512 * 512
"""Scores of one head from which `chunked` is faster than `sdpa` on a CPU, training included."""


@dataclass(frozen=True)
class Choice:
    """A backend and why it is taken."""

    backend: str
    reason: str


def check_backend(name: str) -> str:
    """The name itself, where there is such a backend.

    Raises:
        ValueError: there is none.
    """
    if name != AUTO and name not in NAMES:
        raise ValueError(f"attention backend {name!r} is not one of {', '.join((AUTO, *NAMES))}")
    return name


def why_unavailable(name: str, device_type: str) -> str | None:
    """Why a backend cannot run on a kind of device here; None where it can."""
    if name == "flex":
        return None if device_type == "cuda" else f"torch compiles it for GPUs, and the device is {device_type}"
    if name != "triton":
        return None
    missing = [package for package in ("triton", "bmpeft_kernels") if importlib.util.find_spec(package) is None]
    if missing:
        return f"{missing[0]} is not installed"
    if device_type == "cuda" or os.environ.get("TRITON_INTERPRET") == "1":
        return None
    return f"Triton compiles for GPUs, and the device is {device_type}"


def choose_backend(name: str, device_type: str, num_queries: int, num_keys: int, *, tables: bool = False) -> Choice:
    """The backend that `name` stands for in one call; "auto" is the faster one that fits.

    Flash is exact without tables of relative positions, that is in cross-attention; where there are `tables`, what
    auto takes stands for it.

    Raises:
        ValueError: there is no such backend.
    """
    if check_backend(name) == "flash" and tables:
        other = choose_backend(AUTO, device_type, num_queries, num_keys)
        return Choice(other.backend, f"flash has no tables of relative positions; {other.reason}")
    if name != AUTO:
        return Choice(name, "asked for")
    if device_type != "cpu":
        return Choice("sdpa", f"on {device_type} no other backend has been measured")
    size = f"{num_queries:,} x {num_keys:,} scores a head on a CPU"
    if num_queries * num_keys >= CHUNKED_FROM:
        return Choice("chunked", f"{size}: faster from {CHUNKED_FROM:,} on, and without an L x L bias")
    return Choice("sdpa", f"{size}: faster below {CHUNKED_FROM:,}")


def describe_choices(layers: Sequence[tuple[int, Choice]]) -> tuple[str, ...]:
    """A line for each choice: "6/18 layers: chunked, 1,024 x 1,024 scores ..."."""
    total = sum(count for count, _ in layers)
    return tuple(f"{count}/{total} layers: {choice.backend}, {choice.reason}" for count, choice in layers)
