"""``bmpeft.json``: what an adapter artifact says about itself, beyond what peft knows.

The schema is strict in both directions: a key that it does not know is an error, as is a value of another
type. Its last key is the SHA-256 of the rest, so that damage and careless edits do not go unseen.
`SCHEMA_VERSION` rises with every change that an older bmpeft would misread.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
import struct
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from bmpeft.datasets.leakage import Leakage
from bmpeft.errors import ArtifactError
from bmpeft.recipe import BackboneSection
from bmpeft.recipe_adaptation import Adaptation
from bmpeft.recipe_errors import dotted_key
from bmpeft.recipe_task import TaskSection
from bmpeft.strict_json import parse_object

SCHEMA_VERSION = 3
MANIFEST_FILE = "bmpeft.json"
CONFIG_FILE = "adapter_config.json"
TENSORS_FILE = "adapter_model.safetensors"
CARD_FILE = "README.md"
NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"

DIGEST_KEY = "digest"
_PRINTABLE = r"^[^\x00-\x1f\x7f-\x9f]{1,255}$"  # it is shown in messages

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class ImagePreprocessing(_Part):
    """How images became pixels."""

    image_size: int = Field(ge=16, le=2048, multiple_of=16, description="side of the square, in pixels")
    image_mean_std: Literal["half", "imagenet"]
    digest: Sha256 = Field(description="of all settings, see `bmpeft.images.processing`")


class BackboneIdentity(_Part):
    """The frozen model that the adapter belongs to."""

    name: str = Field(pattern=_PRINTABLE, description="size, hub name, or last part of a path")
    family: str
    init: Literal["pretrained", "random"]
    init_seed: int | None
    fingerprint: Sha256 = Field(description="names the weights")
    tokenizer_digest: Sha256
    images: ImagePreprocessing | None = Field(description="None where no training row had an image")
    dtype: Literal["float32", "bfloat16"] = Field(description="of the frozen weights during training")
    attention: str = Field(description="attention backend during training")
    max_positions: int | None = Field(None, description="of sources and targets, beyond those of the weights")

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
    choices: tuple[str, ...] | None = Field(None, description="names of the labels, where all rows have the same ones")
    leakage: Leakage | None = Field(None, description="what the other splits share with the rows trained on")


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


class CanaryRecord(_Part):
    """The adapter's effect on a built-in input when it was saved, see `bmpeft.adapters.canary`."""

    input: Literal["text-1"] = Field(description="which built-in input, which places of its logits")
    dtype: Literal["float32", "bfloat16"] = Field(description="of the frozen weights when it was recorded")
    quantization: Literal["none"] = Field(description="of the frozen weights when it was recorded")
    change: str = Field(max_length=100_000, description="change of each logit: little-endian float32 in base64")
    change_norm: float = Field(ge=0, description="Euclidean norm of the change")
    logits_norm: float = Field(gt=0, description="Euclidean norm of the bare backbone's logits at the same places")

    @property
    def values(self) -> tuple[float, ...]:
        """The change of each logit, by position and, within one, by vocabulary entry."""
        content = base64.b64decode(self.change, validate=True)
        return struct.unpack(f"<{len(content) // 4}f", content)

    @staticmethod
    def encoded(values: Iterable[float]) -> str:
        """`change` for these values."""
        numbers = tuple(values)
        return base64.b64encode(struct.pack(f"<{len(numbers)}f", *numbers)).decode("ascii")

    @model_validator(mode="after")
    def _consistent(self) -> CanaryRecord:
        try:
            norm = math.hypot(*self.values)
        except (ValueError, struct.error):
            raise ValueError("change is not float32 numbers in base64") from None
        if not math.isclose(norm, self.change_norm, rel_tol=1e-5):  # also false for NaN
            raise ValueError(f"change_norm is {self.change_norm:.6g}, but the norm of change is {norm:.6g}")
        return self


class Manifest(_Part):
    """The whole of ``bmpeft.json``, but for its digest."""

    schema_version: Literal[3] = 3
    name: str = Field(pattern=NAME_PATTERN)
    created: str = Field(pattern=r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ$", description="UTC")
    backbone: BackboneIdentity
    adaptation: Adaptation
    task: TaskSection = Field(description="with the prompt spelled out and the decoding")
    data: DataOrigin
    limits: Limits
    training: TrainingSummary
    canary: CanaryRecord
    recipe_name: str
    recipe: dict[str, Any] = Field(description="paths reduced to their last part")
    recipe_digest: Sha256
    files: dict[str, Sha256] = Field(description="SHA-256 of the tensors' file and of peft's configuration, if any")
    versions: dict[str, str]
    score_card: dict[str, Any] | None = None

    def to_json(self) -> bytes:
        content = signed(self.model_dump(mode="json"))
        return (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode()


def signed(content: dict[str, Any]) -> dict[str, Any]:
    """The content with its digest as the last key; an older digest is replaced."""
    rest = {key: value for key, value in content.items() if key != DIGEST_KEY}
    canonical = json.dumps(rest, sort_keys=True, separators=(",", ":"))
    return {**rest, DIGEST_KEY: hashlib.sha256(canonical.encode()).hexdigest()}


def parse_manifest(path: Path, content: bytes) -> Manifest:
    """Check the content of a ``bmpeft.json``.

    Raises:
        ArtifactError: names the file and the first key that is wrong.
    """
    try:
        # Python's reader first: its message is about the file; pydantic's would be about a union of types.
        found = parse_object(content)
    except ValueError as error:
        raise ArtifactError(f"{path}: {error}") from None
    _check_version(path, found.get("schema_version"))
    digest = found.pop(DIGEST_KEY, None)
    try:
        manifest = Manifest.model_validate_json(json.dumps(found), strict=True)
        expected = signed(found)[DIGEST_KEY]
    except ValidationError as error:
        first = error.errors()[0]
        key = dotted_key(Manifest, first["loc"])
        raise ArtifactError(f"{path}: {_one_line(key)}: {_one_line(first['msg'])}") from None
    except RecursionError:
        raise ArtifactError(f"{path}: not JSON: nested too deeply") from None
    if digest != expected:
        raise ArtifactError(f"{path}: its content does not have the SHA-256 in {DIGEST_KEY!r}: damaged or edited")
    return manifest


def _check_version(path: Path, version: Any) -> None:
    if type(version) is not int or version == SCHEMA_VERSION:
        return  # the schema refuses what is no number
    if version > SCHEMA_VERSION:
        problem = f"is newer than this bmpeft reads ({SCHEMA_VERSION}): upgrade bmpeft"
    else:
        problem = f"is older than this bmpeft reads ({SCHEMA_VERSION}): train the adapter again"
    raise ArtifactError(f"{path}: schema version {str(version)[:20]} {problem}")


def _one_line(text: str) -> str:
    """Keys and values in a message come from the file: short, and nothing that moves a terminal's cursor."""
    return "".join(character if character.isprintable() else "?" for character in text)[:200]
