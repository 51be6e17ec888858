"""The recipe of `kind: pretrain`: a mixture of texts and images, six objectives, a whole backbone as the result.

Source of the objectives: BiomedGPT (Zhang et al. 2024), whose pretraining tasks these are: infilling of masked
spans, question answering, captioning, visual question answering, image classification, image-text matching.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from bmpeft.recipe import AugmentationSection, BackboneSection, Recipe, portable_name
from bmpeft.recipe_file import check_content, read_content
from bmpeft.recipe_section import Section

_COLUMN = re.compile(r"\{([^{}]+)\}")
Attribute = Literal["modality", "organ", "view", "finding", "severity", "size", "count"]
"""What the labels of a dataset may stand for, see `bmpeft.training.pretraining.wordings`."""


class CorpusSection(Section):
    """One source: texts and questions of a file (`path`), the embedded facts, or images of a dataset (`dataset`)."""

    name: str = Field(pattern=r"^[a-z0-9_-]{1,40}$", description="in logs and the report")
    path: str | None = Field(None, description="below data_root: .txt, .jsonl, .json, .csv or .tsv, also with .gz")
    embedded: Literal["facts"] | None = Field(None, description="instead of path: the known facts, as statements")
    text: tuple[str, ...] = Field((), description="columns to infill; a number counts the columns of a .tsv from 0")
    prompt: str | None = Field(
        None, description='what is asked, with columns in braces, such as " {question}"; starts with a space'
    )
    answer: str | None = Field(None, description="column of the prompt's answer; a list is joined by semicolons")
    without_ids: str | None = Field(None, description="below data_root: a .json whose keys name rows to leave out")
    dataset: str | None = Field(
        None, description="reader of the images at path; their training split is read, see `bmpeft data list`"
    )
    variant: str | None = Field(None, description="of the dataset, as data.variant")
    label_names: dict[str | int, str] | None = Field(None, description="of the dataset, as data.label_names")
    shows: dict[Attribute, str] = Field({}, description="what every image of the dataset shows: attribute -> words")
    label_shows: dict[str | int, dict[Attribute, str]] = Field(
        {}, description="what images of a label show besides: name of the label -> attribute -> words"
    )
    mirrored: bool = Field(False, description="whether an image's label and attributes hold for its mirror image")
    balanced: bool = Field(False, description="draw every label of the images equally often")
    weight: float = Field(gt=0.0, description="share of the rows, relative to the other sources")
    final_weight: float | None = Field(
        None, ge=0.0, description="the same in the last training.final_share of the steps; default: weight"
    )
    licence: str = Field(description="of the texts or images; goes into the report")
    obtain: str = Field("", description="where the file comes from; shown where it is missing")

    @model_validator(mode="after")
    def _one_kind(self) -> CorpusSection:
        if (self.path is None) == (self.embedded is None):
            raise ValueError("give either path or embedded")
        if (self.prompt is None) != (self.answer is None):
            raise ValueError("prompt and answer belong together")
        if self.prompt is not None:
            columns, literals = _COLUMN.findall(self.prompt), _COLUMN.sub("", self.prompt)
            if not columns or len(set(columns)) < len(columns) or "{" in literals or "}" in literals:
                raise ValueError("prompt: names columns in braces, each once, such as {question}")
        if self.dataset is not None and (self.text or self.prompt or self.without_ids):
            raise ValueError("text, prompt, answer and without_ids are for files of texts, not for a dataset")
        of_images = self.variant or self.label_names or self.shows or self.label_shows or self.mirrored or self.balanced
        if self.dataset is None and of_images:
            raise ValueError(
                "variant, label_names, shows, label_shows, mirrored and balanced are for a dataset of images"
            )
        return self


class ExcludeSection(Section):
    """Rows that something is measured on: whatever the corpus shares with them is removed from it."""

    dataset: str = Field(description="name of a reader; see `bmpeft data list`")
    path: str = Field(description="below data_root; `embedded` for the synthetic set of the package")
    splits: tuple[str, ...] = Field(("validation", "test*"), min_length=1, description="names or patterns")
    variant: str | None = Field(None, description="of the dataset, as data.variant")
    split_by: Literal["official", "group", "image"] = Field("official", description="as data.split_by")
    cop_base: Literal[0, 1] | None = Field(None, description="medmcqa only, as data.cop_base")


class ImageTasksSection(Section):
    """Of the rows with an image, the shares of the tasks, relative to each other; 0 leaves one out."""

    captioning: float = Field(1.0, ge=0.0)
    visual_question_answering: float = Field(1.0, ge=0.0)
    image_classification: float = Field(1.0, ge=0.0)
    image_text_matching: float = Field(1.0, ge=0.0)

    @model_validator(mode="after")
    def _some(self) -> ImageTasksSection:
        if not any(self.model_dump().values()):
            raise ValueError("one of the tasks needs a share above 0")
        return self


class ObjectiveSection(Section):
    """How a row is made of a text or an image."""

    mask_share: float = Field(0.3, gt=0.0, lt=1.0, description="share of the tokens that infilling hides")
    mean_span: float = Field(3.0, ge=1.0, le=20.0, description="Poisson mean of a hidden span's length, in tokens")
    question_share: float = Field(0.5, ge=0.0, le=1.0, description="of a source with both, the share of questions")
    max_source_length: int = Field(128, ge=16, le=1024, description="tokens, special tokens included")
    max_target_length: int = Field(96, ge=8, le=1024, description="tokens, end token included; longer texts are split")
    image_tasks: ImageTasksSection = ImageTasksSection()


class PretrainTrainingSection(Section):
    """AdamW over all parameters; those that only images reach stay as they are while no source has images."""

    steps: int = Field(ge=1, description="optimizer steps")
    batch_tokens: int = Field(4096, ge=64, description="tokens of source and target in a batch, padding included")
    batch_images: int = Field(32, ge=2, description="rows of a batch with images; all of one task")
    learning_rate: float = Field(1e-3, gt=0.0, le=1.0)
    encoder_learning_rate_factor: float = Field(
        0.05,
        gt=0.0,
        le=1.0,
        description="the encoder's own parameters train at this share of learning_rate at first: at the full rate an "
        "untrained encoder's output collapses to a constant in the first steps (docs/nano.md)",
    )
    encoder_slow_share: float = Field(
        0.1, ge=0.0, le=0.5, description="share of the steps at that rate; it rises in as many steps again"
    )
    encoder_late_factor: float | None = Field(
        None, gt=0.0, le=1.0, description="the encoder's share of learning_rate from then on; default: as at first"
    )
    tower_learning_rate_factor: float = Field(
        1.0, ge=0.0, le=100.0, description="image tower and the layer behind it train at this share; 0: not at all"
    )
    batch_statistics: float = Field(
        0.8,
        ge=0.0,
        le=1.0,
        description="share of the steps in which the tower's BatchNorm normalises by its batch; in the others by its "
        "running statistics, as it always does once it is frozen",
    )
    final_share: float = Field(
        0.0, ge=0.0, lt=1.0, description="share of the steps, at the end, in which sources weigh their final_weight"
    )
    sample_patch_num: int | None = Field(
        None, ge=1, description="read so many randomly drawn patches of each image, as BiomedGPT was pretrained"
    )
    augmentation: AugmentationSection = AugmentationSection()
    warmup: float = Field(0.05, ge=0.0, lt=1.0, description="share of the steps")
    weight_decay: float = Field(0.01, ge=0.0, le=1.0)
    max_grad_norm: float = Field(1.0, gt=0.0)
    dropout: float = Field(0.0, ge=0.0, lt=1.0)
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    seed: int = Field(0, ge=0)
    checkpoint_steps: int = Field(200, ge=1, description="steps between checkpoints")
    logging_steps: int = Field(20, ge=1)
    validation_share: float = Field(0.01, gt=0.0, lt=0.5, description="of each source, never trained on")

    @model_validator(mode="after")
    def _rising(self) -> PretrainTrainingSection:
        if self.encoder_late_factor is not None and self.encoder_late_factor < self.encoder_learning_rate_factor:
            raise ValueError("encoder_late_factor: lower than encoder_learning_rate_factor")
        return self


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
    exclude: tuple[ExcludeSection, ...] = ()
    objective: ObjectiveSection = ObjectiveSection()
    training: PretrainTrainingSection
    output: PretrainOutputSection

    @model_validator(mode="after")
    def _distinct_names(self) -> PretrainRecipe:
        names = [source.name for source in self.corpus]
        if len(set(names)) != len(names):
            raise ValueError("corpus: each name at most once")
        weighed = any(source.final_weight is not None for source in self.corpus)
        if weighed != (self.training.final_share > 0.0):
            raise ValueError("corpus.final_weight and training.final_share need each other")
        if weighed and not any(source.final_weight != 0.0 for source in self.corpus):
            raise ValueError("corpus.final_weight: 0 for every source leaves nothing to read")
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
        places += [(source, "without_ids") for source in content["corpus"]]
        places += [(excluded, "path") for excluded in content["exclude"]]
        for section, key in places:
            if section[key] is not None:
                section[key] = Path(section[key]).name
        return content


def load_any_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Recipe | PretrainRecipe:
    """Read a recipe of either kind; see `bmpeft.recipe.load_recipe`. Raises RecipeError."""
    content = read_content(path)
    schema: type[Recipe | PretrainRecipe] = PretrainRecipe if "kind" in content else Recipe
    return check_content(content, schema, source=str(path), overrides=overrides)
