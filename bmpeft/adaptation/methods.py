"""The adaptation methods by name. A new one is a section, a format, a module here and a line in each registry."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from bmpeft.adaptation.full import FullMethod
from bmpeft.adaptation.lora import LoraMethod
from bmpeft.adaptation.method import Attached, Method

if TYPE_CHECKING:
    from bmpeft.backbones.base import FrozenBackbone
    from bmpeft.recipe_adaptation import Adaptation

METHODS: Mapping[str, Method[Any]] = {"lora": LoraMethod(), "full": FullMethod()}


def method_of(section: Adaptation) -> Method[Any]:
    """The method of a recipe's section."""
    return METHODS[section.method]


def attach(backbone: FrozenBackbone, section: Adaptation, *, with_images: bool = False, seed: int = 0) -> Attached:
    """Put a fresh adapter on a bare backbone, see `Method.attach`; `with_images`: whether a training row has one."""
    return method_of(section).attach(backbone, section, with_images=with_images, seed=seed)
