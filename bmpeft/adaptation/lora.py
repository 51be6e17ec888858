"""Low-rank adaptation of a frozen backbone through peft.

Only linear layers of the transformer's encoder and decoder layers get an adapter. Target modules are
given to peft as plain suffixes ("q_proj"), which keeps ``adapter_config.json`` readable; that they match
nothing else (position projections, image tower, output head) is checked, not assumed.

Adapters are float32 whatever the dtype of the frozen weights: their updates are too small for bfloat16.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

import torch
from peft import LoraConfig, PeftModel, PeftModelForSeq2SeqLM, get_peft_model_state_dict, set_peft_model_state_dict
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from bmpeft.adaptation.peft_config import config_content
from bmpeft.errors import BackboneError
from bmpeft.recipe import LoraSection

if TYPE_CHECKING:
    from bmpeft.backbones.base import FrozenBackbone

_LAYER = re.compile(r"(?:^|\.)(?:encoder|decoder)\.layers\.\d+\.")


def attach(
    backbone: FrozenBackbone, section: LoraSection, adapter_name: str = "default", *, seed: int = 0
) -> PeftModel:
    """Put a fresh adapter on a bare backbone; only its parameters require gradients.

    The model's layers are replaced in place: `backbone.model` computes with the adapter from now on,
    until ``PeftModel.unload()``. The weights are drawn from `seed` alone, on the CPU, and the global random
    state is left as it was. B starts at zero, so that the adapted model equals the bare one at first.

    Raises:
        BackboneError: the model has no such layers, has them elsewhere too, or carries an adapter already.
    """
    if any(isinstance(module, BaseTunerLayer) for module in backbone.model.modules()):
        raise BackboneError(f"{backbone.name}: already carries an adapter")
    target_linears(backbone.model, section.target_modules, backbone.name)
    return add_adapter(backbone.model, lora_config(section, backbone.name), adapter_name, seed=seed)


def add_adapter(model: nn.Module, config: LoraConfig, adapter_name: str, *, seed: int = 0) -> PeftModel:
    """Put an adapter on a model, bare or already wrapped by peft; returns the wrapped model.

    Its values are drawn from `seed` on the CPU, float32 in the end, and no other generator moves. peft's own way
    without random numbers (low_cpu_mem_usage) rounds the values that come later to the base weights' dtype.
    """
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        # peft 0.21 asks transformers 5 by the old name of a property.
        warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated", category=FutureWarning)
        torch.default_generator.manual_seed(seed)
        if isinstance(model, PeftModel):
            model.add_adapter(adapter_name, config)
            return model
        return PeftModelForSeq2SeqLM(model, config, adapter_name)


def lora_config(section: LoraSection, backbone_name: str) -> LoraConfig:
    """The section in peft's words: the same that an artifact's ``adapter_config.json`` says."""
    return LoraConfig(**{**config_content(section, backbone_name), "inference_mode": False})


def target_linears(model: nn.Module, target_modules: Iterable[str], backbone_name: str) -> dict[str, nn.Module]:
    """The linear layers that a list of suffixes selects, by full name, as peft would select them.

    Raises:
        BackboneError: a suffix selects nothing, something that is no linear layer, or a module outside
            the encoder's and decoder's layers.
    """
    targets = tuple(target_modules)
    found: dict[str, nn.Module] = {}
    for name, module in model.named_modules():
        if name.rpartition(".")[2] not in targets:
            continue
        if not _LAYER.search(name):
            raise BackboneError(f"{backbone_name}: target module {name!r} is not in an encoder or decoder layer")
        if not hasattr(module, "in_features"):
            raise BackboneError(f"{backbone_name}: target module {name!r} is no linear layer")
        found[name] = module
    missing = sorted(set(targets) - {name.rpartition(".")[2] for name in found})
    if missing:
        raise BackboneError(f"{backbone_name}: no module is named {', '.join(missing)}")
    return found


def adapter_shapes(backbone: FrozenBackbone, section: LoraSection) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the tensors in the file of an adapter for this backbone: A [rank, in], B [out, rank]."""
    shapes: dict[str, tuple[int, ...]] = {}
    for name, module in target_linears(backbone.model, section.target_modules, backbone.name).items():
        shapes[f"base_model.model.{name}.lora_A.weight"] = (section.rank, int(module.in_features))  # type: ignore[arg-type]
        shapes[f"base_model.model.{name}.lora_B.weight"] = (int(module.out_features), section.rank)  # type: ignore[arg-type]
    return shapes


def adapter_tensors(model: PeftModel, adapter_name: str = "default") -> dict[str, torch.Tensor]:
    """Copies of an adapter's tensors on the CPU, named as peft names them in a file."""
    # "auto" would ask the hub about the base model; only LoRA tensors exist here.
    state = get_peft_model_state_dict(model, adapter_name=adapter_name, save_embedding_layers=False)
    return {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in sorted(state.items())}


def set_adapter_tensors(model: PeftModel, tensors: Mapping[str, torch.Tensor], adapter_name: str = "default") -> None:
    """Write tensors (named as in a file) into an attached adapter; all of them and nothing else.

    Raises:
        ValueError: tensors are missing, superfluous or of another shape. peft itself only warns.
    """
    present = get_peft_model_state_dict(model, adapter_name=adapter_name, save_embedding_layers=False)
    expected = {name: tensor.shape for name, tensor in present.items()}
    if expected != {name: tensor.shape for name, tensor in tensors.items()}:
        differing = [name for name in expected.keys() | tensors.keys() if expected.get(name) != _shape(tensors, name)]
        raise ValueError(f"tensors differ from the adapter's: {sorted(differing)[:3]}")
    set_peft_model_state_dict(model, dict(tensors), adapter_name=adapter_name)


def count_parameters(model: nn.Module) -> tuple[int, int]:
    """How many parameters train, and how many there are; tied ones count once."""
    parameters = list(model.parameters())
    return sum(p.numel() for p in parameters if p.requires_grad), sum(p.numel() for p in parameters)


def _shape(tensors: Mapping[str, torch.Tensor], name: str) -> torch.Size | None:
    return tensors[name].shape if name in tensors else None
