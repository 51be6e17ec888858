"""The architecture of weights: from their shapes, checked against what the source says of itself."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from bmpeft.backbones.biomedgpt.configuration import RESNET_BLOCKS, SIZES, BiomedGPTConfig

Shapes = Mapping[str, tuple[int, ...]]

# Ids of OFA's text tokens end here; image codes and location bins follow, and what a grown dictionary added.
TEXT_TOKENS = 50265

# fairseq's options that the shapes show, too.
_FAIRSEQ_OPTIONS = MappingProxyType(
    {
        "encoder_embed_dim": "d_model",
        "decoder_embed_dim": "d_model",
        "encoder_ffn_embed_dim": "encoder_ffn_dim",
        "decoder_ffn_embed_dim": "decoder_ffn_dim",
        "encoder_layers": "encoder_layers",
        "decoder_layers": "decoder_layers",
        "encoder_attention_heads": "encoder_attention_heads",
        "decoder_attention_heads": "decoder_attention_heads",
        "resnet_type": "resnet_type",
        "max_source_positions": "max_position_embeddings",
        "max_target_positions": "max_position_embeddings",
        "token_bucket_size": "token_bucket_size",
        "image_bucket_size": "image_bucket_size",
        "scale_attn": "scale_attn",
        "scale_fc": "scale_fc",
        "scale_heads": "scale_heads",
        "scale_resids": "scale_resids",
    }
)
# Options without a trace in the shapes: what all released checkpoints have, and this model computes.
_FAIRSEQ_CONSTANTS = MappingProxyType(
    {
        "encoder_normalize_before": True,
        "decoder_normalize_before": True,
        "activation_fn": "gelu",
        "no_scale_embedding": True,
        "entangle_position_embedding": False,
        "interpolate_position": False,
        "add_type_embedding": True,
        "layernorm_embedding": True,
        "patch_layernorm_embedding": True,
        "code_layernorm_embedding": True,
    }
)
_FAIRSEQ_SIZES = MappingProxyType(
    {"small": "ofa_tiny", "medium": "ofa_medium", "base": "ofa_base", "large": "ofa_large", "xlarge": "ofa_huge"}
)
_SYNC_BATCH_NORM_EPS = 1e-3
_RATES = ("dropout", "attention_dropout", "activation_dropout", "encoder_drop_path_rate", "decoder_drop_path_rate")
# What the tokenizers of this architecture have.
_TOKEN_IDS = MappingProxyType({"bos_token_id": 0, "pad_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 0})


def fields_of(shapes: Shapes) -> dict[str, Any]:
    """The fields of `BiomedGPTConfig` that shapes show.

    Args:
        shapes: by our names.

    Raises:
        ValueError: a tensor that tells a field is missing or has an impossible shape.
    """
    vocabulary, width = _shape(shapes, "encoder.embed_tokens.weight", 2)
    fields: dict[str, Any] = {"vocab_size": vocabulary, "d_model": width}
    for stack in ("encoder", "decoder"):
        fields[f"{stack}_layers"] = _count(shapes, f"{stack}.layers")
        fields[f"{stack}_ffn_dim"] = _shape(shapes, f"{stack}.layers.0.fc1.weight", 2)[0]
        fields[f"{stack}_attention_heads"] = _shape(shapes, f"{stack}.token_rel_pos_table_list.0.weight", 2)[1]
    fields["resnet_type"] = _resnet_type(shapes)
    fields["max_position_embeddings"] = _shape(shapes, "encoder.embed_positions.weight", 2)[0] - 2
    fields["token_bucket_size"] = (_shape(shapes, "encoder.token_rel_pos_table_list.0.weight", 2)[0] + 1) // 2
    fields["image_bucket_size"] = _image_side(_shape(shapes, "encoder.image_rel_pos_table_list.0.weight", 2)[0])
    layer = "encoder.layers.0."
    fields["scale_attn"] = f"{layer}self_attn_mid_layer_norm.weight" in shapes
    fields["scale_fc"] = f"{layer}ffn_layer_norm.weight" in shapes
    fields["scale_heads"] = f"{layer}self_attn.c_attn" in shapes
    fields["scale_resids"] = f"{layer}w_resid" in shapes
    fields["normformer"] = fields["scale_attn"] and fields["scale_fc"]
    return fields


def configuration(
    fields: Mapping[str, Any], declared: Mapping[str, Any], declared_in: str | None, *, tied: bool
) -> tuple[BiomedGPTConfig, tuple[str, ...]]:
    """The configuration, and the names of fields that neither shapes nor source say.

    Args:
        fields: what the shapes show, by `fields_of`.
        declared: what the source says: fairseq's options, or the fields of a config.json.
        declared_in: "args", "cfg", "config.json", or None where the source says nothing.
        tied: whether the three embeddings are one.

    Raises:
        ValueError: source and shapes contradict each other, or the model is none that is computed here.
    """
    if declared_in == "config.json":
        _compare(fields, {name: name for name in fields}, declared, declared_in)
        _compare(_TOKEN_IDS, {name: name for name in _TOKEN_IDS}, declared, declared_in)
        own = {"tie_word_embeddings", "use_cache", *_TOKEN_IDS, *fields}
        said = [name for name in BiomedGPTConfig.__annotations__ if name not in own]
    else:
        _compare(fields, _FAIRSEQ_OPTIONS, declared, declared_in)
        _compare(_FAIRSEQ_CONSTANTS, {name: name for name in _FAIRSEQ_CONSTANTS}, declared, declared_in)
        said = ["attn_scale_factor"]  # its rates of dropout belong to somebody's training, not to the weights
    unseen = {name: _checked(name, declared[name], declared_in) for name in said if declared.get(name) is not None}
    if declared_in != "config.json" and declared.get("sync_bn") is True:
        unseen["batch_norm_eps"] = _SYNC_BATCH_NORM_EPS
    assumed = tuple(name for name in ("attn_scale_factor",) if name not in unseen)
    if "num_code_tokens" not in unseen and "num_bin_tokens" not in unseen:
        unseen |= _code_tokens(fields["vocab_size"])
    try:
        config = BiomedGPTConfig(**{**unseen, **fields, "tie_word_embeddings": tied})
    except Exception as error:  # transformers' own class of errors for a field of another type
        where = declared_in or "the tensors"
        raise ValueError(f"{where}: {' '.join(str(error).split())[:300]}") from None
    if not 0 <= config.num_code_tokens + config.num_bin_tokens < config.vocab_size:
        raise ValueError(
            f"{declared_in}: {config.num_code_tokens} codes and {config.num_bin_tokens} bins, out of range"
        )
    return config, assumed


def size_of(config: BiomedGPTConfig) -> str | None:
    """The size that has this architecture, whatever its vocabulary and positions; None for another one."""
    shown = ("d_model", "resnet_type", *(f"{s}_{f}" for s in ("encoder", "decoder")
             for f in ("layers", "ffn_dim", "attention_heads")))  # fmt: skip
    for size in SIZES:
        candidate = BiomedGPTConfig.from_size(size)
        if all(getattr(candidate, name) == getattr(config, name) for name in shown):
            return size
    return None


def fairseq_options(config: BiomedGPTConfig) -> dict[str, Any]:
    """fairseq's options of an architecture, the reverse of `configuration`."""
    return {
        "arch": _FAIRSEQ_SIZES.get(size_of(config) or "", "ofa"),
        **{theirs: getattr(config, ours) for theirs, ours in _FAIRSEQ_OPTIONS.items()},
        **_FAIRSEQ_CONSTANTS,
        "attn_scale_factor": config.attn_scale_factor,
        "share_all_embeddings": config.tie_word_embeddings,
        "sync_bn": config.batch_norm_eps == _SYNC_BATCH_NORM_EPS,
    }


