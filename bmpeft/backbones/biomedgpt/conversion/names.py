"""The keys of the two published layouts. Ours are those of the transformers-style one."""

from __future__ import annotations

import re
from collections.abc import Collection
from types import MappingProxyType
from typing import Literal

Scheme = Literal["fairseq", "transformers"]

EMBEDDING = "encoder.embed_tokens.weight"
TIED = ("decoder.embed_tokens.weight", "decoder.output_projection.weight")
EMBEDDINGS = (EMBEDDING, *TIED)

# Parts of a layer by fairseq's names and by ours; all other keys are equal.
_LAYER_PARTS = MappingProxyType(
    {
        "encoder": {"attn_ln": "self_attn_mid_layer_norm", "ffn_layernorm": "ffn_layer_norm"},
        "decoder": {
            "self_attn_ln": "self_attn_mid_layer_norm",
            "encoder_attn": "cross_attn",
            "encoder_attn_layer_norm": "cross_attn_layer_norm",
            "cross_attn_ln": "cross_attn_mid_layer_norm",
            "ffn_layernorm": "ffn_layer_norm",
        },
    }
)
_LAYER = re.compile(r"(?P<stack>encoder|decoder)\.layers\.(?P<index>\d+)\.(?P<part>\w+)(?P<rest>.*)", re.DOTALL)
_COMPUTED = re.compile(r"(encoder|decoder)\.(version|token_rp_bucket|image_rp_bucket)|decoder\.image_position_idx")
_FUSED = re.compile(r"(?P<attention>.*attn)\.in_proj_(?P<leaf>weight|bias)", re.DOTALL)
# A key that every checkpoint of this architecture has once, whatever stands before it.
_LANDMARK = "encoder.layernorm_embedding.weight"


def prefix_of(keys: Collection[str]) -> str:
    """What stands before `encoder.` in every key ("", "model.", "module." ...).

    Raises:
        ValueError: there is no encoder, or more than one.
    """
    found = [key.removesuffix(_LANDMARK) for key in keys if key == _LANDMARK or key.endswith("." + _LANDMARK)]
    if len(found) != 1:
        raise ValueError(f"{len(found)} keys end with {_LANDMARK}, expected one: no weights of BiomedGPT or OFA")
    return found[0]


def is_computed(key: str) -> bool:
    """Whether a key without its prefix is a table that follows from the configuration."""
    return _COMPUTED.fullmatch(key) is not None


def scheme_of(keys: Collection[str]) -> Scheme:
    """The layout that keys without prefix have."""
    fairseq = any((match := _LAYER.fullmatch(key)) and match["part"] in _LAYER_PARTS[match["stack"]] for key in keys)
    return "fairseq" if fairseq else "transformers"


def to_ours(key: str) -> tuple[str, ...]:
    """Our name of a key; three for an old checkpoint's fused projection, in the order of its rows."""
    match = _LAYER.fullmatch(key)
    if match is None:
        return (key,)
    part = _LAYER_PARTS[match["stack"]].get(match["part"], match["part"])
    name = f"{match['stack']}.layers.{match['index']}.{part}{match['rest']}"
    fused = _FUSED.fullmatch(name)
    return (name,) if fused is None else tuple(f"{fused['attention']}.{p}_proj.{fused['leaf']}" for p in "qkv")


def to_fairseq(name: str) -> str:
    """The fairseq key of one of our names."""
    match = _LAYER.fullmatch(name)
    if match is None:
        return name
    theirs = {ours: theirs for theirs, ours in _LAYER_PARTS[match["stack"]].items()}
    return f"{match['stack']}.layers.{match['index']}.{theirs.get(match['part'], match['part'])}{match['rest']}"
