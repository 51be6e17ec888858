"""Attention and transformer layers of BiomedGPT: pre-norm with the three parts of NormFormer."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import EncoderDecoderCache
from transformers.modeling_layers import GradientCheckpointingLayer

from bmpeft.attention import PositionBias, attention
from bmpeft.backbones.biomedgpt.configuration import BiomedGPTConfig


class BiomedGPTAttention(nn.Module):
    """Multi-head attention with a position bias and a learned scale of each head.

    Content and position scores each carry ``(attn_scale_factor * head_dim) ** -0.5``.
    """

    def __init__(self, config: BiomedGPTConfig, num_heads: int, layer_index: int, is_cross: bool = False) -> None:
        super().__init__()
        self.config = config
        self.num_heads = num_heads
        self.head_dim = config.d_model // num_heads
        self.scale = (self.head_dim * config.attn_scale_factor) ** -0.5
        self.layer_index = layer_index
        self.is_cross = is_cross
        self.q_proj = nn.Linear(config.d_model, config.d_model)
        self.k_proj = nn.Linear(config.d_model, config.d_model)
        self.v_proj = nn.Linear(config.d_model, config.d_model)
        self.out_proj = nn.Linear(config.d_model, config.d_model)
        self.c_attn = nn.Parameter(torch.ones(num_heads)) if config.scale_heads else None

    def forward(
        self,
        hidden_states: Tensor,
        memory: Tensor,
        bias: PositionBias,
        key_padding_mask: Tensor | None = None,
        causal: bool = False,
        past_key_values: EncoderDecoderCache | None = None,
        visible_until: Tensor | None = None,
    ) -> Tensor:
        """Attend from hidden_states [B, Lq, D] to memory [B, Lk, D]; returns [B, Lq, D].

        For self-attention `memory` is `hidden_states`; with a cache only the new positions are given.
        """
        query = self._split_heads(self.q_proj(hidden_states))  # [B, H, Lq, head_dim]
        key, value = self._keys_and_values(memory, past_key_values)  # [B, H, Lk, head_dim]
        output = attention(
            query,
            key,
            value,
            bias=bias,
            key_padding_mask=key_padding_mask,
            causal=causal,
            visible_until=visible_until,
            dropout=self.config.attention_dropout if self.training else 0.0,
            scale=self.scale,
            head_scale=self.c_attn,
            backend=self.config._attn_implementation,
        )
        projected: Tensor = self.out_proj(output.transpose(1, 2).flatten(2))
        return projected

    def _split_heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.num_heads, self.head_dim)).transpose(1, 2)

    def _keys_and_values(self, memory: Tensor, cache: EncoderDecoderCache | None) -> tuple[Tensor, Tensor]:
        if cache is not None and self.is_cross and cache.is_updated.get(self.layer_index):
            layer: Any = cache.cross_attention_cache.layers[self.layer_index]
            return layer.keys, layer.values
        key, value = self._split_heads(self.k_proj(memory)), self._split_heads(self.v_proj(memory))
        if cache is None:
            return key, value
        if self.is_cross:
            key, value = cache.cross_attention_cache.update(key, value, self.layer_index)
            cache.is_updated[self.layer_index] = True
        else:
            key, value = cache.self_attention_cache.update(key, value, self.layer_index)
        return key, value


class _FeedForwardMixin(nn.Module):
    """What encoder and decoder layers share: the feed-forward block and the residual connection."""

    def _init_feed_forward(self, config: BiomedGPTConfig, ffn_dim: int, drop_path: float) -> None:
        self.fc1 = nn.Linear(config.d_model, ffn_dim)
        self.ffn_layer_norm = nn.LayerNorm(ffn_dim) if config.scale_fc else None
        self.fc2 = nn.Linear(ffn_dim, config.d_model)
        self.final_layer_norm = nn.LayerNorm(config.d_model)
        self.w_resid = nn.Parameter(torch.ones(config.d_model)) if config.scale_resids else None
        self.config, self.drop_path = config, drop_path

    def _feed_forward(self, hidden_states: Tensor) -> Tensor:
        """x + fc2(LN(gelu(fc1(LN(x))))) on [B, L, D]; the residual x has a learned scale with `scale_resids`."""
        x = nn.functional.gelu(self.fc1(self.final_layer_norm(hidden_states)))
        x = nn.functional.dropout(x, self.config.activation_dropout, self.training)
        if self.ffn_layer_norm is not None:
            x = self.ffn_layer_norm(x)
        residual = hidden_states if self.w_resid is None else hidden_states * self.w_resid
        return self._add(residual, self.fc2(x))

    def _add(self, residual: Tensor, x: Tensor) -> Tensor:
        """Residual connection with dropout and stochastic depth."""
        x = nn.functional.dropout(x, self.config.dropout, self.training)
        return residual + drop_path(x, self.drop_path, self.training)


class BiomedGPTEncoderLayer(GradientCheckpointingLayer, _FeedForwardMixin):
    """Self-attention and feed-forward network."""

    def __init__(self, config: BiomedGPTConfig, layer_index: int, drop_path_rate: float) -> None:
        super().__init__()
        self.self_attn = BiomedGPTAttention(config, config.encoder_attention_heads, layer_index)
        self.self_attn_layer_norm = nn.LayerNorm(config.d_model)
        self.self_attn_mid_layer_norm = nn.LayerNorm(config.d_model) if config.scale_attn else None
        self._init_feed_forward(config, config.encoder_ffn_dim, drop_path_rate)

    def forward(self, hidden_states: Tensor, bias: PositionBias, key_padding_mask: Tensor | None) -> Tensor:
        """[B, L, D] -> [B, L, D]."""
        normed = self.self_attn_layer_norm(hidden_states)
        x = _normed(self.self_attn(normed, normed, bias, key_padding_mask), self.self_attn_mid_layer_norm)
        hidden_states = self._add(hidden_states, x)
        return self._feed_forward(hidden_states)


class BiomedGPTDecoderLayer(GradientCheckpointingLayer, _FeedForwardMixin):
    """Causal self-attention, attention to the encoder's output, feed-forward network."""

    def __init__(self, config: BiomedGPTConfig, layer_index: int, drop_path_rate: float) -> None:
        super().__init__()
        heads = config.decoder_attention_heads
        self.self_attn = BiomedGPTAttention(config, heads, layer_index)
        self.self_attn_layer_norm = nn.LayerNorm(config.d_model)
        self.self_attn_mid_layer_norm = nn.LayerNorm(config.d_model) if config.scale_attn else None
        self.cross_attn = BiomedGPTAttention(config, heads, layer_index, is_cross=True)
        self.cross_attn_layer_norm = nn.LayerNorm(config.d_model)
        self.cross_attn_mid_layer_norm = nn.LayerNorm(config.d_model) if config.scale_attn else None
        self._init_feed_forward(config, config.decoder_ffn_dim, drop_path_rate)

    def forward(
        self,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        self_bias: PositionBias,
        cross_bias: PositionBias,
        key_padding_mask: Tensor | None,
        encoder_padding_mask: Tensor | None,
        past_key_values: EncoderDecoderCache | None = None,
        visible_until: Tensor | None = None,
    ) -> Tensor:
        """[B, T, D] and encoder output [B, L, D] -> [B, T, D]."""
        normed = self.self_attn_layer_norm(hidden_states)
        x = self.self_attn(normed, normed, self_bias, key_padding_mask, True, past_key_values, visible_until)
        hidden_states = self._add(hidden_states, _normed(x, self.self_attn_mid_layer_norm))

        normed = self.cross_attn_layer_norm(hidden_states)
        x = self.cross_attn(normed, encoder_hidden_states, cross_bias, encoder_padding_mask, False, past_key_values)
        hidden_states = self._add(hidden_states, _normed(x, self.cross_attn_mid_layer_norm))
        return self._feed_forward(hidden_states)


def _normed(x: Tensor, norm: nn.Module | None) -> Tensor:
    return x if norm is None else norm(x)


def drop_path(x: Tensor, rate: float, training: bool) -> Tensor:
    """Stochastic depth (Huang et al. 2016): drop a whole residual branch for a row, scale the others."""
    if rate == 0.0 or not training:
        return x
    kept = torch.rand(x.shape[0], *(1,) * (x.dim() - 1), device=x.device) >= rate
    return x * kept.to(x.dtype) / (1.0 - rate)
