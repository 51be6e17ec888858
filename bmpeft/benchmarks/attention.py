"""`bmpeft bench attention`: time and memory of the attention backends over the length.

How is measured: `bmpeft.benchmarks.measure`.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from bmpeft.attention import PositionBias, attention, check_backend, why_unavailable
from bmpeft.benchmarks.measure import measure_in_turns
from bmpeft.benchmarks.rows import device_columns, make_row
from bmpeft.errors import UsageError
from bmpeft.progress import Progress

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
PASSES = ("forward", "forward+backward")


def bench_attention(
    *,
    backends: Sequence[str],
    dtypes: Sequence[str],
    lengths: Sequence[int],
    batch: int,
    heads: int,
    head_dim: int,
    repeats: int,
    progress: Progress,
) -> tuple[dict[str, Any], ...]:
    """Rows of self-attention over text with a frozen bias, as LoRA has it, on the CPU.

    Raises:
        UsageError: there is no such backend or number type.
    """
    check_options(backends, dtypes)
    shared: dict[str, Any] = {"batch": batch, "heads": heads, "head_dim": head_dim, **device_columns()}
    rows = []
    cases = [(dtype, length, kind) for dtype in dtypes for length in lengths for kind in PASSES]
    with progress.task("measuring", total=len(cases)) as bar:
        for dtype, length, kind in cases:
            problem = _problem(DTYPES[dtype], batch, heads, length, head_dim)
            calls = {backend: partial(_run, problem, backend, kind) for backend in backends}
            case = {"benchmark": "attention", "case": "text", "dtype": dtype, "pass": kind, "length": length, **shared}
            rows += [make_row(case, found) for found in measure_in_turns(calls, repeats)]
            bar.advance(1)
    return tuple(rows)


def check_options(backends: Sequence[str], dtypes: Sequence[str]) -> None:
    """Whether these exist and run on a CPU. Raises UsageError."""
    for backend in backends:
        try:
            reason = why_unavailable(check_backend(backend), "cpu")
        except ValueError as error:
            raise UsageError(str(error)) from None
        if reason is not None:
            raise UsageError(f"--backend {backend}: {reason}")
    unknown = [name for name in dtypes if name not in DTYPES]
    if unknown:
        raise UsageError(f"--dtype {unknown[0]}: not one of {', '.join(DTYPES)}")


def _problem(dtype: torch.dtype, batch: int, heads: int, length: int, head_dim: int) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).to(dtype)

    return {
        "query": random(batch, heads, length, head_dim),
        "key": random(batch, heads, length, head_dim),
        "value": random(batch, heads, length, head_dim),
        "bias": PositionBias(
            query_factor=random(1, heads, length, head_dim) * head_dim**-0.5,
            key_factor=random(1, heads, length, head_dim),
            token_table=random(heads, 511),
        ),
        "scale": (2 * head_dim) ** -0.5,
    }


def _run(problem: dict[str, Any], backend: str, kind: str) -> None:
    trained = kind != "forward"
    leaves = [problem[name].detach().requires_grad_(trained) for name in ("query", "key", "value")]
    rest = {name: x for name, x in problem.items() if name not in ("query", "key", "value")}
    with torch.set_grad_enabled(trained):
        output = attention(*leaves, **rest, backend=backend)
        if trained:
            output.backward(problem["value"])
