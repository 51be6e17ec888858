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
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

import torch
from peft import LoraConfig, PeftModel, PeftModelForSeq2SeqLM, get_peft_model_state_dict, set_peft_model_state_dict
from torch import nn

from bmpeft.adaptation.method import Attached, Host, Method, require_bare, require_same_shapes
from bmpeft.adaptation.peft_config import config_content
from bmpeft.errors import BackboneError, UsageError
from bmpeft.recipe_adaptation import IMAGE_TARGETS, LoraSection

if TYPE_CHECKING:
    from bmpeft.backbones.base import FrozenBackbone

_LAYER = re.compile(r"(?:^|\.)(?:encoder|decoder)\.layers\.\d+\.|(?:^|\.)encoder\.image_proj$")


class LoraAttached(Attached):
    """A LoRA that trains: `model` is peft's wrapper, whose layers stand in the place of the backbone's."""

    model: PeftModel

    def __init__(self, model: PeftModel) -> None:
        self.model = model

    def tensors(self) -> dict[str, torch.Tensor]:
        """See `Attached.tensors`."""
        return adapter_tensors(self.model)

    def set_tensors(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """See `Attached.set_tensors`."""
        set_adapter_tensors(self.model, tensors)

    def disabled(self) -> AbstractContextManager[None]:
        """See `Attached.disabled`."""
        context: AbstractContextManager[None] = self.model.disable_adapter()
        return context

    def detach(self) -> None:
        """See `Attached.detach`."""
        tuner: Any = self.model.base_model
        tuner.unload()


class LoraHost(Host[LoraSection]):
    """LoRA adapters in one wrapper of peft's, which is there while one of them is."""

    def __init__(self, backbone: FrozenBackbone) -> None:
        super().__init__(backbone)
        self._peft: PeftModel | None = None

    def add(self, slot: str, section: LoraSection, tensors: Mapping[str, torch.Tensor]) -> None:
        """See `Host.add`; the matrices lie beside the base weights, which are shared."""
        config = lora_config(section, self.backbone.name)
        config.inference_mode = True
        self._peft = add_adapter(self.backbone.model if self._peft is None else self._peft, config, slot)
        try:
            set_adapter_tensors(self._peft, tensors, slot)
        except BaseException:
            self.remove(slot)
            raise
        self._peft.eval()
        self.switch_off()

    def remove(self, slot: str) -> None:
        """See `Host.remove`; with the last matrices goes peft's wrapper around the layers."""
        assert self._peft is not None
        remaining = [other for other in self._peft.peft_config if other != slot]
        if remaining:
            # peft warns when the adapter that it regards as active is deleted.
            self._peft.set_adapter(remaining[0], inference_mode=True)
            self._peft.delete_adapter(slot)
            self.switch_off()
        else:
            tuner: Any = self._peft.base_model
            tuner.unload()
            self._peft = None

    def switch_on(self, slot: str) -> PeftModel:
        """See `Host.switch_on`."""
        assert self._peft is not None
        tuner: Any = self._peft.base_model
        tuner.enable_adapter_layers()
        self._peft.set_adapter(slot, inference_mode=True)
        return self._peft

    def switch_off(self) -> None:
        """See `Host.switch_off`."""
        if self._peft is not None:
            tuner: Any = self._peft.base_model
            tuner.disable_adapter_layers()


class LoraMethod(Method[LoraSection]):
    """Low-rank updates beside linear layers; B starts at zero, so that a fresh one has no effect."""

    host = LoraHost

    def attach(self, backbone: FrozenBackbone, section: LoraSection, *, with_images: bool, seed: int) -> LoraAttached:
        """See `Method.attach`; the layers are replaced in place, until `Attached.detach`."""
        require_bare(backbone)
        unreached = [name for name in section.target_modules if name in IMAGE_TARGETS and not with_images]
        if unreached:
            raise UsageError(f"adaptation.target_modules: {unreached[0]} is reached by images, and no row has one")
        target_linears(backbone.model, section.target_modules, backbone.name)
        return LoraAttached(add_adapter(backbone.model, lora_config(section, backbone.name), "default", seed=seed))

    def shapes(
        self, backbone: FrozenBackbone, section: LoraSection, *, with_images: bool
    ) -> dict[str, tuple[int, ...]]:
        """See `Method.shapes`: A [rank, in] and B [out, rank] of each linear layer, images or not."""
        return adapter_shapes(backbone, section)


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
    require_same_shapes(present, tensors)
    set_peft_model_state_dict(model, dict(tensors), adapter_name=adapter_name)
