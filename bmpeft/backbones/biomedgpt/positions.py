"""Position tables that encoder and decoder have alike."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from bmpeft.backbones.biomedgpt.configuration import BiomedGPTConfig


class PositionTables:
    """Absolute position embeddings of text and image with their norms (a mixin of nn.Module)."""

    config: BiomedGPTConfig
    max_text_positions: int
    embed_positions: nn.Embedding
    embed_image_positions: nn.Embedding
    pos_ln: nn.LayerNorm
    image_pos_ln: nn.LayerNorm

    def _init_positions(self, config: BiomedGPTConfig) -> None:
        self.max_text_positions = config.max_position_embeddings
        # Two rows more than positions and one row more than patches: the layout of the checkpoints.
        self.embed_positions = nn.Embedding(config.max_position_embeddings + 2, config.d_model)
        self.embed_image_positions = nn.Embedding(config.image_bucket_size**2 + 1, config.d_model)
        self.pos_ln = nn.LayerNorm(config.d_model)
        self.image_pos_ln = nn.LayerNorm(config.d_model)

    def _text_positions(self, start: int, stop: int) -> Tensor:
        """Normed embeddings [1, stop - start, D] of text positions.

        Positions beyond the trained rows repeat them from the first one on, as Longformer's were initialised
        (Beltagy et al. 2020, arXiv:2004.05150): neighbours keep the distances that were trained, but at seams.

        Raises:
            ValueError: more positions than the backbone has.
        """
        if stop > self.max_text_positions:
            raise ValueError(f"{stop} tokens: this backbone has positions for {self.max_text_positions}")
        trained = self.config.max_position_embeddings
        if stop <= trained:
            rows = self.embed_positions.weight[start:stop]
        else:
            rows = self.embed_positions(torch.arange(start, stop, device=self.embed_positions.weight.device) % trained)
        positions: Tensor = self.pos_ln(rows)[None]
        return positions


def relative_tables(config: BiomedGPTConfig, layers: int, heads: int) -> tuple[nn.ModuleList, nn.ModuleList]:
    """One token table [2 * buckets - 1, H] and one image table [(2 * side - 1)^2 + 3, H] per layer."""
    tokens = 2 * config.token_bucket_size - 1
    image = (2 * config.image_bucket_size - 1) ** 2 + 3
    return (
        nn.ModuleList(nn.Embedding(tokens, heads) for _ in range(layers)),
        nn.ModuleList(nn.Embedding(image, heads) for _ in range(layers)),
    )


def by_bucket(table: nn.Module) -> Tensor:
    """A relative table's weight as [H, buckets], which is how `PositionBias` has it."""
    assert isinstance(table, nn.Embedding)
    return table.weight.t()


def split_factor(projected: Tensor, heads: int, scale_factor: float | None = None) -> Tensor:
    """[1, L, D] -> [1, H, L, D / H], scaled by (D / H * scale_factor)^-0.5 where one is given (the query's side)."""
    factor = projected.unflatten(-1, (heads, -1)).transpose(1, 2)
    if scale_factor is None:
        return factor
    return factor * (factor.shape[-1] * scale_factor) ** -0.5


def extend(known: Tensor | None, new: Tensor) -> Tensor:
    """Append the factors of new positions: [1, H, t, R], [1, H, n, R] -> [1, H, t + n, R]."""
    return new if known is None else torch.cat([known, new], dim=2)
