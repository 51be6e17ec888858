"""What every adaptation method offers: training on a backbone, and many trained ones beside each other on it.

A method's tensors are those of its artifact: float32 whatever the dtype of the frozen weights, since the updates of
training are too small for bfloat16.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, ClassVar, Generic

import torch
from torch import nn

from bmpeft.adaptation.formats import SectionT
from bmpeft.errors import BackboneError

if TYPE_CHECKING:
    from bmpeft.backbones.base import FrozenBackbone


class Attached(ABC):
    """An adapter on a backbone, to be trained; `Method.attach` makes it.

    Attributes:
        model: what computes with the adapter; only the adapter's parameters require gradients.
    """

    model: Any

    @abstractmethod
    def tensors(self) -> dict[str, torch.Tensor]:
        """Copies of the adapter's tensors on the CPU, float32, named as in its file."""

    @abstractmethod
    def set_tensors(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Write tensors (named as in a file) into the adapter; all of them and nothing else.

        Raises:
            ValueError: tensors are missing, superfluous or of another shape; nothing is written.
        """

    @abstractmethod
    def disabled(self) -> AbstractContextManager[None]:
        """While the context is open `model` computes, bit for bit, as the bare backbone."""

    @abstractmethod
    def detach(self) -> None:
        """Take the adapter away: the backbone is what it was, bit for bit."""


class Host(ABC, Generic[SectionT]):
    """The trained adapters of one method, or of several of one kind, on one backbone; at most one is switched on."""

    def __init__(self, backbone: FrozenBackbone) -> None:
        self.backbone = backbone

    @abstractmethod
    def add(self, slot: str, section: SectionT, tensors: Mapping[str, torch.Tensor]) -> None:
        """Put an adapter on the backbone, switched off; all of it or nothing. All adapters are switched off.

        Args:
            slot: a name for later calls, made of letters and digits.
            section: how it was trained.
            tensors: what `Method.shapes` says, float32.
        """

    @abstractmethod
    def remove(self, slot: str) -> None:
        """Free an adapter. All adapters are switched off."""

    @abstractmethod
    def switch_on(self, slot: str) -> Any:
        """Let one adapter take part in computations; the others of this host do not. Returns what computes."""

    @abstractmethod
    def switch_off(self) -> None:
        """The backbone's model computes as the bare one, as far as this host is concerned."""


class Method(ABC, Generic[SectionT]):
    """One way to adapt a frozen backbone; has no state.

    Attributes:
        host: what holds trained adapters of the method at run time; methods may share one kind.
    """

    host: ClassVar[type[Host[Any]]]

    @abstractmethod
    def attach(self, backbone: FrozenBackbone, section: SectionT, *, with_images: bool, seed: int) -> Attached:
        """Put a fresh adapter on a bare backbone. It computes as the bare one does until it is trained.

        Random values follow from `seed` alone; the global random state is left as it was.

        Raises:
            BackboneError: the backbone carries an adapter already, or the method does not work on it.
            UsageError: the section asks for what the training rows cannot give.
        """

    @abstractmethod
    def shapes(self, backbone: FrozenBackbone, section: SectionT, *, with_images: bool) -> dict[str, tuple[int, ...]]:
        """Names and shapes of the tensors in the file of an adapter for this backbone.

        Raises:
            BackboneError: the method does not work on it.
        """

    def remarks(self, attached: Attached, backbone: FrozenBackbone) -> tuple[str, ...]:
        """What a user should know before a long training, a line each."""
        return ()


def require_bare(backbone: FrozenBackbone) -> None:
    """Refuse to put an adapter on another one. Raises BackboneError."""
    if backbone.is_adapted:
        raise BackboneError(f"{backbone.name}: already carries an adapter")


def require_same_shapes(expected: Mapping[str, torch.Tensor], tensors: Mapping[str, torch.Tensor]) -> None:
    """Names and shapes must agree. Raises ValueError with the first that do not."""
    shapes = {name: tuple(tensor.shape) for name, tensor in expected.items()}
    given = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    differing = sorted(name for name in shapes.keys() | given.keys() if shapes.get(name) != given.get(name))
    if differing:
        raise ValueError(f"tensors differ from the adapter's: {differing[:3]}")


def count_parameters(model: nn.Module) -> tuple[int, int]:
    """How many parameters train, and how many there are; tied ones count once."""
    parameters = list(model.parameters())
    return sum(p.numel() for p in parameters if p.requires_grad), sum(p.numel() for p in parameters)
