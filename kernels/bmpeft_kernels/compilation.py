"""Compile the kernels for a GPU that is not there, and read from the binary what it needs.

The arguments are declared as a real launch has them: pointers from torch's allocator are divisible by 16, without
which loads are not vectorised. Nothing is run.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from bmpeft_kernels import attention_kernels, decode_kernels, table_kernels
from bmpeft_kernels.attention import HEAD_DIMS
from bmpeft_kernels.decode import MOST_PARTS
from bmpeft_kernels.tiles import DECODING, Tile, tiles_for

KERNELS = {
    "forward": attention_kernels.forward,
    "backward_queries": attention_kernels.backward_queries,
    "backward_keys": attention_kernels.backward_keys,
    "backward_line": table_kernels.backward_line,
    "backward_image": table_kernels.backward_image,
    "split_keys": decode_kernels.split_keys,
    "join_parts": decode_kernels.join_parts,
}
WITHOUT_PRODUCTS = frozenset({"split_keys", "join_parts"})
"""These read every number once: they have no products of matrices, and need no matrix instructions."""
DTYPES = {"float16": "fp16", "bfloat16": "bf16"}
_FLOATS = {"scale", "dropout"}
_INTEGERS = {"place", "query_segment", "key_segment"}
_FLOAT_ARRAYS = {"line", "image", "lse", "delta", "of_position", "of_line", "of_pairs", "peaks", "totals", "sums"}
_INPUTS = {"query", "key", "value", "pos_query", "pos_key", "output", "gradient", "of_query", "of_key", "of_value"}
_MATRIX = re.compile(r"\b(?:HMMA|HGMMA|UTC\w*MMA)\b")


@dataclass(frozen=True)
class Compiled:
    """What one kernel needs on one architecture.

    Attributes:
        registers: of a thread.
        stack: bytes of a thread that registers were spilled to.
        shared: bytes of a block.
        matrix_instructions: tensor-core instructions in the code, each counted once however often it runs.
    """

    kernel: str
    architecture: str
    dtype: str
    head_dim: int
    tile: Tile
    registers: int
    stack: int
    shared: int
    matrix_instructions: int


def compile_kernel(kernel: str, architecture: str, dtype: str, head_dim: int) -> Compiled:
    """Compile one of `KERNELS` with everything that it can do but dropout: factors, both tables, packing, gradients.

    Raises:
        ValueError: an architecture without tiles, or another head dimension.
        RuntimeError: the kernels were imported for Triton's interpreter.
    """
    function = KERNELS[kernel]
    if not isinstance(function, triton.JITFunction):
        raise RuntimeError("TRITON_INTERPRET=1 is set: interpreted kernels cannot be compiled")
    tile = {**tiles_for(architecture, head_dim), **DECODING}[kernel]
    d0, d1 = HEAD_DIMS[head_dim]
    flags: dict[str, Any] = {
        "D0": d0,
        "D1": d1,
        "BM": tile.queries,
        "BN": tile.keys,
        "POSITION_ROWS": 1,
        "PARTS": MOST_PARTS,
    }
    flags |= dict.fromkeys(("POSITIONS", "LINE", "IMAGE", "SEGMENTS", "WANTED"), True)
    flags |= {"CAUSAL": False, "DROPOUT": False, "PLACE_ROWS": 1}
    names = list(function.arg_names)
    types = [_type(name, DTYPES[dtype], flags) for name in names]
    source = ASTSource(
        fn=function,
        signature=dict(zip(names, types, strict=True)),
        constexprs={(i,): flags[name] for i, name in enumerate(names) if name in flags},
        attrs={(i,): [["tt.divisibility", 16]] for i, kind in enumerate(types) if kind.startswith("*")},
    )
    # Fused multiply-add is named, since its default is about to change.
    options = {"num_warps": tile.warps, "num_stages": tile.stages, "enable_fp_fusion": True}
    target = GPUTarget("cuda", int(architecture.removeprefix("sm_")), 32)
    compiled = triton.compile(source, target=target, options=options)
    registers, stack, matrix = _read(compiled.asm["cubin"])
    return Compiled(kernel, architecture, dtype, head_dim, tile, registers, stack, compiled.metadata.shared, matrix)


def _type(name: str, dtype: str, flags: dict[str, Any]) -> str:
    if name in flags:
        return "constexpr"
    if name in _FLOATS:
        return "fp32"
    if name in _INTEGERS:
        return "*i32"
    if name in _FLOAT_ARRAYS:
        return "*fp32"
    return f"*{dtype}" if name in _INPUTS else "i32"


def _read(cubin: bytes) -> tuple[int, int, int]:
    """Registers and stack of a thread, and matrix instructions, by the tools that come with Triton."""
    tools = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    with tempfile.TemporaryDirectory() as directory:
        file = Path(directory) / "kernel.cubin"
        file.write_bytes(cubin)
        usage = _output(tools / "cuobjdump", "-res-usage", str(file))
        code = _output(tools / "nvdisasm", "-c", str(file))
    found = re.search(r"REG:(\d+) STACK:(\d+)", usage)
    if found is None:
        raise RuntimeError("cuobjdump names no registers: its output has another form than this code knows")
    return int(found[1]), int(found[2]), len(_MATRIX.findall(code))


def _output(*command: str | Path) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout
