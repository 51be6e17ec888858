"""Tile sizes of the attention kernels by GPU architecture: chosen for their compiled resources, not timed.

The budget of each (no stack, shared memory below the architecture's limit, matrix instructions in use) is checked by
compiling for it; which of several tiles within the budget is the fastest needs the GPU.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Tile:
    """Queries and keys of one tile, and how it is run."""

    queries: int
    keys: int
    warps: int
    stages: int


KERNELS = ("forward", "backward_queries", "backward_keys", "backward_line", "backward_image")

# Registers are what limits them all: with more queries or keys, or fewer warps, they spill on sm_80, sm_86 or sm_120.
_NARROW: dict[str, Tile] = {
    "forward": Tile(64, 32, 8, 2),
    "backward_queries": Tile(64, 32, 8, 1),
    "backward_keys": Tile(16, 64, 8, 1),
    "backward_line": Tile(32, 64, 4, 1),
    "backward_image": Tile(32, 32, 4, 1),
}
_WIDE: dict[str, Tile] = {
    **_NARROW,
    "forward": Tile(32, 32, 8, 2),
    "backward_queries": Tile(64, 16, 8, 1),
    "backward_keys": Tile(16, 64, 4, 1),
}
ARCHITECTURES = ("sm_80", "sm_86", "sm_89", "sm_90", "sm_100", "sm_120")
_LINE = {"backward_line": Tile(32, 64, 8, 1)}  # four warps spill on sm_120
TILES: dict[str, tuple[dict[str, Tile], dict[str, Tile]]] = {
    **dict.fromkeys(ARCHITECTURES, (_NARROW, _WIDE)),
    "sm_100": (_NARROW, {**_WIDE, "backward_queries": _NARROW["backward_queries"]}),  # the wide one spills there
    "sm_120": (_NARROW | _LINE, _WIDE | _LINE),
}
"""For each architecture the tiles of head dimensions up to 64, and of 80."""
DECODING: dict[str, Tile] = dict.fromkeys(("split_keys", "join_parts"), Tile(1, 32, 4, 1))
"""One query: nothing is multiplied but vectors, and memory is the limit on every architecture."""
INTERPRETER: dict[str, Tile] = dict.fromkeys(KERNELS, Tile(32, 64, 4, 1))
"""Where no GPU runs them: Triton's interpreter, whose time is a matter of the number of tiles."""


def tiles_for(architecture: str, head_dim: int) -> dict[str, Tile]:
    """The tiles of an architecture ("sm_86"); one that is not listed gets its nearest listed ancestor's.

    Raises:
        ValueError: no tensor cores that Triton uses (below sm_80), or no NVIDIA GPU.
    """
    wide = head_dim > 64
    if architecture in TILES:
        return TILES[architecture][wide]
    family, _, number = architecture.partition("_")
    if family != "sm" or not number.isdigit():
        raise ValueError(f"{architecture}: no tiles; known are {', '.join(TILES)}")
    if int(number) < 80:
        raise ValueError(f"{architecture}: Triton emits no tensor-core code below sm_80; use the backend sdpa")
    ancestors = [int(name.removeprefix("sm_")) for name in TILES if name.startswith("sm_")]
    return TILES[f"sm_{max(a for a in ancestors if a <= int(number))}"][wide]
