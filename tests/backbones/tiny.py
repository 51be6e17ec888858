"""A BiomedGPT small enough for every test: two layers, width 64, nano's tokenizer, random weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bmpeft.attention import check_backend
from bmpeft.backbones.biomedgpt import BiomedGPTForConditionalGeneration
from bmpeft.backbones.biomedgpt.backbone import BiomedGPTBackbone
from bmpeft.backbones.fingerprint import canonical_state, fingerprint_of
from bmpeft.backbones.loading import NANO
from bmpeft.backbones.tokenizing import load_tokenizer
from bmpeft.images.processing import ImageProcessor

TINY: dict[str, Any] = {
    "d_model": 64,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 128,
    "decoder_ffn_dim": 128,
    "image_bucket_size": 8,
    "max_position_embeddings": 256,
}


def tiny_model(seed: int = 0, attention: str = "eager", **overrides: Any) -> BiomedGPTForConditionalGeneration:
    """An untrained model in evaluation mode."""
    fields = {**TINY, "attn_implementation": check_backend(attention), **overrides}
    return BiomedGPTForConditionalGeneration.from_size("nano", seed=seed, **fields).eval()


def tiny_backbone(
    seed: int = 0, attention: str = "eager", image_size: int | None = None, **overrides: Any
) -> BiomedGPTBackbone:
    """The tiny model as a frozen backbone."""
    model = tiny_model(seed, attention, **overrides)
    return BiomedGPTBackbone(
        name="tiny",
        init="random",
        init_seed=seed,
        model=model,
        tokenizer=load_tokenizer(NANO, model.config.vocab_size),
        fingerprint=fingerprint_of(canonical_state(model)),
        image_processor=ImageProcessor(image_size) if image_size else None,
    )


def tiny_directory(directory: Path, seed: int = 0, image_size: int | None = None) -> Path:
    """A backbone directory with the tiny model."""
    tiny_backbone(seed, image_size=image_size).save_pretrained(directory)
    return directory
