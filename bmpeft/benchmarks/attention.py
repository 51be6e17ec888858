"""`bmpeft bench attention`: time and memory of the attention backends over the length.

The backends take turns, so that a busy machine slows them alike; time is the process's own (all threads). Memory is
what torch is asked for at once beyond the inputs, by storage: without an allocator's rounding and a kernel's workspace.
"""

from __future__ import annotations

import time
import weakref
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from bmpeft.attention import PositionBias, attention, check_backend
from bmpeft.errors import UsageError
from bmpeft.machine import describe_machine, package_versions
from bmpeft.progress import Progress

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
PASSES = ("forward", "forward+backward")


class LiveBytes(TorchDispatchMode):
    """The most bytes of new storages that live at once inside the `with` block."""

    def __init__(self) -> None:
        super().__init__()
        self.peak = 0
        self._live = 0
        self._seen: set[int] = set()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        given = {x.untyped_storage()._cdata for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)}
        for x in tree_leaves(result):
            if isinstance(x, Tensor) and x.untyped_storage()._cdata not in given | self._seen:
                self._add(x.untyped_storage())
        return result

    def _add(self, storage: Any) -> None:
        key, size = storage._cdata, storage.nbytes()
        self._seen.add(key)
        weakref.finalize(storage, self._remove, key, size)
        self._live += size
        self.peak = max(self.peak, self._live)

    def _remove(self, key: int, size: int) -> None:
        self._seen.discard(key)
        self._live -= size


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
    for backend in backends:
        try:
            check_backend(backend)
        except ValueError as error:
            raise UsageError(str(error)) from None
    unknown = [name for name in dtypes if name not in DTYPES]
    if unknown:
        raise UsageError(f"--dtype {unknown[0]}: not one of {', '.join(DTYPES)}")
    shared: dict[str, Any] = {"batch": batch, "heads": heads, "head_dim": head_dim, "device": describe_machine()}
    shared["versions"] = " ".join(f"{name} {version}" for name, version in package_versions("torch").items())
    rows = []
    cases = [(dtype, length, kind) for dtype in dtypes for length in lengths for kind in PASSES]
    with progress.task("measuring", total=len(cases)) as bar:
        for dtype, length, kind in cases:
            problem = _problem(DTYPES[dtype], batch, heads, length, head_dim)
            for found in _measure(problem, backends, kind, repeats):
                rows.append(_row(found, dtype=dtype, length=length, kind=kind, shared=shared))
            bar.advance(1)
    return tuple(rows)


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


def _measure(
    problem: dict[str, Any], backends: Sequence[str], kind: str, repeats: int
) -> Iterator[tuple[str, str, str, list[float]]]:
    """(backend, metric, unit, values) of each backend; the first call of each is not counted."""
    seconds: dict[str, list[float]] = {backend: [] for backend in backends}
    for turn in range(repeats + 1):
        for backend in backends:
            start = time.process_time()
            _run(problem, backend, kind)
            if turn > 0:
                seconds[backend].append(time.process_time() - start)
    for backend in backends:
        yield backend, "time", "seconds", seconds[backend]
        with LiveBytes() as live:
            _run(problem, backend, kind)
        yield backend, "peak_memory", "bytes", [live.peak]


def _run(problem: dict[str, Any], backend: str, kind: str) -> None:
    trained = kind != "forward"
    leaves = [problem[name].detach().requires_grad_(trained) for name in ("query", "key", "value")]
    rest = {name: x for name, x in problem.items() if name not in ("query", "key", "value")}
    with torch.set_grad_enabled(trained):
        output = attention(*leaves, **rest, backend=backend)
        if trained:
            output.backward(problem["value"])


def _row(
    found: tuple[str, str, str, list[float]], *, dtype: str, length: int, kind: str, shared: dict[str, Any]
) -> dict[str, Any]:
    backend, metric, unit, values = found
    p20, p50, p80 = (float(x) for x in np.quantile(values, (0.2, 0.5, 0.8)))
    row: dict[str, Any] = {"benchmark": "attention", "case": "text", "backend": backend, "dtype": dtype, "pass": kind}
    row |= {"batch": shared["batch"], "length": length, "heads": shared["heads"], "head_dim": shared["head_dim"]}
    row |= {"metric": metric, "unit": unit, "p20": p20, "p50": p50, "p80": p80, "n": len(values)}
    return row | {"device": shared["device"], "versions": shared["versions"]}
