"""Files in the published formats, made from a model of this repository.

Names and tables are written down here a second time, from the description of upstream's layouts, so that a mistake
in the conversion cannot hide in its own tests.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import random
import re
import sys
import types
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bmpeft.backbones.biomedgpt import BiomedGPTForConditionalGeneration
from bmpeft.backbones.biomedgpt.conversion import ConversionReport, convert
from bmpeft.progress import Progress
from tests.backbones.tiny import tiny_model

VOCABULARY = 600
TIED = ("decoder.embed_tokens.weight", "decoder.output_projection.weight")
_FAIRSEQ_NAMES = (
    (r"^(encoder\.layers\.\d+)\.self_attn_mid_layer_norm\.", r"\1.attn_ln."),
    (r"^(decoder\.layers\.\d+)\.self_attn_mid_layer_norm\.", r"\1.self_attn_ln."),
    (r"^(decoder\.layers\.\d+)\.cross_attn_mid_layer_norm\.", r"\1.cross_attn_ln."),
    (r"^(decoder\.layers\.\d+)\.cross_attn_layer_norm\.", r"\1.encoder_attn_layer_norm."),
    (r"^(decoder\.layers\.\d+)\.cross_attn\.", r"\1.encoder_attn."),
    (r"\.ffn_layer_norm\.", ".ffn_layernorm."),
)


def small_model(seed: int = 0, **overrides: Any) -> BiomedGPTForConditionalGeneration:
    """A model whose every tensor has values of its own, also where initialisation has ones and zeros."""
    model = tiny_model(seed, **{"vocab_size": VOCABULARY, "max_position_embeddings": 32, **overrides})
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if tensor.is_floating_point():
                noise = torch.rand(tensor.shape, generator=generator)
                tensor.add_(noise * (0.1 if "running_var" in name else 0.05))
            else:
                tensor.fill_(7)
    return model


def fairseq_name(name: str) -> str:
    for pattern, replacement in _FAIRSEQ_NAMES:
        name = re.sub(pattern, replacement, name)
    return name


def published_state(
    model: BiomedGPTForConditionalGeneration, scheme: str, *, with_tables: bool = True
) -> OrderedDict[str, Tensor]:
    """A published state dict: every tied name, every table."""
    state = OrderedDict(model.state_dict())
    if scheme == "fairseq":
        state = OrderedDict((fairseq_name(name), tensor) for name, tensor in state.items())
    return OrderedDict(state | tables(model.config, scheme)) if with_tables else state


def tables(config: Any, scheme: str) -> dict[str, Tensor]:
    """Upstream's buffers, element by element from their description."""
    positions, side, middle = config.max_position_embeddings, config.image_bucket_size, config.token_bucket_size // 2

    def token(relative: int) -> int:
        if abs(relative) <= middle:
            bucket = relative
        else:
            share = math.log(abs(relative) / middle) / math.log((positions - 1) / middle)
            bucket = int(math.copysign(math.ceil(share * (middle - 1)) + middle, relative))
        return bucket + config.token_bucket_size - 1

    def image(query: int, key: int) -> int:
        span = 2 * side - 1
        if query == 0 or key == 0:
            return span**2 + (2 if query == key else 0 if query == 0 else 1)
        (row, column), (other_row, other_column) = divmod(query - 1, side), divmod(key - 1, side)
        return (row - other_row + side - 1) * span + column - other_column + side - 1

    ids = range(side**2 + 1)
    found: dict[str, Tensor] = {}
    for stack in ("encoder", "decoder"):
        found[f"{stack}.token_rp_bucket"] = torch.tensor(
            [[token(i - j) for j in range(positions)] for i in range(positions)]
        )
        found[f"{stack}.image_rp_bucket"] = torch.tensor([[image(i, j) for j in ids] for i in ids])
        if scheme == "fairseq":
            found[f"{stack}.version"] = torch.Tensor([3])
    grid = [column + row * side + 1 for row in range(16) for column in range(16)]
    fillers = 769 if scheme == "fairseq" else 768
    found["decoder.image_position_idx"] = torch.tensor([0, *grid, *[1024] * fillers])
    return found


def options(model: BiomedGPTForConditionalGeneration, **changes: Any) -> dict[str, Any]:
    """fairseq's options of a model, among others that say nothing about it."""
    config = model.config
    found = {
        "arch": "ofa_tiny",
        "task": "vqa_gen",
        "data": "/home/somebody/private/vqa_train.tsv",
        "save_dir": "/home/somebody/checkpoints",
        "lr": [5e-5],
        "encoder_embed_dim": config.d_model,
        "decoder_embed_dim": config.d_model,
        "encoder_ffn_embed_dim": config.encoder_ffn_dim,
        "decoder_ffn_embed_dim": config.decoder_ffn_dim,
        "encoder_layers": config.encoder_layers,
        "decoder_layers": config.decoder_layers,
        "encoder_attention_heads": config.encoder_attention_heads,
        "decoder_attention_heads": config.decoder_attention_heads,
        "max_source_positions": config.max_position_embeddings,
        "max_target_positions": config.max_position_embeddings,
        "resnet_type": config.resnet_type,
        "token_bucket_size": config.token_bucket_size,
        "image_bucket_size": config.image_bucket_size,
        "attn_scale_factor": 2,
        "encoder_normalize_before": True,
        "decoder_normalize_before": True,
        "share_all_embeddings": True,
        "no_scale_embedding": True,
        "activation_fn": "gelu",
        "layernorm_embedding": True,
        "patch_layernorm_embedding": True,
        "code_layernorm_embedding": True,
        "add_type_embedding": True,
        "scale_attn": config.scale_attn,
        "scale_fc": config.scale_fc,
        "scale_heads": config.scale_heads,
        "disable_entangle": True,
        "dropout": 0.1,
        "patch_image_size": 128,
    }
    return found | changes


