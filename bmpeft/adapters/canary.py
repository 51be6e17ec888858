"""The canary: does a loaded adapter do to this backbone what it did when it was saved?

A fixed input that belongs to no dataset runs through the bare backbone and through the adapted one. The change of
its logits, at every decoder position and 32 vocabulary entries, is stored with the adapter and compared when it is
loaded. Digests say that the files are the same; the canary says that they still mean the same: that matrices
reached their places, with the same scaling, on weights that compute as they did.

How far two honest measurements may be apart follows from the number type alone; nothing is tuned. A backbone of B
residual blocks in a row rounds about 8 B times on the way to a logit: in each block the normalisation, two
projections, scores, softmax, their product with the values, a second normalisation and the sum. A rounding to a type
with unit roundoff u is a relative error of at most u; where a product sums n terms in float32, another of
about sqrt(n) u32. Such errors are independent and of either sign, so that their squares add (Higham and Mary 2019,
"A new approach to probabilistic rounding error analysis", doi 10.1137/18M1226312). One run's logits x are off by

    noise(x) = sqrt(8 B (u^2 + n u32^2)) |x|,    u = 2^-8 for bfloat16, 2^-24 for float32,

and the difference of two changes, which takes four runs, by the root of the sum of their squares. A change that
is no larger than this is none that the number type can show. For the size nano (B = 15, n = 1024) the noise of a
run is 4.3 % of its logits in bfloat16 and 0.002 % in float32. The count takes attention scores to be of the order
of one: softmax multiplies their relative errors by their size, and would exceed the bound if they were dozens.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import Tensor

from bmpeft.adapters.manifest import CanaryRecord
from bmpeft.errors import ArtifactError
from bmpeft.records import Example, Record

if TYPE_CHECKING:
    from bmpeft.adaptation import Attached
    from bmpeft.backbones.base import FrozenBackbone

QUANTIZATION: Final = "none"
INPUT: Final = "text-1"
# Short enough for any tokenizer and any number of positions, long enough that every layer has something to mix.
SOURCE = " The canary sings in the shaft before the miners go down: what does its song tell them?"
TARGET = " It tells them that the air is good to breathe."
MAX_TOKENS = 128
ENTRIES = 32
_ROUNDINGS_OF_A_BLOCK = 8


@dataclass(frozen=True)
class CanaryResult:
    """What a comparison found; all are Euclidean norms over the same logits."""

    change: float
    recorded: float
    distance: float
    bound: float


def record_canary(backbone: FrozenBackbone, attached: Attached) -> CanaryRecord:
    """Measure the effect of a trained adapter.

    Args:
        backbone: what the adapter was trained on.
        attached: the adapter on it; the modules keep their modes.

    An adapter without an effect is recorded as such, so that the work is not lost; it will not load.

    Raises:
        ArtifactError: the logits are not finite.
    """
    with _evaluating(attached.model):
        with attached.disabled():
            bare = canary_logits(backbone, attached.model)
        adapted = canary_logits(backbone, attached.model)
    change = (adapted - bare).float()
    if not change.isfinite().all():
        raise ArtifactError("the trained adapter's logits on the canary are not finite")
    return CanaryRecord(
        input=INPUT,
        dtype="bfloat16" if backbone.dtype == torch.bfloat16 else "float32",
        quantization=QUANTIZATION,
        change=CanaryRecord.encoded(change.flatten().tolist()),
        change_norm=_norm(change),
        logits_norm=_norm(bare),
    )


def compare_canary(
    directory: Path, record: CanaryRecord, backbone: FrozenBackbone, *, bare: Tensor, adapted: Tensor
) -> CanaryResult:
    """Compare what `canary_logits` gave for the bare and the adapted backbone with an adapter's record.

    Raises:
        ArtifactError: names the adapter's directory and the figures: no effect, or another than recorded.
    """
    recorded = torch.tensor(record.values, dtype=torch.float64)
    if recorded.numel() != bare.numel():
        raise ArtifactError(f"{directory}: its canary has {recorded.numel()} values, expected {bare.numel()} here")
    recorded = recorded.view_as(bare)
    change = adapted - bare
    here, then = str(backbone.dtype).removeprefix("torch."), record.dtype
    bound = math.hypot(
        *(_noise(backbone, here, logits) for logits in (bare, adapted)),
        *(_noise(backbone, then, logits) for logits in (bare, bare + recorded)),
    )
    result = CanaryResult(_norm(change), _norm(recorded), _norm(change - recorded), bound)
    limit = f"rounding to {here if here == then else f'{then} and {here}'} explains up to {bound:.4g}"
    if not result.change > bound:  # also of NaN
        raise ArtifactError(
            f"{directory}: the adapter has no effect here: it changes the canary's logits by {result.change:.4g}, "
            f"when saved by {result.recorded:.4g}; {limit}"
        )
    if not result.distance <= bound:
        raise ArtifactError(
            f"{directory}: the adapter has another effect than when it was saved: it changes the canary's logits by "
            f"{result.change:.4g}, then by {result.recorded:.4g}, and the changes are {result.distance:.4g} apart; "
            f"{limit}"
        )
    if not abs(_norm(bare) - record.logits_norm) <= bound:
        raise ArtifactError(
            f"{directory}: the bare backbone computes otherwise than when the adapter was saved: its logits on the "
            f"canary have norm {_norm(bare):.6g}, then {record.logits_norm:.6g}; {limit}"
        )
    return result


def canary_logits(backbone: FrozenBackbone, model: Any) -> Tensor:
    """Logits of the canary: [decoder positions, `ENTRIES`] float64 on the CPU.

    `model` is the backbone's model, bare or adapted, in evaluation mode. It computes in the type of its
    weights: autocast and the reduced float32 of some devices are switched off.
    """
    example = Example(record=Record(id=INPUT, task="canary", split="canary", group=INPUT), source=SOURCE, target=TARGET)
    encoded = backbone.encode(example, max_source_length=MAX_TOKENS, max_target_length=MAX_TOKENS)
    assert encoded.labels is not None
    batch = {name: tensor.to(backbone.device) for name, tensor in backbone.collate([encoded]).items()}
    with torch.inference_mode(), torch.autocast(backbone.device.type, enabled=False), _whole_float32():
        logits = model(**batch).logits[0, -len(encoded.labels) :]
    entries = vocabulary_entries(logits.shape[-1])
    return logits[:, torch.tensor(entries, device=logits.device)].double().cpu()


def vocabulary_entries(size: int) -> tuple[int, ...]:
    """Which entries of a vocabulary are looked at: drawn by SHA-256, the same in every version of every library."""
    digests = (hashlib.sha256(f"{INPUT}/{number}".encode()).digest() for number in range(ENTRIES))
    return tuple(int.from_bytes(digest[:8], "little") % size for digest in digests)


def _noise(backbone: FrozenBackbone, dtype: str, logits: Tensor) -> float:
    """How far rounding moves the logits of one run, see above."""
    unit, unit32 = (torch.finfo(kind).eps / 2 for kind in (getattr(torch, dtype), torch.float32))
    roundings = _ROUNDINGS_OF_A_BLOCK * backbone.residual_blocks
    return math.sqrt(roundings * (unit**2 + backbone.longest_sum * unit32**2)) * _norm(logits)


def _norm(values: Tensor) -> float:
    return float(torch.linalg.vector_norm(values.double()))


@contextmanager
def _evaluating(model: torch.nn.Module) -> Iterator[None]:
    """Evaluation mode; afterwards each module has its own mode again."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


@contextmanager
def _whole_float32() -> Iterator[None]:
    """Float32 products in float32, not in TF32 or bfloat16, which a program may have chosen for speed."""
    chosen = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(chosen)
