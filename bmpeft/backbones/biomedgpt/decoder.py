"""The decoder of BiomedGPT."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from bmpeft.attention import Layout, PositionBias
from bmpeft.backbones.biomedgpt.configuration import BiomedGPTConfig
from bmpeft.backbones.biomedgpt.layers import BiomedGPTDecoderLayer
from bmpeft.backbones.biomedgpt.outputs import BiomedGPTCache
from bmpeft.backbones.biomedgpt.positions import PositionTables, by_bucket, extend, relative_tables, split_factor
from bmpeft.backbones.biomedgpt.trie import TreeRows


class BiomedGPTDecoder(nn.Module, PositionTables):
    """Text decoder; its image tables and `code_layernorm_embedding` serve image-code targets, which are refused."""

    def __init__(self, config: BiomedGPTConfig) -> None:
        super().__init__()
        width, heads, layers = config.d_model, config.decoder_attention_heads, config.decoder_layers
        self.config = config
        self.gradient_checkpointing = False
        self.embed_tokens = nn.Embedding(config.vocab_size, width, config.pad_token_id)
        self.layernorm_embedding = nn.LayerNorm(width)
        self.code_layernorm_embedding = nn.LayerNorm(width)
        self._init_positions(config)
        self.self_pos_q_linear = nn.Linear(width, width)
        self.self_pos_k_linear = nn.Linear(width, width)
        self.cross_pos_q_linear = nn.Linear(width, width)
        self.cross_pos_k_linear = nn.Linear(width, width)
        self.token_rel_pos_table_list, self.image_rel_pos_table_list = relative_tables(config, layers, heads)
        rates = torch.linspace(0, config.decoder_drop_path_rate, layers, device="cpu").tolist()
        self.layers = nn.ModuleList(BiomedGPTDecoderLayer(config, i, rates[i]) for i in range(layers))
        self.layer_norm = nn.LayerNorm(width)
        self.output_projection = nn.Linear(width, config.vocab_size, bias=False)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None,
        encoder_hidden_states: Tensor,
        encoder_attention_mask: Tensor,
        encoder_positions: Tensor | None,
        cache: BiomedGPTCache | None = None,
    ) -> Tensor:
        """Hidden states [B, T, D] of the given tokens.

        Args:
            input_ids: [B, T] int64; with a cache only the new tokens.
            attention_mask: [B, past + T], 1 for real tokens, or transformers' additive [B, 1, T, slots], or None.
            encoder_hidden_states: [B, S, D].
            encoder_attention_mask: [B, S] boolean.
            encoder_positions: [1, S, D] normed position embeddings of the encoder; None where `cache` knows them.
            cache: keys, values and position factors of the tokens before.
        """
        past = int(cache.get_seq_length()) if cache is not None else 0
        embedded = self.layernorm_embedding(self.embed_tokens(input_ids))
        hidden_states = nn.functional.dropout(embedded, self.config.dropout, self.training)
        self_bias, cross_bias = self._position_biases(past, input_ids.shape[1], encoder_positions, cache)
        padding = self._key_padding(attention_mask, past + input_ids.shape[1], cache)
        return self._run_layers(
            hidden_states, encoder_hidden_states, encoder_attention_mask, self_bias, cross_bias, padding, cache
        )

    def forward_trees(
        self,
        trees: TreeRows,
        encoder_hidden_states: Tensor,
        encoder_attention_mask: Tensor,
        encoder_positions: Tensor,
        cache: BiomedGPTCache | None = None,
    ) -> Tensor:
        """Hidden states [B, N, D] at every node of each row's token tree: a node sees its ancestors and itself.

        Args:
            trees: of the B rows, or one for all of them.
            encoder_hidden_states: [B, S, D].
            encoder_attention_mask: [B, S] boolean.
            encoder_positions: [1, S, D] normed position embeddings of the encoder.
            cache: gives or takes the keys and values of the encoder's output; it holds no decoder positions yet.
        """
        embedded = self.layernorm_embedding(self.embed_tokens(trees.input_ids))
        hidden_states = embedded.expand(encoder_hidden_states.shape[0], -1, -1)
        self_line, cross_line = self._position_biases(0, trees.num_positions, encoder_positions, cache)
        self_bias = PositionBias(
            query_factor=_at(trees.positions, self_line.query_factor),
            key_factor=_at(trees.positions, self_line.key_factor),
            layout=replace(self_line.layout, text_positions=trees.positions),
        )
        cross_bias = replace(cross_line, query_factor=_at(trees.positions, cross_line.query_factor))
        return self._run_layers(
            hidden_states,
            encoder_hidden_states,
            encoder_attention_mask,
            self_bias,
            cross_bias,
            None,
            cache,
            trees.visible_until,
        )

    def _run_layers(
        self,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        encoder_attention_mask: Tensor,
        self_bias: PositionBias,
        cross_bias: PositionBias,
        key_padding_mask: Tensor | None,
        cache: BiomedGPTCache | None,
        visible_until: Tensor | None = None,
    ) -> Tensor:
        for layer, token_table in zip(self.layers, self.token_rel_pos_table_list, strict=True):
            hidden_states = layer(
                hidden_states,
                encoder_hidden_states,
                self_bias.with_tables(by_bucket(token_table), None),
                cross_bias,
                key_padding_mask,
                encoder_attention_mask,
                past_key_values=cache,
                visible_until=visible_until,
            )
        normed: Tensor = self.layer_norm(hidden_states)
        return normed

    def _position_biases(
        self, past: int, length: int, encoder_positions: Tensor | None, cache: BiomedGPTCache | None
    ) -> tuple[PositionBias, PositionBias]:
        """Self-attention's and cross-attention's bias for the new positions only."""
        heads, scale_factor = self.config.decoder_attention_heads, self.config.attn_scale_factor
        positions = self._text_positions(past, past + length)  # [1, T, D]
        self_key = split_factor(self.self_pos_k_linear(positions), heads)
        cross_key = cache.cross_key_factor if cache is not None else None
        if cross_key is None:
            assert encoder_positions is not None
            cross_key = split_factor(self.cross_pos_k_linear(encoder_positions), heads)
        if cache is not None:
            self_key = extend(cache.self_key_factor, self_key)
            cache.self_key_factor, cache.cross_key_factor = self_key, cross_key
            self_key = self._pad_to_static(self_key, cache)
        layout = Layout(
            token_bucket_size=self.config.token_bucket_size,
            max_positions=self.config.max_position_embeddings,
            query_offset=past,
        )
        self_query = split_factor(self.self_pos_q_linear(positions), heads, scale_factor)
        cross_query = split_factor(self.cross_pos_q_linear(positions), heads, scale_factor)
        return (
            PositionBias(query_factor=self_query, key_factor=self_key, layout=layout),
            PositionBias(query_factor=cross_query, key_factor=cross_key),
        )

    @staticmethod
    def _pad_to_static(key_factor: Tensor, cache: BiomedGPTCache) -> Tensor:
        """A static cache returns all its slots as keys; those still empty are hidden by causality."""
        slots = cache.self_attention_cache.get_max_length() if cache.is_compileable else 0
        missing = slots - key_factor.shape[2]
        return nn.functional.pad(key_factor, (0, 0, 0, missing)) if missing > 0 else key_factor

    @staticmethod
    def _key_padding(attention_mask: Tensor | None, length: int, cache: BiomedGPTCache | None) -> Tensor | None:
        if attention_mask is None:
            return None
        if attention_mask.dim() == 4:
            # transformers' additive mask [B, 1, T, slots] for a static cache; causality is ours, so what
            # the last query sees tells which keys are real.
            return attention_mask[:, 0, -1] == 0
        mask = attention_mask.to(torch.bool)[:, :length]
        slots = cache.self_attention_cache.get_max_length() if cache is not None and cache.is_compileable else length
        return nn.functional.pad(mask, (0, max(slots, length) - mask.shape[1]), value=False)


def _at(positions: Tensor, factor: Tensor | None) -> Tensor:
    """The factor of each position in [1 or B, N]: [1, H, P, R] -> [1 or B, H, N, R]."""
    assert factor is not None
    return factor[0][:, positions].transpose(0, 1)
