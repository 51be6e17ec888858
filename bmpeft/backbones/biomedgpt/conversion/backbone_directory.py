"""Writing a backbone directory: safetensors files, configuration, and what upstream says about the weights."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import GenerationConfig

from bmpeft.backbones.biomedgpt.configuration import BiomedGPTConfig
from bmpeft.backbones.description import LICENCE_FILE
from bmpeft.progress import ProgressTask

# A shard is also what is held in memory at once where tensors are cast; those that are not cast stay in their file.
MAX_SHARD_BYTES = 1_000_000_000


def write_tensors(
    directory: Path,
    tensors: Mapping[str, Tensor],
    dtype: torch.dtype,
    task: ProgressTask,
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> None:
    """Write ``model.safetensors``, or several files with the index that transformers reads.

    Args:
        directory: exists and is empty.
        tensors: by our names; the floating-point ones are cast to `dtype`.
        dtype: of the floating-point tensors in the files.
        task: advances by one for each tensor.
        max_shard_bytes: of one file; a larger tensor has a file for itself.
    """
    shards = list(_shards(tensors, dtype, max_shard_bytes))
    files = [f"model-{n:05}-of-{len(shards):05}.safetensors" for n in range(1, len(shards) + 1)]
    if len(shards) == 1:
        files = ["model.safetensors"]
    for file, shard in zip(files, shards, strict=True):
        _write_shard(directory / file, {name: tensors[name] for name in shard}, dtype)
        task.advance(len(shard))
    if len(shards) > 1:
        total = sum(stored_bytes(tensor, dtype) for tensor in tensors.values())
        weight_map = {name: file for file, shard in zip(files, shards, strict=True) for name in shard}
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        write_json(directory / "model.safetensors.index.json", index)


def write_configuration(directory: Path, config: BiomedGPTConfig, dtype: torch.dtype) -> None:
    """config.json and generation_config.json, as `save_pretrained` of the model writes them."""
    stored = BiomedGPTConfig.from_dict(config.to_dict())
    stored.architectures = ["BiomedGPTForConditionalGeneration"]
    stored.dtype = dtype
    stored.save_pretrained(directory)
    GenerationConfig.from_model_config(stored).save_pretrained(directory)


def write_licence_note(directory: Path, statements: tuple[str, ...]) -> None:
    """Both of upstream's statements, beside the weights that they are about."""
    lines = (
        "# Licence of these weights",
        "",
        "Two statements stand side by side upstream:",
        "",
        *(f"- {statement}" for statement in statements),
        "",
        "Until upstream resolves this, treat these weights, and every adapter trained on them, as for research only.",
        "",
    )
    (directory / LICENCE_FILE).write_text("\n".join(lines), encoding="utf-8")


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """A JSON object with a line for each value."""
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def stored_bytes(tensor: Tensor, dtype: torch.dtype) -> int:
    """What a tensor takes in a file."""
    return tensor.numel() * (dtype.itemsize if tensor.is_floating_point() else tensor.element_size())


def _write_shard(path: Path, tensors: Mapping[str, Tensor], dtype: torch.dtype) -> None:
    """A function of its own, so that a shard's cast tensors are gone when the next one's are made."""
    save_file({name: _cast(tensor, dtype) for name, tensor in tensors.items()}, path, metadata={"format": "pt"})


def _cast(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    return (tensor.to(dtype) if tensor.is_floating_point() else tensor).contiguous()


def _shards(tensors: Mapping[str, Tensor], dtype: torch.dtype, max_bytes: int) -> Iterator[list[str]]:
    """Consecutive names whose tensors fit into one file."""
    shard: list[str] = []
    used = 0
    for name, tensor in tensors.items():
        size = stored_bytes(tensor, dtype)
        if shard and used + size > max_bytes:
            yield shard
            shard, used = [], 0
        shard.append(name)
        used += size
    yield shard
