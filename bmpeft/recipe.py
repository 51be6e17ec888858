"""The recipe: one YAML file that says which backbone, method, task, data and training.

The schema below is the reference of every key, default and range; `bmpeft recipes schema` prints it
as JSON schema. Unknown keys are errors. Values are overridden as ``section.key=value`` and checked by
the same schema. What a combination cannot do is refused here, before anything is loaded.
"""

from __future__ import annotations

import fnmatch
import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from bmpeft.errors import RecipeError, UsageError, did_you_mean
from bmpeft.recipe_adaptation import Adaptation, LoraSection, with_method
from bmpeft.recipe_controls import ControlName, control_problem
from bmpeft.recipe_file import check_content, read_content
from bmpeft.recipe_section import MAX_POSITIONS, TRAINED_POSITIONS, Section
from bmpeft.recipe_task import TaskSection

RECIPE_SCHEMA_VERSION: Literal[1] = 1


class BackboneSection(Section):
    """Which model stays frozen."""

    name: str = Field(
        description="an embedded or size name (biomedgpt-nano ... biomedgpt-xlarge), a directory, or a hub name"
    )
    init: Literal["pretrained", "random"] = Field(
        "pretrained", description="random: untrained weights drawn from init_seed"
    )
    init_seed: int = Field(0, ge=0, description="seed of the random weights")
    tokenizer: str | None = Field(None, description="directory with tokenizer files, where the backbone has none")
    dtype: Literal["auto", "float32", "bfloat16"] = Field(
        "auto", description="of the frozen weights; auto: bfloat16 on a GPU that has it, else float32"
    )
    attention: Literal["auto", "eager", "sdpa", "chunked", "flash", "flex", "triton"] = Field(
        "auto",
        description="attention backend; auto: by length and device; eager is the specification; chunked, and triton "
        "on a GPU, need memory linear in the length",
    )
    max_positions: int | None = Field(
        None,
        ge=8,
        le=MAX_POSITIONS,
        description=f"of sources and targets, beyond the {TRAINED_POSITIONS:,} of the published weights; "
        "default: as many as the weights have",
    )
    image_size: int | None = Field(
        None,
        ge=16,
        le=2048,
        multiple_of=16,
        description="side in pixels of the square that images are resized to; default: the backbone's own",
    )
    image_mean_std: Literal["half", "imagenet"] | None = Field(
        None, description="normalisation: mean and deviation 0.5, or ImageNet's; default: the backbone's own"
    )


class SplitSection(Section):
    """How a distribution without official splits is divided: by group, by a seeded hash, recorded in the card."""

    validation: float = Field(0.1, ge=0.0, lt=1.0, description="share of the groups")
    test: float = Field(0.2, ge=0.0, lt=1.0, description="share of the groups")
    seed: int = Field(0, ge=0)

    @model_validator(mode="after")
    def _something_left(self) -> SplitSection:
        if self.validation + self.test >= 1.0:
            raise ValueError("validation + test must leave something to train on (sum below 1)")
        return self


class DataSection(Section):
    """Which rows."""

    dataset: str = Field(description="name of a reader, such as `medqa` or `csv`; see `bmpeft data list`")
    path: str = Field(
        description="file or directory as its owners distribute it; `embedded` for the synthetic set of the package"
    )
    split: SplitSection = Field(
        default_factory=SplitSection, description="used where the files carry no official split"
    )
    split_by: Literal["official", "group", "image"] = Field(
        "official",
        description="group, image: pool the official splits and divide them anew by `split`, so that no group "
        "(patient, question ...) or no image is in two of them",
    )
    fields: dict[str, str | tuple[str, ...]] | None = Field(
        None, description="own data only: field of a record -> column, or list of columns"
    )
    label_names: dict[str | int, str] | None = Field(
        None, description="label in the files -> name that the model reads and writes, in the order of the labels"
    )
    label_base: Literal[0, 1] | None = Field(
        None, description="own data only: whether labels that are numbers count the choices from 0 or from 1"
    )
    delimiter: Literal[",", ";", "\t", "|"] | None = Field(
        None, description="own tables only: between cells; default: a tab for .tsv, else a comma"
    )
    images: str | None = Field(None, description="directory of the images, where it is not beside the data file")
    licence: str | None = Field(None, description="own data only: the licence that records and adapter state")
    variant: str | None = Field(None, description="which of several targets of a dataset; see `bmpeft data list`")
    accept_leakage: bool = Field(
        False,
        description="train although scored rows share images, groups or whole rows with training; on the card",
    )
    skip_bad_rows: int = Field(
        0, ge=0, description="leave out up to so many bad rows, counted on the card; images are decoded to find them"
    )
    cop_base: Literal[0, 1] | None = Field(
        None, description="medmcqa only, required there: whether `cop` counts options from 0 or from 1"
    )
    max_source_length: int = Field(256, ge=8, le=MAX_POSITIONS, description="tokens, special tokens included")
    max_target_length: int = Field(64, ge=2, le=MAX_POSITIONS, description="tokens, end token included")
    balance_labels: bool = Field(
        False,
        description="train on the rows of rarer labels so often that all labels come equally often; the control "
        "classic weighs them so, too",
    )
    train_rows: int | None = Field(None, ge=1, description="train on the first n rows of a seeded shuffle only")

    @property
    def is_hub_name(self) -> bool:
        """Whether `path` names a dataset of the hub: nothing of that name is here."""
        return self.dataset == "hf" and not Path(self.path).expanduser().exists()


