"""`bmpeft bench loss`: time and memory of the loss behind BiomedGPT's vocabulary, over the number of target tokens.

`matrix` computes all logits and torch's cross-entropy of them, `torch` is torch's own `linear_cross_entropy` in chunks,
`chunked` is what bmpeft trains with (`bmpeft.training.linear_loss`). How is measured: `bmpeft.benchmarks.measure`.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, linear, linear_cross_entropy

from bmpeft.benchmarks.measure import measure_in_turns
from bmpeft.benchmarks.rows import device_columns, make_row
from bmpeft.errors import UsageError
from bmpeft.progress import Progress
from bmpeft.training import linear_loss

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
BACKENDS = ("matrix", "torch", "chunked")
CASES = {"frozen": False, "trained": True}
"""Whether the weight of the output layer trains."""


def bench_loss(
    *,
    backends: Sequence[str],
    dtypes: Sequence[str],
    tokens: Sequence[int],
    vocabulary: int,
    width: int,
    repeats: int,
    progress: Progress,
) -> tuple[dict[str, Any], ...]:
    """Rows of the loss with its backward pass on the CPU; `length` is the number of target tokens.

    Raises:
        UsageError: there is no such backend or number type.
    """
    for option, names, known in (("--backend", backends, BACKENDS), ("--dtype", dtypes, tuple(DTYPES))):
        for name in names:
            if name not in known:
                raise UsageError(f"{option} {name}: not one of {', '.join(known)}")
    shared = {
        "benchmark": "loss",
        "pass": "forward+backward",
        "batch": 1,
        **device_columns(),
    }
    rows = []
    cases = [(dtype, case, count) for dtype in dtypes for case in CASES for count in tokens]
    with progress.task("measuring", total=len(cases)) as bar:
        for dtype, case, count in cases:
            generator = torch.Generator().manual_seed(0)
            states, weight = (torch.randn(n, width, generator=generator) * width**-0.5 for n in (count, vocabulary))
            targets = torch.randint(vocabulary, (count,), generator=generator)
            tensors = (states.to(DTYPES[dtype]), weight.to(DTYPES[dtype]), targets)
            calls = {backend: partial(_run, backend, *tensors, trained=CASES[case]) for backend in backends}
            own = {"case": f"{case} output layer, {vocabulary} entries", "dtype": dtype, "length": count}
            rows += [make_row(shared, own, found) for found in measure_in_turns(calls, repeats)]
            bar.advance(1)
    return tuple(rows)


def _run(backend: str, states: Tensor, weight: Tensor, targets: Tensor, *, trained: bool) -> None:
    states, weight = states.detach().requires_grad_(), weight.detach().requires_grad_(trained)
    if backend == "matrix":
        loss = cross_entropy(linear(states, weight).float(), targets, reduction="sum")
    elif backend == "torch":
        options = torch.nn.LinearCrossEntropyOptions()
        loss = linear_cross_entropy(states, weight, targets, reduction="sum", options=options)
    else:
        loss = linear_loss.linear_cross_entropy(states, weight, targets).sum()
    loss.backward()
