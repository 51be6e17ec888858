"""What an artifact of each method holds: its files, the names in them, its words on the model card. No torch here."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from bmpeft.adaptation.peft_config import config_content
from bmpeft.recipe_adaptation import Adaptation, FullSection, LoraSection

SectionT = TypeVar("SectionT", LoraSection, FullSection)

_LONGEST_TENSOR_NAME = 300  # the pattern of LoRA's takes quadratic time on a long name made for it
_LORA_TENSOR = re.compile(
    r"base_model\.model\.((?:\w+\.)*(?:(?:encoder|decoder)\.layers\.\d+\.(?:\w+\.)*|encoder\.)(\w+))\.lora_([AB])\.weight"
)
_PARAMETER = re.compile(r"(?:encoder|decoder)(?:\.\w+)+")


@dataclass(frozen=True)
class CardWords:
    """What a model card says of the method.

    Attributes:
        library: `library_name` of the hub's metadata.
        tag: the method among the hub's tags.
        what: what the artifact is, followed by the backbone's name.
        settings: the section's values in a sentence.
        remark: what a reader has to know besides; may be empty.
    """

    library: str
    tag: str
    what: str
    settings: str
    remark: str = ""


class Format(ABC, Generic[SectionT]):
    """One method's part of the artifact; all of it follows from the section in the manifest."""

    @abstractmethod
    def peft_config(self, section: SectionT, backbone_name: str) -> dict[str, Any] | None:
        """The content of peft's ``adapter_config.json``; None where peft cannot load the artifact: then it has none."""

    @abstractmethod
    def problem(self, section: SectionT, shapes: Mapping[str, tuple[int, ...]]) -> str | None:
        """What is wrong with names and shapes of a file's tensors, as far as it can be told without the backbone."""

    @abstractmethod
    def card(self, section: SectionT) -> CardWords:
        """What the model card says of the method."""


class LoraFormat(Format[LoraSection]):
    """Pairs of matrices A [rank, in] and B [out, rank], named as peft names them."""

    def peft_config(self, section: LoraSection, backbone_name: str) -> dict[str, Any]:
        """See `bmpeft.adaptation.peft_config`."""
        return config_content(section, backbone_name)

    def problem(self, section: LoraSection, shapes: Mapping[str, tuple[int, ...]]) -> str | None:
        """Every name is of a target module, every matrix of the rank, every pair whole."""
        for name, shape in shapes.items():
            match = _LORA_TENSOR.fullmatch(name) if len(name) <= _LONGEST_TENSOR_NAME else None
            if match is None or match[2] not in section.target_modules:
                return f"unexpected tensor {name[:200]!a}"
            rank_axis = 0 if match[3] == "A" else 1
            if len(shape) != 2 or shape[rank_axis] != section.rank:
                return f"{name} has shape {shape}, which is not of rank {section.rank}"
            partner = f"base_model.model.{match[1]}.lora_{'B' if match[3] == 'A' else 'A'}.weight"
            if partner not in shapes:
                return f"tensor {partner!r} is missing"
        return None

    def card(self, section: LoraSection) -> CardWords:
        """Rank, scale, dropout and modules."""
        return CardWords(
            library="peft",
            tag="lora",
            what="A LoRA adapter for the frozen backbone",
            settings=f"Rank {section.rank}, alpha {section.alpha:g}{' (rank-stabilised)' if section.rslora else ''}, "
            f"dropout {section.dropout:g}, modules {', '.join(section.target_modules)}",
        )


class FullFormat(Format[FullSection]):
    """The trained parameters themselves, under their own names; a tied one once."""

    def peft_config(self, section: FullSection, backbone_name: str) -> None:
        """None: peft has no way to put whole parameters in the place of a model's own."""

    def problem(self, section: FullSection, shapes: Mapping[str, tuple[int, ...]]) -> str | None:
        """Every name is one that a parameter of encoder or decoder can have; which there are the backbone knows."""
        for name in shapes:
            if len(name) > _LONGEST_TENSOR_NAME or not _PARAMETER.fullmatch(name):
                return f"unexpected tensor {name[:200]!a}"
        return None

    def card(self, section: FullSection) -> CardWords:
        """What trained, and that peft cannot load it."""
        tower = "trained, its BatchNorm statistics frozen" if section.train_image_tower else "frozen"
        return CardWords(
            library="bmpeft",
            tag="full-fine-tuning",
            what="Fully fine-tuned parameters in the place of those of the backbone",
            settings=f"All parameters of encoder and decoder that the training rows reach, image tower {tower}",
            remark="peft cannot load it: the file holds the trained parameters themselves, float32, and there is no "
            "`adapter_config.json`. bmpeft switches between them, LoRA adapters and the bare backbone.\n",
        )


FORMATS: Mapping[str, Format[Any]] = {"lora": LoraFormat(), "full": FullFormat()}


def format_of(section: Adaptation) -> Format[Any]:
    """The format of a section's method."""
    return FORMATS[section.method]