class AugmentationSection(Section):
    """How far images are changed at each reading in training, see `bmpeft.images.augmentation`."""

    shift: float = Field(0.1, ge=0.0, le=0.5, description="share of the side")
    rotation: float = Field(12.0, ge=0.0, le=180.0, description="degrees")
    scale: float = Field(0.15, ge=0.0, lt=1.0)
    brightness: float = Field(0.15, ge=0.0, le=1.0, description="share of the range of values")
    contrast: float = Field(0.3, ge=0.0, le=1.0)


class MirroredAugmentationSection(AugmentationSection):
    """The same, and whether left and right may be exchanged."""

    mirrored: bool = Field(False, description="mirror every other image: where labels and answers hold for that, too")


class TrainingSection(Section):
    """How the trainable parameters are optimised (AdamW, Loshchilov & Hutter 2019)."""

    learning_rate: float = Field(1e-3, gt=0.0, le=1.0)
    epochs: float = Field(3.0, gt=0.0, le=10_000.0)
    max_steps: int | None = Field(None, ge=1, description="optimizer steps; overrides epochs")
    batch_size: int = Field(32, ge=1)
    gradient_accumulation: int = Field(1, ge=1)
    weight_decay: float = Field(0.01, ge=0.0, le=1.0)
    warmup: float = Field(0.06, ge=0.0, lt=1.0, description="share of the steps")
    schedule: Literal["linear", "cosine", "polynomial", "constant"] = Field(
        "linear", description="of the learning rate after the warm-up: to 0, except constant"
    )
    schedule_power: float | None = Field(
        None,
        gt=0.0,
        le=10.0,
        description="of schedule=polynomial, required there: rate * (share of steps left) ** power",
    )
    max_grad_norm: float = Field(1.0, gt=0.0)
    seed: int = Field(0, ge=0)
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        "auto", description="of the computation; auto: bfloat16 where the device has it in hardware, else float32"
    )
    activation_checkpointing: bool = Field(
        False, description="recompute layers in the backward pass: less memory, about a third more time"
    )
    evaluations: int | None = Field(
        None,
        ge=1,
        le=1000,
        description="how many times in the run the validation split is measured and a checkpoint kept; "
        "3 where evaluate_every is not given",
    )
    evaluate_every: int | None = Field(
        None, ge=1, description="instead of evaluations: after every so many optimizer steps, and after the last"
    )
    patience: int | None = Field(
        None, ge=1, le=1000, description="stop after so many evaluations in a row without a better select_by figure"
    )
    min_delta: float = Field(
        0.0, ge=0.0, description="with patience: a figure is better if it is by more than this (nats, or accuracy)"
    )
    select_by: Literal["loss", "accuracy"] = Field(
        "loss", description="validation figure that picks the best checkpoint; accuracy needs closed answers"
    )
    label_smoothing: float = Field(
        0.0, ge=0.0, lt=1.0, description="share of each target that is spread evenly over the other text tokens"
    )
    drop_worst_ratio: float = Field(
        0.0, ge=0.0, lt=1.0, description="share of a forward pass's tokens, those of the highest loss, left out"
    )
    drop_worst_after: int = Field(0, ge=0, description="with drop_worst_ratio: optimizer steps without it at the start")
    decoder_noise: float = Field(
        0.0, ge=0.0, le=1.0, description="share of the decoder's input tokens replaced by random text tokens"
    )
    drop_path: float | None = Field(
        None,
        ge=0.0,
        lt=1.0,
        description="stochastic depth of encoder and decoder: 0 at the first layer, rising to this at the last; "
        "default: the backbone's own",
    )
    sample_patch_num: int | None = Field(
        None, ge=1, description="in each training step, so many randomly drawn patches of each image; default: all"
    )
    augmentation: MirroredAugmentationSection | None = Field(
        None, description="change the images of training rows at each reading; {} with the limits below; default: not"
    )
    ema_decay: float | None = Field(
        None, gt=0.0, lt=1.0, description="evaluate and store a moving average of the trainable tensors with this decay"
    )
    logging_steps: int = Field(10, ge=1)
    tensorboard: bool = True

    @model_validator(mode="after")
    def _options_that_belong_together(self) -> TrainingSection:
        if self.evaluations is not None and self.evaluate_every is not None:
            raise ValueError("evaluations and evaluate_every say the same thing in two ways: give one of them")
        if (self.schedule == "polynomial") != (self.schedule_power is not None):
            raise ValueError("schedule=polynomial and schedule_power need each other")
        if self.min_delta and self.patience is None:
            raise ValueError("min_delta needs patience")
        if self.drop_worst_after and not self.drop_worst_ratio:
            raise ValueError("drop_worst_after needs drop_worst_ratio")
        return self


