"""Going back: weights in the two published layouts, bit for bit."""

from __future__ import annotations

import argparse
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bmpeft.attention.bias import image_bucket, token_bucket
from bmpeft.backbones.biomedgpt.configuration import BiomedGPTConfig
from bmpeft.backbones.biomedgpt.conversion import names
from bmpeft.backbones.biomedgpt.conversion.architecture import fairseq_options
from bmpeft.backbones.biomedgpt.conversion.backbone_directory import write_json

_CODE_GRID = 16  # image codes stand for 128 pixels a side, eight to a code
_CODE_POSITIONS = {"fairseq": 1026, "transformers": 1025}
_FAIRSEQ_VERSION = 3

_CONFIG_FIELDS = (
    "vocab_size", "d_model", "encoder_layers", "decoder_layers", "encoder_ffn_dim", "decoder_ffn_dim",
    "encoder_attention_heads", "decoder_attention_heads", "max_position_embeddings", "resnet_type",
    "token_bucket_size", "image_bucket_size", "attn_scale_factor", "add_type_embedding", "layernorm_embedding",
    "patch_layernorm_embedding", "code_layernorm_embedding", "normformer", "entangle_position_embedding",
    "share_decoder_input_output_embed", "dropout", "attention_dropout", "activation_dropout", "activation_function",
    "bos_token_id", "pad_token_id", "eos_token_id", "decoder_start_token_id", "is_encoder_decoder",
)  # fmt: skip
# What a published config.json has no word for; written only where it is not the default.
_OWN_FIELDS = ("scale_attn", "scale_fc", "scale_heads", "scale_resids", "batch_norm_eps", "num_code_tokens",
               "num_bin_tokens")  # fmt: skip


def write_fairseq(path: Path, config: BiomedGPTConfig, tensors: Mapping[str, Tensor]) -> None:
    """A checkpoint with the parts that fairseq's loader asks for, the history of training empty."""
    content = {
        "args": argparse.Namespace(**fairseq_options(config)),
        "model": published_state(config, tensors, "fairseq"),
        "criterion": None,
        "optimizer_history": [{"criterion_name": "", "optimizer_name": "", "lr_scheduler_state": {}, "num_updates": 0}],
        "task_state": {},
        "extra_state": {"train_iterator": {"epoch": 1, "iterations_in_epoch": 0, "version": 2}},
        "last_optimizer_state": None,
    }
    _save(content, path)


def write_transformers(directory: Path, config: BiomedGPTConfig, tensors: Mapping[str, Tensor]) -> None:
    """config.json and pytorch_model.bin: upstream's branch of transformers reads no safetensors."""
    default = BiomedGPTConfig()
    own = {name: value for name in _OWN_FIELDS if (value := getattr(config, name)) != getattr(default, name)}
    content: dict[str, Any] = {
        "model_type": "ofa",
        "architectures": ["OFAModel"],
        **{name: getattr(config, name) for name in _CONFIG_FIELDS},
        **own,
        "use_cache": False,
        "code_image_size": 8 * _CODE_GRID,
        "forced_eos_token_id": config.eos_token_id,
    }
    write_json(directory / "config.json", content)
    _save(published_state(config, tensors, "transformers"), directory / "pytorch_model.bin")


def _save(content: Any, path: Path) -> None:
    try:
        torch.save(content, path)
    except RuntimeError as error:  # torch's writer of zip files knows no other error for a full disk
        raise OSError(" ".join(str(error).split())) from None


def published_state(
    config: BiomedGPTConfig, tensors: Mapping[str, Tensor], scheme: names.Scheme
) -> OrderedDict[str, Tensor]:
    """The state dict of a published file: tied tensors under all their names, computed tables included."""
    state = dict(tensors)
    for name in names.TIED:
        state.setdefault(name, tensors[names.EMBEDDING])
    if scheme == "fairseq":
        state = {names.to_fairseq(name): tensor for name, tensor in state.items()}
        version = torch.tensor([_FAIRSEQ_VERSION], dtype=tensors[names.EMBEDDING].dtype)
        state |= {"encoder.version": version, "decoder.version": version}
    return OrderedDict(state | computed_tables(config, scheme))


def computed_tables(config: BiomedGPTConfig, scheme: names.Scheme) -> dict[str, Tensor]:
    """The integer tables of a published state dict, which follow from the configuration.

    Returns:
        For encoder and decoder `token_rp_bucket` [positions, positions] and `image_rp_bucket`
        [side^2 + 1, side^2 + 1], for the decoder `image_position_idx` [1026, or 1025 in the transformers-style
        layout]; int64.
    """
    positions, side = config.max_position_embeddings, config.image_bucket_size
    distance = torch.arange(positions)[:, None] - torch.arange(positions)[None, :]
    ids = torch.arange(side**2 + 1)[None]
    buckets = {
        "token_rp_bucket": token_bucket(positions, config.token_bucket_size, positions)[distance + positions - 1],
        "image_rp_bucket": image_bucket(ids, ids, side)[0],
    }
    tables = {f"{stack}.{name}": table for stack in ("encoder", "decoder") for name, table in buckets.items()}
    tables["decoder.image_position_idx"] = _code_positions(side, _CODE_POSITIONS[scheme])
    return tables


def _code_positions(side: int, length: int) -> Tensor:
    """Position ids of the image codes: 0 for the start token, the grid row by row, then 1024 to the end."""
    grid = torch.arange(_CODE_GRID)
    ids = (grid[:, None] * side + grid[None, :] + 1).flatten()
    return torch.cat([torch.zeros(1, dtype=torch.int64), ids, torch.full((length - 1 - len(ids),), 1024)])