def _compare(
    found: Mapping[str, Any], names: Mapping[str, str], declared: Mapping[str, Any], declared_in: str | None
) -> None:
    for theirs, ours in names.items():
        value = declared.get(theirs)
        if value is None:  # not said; fairseq leaves what a size decides, config.json what follows from normformer
            continue
        if type(value) is not type(found[ours]) or value != found[ours]:
            whose = "this model has" if found in (_FAIRSEQ_CONSTANTS, _TOKEN_IDS) else "the tensors have"
            raise ValueError(f"{declared_in} says {theirs}={_shown(value)}, {whose} {found[ours]!r}")


def _checked(name: str, value: Any, declared_in: str | None) -> Any:
    """A value that no shape tells, of its field's type and in its range; 2 is a number like 2.0."""
    default = getattr(BiomedGPTConfig(), name)
    if type(default) is float and type(value) is int:
        value = float(value)
    valid = type(value) is type(default)
    if name in _RATES:
        valid = valid and 0.0 <= value < 1.0
    elif type(default) in (int, float):
        valid = valid and 0 <= value < math.inf and (value > 0 or type(default) is int)
    if not valid:
        raise ValueError(f"{declared_in} says {name}={_shown(value)}, expected such as {default!r}")
    return value


def _shown(value: Any) -> str:
    return repr(value)[:60] if isinstance(value, str | int | float) else f"a {type(value).__name__}"


def _code_tokens(vocabulary: int) -> dict[str, int]:
    """Everything behind OFA's text tokens: at most 8,192 codes, then bins and a grown dictionary's additions."""
    behind = max(vocabulary - TEXT_TOKENS, 0)
    codes = min(behind, 8192)
    return {"num_code_tokens": codes, "num_bin_tokens": behind - codes}


def _shape(shapes: Shapes, name: str, dimensions: int) -> tuple[int, ...]:
    if name not in shapes:
        raise ValueError(f"{name}: missing")
    if len(shapes[name]) != dimensions or min(shapes[name]) < 1:
        raise ValueError(f"{name}: shape {list(shapes[name])}, expected {dimensions} dimensions")
    return shapes[name]


def _count(shapes: Shapes, prefix: str) -> int:
    """How many consecutive numbers follow a prefix, from 0 on."""
    numbers = {name[len(prefix) + 1 :].split(".", 1)[0] for name in shapes if name.startswith(prefix + ".")}
    return next(number for number in itertools.count() if str(number) not in numbers)


def _resnet_type(shapes: Shapes) -> str:
    stages = tuple(_count(shapes, f"encoder.embed_images.layer{stage}") for stage in (1, 2, 3))
    for name, blocks in RESNET_BLOCKS.items():
        if blocks == stages:
            return name
    known = ", ".join(f"{name} {list(blocks)}" for name, blocks in RESNET_BLOCKS.items())
    raise ValueError(f"encoder.embed_images: {list(stages)} blocks in its stages, expected those of {known}")


def _image_side(rows: int) -> int:
    """The side of the grid whose relative table has (2 * side - 1)^2 + 3 rows."""
    side = (math.isqrt(max(rows - 3, 0)) + 1) // 2
    if (2 * side - 1) ** 2 + 3 != rows:
        raise ValueError(f"encoder.image_rel_pos_table_list.0.weight: {rows} rows belong to no grid of patches")
    return side
