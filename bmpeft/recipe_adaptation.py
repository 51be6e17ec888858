"""Which parameters train: the section `adaptation` of a recipe, a union of methods by `method`.

A method is a section here, its files in `bmpeft.adaptation.formats` and its computation in `bmpeft.adaptation.methods`.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, field_validator

from bmpeft.recipe_section import Section

LoraTarget = Literal["q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2", "image_proj"]
LORA_TARGETS: tuple[LoraTarget, ...] = ("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2")
IMAGE_TARGETS: tuple[LoraTarget, ...] = ("image_proj",)
"""Only images reach these."""
DEFAULT_METHOD = "lora"


class MethodSection(Section):
    """What all methods share.

    Attributes:
        has_default_learning_rate: whether `training.learning_rate`'s default, chosen for adapters that start without an
            effect, fits; else a recipe has to name one.
    """

    has_default_learning_rate: ClassVar[bool] = True


class LoraSection(MethodSection):
    """Low-rank adaptation (Hu et al. 2021, arXiv:2106.09685).

    Rank-stabilised by default (Kalajdzievski 2023, arXiv:2312.03732).
    """

    method: Literal["lora"] = "lora"
    rank: int = Field(16, ge=1, le=1024)
    alpha: float = Field(16.0, gt=0, description="scaling is alpha / sqrt(rank) with rslora, else alpha / rank")
    dropout: float = Field(0.05, ge=0.0, lt=1.0)
    target_modules: tuple[LoraTarget, ...] = Field(
        LORA_TARGETS,
        min_length=1,
        description="linear layers of encoder and decoder that get an adapter; "
        "image_proj, between image tower and encoder, is not among the default ones",
    )
    rslora: bool = True

    @field_validator("target_modules")
    @classmethod
    def _distinct(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(value)) != len(value):
            raise ValueError("each module at most once")
        return value


class FullSection(MethodSection):
    """Full fine-tuning: every parameter of encoder and decoder trains that the training rows reach.

    Embeddings, position tables and norms among them. The image tower stays frozen unless `train_image_tower`; even
    then its BatchNorm layers normalise by the running statistics of the backbone, which stay as they are: batches of
    fine-tuning are small, and what is stored must compute as what was trained.
    """

    has_default_learning_rate: ClassVar[bool] = False

    method: Literal["full"] = "full"
    train_image_tower: bool = Field(
        False, description="train the image tower too; its BatchNorm statistics stay those of the backbone"
    )


Adaptation = Annotated[LoraSection | FullSection, Field(discriminator="method")]


def with_method(content: Any) -> Any:
    """A section's content with the default method where it names none."""
    return {"method": DEFAULT_METHOD, **content} if isinstance(content, dict) and "method" not in content else content