class EvaluationSection(Section):
    """What is measured after training and against which controls."""

    splits: tuple[str, ...] = Field(
        ("test*",), min_length=1, description="names or shell patterns; each must match a split of the dataset"
    )
    limit: int | None = Field(
        None, ge=1, description="rows per split (the first of a seeded shuffle); written on the card"
    )
    batch_size: int = Field(32, ge=1)
    controls: tuple[ControlName, ...] | None = Field(
        None, description="what the model is compared with; default: every control that fits task, decoding and rows"
    )
    bootstrap_samples: int = Field(2000, ge=100, le=100_000)


class OutputSection(Section):
    """Where the adapter and the run's logs and checkpoints go."""

    name: str = Field(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$", description="of the adapter: letters, digits, . _ -"
    )
    directory: str = Field("adapters", description="the adapter is written to directory/name")
    runs: str = Field("runs", description="logs and checkpoints are written to runs/name")
    overwrite: bool = Field(False, description="replace an adapter of this name (atomically, after training succeeded)")


_LATER_SETTINGS = (("training", "augmentation", None), ("data", "balance_labels", False))
"""(section, key, default) of settings that came after the first digests were committed."""


class Recipe(Section):
    """A whole recipe."""

    version: Literal[1] = RECIPE_SCHEMA_VERSION
    description: str = ""
    backbone: BackboneSection
    adaptation: Adaptation = LoraSection()
    task: TaskSection = TaskSection()
    data: DataSection
    training: TrainingSection = TrainingSection()
    evaluation: EvaluationSection = EvaluationSection()
    output: OutputSection

    @field_validator("adaptation", mode="before")
    @classmethod
    def _default_method(cls, value: Any) -> Any:
        return with_method(value)

    @model_validator(mode="after")
    def _combinations(self) -> Recipe:
        closed = self.task.decoding.method == "candidates"
        if self.training.select_by == "accuracy" and not closed:
            raise ValueError("training.select_by=accuracy needs task.decoding.method=candidates")
        for control in self.evaluation.controls or ():
            problem = control_problem(control, task=self.task.name, method=self.task.decoding.method)
            if problem is not None:
                raise ValueError(f"evaluation.controls: {problem}")
        if self.data.dataset == "medmcqa" and self.data.cop_base is None:
            raise ValueError("data.cop_base: medmcqa needs 0 (the hub's copy) or 1 (the original files)")
        if self.data.dataset != "medmcqa" and self.data.cop_base is not None:
            raise ValueError(f"data.cop_base is an option of medmcqa, not of {self.data.dataset}")
        if self.data.path == "embedded" and self.data.dataset != "medqa":
            raise ValueError(f"data.path=embedded exists for dataset medqa, not for {self.data.dataset}")
        if self.backbone.init == "random" and not self.backbone.name.startswith("biomedgpt-"):
            raise ValueError("backbone.init=random needs a size name (biomedgpt-nano ... biomedgpt-xlarge)")
        named = "learning_rate" in self.training.model_fields_set
        if not (named or self.adaptation.has_default_learning_rate):
            raise ValueError(
                f"training.learning_rate: adaptation.method={self.adaptation.method} needs one, such as 1e-4; the "
                f"default, {self.training.learning_rate:g}, is for adapters that start without an effect"
            )
        self._refuse_lengths_without_positions()
        return self

    def _refuse_lengths_without_positions(self) -> None:
        positions = self.backbone.max_positions or TRAINED_POSITIONS
        lengths = {
            "data.max_source_length": self.data.max_source_length,
            "data.max_target_length": self.data.max_target_length,
        }
        written = {"task.decoding": self.task.decoding, "task.decoding.open": getattr(self.task.decoding, "open", None)}
        lengths |= {f"{key}.max_new_tokens": getattr(part, "max_new_tokens", 0) for key, part in written.items()}
        for key, length in lengths.items():
            if length > positions:
                raise ValueError(
                    f"{key}={length} needs backbone.max_positions={length}: there are positions for {positions}"
                )

    def digest(self) -> str:
        """SHA-256 of the recipe's content, paths included, independent of key order and YAML style.

        A setting that came later counts only where it is not at its default: what a recipe does has not changed then.
        """
        content = self.model_dump(mode="json")
        for section, key, default in _LATER_SETTINGS:
            if content[section][key] == default:
                del content[section][key]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    def portable(self) -> dict[str, Any]:
        """The recipe as it is stored in an artifact.

        Paths are reduced to their last part, so that no directory names leave the machine.
        """
        content: dict[str, Any] = self.model_dump(mode="json")
        for section, key in (
            ("data", "path"),
            ("data", "images"),
            ("backbone", "tokenizer"),
            ("output", "directory"),
            ("output", "runs"),
        ):
            if content[section][key] is not None and not (key == "path" and self.data.is_hub_name):
                content[section][key] = Path(content[section][key]).name
        decoding = content["task"]["decoding"]
        for part in (decoding, decoding.get("open", {})):
            if part.get("answers_file") is not None:
                part["answers_file"] = Path(part["answers_file"]).name
        content["backbone"]["name"] = portable_name(content["backbone"]["name"])
        return content


