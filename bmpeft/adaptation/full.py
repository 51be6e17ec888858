"""Full fine-tuning: float32 values of the parameters themselves, in the place of the backbone's own.

The parameters' storage is exchanged, not the parameters: tied ones stay tied, wrappers of other adapters around the
layers notice nothing, and putting the backbone's own storage back makes it what it was, bit for bit. What an adapter
does not train is shared. On a backbone that is not float32 encoder and decoder compute in float32 while such an adapter
is switched on; of the few parameters there that were not trained, image tables mostly, one float32 copy is made for it.
The image tower keeps its number type.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from bmpeft.adaptation.method import Attached, Host, Method, require_bare, require_same_shapes
from bmpeft.errors import BackboneError, UsageError
from bmpeft.recipe_adaptation import FullSection

if TYPE_CHECKING:
    from bmpeft.backbones.base import FrozenBackbone


class FullAttached(Attached):
    """Parameters that train where the backbone's own were; `model` is the backbone's model itself.

    Args:
        backbone: has the values of `trained` and whatever else is float32 for them in place already.
        trained: names of the parameters that train.
    """

    def __init__(self, backbone: FrozenBackbone, trained: tuple[str, ...]) -> None:
        self.model: Any = backbone.model
        self._backbone, self._trained = backbone, trained
        for name in trained:
            backbone.weights[name].requires_grad_(True)

    def tensors(self) -> dict[str, Tensor]:
        """See `Attached.tensors`."""
        weights = self._backbone.weights
        return {name: weights[name].detach().to("cpu", copy=True).contiguous() for name in sorted(self._trained)}

    def set_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """See `Attached.set_tensors`."""
        weights = self._backbone.weights
        require_same_shapes({name: weights[name] for name in self._trained}, tensors)
        with torch.no_grad():
            for name in self._trained:
                weights[name].copy_(tensors[name])

    @contextmanager
    def disabled(self) -> Iterator[None]:
        """See `Attached.disabled`."""
        values = {name: self._backbone.weights[name].data for name in self._backbone.replaced}
        _restore(self._backbone)
        try:
            yield
        finally:
            _replace(self._backbone, values)

    def detach(self) -> None:
        """See `Attached.detach`."""
        for name in self._trained:
            self._backbone.weights[name].requires_grad_(False).grad = None
        self._backbone.keep_statistics(False)
        _restore(self._backbone)


class FullHost(Host[FullSection]):
    """Trained parameters of any number of adapters; switching one on exchanges storage and copies nothing."""

    def __init__(self, backbone: FrozenBackbone) -> None:
        super().__init__(backbone)
        self._values: dict[str, dict[str, Tensor]] = {}
        self._rest: dict[str, Tensor] | None = None

    def add(self, slot: str, section: FullSection, tensors: Mapping[str, Tensor]) -> None:
        """See `Host.add`."""
        # Copies: values from a file are not aligned as those that were trained, on which rounding may depend.
        values = {name: tensor.to(self.backbone.device, copy=True) for name, tensor in tensors.items()}
        if self._rest is None:
            self._rest = _rest(self.backbone)
        self._values[slot] = values

    def remove(self, slot: str) -> None:
        """See `Host.remove`."""
        del self._values[slot]
        if not self._values:
            self._rest = None

    def switch_on(self, slot: str) -> Any:
        """See `Host.switch_on`."""
        self.switch_off()
        _replace(self.backbone, {**(self._rest or {}), **self._values[slot]})
        return self.backbone.model

    def switch_off(self) -> None:
        """See `Host.switch_off`."""
        _restore(self.backbone)


class FullMethod(Method[FullSection]):
    """All parameters that the training rows reach, see `FullSection`."""

    host = FullHost

    def attach(self, backbone: FrozenBackbone, section: FullSection, *, with_images: bool, seed: int) -> FullAttached:
        """See `Method.attach`; nothing is drawn: training starts from the backbone's own values.

        Raises:
            BackboneError: the backbone carries an adapter, or its image tower is to train and is not float32.
            UsageError: the image tower is to train, and no training row has an image.
        """
        require_bare(backbone)
        _check(backbone, section)
        if section.train_image_tower and not with_images:
            raise UsageError("adaptation.train_image_tower: no training row has an image")
        trained = _trained(backbone, section, with_images=with_images)
        values = {name: backbone.weights[name].detach().to(torch.float32, copy=True) for name in trained}
        _replace(backbone, {**_rest(backbone), **values})
        backbone.keep_statistics(section.train_image_tower)
        return FullAttached(backbone, trained)

    def shapes(
        self, backbone: FrozenBackbone, section: FullSection, *, with_images: bool
    ) -> dict[str, tuple[int, ...]]:
        """See `Method.shapes`: every parameter that trains, by its own name; a tied one once."""
        _check(backbone, section)
        trained = _trained(backbone, section, with_images=with_images)
        return {name: tuple(backbone.weights[name].shape) for name in trained}

    def remarks(self, attached: Attached, backbone: FrozenBackbone) -> tuple[str, ...]:
        """What the float32 values take beside frozen weights of another type."""
        if backbone.dtype == torch.float32:
            return ()
        values = sum(p.numel() for p in attached.model.parameters() if p.requires_grad)
        return (
            f"adaptation.method=full on a backbone in {str(backbone.dtype).removeprefix('torch.')}: {values:,} "
            f"parameters train in float32 beside it, {4 * values / 2**30:.1f} GiB, and as much again for gradients and "
            f"each of AdamW's two moments",
        )


def _trained(backbone: FrozenBackbone, section: FullSection, *, with_images: bool) -> tuple[str, ...]:
    fixed = backbone.unreached_parameters(with_images=with_images)
    if not section.train_image_tower:
        fixed += backbone.image_tower_parameters
    return tuple(name for name in backbone.weights if not name.startswith(fixed))


def _check(backbone: FrozenBackbone, section: FullSection) -> None:
    if section.train_image_tower and backbone.dtype != torch.float32:
        raise BackboneError(
            f"{backbone.name}: adaptation.train_image_tower needs backbone.dtype=float32: BatchNorm layers cannot mix "
            f"float32 parameters with statistics in {str(backbone.dtype).removeprefix('torch.')}"
        )


def _rest(backbone: FrozenBackbone) -> dict[str, Tensor]:
    """Encoder and decoder in float32, but for the tower; nothing of a backbone that is float32 already."""
    if backbone.dtype == torch.float32:
        return {}
    fixed = backbone.image_tower_parameters
    reached = set(_trained(backbone, FullSection(), with_images=False))  # these every adapter brings
    names = [name for name in backbone.weights if name not in reached and not name.startswith(fixed)]
    return {name: backbone.weights[name].detach().float() for name in names}


def _replace(backbone: FrozenBackbone, values: Mapping[str, Tensor]) -> None:
    """Put values in the place of the backbone's own; all of them or, after an error, none."""
    try:
        for name, value in values.items():
            backbone.replaced[name] = backbone.weights[name].data
            backbone.weights[name].data = value
    except BaseException:
        _restore(backbone)
        raise


def _restore(backbone: FrozenBackbone) -> None:
    """Put the backbone's own values back; they are the same storage as before."""
    for name, own in backbone.replaced.items():
        backbone.weights[name].data = own
    backbone.replaced.clear()
