"""A source's tensors under our names: renamed, split, tied and completed, with a report of every key."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from bmpeft.backbones.biomedgpt.configuration import BiomedGPTConfig
from bmpeft.backbones.biomedgpt.conversion import names
from bmpeft.backbones.biomedgpt.conversion.architecture import configuration, fields_of
from bmpeft.backbones.biomedgpt.conversion.report import KeyReport
from bmpeft.backbones.biomedgpt.conversion.sources import Source
from bmpeft.backbones.biomedgpt.modeling import BiomedGPTForConditionalGeneration
from bmpeft.errors import BackboneError

_FLOATS = (torch.float32, torch.float16, torch.bfloat16)
# Where a missing embedding comes from: the decoder's two are closest to each other.
_TIED_TO = {
    names.EMBEDDING: names.TIED,
    names.TIED[0]: (names.EMBEDDING, names.TIED[1]),
    names.TIED[1]: (names.TIED[0], names.EMBEDDING),
}
_COUNTER = "num_batches_tracked"
_IMAGE_POSITIONS = "embed_image_positions.weight"


@dataclass(frozen=True)
class CanonicalState:
    """Weights as `BiomedGPTForConditionalGeneration` has them.

    Attributes:
        config: the architecture.
        tensors: by our names, in the model's order; of tied embeddings the first only.
        scheme: the layout of the source's keys.
        keys: what became of every key, sorted by name.
        assumed: fields that neither shapes nor source say.
    """

    config: BiomedGPTConfig
    tensors: Mapping[str, Tensor]
    scheme: names.Scheme
    keys: tuple[KeyReport, ...]
    assumed: tuple[str, ...]

    @property
    def float_dtypes(self) -> tuple[str, ...]:
        """The types of the floating-point tensors."""
        return tuple(sorted({dtype_name(t) for t in self.tensors.values() if t.is_floating_point()}))


def canonical_tensors(source: Source) -> CanonicalState:
    """Bring a source's tensors under our names.

    Missing ones are completed as upstream does when it loads them: tied embeddings from each other, counters of
    batches by 0, tables of image positions that are shorter than the grid by N(0, D^-0.5), here from a fixed seed.
    Whatever else is missing, or has no place in the architecture, is an error: the weights would not compute what
    they were trained for.

    Raises:
        BackboneError: one line that names the key and what was expected.
    """
    try:
        return _canonical_tensors(source)
    except ValueError as error:
        raise BackboneError(f"{source.path}: {error}") from None


def _canonical_tensors(source: Source) -> CanonicalState:
    prefix = names.prefix_of(source.tensors)
    found, keys = _renamed(source.tensors, prefix)
    keys.extend(source.ignored)
    scheme = names.scheme_of([key.removeprefix(prefix) for key in source.tensors])
    tied = _tie(found, keys)
    fields = fields_of({name: tuple(tensor.shape) for name, tensor in found.items()})
    config, assumed = configuration(fields, source.declared, source.declared_in, tied=tied)
    expected = _expected(config)
    _complete(found, keys, expected)
    _check(found, expected)
    return CanonicalState(
        config=config,
        tensors={name: found[name] for name in expected},
        scheme=scheme,
        keys=tuple(sorted(keys, key=lambda key: key.source or key.target[0])),
        assumed=assumed,
    )


def _renamed(tensors: Mapping[str, Tensor], prefix: str) -> tuple[dict[str, Tensor], list[KeyReport]]:
    found: dict[str, Tensor] = {}
    keys = []
    for key, tensor in tensors.items():
        name = key.removeprefix(prefix)
        target: tuple[str, ...] = ()
        reason = ""
        if not key.startswith((f"{prefix}encoder.", f"{prefix}decoder.")):
            reason = "neither of the encoder nor of the decoder"
        elif names.is_computed(name):
            reason = "computed from the architecture"
        else:
            target = names.to_ours(name)
            found |= _placed(found, key, target, tensor)
        status = "used" if target else "ignored"
        keys.append(KeyReport(key, target, status, reason, tuple(tensor.shape), dtype_name(tensor)))  # type: ignore[arg-type]
    return found, keys


def _placed(found: Mapping[str, Tensor], key: str, target: tuple[str, ...], tensor: Tensor) -> dict[str, Tensor]:
    """One source tensor under its name, or an old fused one's three parts under theirs."""
    if any(name in found for name in target):
        raise ValueError(f"{key}: another key becomes {target[0]}, too")
    if len(target) == 1:
        return {target[0]: tensor}
    if not tensor.dim() or tensor.shape[0] % len(target):
        raise ValueError(f"{key}: shape {list(tensor.shape)} is no fused projection")
    return dict(zip(target, tensor.chunk(len(target)), strict=True))


