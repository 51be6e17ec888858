"""The tables that published state dicts hold and this model computes: buckets of relative positions."""

from __future__ import annotations

import torch
from torch import Tensor

from bmpeft.attention.bias import image_bucket, token_bucket
from bmpeft.backbones.biomedgpt.configuration import BiomedGPTConfig
from bmpeft.backbones.biomedgpt.conversion.names import Scheme

_CODE_GRID = 16  # image codes come from 128 pixels, 8 to a code
_FAIRSEQ_VERSION = 3.0


def computed_tables(config: BiomedGPTConfig, scheme: Scheme) -> dict[str, Tensor]:
    """The buffers of a published state dict, by their keys.

    Returns:
        `token_rp_bucket` [positions, positions] and `image_rp_bucket` [side^2 + 1, side^2 + 1] of encoder and
        decoder and `decoder.image_position_idx` [1026, or 1025 in the transformers-style layout], all int64;
        fairseq's `version` [1] float32.
    """
    positions, side = config.max_position_embeddings, config.image_bucket_size
    distance = torch.arange(positions)[:, None] - torch.arange(positions)[None, :]
    tokens = token_bucket(positions, config.token_bucket_size, positions)[distance + positions - 1]
    ids = torch.arange(side**2 + 1)[None]
    image = image_bucket(ids, ids, side)[0]
    tables = {}
    for stack in ("encoder", "decoder"):
        tables[f"{stack}.token_rp_bucket"] = tokens
        tables[f"{stack}.image_rp_bucket"] = image
        if scheme == "fairseq":
            tables[f"{stack}.version"] = torch.tensor([_FAIRSEQ_VERSION])
    tables["decoder.image_position_idx"] = _code_positions(side, 1026 if scheme == "fairseq" else 1025)
    return tables


def _code_positions(side: int, length: int) -> Tensor:
    """Position of each image code: 0 for the start token, the grid's ids row by row, then filled with 1024."""
    grid = torch.arange(_CODE_GRID)
    ids = (grid[None, :] + grid[:, None] * side + 1).flatten()
    return torch.cat([torch.zeros(1, dtype=torch.int64), ids, torch.full((length - 1 - len(ids),), 1024)])
