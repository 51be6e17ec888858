"""``bmpeft.json``: what an adapter artifact says about itself, beyond what peft knows.

The schema is strict in both directions: a key that it does not know is an error, as is a value of another
type. `SCHEMA_VERSION` rises with every change that an older bmpeft would misread.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from bmpeft.errors import ArtifactError
from bmpeft.recipe import BackboneSection, LoraSection, TaskSection

SCHEMA_VERSION = 1
MANIFEST_FILE = "bmpeft.json"
CONFIG_FILE = "adapter_config.json"
TENSORS_FILE = "adapter_model.safetensors"
CARD_FILE = "README.md"
NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class BackboneIdentity(_Part):
    """The frozen model that the adapter belongs to."""

    name: str = Field(description="size, hub name, or last part of a path")
    family: str
    init: Literal["pretrained", "random"]
    init_seed: int | None
    fingerprint: Sha256 = Field(description="names the weights")
    tokenizer_digest: Sha256
    dtype: Literal["float32", "bfloat16"] = Field(description="of the frozen weights during training")
    attention: str = Field(description="attention backend during training")

    @property
    def section(self) -> BackboneSection:
        """The recipe section that loads it, where its name is enough for that (not for a directory elsewhere)."""
        if self.init == "random" and self.name.startswith("biomedgpt-"):
            return BackboneSection(name=self.name, init="random", init_seed=self.init_seed or 0)
        return BackboneSection(name=self.name)


class DataOrigin(_Part):
    """What the adapter was trained on; never a row of it."""

    dataset: str
    licence: str
    synthetic: bool
    split_method: str
    split_digests: dict[str, Sha256]
    contamination: dict[str, str] = Field(description="split -> official test set that rows of it are in")
    contaminated_rows: dict[str, int] = Field(description="split -> how many rows")
    train_rows: int = Field(description="that were trained on")
    validation_rows: int


class Limits(_Part):
    """Tokens per row; longer documents were cut."""

    max_source_length: int
    max_target_length: int
    rows_cut: int = Field(description="training rows whose document did not fit")
    document_tokens_cut: int = Field(description="tokens that these documents lost")


class TrainingSummary(_Part):
    """How the training went."""

    seed: int
    device: str
    precision: Literal["float32", "bfloat16"]
    steps: int
    epochs: float
    seconds: float
    supervised_tokens: int
    trainable_parameters: int
    total_parameters: int
    train_loss: float = Field(description="mean over all steps, nats per token")
    selected_step: int = Field(description="the stored adapter is that of this optimizer step")
    selected_by: str
    validation_loss: float | None = Field(description="nats per token, at the selected step")
    validation_accuracy: float | None


class Manifest(_Part):
    """The whole of ``bmpeft.json``."""

    schema_version: Literal[1] = 1
    name: str = Field(pattern=NAME_PATTERN)
    created: str = Field(pattern=r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ$", description="UTC")
    backbone: BackboneIdentity
    adaptation: LoraSection
    task: TaskSection = Field(description="with the prompt spelled out and the decoding")
    data: DataOrigin
    limits: Limits
    training: TrainingSummary
    recipe_name: str
    recipe: dict[str, Any] = Field(description="paths reduced to their last part")
    recipe_digest: Sha256
    files: dict[str, Sha256] = Field(description="SHA-256 of peft's two files")
    versions: dict[str, str]
    score_card: dict[str, Any] | None = None

    def to_json(self) -> bytes:
        return (json.dumps(self.model_dump(mode="json"), indent=2, ensure_ascii=False) + "\n").encode()


def parse_manifest(path: Path, content: bytes) -> Manifest:
    """Check the content of a ``bmpeft.json``.

    Raises:
        ArtifactError: names the file and the first key that is wrong.
    """
    try:
        # Python's reader first: its message is about the file; pydantic's would be about a union of types.
        version = json.loads(content).get("schema_version")
    except (ValueError, AttributeError, RecursionError):
        raise ArtifactError(f"{path}: not a JSON object") from None
    if type(version) is int and version > SCHEMA_VERSION:
        raise ArtifactError(
            f"{path}: schema version {version} is newer than this bmpeft reads ({SCHEMA_VERSION}): upgrade bmpeft"
        )
    try:
        return Manifest.model_validate_json(content, strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        raise ArtifactError(f"{path}: {key}: {first['msg']}") from None