def _tie(found: dict[str, Tensor], keys: list[KeyReport]) -> bool:
    """Leave one of the three embeddings if they are equal; complete them if they differ. True: they are one."""
    present = [name for name in names.EMBEDDINGS if name in found]
    if not present:
        raise ValueError(f"{names.EMBEDDING}: missing, as are those that it is tied to")
    first = found[present[0]]
    tied = all(found[name] is first or _same(found[name], first) for name in present[1:])
    for name, origins in _TIED_TO.items():
        if name not in present:
            origin = next(other for other in origins if other in present)
            keys.append(KeyReport(None, (name,), "missing", f"tied to {origin}"))
            if not tied:
                found[name] = found[origin]
    if tied:
        found[names.EMBEDDING] = first
        for name in names.TIED:
            found.pop(name, None)
    return tied


def _same(a: Tensor, b: Tensor) -> bool:
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    # As bytes: a NaN is equal to itself, and 0.0 differs from -0.0.
    return a.data_ptr() == b.data_ptr() or torch.equal(as_bytes(a), as_bytes(b))


def _expected(config: BiomedGPTConfig) -> dict[str, torch.Size]:
    """Names and shapes that this architecture has; of tied embeddings the first only."""
    with torch.device("meta"):
        state = BiomedGPTForConditionalGeneration(config).state_dict()
    if config.tie_word_embeddings:
        for name in names.TIED:
            del state[name]
    return {name: tensor.shape for name, tensor in state.items()}


def _complete(found: dict[str, Tensor], keys: list[KeyReport], expected: Mapping[str, torch.Size]) -> None:
    for name, shape in expected.items():
        tensor = found.get(name)
        if tensor is None and name.endswith(_COUNTER):
            found[name] = torch.zeros(shape, dtype=torch.int64)
            keys.append(KeyReport(None, (name,), "missing", "0: frozen statistics count no batches"))
        elif tensor is not None and name.endswith(_IMAGE_POSITIONS) and _is_short(tensor, shape):
            found[name] = _lengthened(tensor, shape)
            reason = f"rows {tensor.shape[0]} to {shape[0] - 1}: untrained, N(0, D^-0.5) as upstream draws them"
            keys.append(KeyReport(None, (name,), "missing", reason))


def _is_short(tensor: Tensor, shape: torch.Size) -> bool:
    return tensor.dim() == 2 and tensor.shape[1] == shape[1] and tensor.shape[0] < shape[0]


def _lengthened(tensor: Tensor, shape: torch.Size) -> Tensor:
    rows, width = shape[0] - tensor.shape[0], shape[1]
    drawn = np.random.RandomState(0).standard_normal((rows, width)) / np.sqrt(width)  # a stream that NumPy keeps
    return torch.cat([tensor, torch.from_numpy(drawn).to(tensor.dtype)])


def _check(found: Mapping[str, Tensor], expected: Mapping[str, torch.Size]) -> None:
    unknown = [name for name in found if name not in expected]
    if unknown:
        raise ValueError(
            f"{unknown[0]}{_and_more(unknown)}: no part of the architecture that the other tensors have; "
            "upstream's adapters and prompts cannot be converted"
        )
    missing = [name for name in expected if name not in found]
    if missing:
        raise ValueError(f"{missing[0]}{_and_more(missing)}: missing")
    for name, shape in expected.items():
        if found[name].shape != shape:
            raise ValueError(f"{name}: shape {list(found[name].shape)}, the other tensors expect {list(shape)}")
        allowed = (torch.int64,) if name.endswith(_COUNTER) else _FLOATS
        if found[name].dtype not in allowed:
            types = ", ".join(str(dtype).removeprefix("torch.") for dtype in allowed)
            raise ValueError(f"{name}: {dtype_name(found[name])}, expected {types}")


def as_bytes(tensor: Tensor) -> Tensor:
    """The bytes of a tensor, uint8 [N]; a view where it is contiguous."""
    return tensor.contiguous().reshape(-1).view(torch.uint8)


def dtype_name(tensor: Tensor) -> str:
    """Such as "float16"."""
    return str(tensor.dtype).removeprefix("torch.")


def _and_more(found: list[str]) -> str:
    return f" and {len(found) - 1:,} more" if len(found) > 1 else ""
