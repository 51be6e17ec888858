"""`bmpeft bench compile`: what each attention kernel needs on each GPU architecture, without a GPU.

Occupancy is computed by the rules of the CUDA programming guide (compute capabilities): how many blocks fit into a
multiprocessor's registers, shared memory and warps.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from bmpeft.errors import UsageError
from bmpeft.machine import package_versions
from bmpeft.progress import Progress

if TYPE_CHECKING:
    from bmpeft_kernels.compilation import Compiled

_KIBIBYTE = 1024
_REGISTERS = 65_536  # of a multiprocessor, on all of them
FEWEST_WARPS = 8


@dataclass(frozen=True)
class Multiprocessor:
    """What the blocks on one multiprocessor share: bytes of shared memory (a block's, all blocks') and warps."""

    shared_of_block: int
    shared: int
    warps: int


MULTIPROCESSORS = {
    "sm_80": Multiprocessor(163 * _KIBIBYTE, 164 * _KIBIBYTE, 64),
    "sm_86": Multiprocessor(99 * _KIBIBYTE, 100 * _KIBIBYTE, 48),
    "sm_89": Multiprocessor(99 * _KIBIBYTE, 100 * _KIBIBYTE, 48),
    "sm_90": Multiprocessor(227 * _KIBIBYTE, 228 * _KIBIBYTE, 64),
    "sm_100": Multiprocessor(227 * _KIBIBYTE, 228 * _KIBIBYTE, 64),
    "sm_120": Multiprocessor(99 * _KIBIBYTE, 100 * _KIBIBYTE, 48),
}


@dataclass(frozen=True)
class Entry:
    """One kernel on one architecture, and whether it keeps the budgets."""

    compiled: Compiled

    @property
    def occupancy(self) -> int:
        """Warps that a multiprocessor holds at a time."""
        limits = MULTIPROCESSORS[self.compiled.architecture]
        warps = self.compiled.tile.warps
        of_warp = -(-self.compiled.registers * 32 // 256) * 256  # registers are given to warps by 256
        blocks = min(
            _REGISTERS // (of_warp * warps),
            limits.shared // (self.compiled.shared + _KIBIBYTE),  # a KiB of each block is the system's
            limits.warps // warps,
        )
        return blocks * warps

    @property
    def problems(self) -> tuple[str, ...]:
        """Budgets that are exceeded."""
        from bmpeft_kernels.compilation import WITHOUT_PRODUCTS

        largest = MULTIPROCESSORS[self.compiled.architecture].shared_of_block
        found = []
        if self.compiled.stack:
            found.append(f"stack {self.compiled.stack}")
        if self.compiled.shared > largest:
            found.append(f"shared memory above {largest}")
        if not self.compiled.matrix_instructions and self.compiled.kernel not in WITHOUT_PRODUCTS:
            found.append("no matrix instructions")
        if self.occupancy < FEWEST_WARPS:
            found.append(f"fewer than {FEWEST_WARPS} warps")
        return tuple(found)

    def row(self) -> dict[str, Any]:
        """For the table and for JSON."""
        c = self.compiled
        return {
            "architecture": c.architecture,
            "kernel": c.kernel,
            "dtype": c.dtype,
            "head_dim": c.head_dim,
            "tile": f"{c.tile.queries}x{c.tile.keys}, {c.tile.warps} warps, {c.tile.stages} stages",
            "registers": c.registers,
            "stack": c.stack,
            "shared": c.shared,
            "matrix_instructions": c.matrix_instructions,
            "occupancy": self.occupancy,
            "budget": ", ".join(self.problems) or "kept",
        }

    def rows(self) -> Iterator[dict[str, Any]]:
        """One row for each figure, in the form of all benchmarks."""
        c = self.compiled
        figures = (
            ("registers", "per thread", c.registers),
            ("stack", "bytes", c.stack),
            ("shared_memory", "bytes", c.shared),
            ("matrix_instructions", "count", c.matrix_instructions),
            ("occupancy", "warps", self.occupancy),
        )
        versions = " ".join(f"{name} {version}" for name, version in package_versions("triton").items())
        for metric, unit, value in figures:
            yield {
                "benchmark": "compile",
                "case": c.kernel,
                "backend": "triton",
                "dtype": c.dtype,
                "pass": "backward" if c.kernel.startswith("backward") else "forward",
                "batch": None,
                "length": None,
                "heads": None,
                "head_dim": c.head_dim,
                "metric": metric,
                "unit": unit,
                "p20": value,
                "p50": value,
                "p80": value,
                "n": 1,
                "device": c.architecture,
                "versions": versions,
            }


def compile_matrix(
    architectures: Sequence[str], dtypes: Sequence[str], head_dims: Sequence[int], progress: Progress
) -> tuple[Entry, ...]:
    """Compile every kernel for every architecture, number type and head dimension.

    Raises:
        UsageError: an architecture without tensor cores that Triton uses, or unknown; TRITON_INTERPRET=1 is set.
    """
    from bmpeft_kernels.attention import HEAD_DIMS
    from bmpeft_kernels.compilation import DTYPES, KERNELS, compile_kernel

    for architecture in architectures:
        if architecture not in MULTIPROCESSORS:
            raise UsageError(f"--target {architecture}: {_why_not(architecture)}")
    for dtype in dtypes:
        if dtype not in DTYPES:
            raise UsageError(f"--dtype {dtype}: not one of {', '.join(DTYPES)}")
    for head_dim in head_dims:
        if head_dim not in HEAD_DIMS:
            raise UsageError(f"--head-dim {head_dim}: not one of {', '.join(map(str, HEAD_DIMS))}")
    cases = [(a, t, d, k) for a in architectures for t in dtypes for d in head_dims for k in KERNELS]
    entries = []
    with progress.task("compiling", total=len(cases)) as bar:
        for architecture, dtype, head_dim, kernel in cases:
            try:
                entries.append(Entry(compile_kernel(kernel, architecture, dtype, head_dim)))
            except (ValueError, RuntimeError) as error:
                raise UsageError(str(error)) from None
            bar.advance(1)
    return tuple(entries)


def _why_not(architecture: str) -> str:
    from bmpeft_kernels.tiles import tiles_for

    try:
        tiles_for(architecture, 64)
    except ValueError as error:
        return str(error)
    return f"not one of {', '.join(MULTIPROCESSORS)}"
