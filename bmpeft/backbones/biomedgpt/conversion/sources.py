"""What can be converted, opened: a checkpoint file, a transformers-style directory, a backbone directory.

No tensor is read here. Those of zip and safetensors files are mapped, so that the operating system reads them when
they are used and may drop them afterwards.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from safetensors import SafetensorError, safe_open
from torch import Tensor

from bmpeft.backbones.biomedgpt.conversion.checkpoint_file import opened, printable, read_checkpoint
from bmpeft.backbones.biomedgpt.conversion.report import KeyReport
from bmpeft.backbones.description import BACKBONE_FILE
from bmpeft.errors import BackboneError, UsageError
from bmpeft.strict_json import parse_object

Weights = Literal["model", "ema"]

# In this order: safetensors needs no trust.
_WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")
_MAX_JSON_BYTES = 10_000_000
_IGNORED_PARTS = {
    "optimizer_history": "history of training",
    "extra_state": "state of training",
    "last_optimizer_state": "optimizer state",
    "task_state": "state of training",
    "criterion": "the loss has no part in the model",
    "lr_scheduler": "state of training",
    "args": "read for the architecture",
    "cfg": "read for the architecture",
}


@dataclass(frozen=True)
class Source:
    """Weights with what is said about them.

    Attributes:
        path: file or directory.
        format: "fairseq checkpoint", "state dict", "transformers directory", "bmpeft directory".
        weights: which of a checkpoint's two sets of weights.
        tensors: by their keys in the source.
        declared: what `args`, `cfg` or config.json say; empty where there is none.
        declared_in: "args", "cfg", "config.json", or None.
        ignored: what else the source holds.
    """

    path: Path
    format: str
    weights: Weights
    tensors: Mapping[str, Tensor]
    declared: Mapping[str, Any]
    declared_in: str | None
    ignored: tuple[KeyReport, ...] = ()


def open_source(path: Path, weights: Weights = "model") -> Source:
    """Open what a user has.

    Raises:
        BackboneError: missing, damaged, or nothing that can be converted.
        UsageError: the moving average is asked for where there is none.
    """
    if path.is_dir():
        source = _directory(path)
    elif not path.exists():
        raise BackboneError(f"{path}: no such file or directory")
    elif path.suffix == ".safetensors":
        source = Source(path, "state dict", "model", _safetensors(path), {}, None)
    else:
        return _checkpoint(path, read_checkpoint(path), weights)
    if weights == "ema":
        raise UsageError(f"{path}: --weights ema: a {source.format} has no moving average")
    return source


def _checkpoint(path: Path, content: Any, weights: Weights) -> Source:
    """fairseq's dict with its parts, or a bare state dict."""
    if not isinstance(content, Mapping):
        raise BackboneError(f"{path}: holds a {type(content).__name__}, expected a checkpoint's dict")
    model = content.get("model")
    if not isinstance(model, Mapping):
        if weights == "ema":
            raise UsageError(f"{path}: --weights ema: a bare state dict has no moving average")
        return Source(path, "state dict", "model", _tensors(path, content), {}, None)
    extra = content.get("extra_state")
    average = extra.get("ema") if isinstance(extra, Mapping) else None
    if weights == "ema" and not isinstance(average, Mapping):
        raise UsageError(f"{path}: --weights ema: the checkpoint has no extra_state.ema")
    declared, declared_in = _options(content)
    return Source(
        path=path,
        format="fairseq checkpoint",
        weights=weights,
        tensors=_tensors(path, model if weights == "model" else average),
        declared=declared,
        declared_in=declared_in,
        ignored=tuple(_other_parts(content, weights)),
    )


def _other_parts(content: Mapping[Any, Any], weights: Weights) -> list[KeyReport]:
    """The checkpoint's parts that are not its weights, one entry for each."""
    entries = []
    for part, value in content.items():
        if part == "model":
            if weights == "ema":
                entries.append(KeyReport("model", (), "ignored", "--weights ema takes the moving average instead"))
        elif value is None:
            entries.append(KeyReport(printable(part), (), "ignored", "empty"))
        else:
            entries.append(
                KeyReport(str(part), (), "ignored", _IGNORED_PARTS.get(str(part), "no weights of the model"))
            )
    extra = content.get("extra_state")
    if isinstance(extra, Mapping):
        if "ema" in extra and weights == "model":
            reason = "moving average, which upstream evaluates with --ema-eval: --weights ema takes it"
            entries.append(KeyReport("extra_state.ema", (), "ignored", reason))
        if "ema_fp32_params" in extra:
            reason = "copy of extra_state.ema in float32; upstream evaluates extra_state.ema"
            entries.append(KeyReport("extra_state.ema_fp32_params", (), "ignored", reason))
    return entries


