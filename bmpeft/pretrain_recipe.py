"""The recipe of `kind: pretrain`: a mixture of texts, two objectives, a whole backbone as the result.

Source of the objectives: BiomedGPT (Zhang et al. 2024), whose text tasks these are: infilling of masked
spans and question answering.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from bmpeft.recipe import BackboneSection, Recipe, portable_name
from bmpeft.recipe_file import check_content, read_content
from bmpeft.recipe_section import Section


class CorpusSection(Section):
    """One source of texts or of questions with answers."""

    name: str = Field(pattern=r"^[a-z0-9_-]{1,40}$", description="in logs and the report")
    path: str | None = Field(None, description="below data_root: .txt, .jsonl, .json, .csv or .tsv, also with .gz")
    embedded: Literal["facts"] | None = Field(None, description="instead of path: the known facts, as statements")
    text: tuple[str, ...] = Field((), description="columns to infill; a number counts the columns of a .tsv from 0")
    question: str | None = Field(None, description="column of the question")
    answer: str | None = Field(None, description="column of its answer")
    without_ids: str | None = Field(None, description="below data_root: a .json whose keys name rows to leave out")
    weight: float = Field(gt=0.0, description="share of the rows, relative to the other sources")
    licence: str = Field(description="of the texts; goes into the report")
    obtain: str = Field("", description="where the file comes from; shown where it is missing")

    @model_validator(mode="after")
    def _one_kind(self) -> CorpusSection:
        if (self.path is None) == (self.embedded is None):
            raise ValueError("give either path or embedded")
        if (self.question is None) != (self.answer is None):
            raise ValueError("question and answer belong together")
        return self


class ObjectiveSection(Section):
    """How a row is made of a text."""

    mask_share: float = Field(0.3, gt=0.0, lt=1.0, description="share of the tokens that infilling hides")
    mean_span: float = Field(3.0, ge=1.0, le=20.0, description="Poisson mean of a hidden span's length, in tokens")
    question_share: float = Field(0.5, ge=0.0, le=1.0, description="of a source with both, the share of questions")
    max_source_length: int = Field(128, ge=16, le=1024, description="tokens, special tokens included")
    max_target_length: int = Field(96, ge=8, le=1024, description="tokens, end token included; longer texts are split")


class PretrainTrainingSection(Section):
    """AdamW over all text parameters; the image tower stays as it is while no source has images."""

    steps: int = Field(ge=1, description="optimizer steps")
    batch_tokens: int = Field(4096, ge=64, description="tokens of source and target in a batch, padding included")
    learning_rate: float = Field(1e-3, gt=0.0, le=1.0)
    encoder_learning_rate_factor: float = Field(
        0.05,
        gt=0.0,
        le=1.0,
        description="the encoder's own parameters train at this share of learning_rate: at the full rate an "
        "untrained encoder's output collapses to a constant in the first steps (docs/nano.md)",
    )
    warmup: float = Field(0.05, ge=0.0, lt=1.0, description="share of the steps")
    weight_decay: float = Field(0.01, ge=0.0, le=1.0)
    max_grad_norm: float = Field(1.0, gt=0.0)
    dropout: float = Field(0.0, ge=0.0, lt=1.0)
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    seed: int = Field(0, ge=0)
    checkpoint_steps: int = Field(200, ge=1, description="steps between checkpoints")
    logging_steps: int = Field(20, ge=1)
    validation_share: float = Field(0.01, gt=0.0, lt=0.5, description="of each source's texts, never trained on")


class PretrainOutputSection(Section):
    """Where the backbone goes."""

    directory: str = Field(description="the backbone directory to write; must not exist")
    runs: str = Field("runs", description="logs and checkpoints go to runs/NAME of the directory")
    dtype: Literal["float32", "bfloat16"] = "bfloat16"


class PretrainRecipe(Section):
    """A whole pretraining recipe."""

    kind: Literal["pretrain"]
    version: Literal[1] = 1
    description: str = ""
    data_root: str = Field(".", description="directory that the sources' paths start from")
    backbone: BackboneSection
    corpus: tuple[CorpusSection, ...] = Field(min_length=1)
    objective: ObjectiveSection = ObjectiveSection()
    training: PretrainTrainingSection
    output: PretrainOutputSection

    @model_validator(mode="after")
    def _distinct_names(self) -> PretrainRecipe:
        names = [source.name for source in self.corpus]
        if len(set(names)) != len(names):
            raise ValueError("corpus: each name at most once")
        if self.backbone.max_positions is not None:
            raise ValueError("backbone.max_positions: adapters may use more positions, pretraining does not")
        return self

    def digest(self) -> str:
        """SHA-256 of the content, paths included."""
        return hashlib.sha256(json.dumps(self.model_dump(mode="json"), sort_keys=True).encode()).hexdigest()

    def portable(self) -> dict[str, Any]:
        """The content with directories reduced to their last part."""
        content: dict[str, Any] = self.model_dump(mode="json")
        content["backbone"]["name"] = portable_name(self.backbone.name)
        places = [(content, "data_root"), (content["output"], "directory"), (content["output"], "runs")]
        places += [(content["backbone"], "tokenizer"), *((source, "path") for source in content["corpus"])]
        for section, key in places:
            if section[key] is not None:
                section[key] = Path(section[key]).name
        return content


def load_any_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Recipe | PretrainRecipe:
    """Read a recipe of either kind; see `bmpeft.recipe.load_recipe`. Raises RecipeError."""
    content = read_content(path)
    schema: type[Recipe | PretrainRecipe] = PretrainRecipe if "kind" in content else Recipe
    return check_content(content, schema, source=str(path), overrides=overrides)