def checkpoint(model: dict[str, Tensor], **parts: Any) -> dict[str, Any]:
    """fairseq's dict as its trainer writes it."""
    return {
        "args": None,
        "cfg": None,
        "model": model,
        "criterion": None,
        "optimizer_history": [{"criterion_name": "X", "optimizer_name": "FairseqAdam", "num_updates": 10}],
        "task_state": {},
        "extra_state": {"train_iterator": {"epoch": 3, "version": 2}, "val_loss": 1.5, "best": 1.25},
        "last_optimizer_state": {"state": {0: {"step": 10, "exp_avg": torch.zeros(5)}}, "param_groups": []},
    } | parts


def save_fairseq(path: Path, model: BiomedGPTForConditionalGeneration, /, **parts: Any) -> Path:
    """A checkpoint with `args` as a namespace."""
    if "model" not in parts:
        parts["model"] = published_state(model, "fairseq")
    torch.save(checkpoint(**{"args": argparse.Namespace(**options(model)), **parts}), path)
    return path


def save_transformers(
    directory: Path, model: BiomedGPTForConditionalGeneration, *, with_tables: bool = True, **changes: Any
) -> Path:
    """A directory as PanaceaAI/BiomedGPT-Base-Pretrained: config.json and pytorch_model.bin."""
    directory.mkdir()
    config = model.config
    shown = ("vocab_size", "d_model", "encoder_layers", "decoder_layers", "encoder_ffn_dim", "decoder_ffn_dim",
             "encoder_attention_heads", "decoder_attention_heads", "max_position_embeddings", "resnet_type",
             "token_bucket_size", "image_bucket_size", "normformer")  # fmt: skip
    fields = {"model_type": "ofa", "architectures": ["OFAModel"], "attn_scale_factor": 2.0, "code_image_size": 128,
              "use_cache": False, "forced_eos_token_id": 2}  # fmt: skip
    fields |= {name: getattr(config, name) for name in shown} | changes
    (directory / "config.json").write_text(json.dumps(fields), encoding="utf-8")
    untied = {
        name: tensor.clone() for name, tensor in published_state(model, "transformers", with_tables=with_tables).items()
    }
    torch.save(untied, directory / "pytorch_model.bin")
    return directory


def shuffled(state: dict[str, Tensor]) -> dict[str, Tensor]:
    keys = list(state)
    random.Random(0).shuffle(keys)
    return {key: state[key] for key in keys}


def run(source: Path, destination: Path | None, **arguments: Any) -> ConversionReport:
    return convert(source, destination, progress=Progress(quiet=True), **arguments)


@contextlib.contextmanager
def foreign_classes(*names: str) -> Iterator[list[type]]:
    """Classes that pickle under names of packages which are not installed, while the block lasts."""
    classes, added = [], []
    for name in names:
        module, _, leaf = name.rpartition(".")
        parts = module.split(".")
        for end in range(1, len(parts) + 1):
            if (parent := ".".join(parts[:end])) not in sys.modules:
                sys.modules[parent] = types.ModuleType(parent)
                added.append(parent)
        made = type(leaf, (), {"__module__": module, "__qualname__": leaf})
        setattr(sys.modules[module], leaf, made)
        classes.append(made)
    try:
        yield classes
    finally:
        for module in added:
            del sys.modules[module]


def omegaconf_tree(value: Any, classes: dict[str, type], parent: Any = None) -> Any:
    """A dict or list as omegaconf holds it: nodes that know their parent, their values inside."""
    kind = "DictConfig" if isinstance(value, dict) else "ListConfig" if isinstance(value, list) else "AnyNode"
    node = classes[kind].__new__(classes[kind])
    metadata = classes["Metadata"].__new__(classes["Metadata"])
    metadata.__dict__ = {"ref_type": Any, "object_type": type(value), "optional": True, "key": None, "flags": {}}
    node.__dict__ = {"_metadata": metadata, "_parent": parent}
    if isinstance(value, dict):
        node.__dict__["_content"] = {k: omegaconf_tree(v, classes, node) for k, v in value.items()}
    elif isinstance(value, list):
        node.__dict__["_content"] = [omegaconf_tree(v, classes, node) for v in value]
    else:
        node.__dict__["_val"] = value
    return node


OMEGACONF = ("omegaconf.dictconfig.DictConfig", "omegaconf.listconfig.ListConfig", "omegaconf.nodes.AnyNode",
             "omegaconf.base.Metadata")  # fmt: skip