def _options(content: Mapping[Any, Any]) -> tuple[dict[str, Any], str | None]:
    """The options of training: `args`, or what stands in `cfg` under task and model."""
    arguments, configuration = opened(content.get("args")), opened(content.get("cfg"))
    if arguments:
        return arguments, "args"
    if configuration:
        return opened(configuration.get("task")) | opened(configuration.get("model")), "cfg"
    return {}, None


def _directory(path: Path) -> Source:
    declared = _read_json(path / "config.json") if (path / "config.json").is_file() else {}
    tensors = _weights_of(path)
    if (path / BACKBONE_FILE).is_file():
        return Source(path, "bmpeft directory", "model", tensors, declared, "config.json")
    kind = declared.get("model_type", "ofa")
    if kind not in ("ofa", "biomedgpt"):
        raise BackboneError(f"{path / 'config.json'}: model_type {kind!r}, expected 'ofa' or 'biomedgpt'")
    return Source(path, "transformers directory", "model", tensors, declared, "config.json" if declared else None)


def _weights_of(directory: Path) -> dict[str, Tensor]:
    for name in _WEIGHT_FILES:
        if (directory / name).is_file():
            return _weight_file(directory / name)
        index = directory / f"{name}.index.json"
        if index.is_file():
            tensors: dict[str, Tensor] = {}
            for shard in _shards(index):
                tensors |= _weight_file(shard)
            return tensors
    raise BackboneError(f"{directory}: no weights: expected {' or '.join(_WEIGHT_FILES)}, whole or in shards")


def _shards(index: Path) -> list[Path]:
    weight_map = _read_json(index).get("weight_map")
    names = set(weight_map.values()) if isinstance(weight_map, dict) else set()
    if not names or any(not isinstance(name, str) or Path(name).name != name for name in names):
        raise BackboneError(f"{index}: expected weight_map with the names of files beside it")
    return [index.with_name(name) for name in sorted(names)]


def _weight_file(path: Path) -> dict[str, Tensor]:
    return _safetensors(path) if path.suffix == ".safetensors" else _tensors(path, read_checkpoint(path))


def _safetensors(path: Path) -> dict[str, Tensor]:
    try:
        with safe_open(path, "pt") as file:
            return _tensors(path, {name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118 (no mapping)
    except (OSError, SafetensorError) as error:
        raise BackboneError(f"{path}: no safetensors file, or damaged: {' '.join(str(error).split())}") from None


def _tensors(path: Path, state: Any) -> dict[str, Tensor]:
    """A state dict's tensors; anything else in it is an error, as is one larger than its own data."""
    if not isinstance(state, Mapping) or not state:
        raise BackboneError(f"{path}: expected a state dict, names with tensors")
    tensors = {}
    for name, tensor in state.items():
        if not isinstance(name, str) or not isinstance(tensor, Tensor) or printable(name) != name:
            kind = "tensor with no name of one" if isinstance(tensor, Tensor) else type(tensor).__name__
            raise BackboneError(f"{path}: {printable(name)}: a {kind}, expected tensors by their names")
        if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
            raise BackboneError(f"{path}: {name}: its data are shorter than its shape")
        tensors[name] = tensor.detach()
    return tensors


def _read_json(path: Path) -> dict[str, Any]:
    """A JSON object.

    Raises:
        BackboneError: missing, too large, or not one.
    """
    try:
        with path.open("rb") as file:
            return parse_object(file.read(_MAX_JSON_BYTES))
    except OSError as error:
        raise BackboneError(f"{path}: {error.strerror or error}") from None
    except ValueError as error:
        raise BackboneError(f"{path}: {error}") from None
