"""Time and memory of alternatives that do the same.

They take turns, so that a busy machine slows them alike; time is the process's own (all threads). Memory is what torch
is asked for at once beyond the inputs, by storage: without an allocator's rounding and a kernel's workspace.
"""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


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


def measure_in_turns(calls: Mapping[str, Callable[[], object]], repeats: int) -> Iterator[dict[str, Any]]:
    """Columns backend, metric, unit, p20, p50, p80, n of each call's time and memory; the first time is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(repeats + 1):
        for name, call in calls.items():
            start = time.process_time()
            call()
            if turn > 0:
                seconds[name].append(time.process_time() - start)
    for name, call in calls.items():
        yield _columns(name, "time", "seconds", seconds[name])
        with LiveBytes() as live:
            call()
        yield _columns(name, "peak_memory", "bytes", [live.peak])


def _columns(backend: str, metric: str, unit: str, values: list[float]) -> dict[str, Any]:
    p20, p50, p80 = (float(x) for x in np.quantile(values, (0.2, 0.5, 0.8)))
    return {"backend": backend, "metric": metric, "unit": unit, "p20": p20, "p50": p50, "p80": p80, "n": len(values)}