def portable_name(name: str) -> str:
    """A backbone's name as it is stored: sizes and hub names stay, a path is reduced to its last part."""
    return Path(name).name if Path(name).is_absolute() or name.startswith((".", "~")) else name


def load_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe file and apply overrides of the form ``section.key=value``.

    Raises:
        RecipeError: the file is missing, no YAML mapping, has an unknown key (names the nearest valid
            one), a value of the wrong type or out of range (names the range), or a combination that
            cannot work.
    """
    content = read_content(path)
    if "kind" in content:
        raise RecipeError(f"{path}: is no recipe for an adapter (kind {content['kind']!r})")
    return parse_recipe(content, source=str(path), overrides=overrides)


def parse_recipe(content: dict[str, Any], *, source: str, overrides: Sequence[str] = ()) -> Recipe:
    """Check a recipe's content; `source` names it in errors. Raises RecipeError."""
    return check_content(content, Recipe, source=source, overrides=overrides)


def match_splits(patterns: Iterable[str], available: Iterable[str]) -> tuple[str, ...]:
    """Return the splits that `evaluation.splits` names, each once, in the order of the patterns.

    A pattern is a name or a shell pattern: ``test*`` is every test split that a dataset happens to have.

    Raises:
        UsageError: a pattern matches no split.
    """
    names = tuple(available)
    chosen: dict[str, None] = {}
    for pattern in patterns:
        matches = fnmatch.filter(names, pattern)
        if not matches:
            raise UsageError(f"evaluation.splits: no split matches {pattern!r}{did_you_mean(pattern, names)}")
        chosen.update(dict.fromkeys(matches))
    return tuple(chosen)
