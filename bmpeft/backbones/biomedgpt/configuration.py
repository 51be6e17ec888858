"""The architecture of BiomedGPT (an OFA model) and its sizes."""

from __future__ import annotations

from types import MappingProxyType
from typing import Any

from transformers import PreTrainedConfig

RESNET_BLOCKS = MappingProxyType(
    {
        "resnet10": (1, 1, 1),
        "resnet18": (2, 2, 2),
        "resnet50": (3, 4, 6),
        "resnet101": (3, 4, 23),
        "resnet152": (3, 8, 36),
    }
)
"""Bottleneck blocks in the three stages that OFA keeps; all end with 1,024 channels at stride 16."""

_SHAPES = {
    # size: d_model, ffn, heads, encoder layers, decoder layers, ResNet
    "nano": (256, 1024, 4, 3, 3, "resnet10"),
    "small": (256, 1024, 4, 4, 4, "resnet50"),
    "medium": (512, 2048, 8, 4, 4, "resnet101"),
    "base": (768, 3072, 12, 6, 6, "resnet101"),
    "large": (1024, 4096, 16, 12, 12, "resnet152"),
    "xlarge": (1280, 5120, 16, 24, 12, "resnet152"),
}
SIZES = tuple(_SHAPES)

# Nano has a vocabulary of its own and neither image codes nor location bins; its patch grid ends at 384 px.
_NANO = {"vocab_size": 8192, "num_code_tokens": 0, "num_bin_tokens": 0, "image_bucket_size": 24}


class BiomedGPTConfig(PreTrainedConfig):
    """Configuration of `BiomedGPTForConditionalGeneration`.

    Field names are those of the published OFA / BiomedGPT ``config.json``, so that such a file builds
    it directly. Defaults are BiomedGPT-Base.

    Fields without a counterpart in that file:
        num_code_tokens, num_bin_tokens: how many of the last vocabulary entries are image codes and
            location bins (bins come last); they are never generated unless asked for.
        scale_attn, scale_fc, scale_heads: the three parts of NormFormer (Shleifer et al. 2021,
            arXiv:2110.09456): LayerNorm after attention, LayerNorm inside the feed-forward network,
            learned scale of each head. None follows `normformer`.
        scale_resids: NormFormer's fourth part, a learned scale of the feed-forward block's residual;
            upstream's ``--scale-resids``, which no released checkpoint has.
        batch_norm_eps: of the image tower; upstream's ``--sync-bn`` has 1e-3.

    Raises:
        ValueError: a value that released checkpoints never have and this implementation does not compute.
    """

    model_type = "biomedgpt"
    keys_to_ignore_at_inference = ["past_key_values"]  # noqa: RUF012 (a class attribute that transformers reads)
    attribute_map = {  # noqa: RUF012
        "hidden_size": "d_model",
        "num_attention_heads": "encoder_attention_heads",
        "num_hidden_layers": "decoder_layers",
    }

    vocab_size: int = 59457
    d_model: int = 768
    encoder_layers: int = 6
    decoder_layers: int = 6
    encoder_attention_heads: int = 12
    decoder_attention_heads: int = 12
    encoder_ffn_dim: int = 3072
    decoder_ffn_dim: int = 3072
    resnet_type: str = "resnet101"
    max_position_embeddings: int = 1024
    token_bucket_size: int = 256
    image_bucket_size: int = 42
    attn_scale_factor: float = 2.0
    num_code_tokens: int = 8192
    num_bin_tokens: int = 1000
    normformer: bool = True
    scale_attn: bool | None = None
    scale_fc: bool | None = None
    scale_heads: bool | None = None
    scale_resids: bool = False
    batch_norm_eps: float = 1e-5
    dropout: float = 0.1
    attention_dropout: float = 0.0
    activation_dropout: float = 0.0
    activation_function: str = "gelu"
    encoder_drop_path_rate: float = 0.0
    decoder_drop_path_rate: float = 0.0
    add_type_embedding: bool = True
    layernorm_embedding: bool = True
    patch_layernorm_embedding: bool = True
    code_layernorm_embedding: bool = True
    entangle_position_embedding: bool = False
    scale_embedding: bool = False
    share_decoder_input_output_embed: bool = True
    tie_word_embeddings: bool = True
    is_encoder_decoder: bool = True
    use_cache: bool = True
    bos_token_id: int = 0
    pad_token_id: int = 1
    eos_token_id: int = 2
    decoder_start_token_id: int = 0

    def __post_init__(self, **kwargs: Any) -> None:
        for part in ("scale_attn", "scale_fc"):
            if getattr(self, part) is None:
                setattr(self, part, self.normformer)
        if self.scale_heads is None:
            self.scale_heads = True
        super().__post_init__(**kwargs)
        self._refuse_unknown_architecture()

    def _refuse_unknown_architecture(self) -> None:
        if self.resnet_type not in RESNET_BLOCKS:
            raise ValueError(f"resnet_type {self.resnet_type!r} is not one of {', '.join(RESNET_BLOCKS)}")
        if self.activation_function != "gelu":
            raise ValueError(f"activation_function {self.activation_function!r}: released checkpoints have 'gelu'")
        for heads in (self.encoder_attention_heads, self.decoder_attention_heads):
            if self.d_model % heads:
                raise ValueError(f"d_model {self.d_model} is not a multiple of {heads} attention heads")
        required = {
            "add_type_embedding": True,
            "layernorm_embedding": True,
            "patch_layernorm_embedding": True,
            "code_layernorm_embedding": True,
            "entangle_position_embedding": False,
            "scale_embedding": False,
            "share_decoder_input_output_embed": True,
        }
        for name, value in required.items():
            if getattr(self, name) is not value:
                raise ValueError(f"{name}={getattr(self, name)}: released checkpoints have {value}")

    @property
    def code_token_start(self) -> int:
        """First id of the image codes; ids from here on are never generated unless asked for."""
        return self.vocab_size - self.num_code_tokens - self.num_bin_tokens

    @classmethod
    def from_size(cls, size: str, **overrides: Any) -> BiomedGPTConfig:
        """The configuration of a size: nano, small, medium, base, large, xlarge.

        Large and xlarge are OFA-large and OFA-huge, which their published parameter counts equal.

        Raises:
            ValueError: there is no such size.
        """
        if size not in _SHAPES:
            raise ValueError(f"size {size!r} is not one of {', '.join(SIZES)}")
        d_model, ffn, heads, encoder_layers, decoder_layers, resnet_type = _SHAPES[size]
        fields = {
            "d_model": d_model,
            "encoder_ffn_dim": ffn,
            "decoder_ffn_dim": ffn,
            "encoder_attention_heads": heads,
            "decoder_attention_heads": heads,
            "encoder_layers": encoder_layers,
            "decoder_layers": decoder_layers,
            "resnet_type": resnet_type,
            **(_NANO if size == "nano" else {}),
        }
        return cls(**{**fields, **overrides})
