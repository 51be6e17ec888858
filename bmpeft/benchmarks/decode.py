"""`bmpeft bench decode`: attention of one new token to a long source, over the source's length.

Cross-attention of cached decoding: keys, values and position factors of the source are there, nothing has a gradient.
How is measured: `bmpeft.benchmarks.measure`.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from bmpeft.attention import PositionBias, attention
from bmpeft.benchmarks.attention import DTYPES, check_options
from bmpeft.benchmarks.measure import measure_in_turns
from bmpeft.benchmarks.rows import device_columns, make_row
from bmpeft.progress import Progress


def bench_decode(
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
    """Rows of one query against `lengths` keys, of which the last row of the batch has half; on the CPU.

    Raises:
        UsageError: there is no such backend or number type.
    """
    check_options(backends, dtypes)
    rows = []
    cases = [(dtype, length) for dtype in dtypes for length in lengths]
    with progress.task("measuring", total=len(cases)) as bar:
        for dtype, length in cases:
            problem = _problem(DTYPES[dtype], batch, heads, length, head_dim)
            calls = {backend: partial(_run, problem, backend) for backend in backends}
            case: dict[str, Any] = {"benchmark": "decode", "case": "cross-attention, one token", "dtype": dtype}
            case |= {"pass": "forward", "batch": batch, "length": length, "heads": heads, "head_dim": head_dim}
            rows += [make_row(case, device_columns(), found) for found in measure_in_turns(calls, repeats)]
            bar.advance(1)
    return tuple(rows)


def _problem(dtype: torch.dtype, batch: int, heads: int, length: int, head_dim: int) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).to(dtype)

    mask = torch.ones(batch, length, dtype=torch.bool)
    mask[-1, (length + 1) // 2 :] = False
    return {
        "query": random(batch, heads, 1, head_dim),
        "key": random(batch, heads, length, head_dim),
        "value": random(batch, heads, length, head_dim),
        "bias": PositionBias(
            query_factor=random(1, heads, 1, head_dim) * head_dim**-0.5,
            key_factor=random(1, heads, length, head_dim),
        ),
        "key_padding_mask": mask,
        "scale": (2 * head_dim) ** -0.5,
    }


def _run(problem: dict[str, Any], backend: str) -> None:
    with torch.no_grad():
        attention(**problem, backend=backend)
