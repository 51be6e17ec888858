"""BiomedGPT for transformers: `BiomedGPTForConditionalGeneration`.

An encoder-decoder in which images become patches in front of the text (OFA, Wang et al. 2022,
arXiv:2202.03052; BiomedGPT, Zhang et al. 2024, doi 10.1038/s41591-024-03185-2). Parameter names equal
those of the published transformers-style checkpoints.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from transformers import EncoderDecoderCache, GenerationMixin, LogitsProcessorList, PreTrainedModel
from transformers import initialization as init
from transformers.cache_utils import DynamicCache
from transformers.generation.logits_process import LogitsProcessor
from transformers.modeling_outputs import Seq2SeqLMOutput

from bmpeft.attention import AUTO, check_backend
from bmpeft.backbones.biomedgpt.configuration import BiomedGPTConfig
from bmpeft.backbones.biomedgpt.decoder import BiomedGPTDecoder
from bmpeft.backbones.biomedgpt.encoder import BiomedGPTEncoder
from bmpeft.backbones.biomedgpt.layers import BiomedGPTAttention, BiomedGPTDecoderLayer, BiomedGPTEncoderLayer
from bmpeft.backbones.biomedgpt.outputs import BiomedGPTCache, BiomedGPTEncoderOutput

IGNORED_LABEL = -100


class BiomedGPTForConditionalGeneration(PreTrainedModel, GenerationMixin):
    """The whole model with its output projection, tied to the token embeddings."""

    config: BiomedGPTConfig
    config_class = BiomedGPTConfig
    base_model_prefix = "model"
    main_input_name = "input_ids"
    input_modalities = ["image", "text"]  # noqa: RUF012
    supports_gradient_checkpointing = True
    # The loss takes `num_items_in_batch`, so that Trainer hands it the tokens of the whole accumulation window.
    accepts_loss_kwargs = True
    _supports_sdpa = True
    _no_split_modules = ["BiomedGPTEncoderLayer", "BiomedGPTDecoderLayer", "Bottleneck"]  # noqa: RUF012
    _tied_weights_keys = {  # noqa: RUF012
        "decoder.embed_tokens.weight": "encoder.embed_tokens.weight",
        "decoder.output_projection.weight": "encoder.embed_tokens.weight",
    }
    # Tables of the published files that are functions of the configuration: computed here, never stored.
    _keys_to_ignore_on_load_unexpected = [  # noqa: RUF012
        r"(encoder|decoder)\.(token_rp_bucket|image_rp_bucket|version)$",
        r"decoder\.image_position_idx$",
    ]

    def __init__(self, config: BiomedGPTConfig) -> None:
        super().__init__(config)
        self.encoder = BiomedGPTEncoder(config)
        self.decoder = BiomedGPTDecoder(config)
        self.post_init()

    @classmethod
    def from_size(cls, size: str, *, seed: int = 0, **overrides: Any) -> BiomedGPTForConditionalGeneration:
        """An untrained model of a size (`BiomedGPTConfig.from_size`), its weights drawn from `seed`."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return cls(BiomedGPTConfig.from_size(size, **overrides))

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        pixel_values: Tensor | None = None,
        pixel_mask: Tensor | None = None,
        decoder_input_ids: Tensor | None = None,
        decoder_attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        encoder_outputs: BiomedGPTEncoderOutput | None = None,
        past_key_values: EncoderDecoderCache | None = None,
        inputs_embeds: Tensor | None = None,
        decoder_inputs_embeds: Tensor | None = None,
        code_masks: Tensor | None = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        num_items_in_batch: Tensor | int | None = None,
        output_logits: bool = True,
    ) -> Seq2SeqLMOutput:
        """Logits [B, T, V] and, with labels, the loss.

        Args:
            input_ids: [B, L] int64, padded on the right.
            attention_mask: [B, L], 1 for real text tokens.
            pixel_values: [B, 3, H, W] or None.
            pixel_mask: [B] boolean, false for a row without an image.
            decoder_input_ids: [B, T] int64; default: `labels` shifted right behind the start token.
            decoder_attention_mask: [B, past + T], 1 for real tokens.
            labels: [B, T] int64, -100 ignored; aligned with `decoder_input_ids`, not shifted again.
            encoder_outputs: what the encoder gave before, instead of `input_ids`.
            past_key_values: cache of the decoder positions before `decoder_input_ids`.
            inputs_embeds: refused; positions and types belong to tokens.
            decoder_inputs_embeds: refused likewise.
            code_masks: refused; image-code targets are not supported.
            use_cache: return a cache; default: the configuration's in evaluation, false with labels.
            output_attentions: refused; fused backends do not hold probabilities.
            output_hidden_states: return the encoder's hidden states.
            return_dict: accepted because callers pass it; the output is always an object.
            num_items_in_batch: divide the summed loss by this instead of this batch's count of labels.
            output_logits: false: no logits and no loss, but `decoder_hidden_states` with the last states [B, T, D],
                whose product with the output layer's weight they are.

        Raises:
            ValueError: a refused argument, neither text nor encoder output, or too many positions.
        """
        self._refuse(inputs_embeds, decoder_inputs_embeds, code_masks)
        if encoder_outputs is None:
            if input_ids is None:
                raise ValueError("input_ids or encoder_outputs: one of them is needed")
            encoder_outputs = self.encoder(
                input_ids,
                attention_mask,
                pixel_values,
                pixel_mask,
                output_attentions=output_attentions,
                output_hidden_states=output_hidden_states,
            )
        if decoder_input_ids is None:
            if labels is None:
                raise ValueError("decoder_input_ids or labels: one of them is needed")
            decoder_input_ids = self.prepare_decoder_input_ids_from_labels(labels)
        memory, memory_mask = self._memory(encoder_outputs, attention_mask)
        cache = self._cache(past_key_values, use_cache, labels)
        hidden_states = self.decoder(
            decoder_input_ids,
            decoder_attention_mask,
            memory,
            memory_mask,
            self.encoder_positions(encoder_outputs) if cache is None or cache.cross_key_factor is None else None,
            cache,
        )
        if not output_logits:
            return Seq2SeqLMOutput(decoder_hidden_states=(hidden_states,), encoder_last_hidden_state=memory)
        logits = self.decoder.output_projection(hidden_states)
        loss = None if labels is None else sequence_loss(logits, labels, num_items_in_batch)
        return Seq2SeqLMOutput(
            loss=loss,
            logits=logits,
            past_key_values=cache,
            encoder_last_hidden_state=memory,
            encoder_hidden_states=encoder_outputs.hidden_states,
        )

    @torch.no_grad()
    def generate(
        self,
        *args: Any,
        allow_code_and_bin_tokens: bool = False,
        logits_processor: LogitsProcessorList | None = None,
        **kwargs: Any,
    ) -> Any:
        """`GenerationMixin.generate`; image codes and location bins are never generated unless allowed."""
        processors = LogitsProcessorList(logits_processor or [])
        if not allow_code_and_bin_tokens and self.config.code_token_start < self.config.vocab_size:
            processors.append(TextTokensOnly(self.config.code_token_start))
        return super().generate(*args, logits_processor=processors, **kwargs)  # type: ignore[misc]  # its self is a protocol

    @property
    def max_text_positions(self) -> int:
        """How many tokens a source or a target may have."""
        return self.encoder.max_text_positions

    def extend_positions(self, positions: int) -> None:
        """Take sources and targets of up to `positions` tokens; shorter ones give the same outputs, bit for bit.

        Nothing is added to the weights: rows beyond the trained ones repeat them, and distances beyond the
        trained ones share the last relative bucket. Like the attention backend it is a setting of this object
        and not stored.

        Raises:
            ValueError: fewer positions than the weights have.
        """
        trained = self.config.max_position_embeddings
        if positions < trained:
            raise ValueError(f"{positions} positions: the weights have {trained}, which can only be extended")
        self.encoder.max_text_positions = self.decoder.max_text_positions = positions

    def encoder_positions(self, outputs: BiomedGPTEncoderOutput) -> Tensor:
        """Normed position embeddings [1 or B, S, D] of an encoder output's positions, which cross-attention uses."""
        grid, sampled_ids = getattr(outputs, "image_grid", None), getattr(outputs, "sampled_image_ids", None)
        image_ids = self.encoder.image_ids(grid, sampled_ids)
        num_image = 0 if image_ids is None else image_ids.shape[1]
        assert outputs.last_hidden_state is not None
        return self.encoder.position_embeddings(image_ids, outputs.last_hidden_state.shape[1] - num_image)

    def prepare_decoder_input_ids_from_labels(self, labels: Tensor) -> Tensor:
        """[B, T] -> [B, T]: the start token, then the labels without their last; ignored labels become padding."""
        shifted = labels.new_full(labels.shape, self.config.decoder_start_token_id)
        shifted[:, 1:] = labels[:, :-1]
        return shifted.masked_fill(shifted == IGNORED_LABEL, self.config.pad_token_id)

    def get_input_embeddings(self) -> nn.Module:
        """The token embeddings, shared by encoder, decoder and output."""
        return self.encoder.embed_tokens

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the shared token embeddings."""
        assert isinstance(value, nn.Embedding)
        self.encoder.embed_tokens = value
        self.decoder.embed_tokens = value

    def get_output_embeddings(self) -> nn.Module:
        """The output projection."""
        return self.decoder.output_projection

    def set_output_embeddings(self, value: nn.Linear) -> None:
        """Replace the output projection."""
        self.decoder.output_projection = value

    def _check_and_adjust_attn_implementation(
        self, attn_implementation: str | None, is_init_check: bool = False, allow_all_kernels: bool = False
    ) -> str:
        """transformers takes any name with "flash" in it for a kernel to be fetched from the hub; ours is none."""
        return self.get_correct_attn_implementation(attn_implementation, is_init_check)

    def get_correct_attn_implementation(self, requested_attention: str | None, is_init_check: bool = False) -> str:
        """The name of one of bmpeft's own backends, or "auto" where none is asked for.

        Raises:
            ValueError: there is no such backend.
        """
        return check_backend(requested_attention or AUTO)

    def get_decoder(self) -> BiomedGPTDecoder:
        """The decoder."""
        return self.decoder

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Initialisation of OFA: N(0, 0.02) linear layers, N(0, D^-0.5) embeddings, relative tables zero."""
        if isinstance(module, nn.Linear):
            init.normal_(module.weight, std=0.02)
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, nn.Conv2d):
            init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(module, nn.Embedding):
            if module.embedding_dim == self.config.d_model:
                init.normal_(module.weight, std=1 / math.sqrt(self.config.d_model))
                if module.padding_idx is not None and not getattr(module.weight, "_is_hf_initialized", False):
                    init.zeros_(module.weight[module.padding_idx])
            else:  # a relative-position table
                init.zeros_(module.weight)
        elif isinstance(module, nn.LayerNorm | nn.BatchNorm2d):
            super()._init_weights(module)
        elif isinstance(module, BiomedGPTAttention) and module.c_attn is not None:
            init.ones_(module.c_attn)
        elif isinstance(module, BiomedGPTEncoderLayer | BiomedGPTDecoderLayer) and module.w_resid is not None:
            init.ones_(module.w_resid)

    @staticmethod
    def _refuse(inputs_embeds: Any, decoder_inputs_embeds: Any, code_masks: Any) -> None:
        if inputs_embeds is not None or decoder_inputs_embeds is not None:
            raise ValueError("inputs_embeds and decoder_inputs_embeds are not supported: give token ids")
        if code_masks is not None:
            raise ValueError("code_masks: image-code targets (masked image modelling) are not supported")

    def _memory(self, outputs: BiomedGPTEncoderOutput, attention_mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """Encoder output and its mask; `attention_mask` serves for a plain BaseModelOutput of a text-only run."""
        memory = outputs.last_hidden_state
        assert memory is not None
        mask = getattr(outputs, "attention_mask", None)
        if mask is None:
            mask = attention_mask if attention_mask is not None else memory.new_ones(memory.shape[:2])
        if mask.shape[1] != memory.shape[1]:
            raise ValueError(
                f"encoder_outputs have {memory.shape[1]} positions, their mask {mask.shape[1]}: pass the encoder's "
                "own output, whose attention_mask covers the image"
            )
        return memory, mask.to(torch.bool)

    def _cache(
        self, past: EncoderDecoderCache | None, use_cache: bool | None, labels: Tensor | None
    ) -> BiomedGPTCache | None:
        if use_cache is None:
            use_cache = self.config.use_cache and labels is None and not self.training
        if past is None:
            if not use_cache:
                return None
            past = EncoderDecoderCache(DynamicCache(config=self.config), DynamicCache(config=self.config))
        return past if isinstance(past, BiomedGPTCache) else BiomedGPTCache(past)


class TextTokensOnly(LogitsProcessor):
    """Forbid every id from `first_forbidden` on."""

    def __init__(self, first_forbidden: int) -> None:
        self.first_forbidden = first_forbidden

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Scores [B, V] with -inf for the forbidden ids."""
        scores = scores.clone()
        scores[:, self.first_forbidden :] = -math.inf
        return scores


def sequence_loss(logits: Tensor, labels: Tensor, num_items_in_batch: Tensor | int | None = None) -> Tensor:
    """Cross-entropy in float32 over labels that are not -100.

    Args:
        logits: [B, T, V].
        labels: [B, T], aligned with the logits (no shift).
        num_items_in_batch: number of labels that the sum is divided by, counted over a whole
            accumulation window by the caller; default: the mean over this batch.
    """
    reduction = "mean" if num_items_in_batch is None else "sum"
    loss = nn.functional.cross_entropy(
        logits.flatten(0, 1).float(), labels.flatten(), ignore_index=IGNORED_LABEL, reduction=reduction
    )
    return loss if num_items_in_batch is None else loss / num_items_in_batch
