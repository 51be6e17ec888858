"""The adapter artifact: a directory that says what it belongs to, and that peft can load if it knows the method.

    adapter_model.safetensors                          the tensors; of LoRA named as peft names them
    adapter_config.json                                peft's own format; not of methods that peft cannot load
    bmpeft.json                                        see `bmpeft.adapters.manifest`
    README.md                                          model card

Written whole or not at all, read strictly: what is missing, damaged, foreign or for another backbone is one
clear error. Nothing here imports torch except writing and reading the tensors themselves.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bmpeft import __version__
from bmpeft.adaptation.formats import format_of
from bmpeft.adaptation.peft_config import check_config, config_json
from bmpeft.adapters import atomic
from bmpeft.adapters.manifest import (
    CARD_FILE,
    CONFIG_FILE,
    MANIFEST_FILE,
    NAME_PATTERN,
    TENSORS_FILE,
    BackboneIdentity,
    CanaryRecord,
    DataOrigin,
    ImagePreprocessing,
    Limits,
    Manifest,
    TrainingSummary,
    parse_manifest,
)
from bmpeft.adapters.model_card import model_card
from bmpeft.adapters.safetensors_file import TensorEntry, read_header
from bmpeft.errors import ArtifactError, BmpeftError, UsageError
from bmpeft.recipe import BackboneSection, Recipe, portable_name
from bmpeft.recipe_task import TaskSection

if TYPE_CHECKING:
    import torch

    from bmpeft.backbones.base import FrozenBackbone

_CONTROL_CHARACTER = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")  # all but tab and line feed
_LARGEST_TEXT = 4_000_000  # bytes of a JSON file or the model card; some ten thousand are usual
_VERSIONS_OF = ("torch", "transformers", "peft", "safetensors", "tokenizers")


@dataclass(frozen=True)
class Artifact:
    """An adapter on disk that passed every check that needs no backbone."""

    directory: Path
    manifest: Manifest
    tensors: Mapping[str, TensorEntry]

    @property
    def name(self) -> str:
        return self.directory.name

    @property
    def with_images(self) -> bool:
        """Whether a row that it was trained on had an image."""
        return self.manifest.backbone.images is not None

    @property
    def digest(self) -> str:
        """SHA-256 of what it computes and of what that should be; a new score card changes nothing."""
        content = {"files": self.manifest.files, "canary": self.manifest.canary.model_dump(mode="json")}
        return _sha256(json.dumps(content, sort_keys=True).encode())

    def read_tensors(self) -> dict[str, torch.Tensor]:
        """The adapter's tensors, on the CPU; the very bytes that were read are those that are checked.

        Raises:
            ArtifactError: the file changed since it was checked.
        """
        from safetensors.torch import load

        content = _read(self.directory / TENSORS_FILE)
        _check_digest(self.directory / TENSORS_FILE, content, self.manifest)
        return dict(load(content))


@dataclass(frozen=True)
class ArtifactSummary:
    """One row of a list of adapters."""

    directory: Path
    manifest: Manifest
    size: int
    """Bytes of the tensors' file."""

    @property
    def name(self) -> str:
        return self.directory.name


@dataclass(frozen=True)
class BrokenArtifact:
    """A directory among the adapters that is no usable artifact, and why."""

    directory: Path
    problem: str

    @property
    def name(self) -> str:
        return self.directory.name


def save_artifact(
    directory: str | Path,
    *,
    backbone: FrozenBackbone,
    recipe: Recipe,
    recipe_name: str,
    task: TaskSection,
    data: DataOrigin,
    limits: Limits,
    with_images: bool,
    training: TrainingSummary,
    canary: CanaryRecord,
    tensors: Mapping[str, torch.Tensor],
    overwrite: bool = False,
) -> Artifact:
    """Write an artifact in one step; one that was there stays whole until the new one is.

    The last part of `directory` becomes the adapter's name. `task` has the prompt spelled out. `with_images` says
    whether a training row had an image. `tensors` are float32 and named as the method's `shapes` say.

    Raises:
        ArtifactError: the name is not allowed, the directory exists and `overwrite` is false, or the
            disk refuses; in every case what was there is unchanged.
    """
    from safetensors.torch import save

    directory = Path(directory)
    check_writable(directory, overwrite=overwrite)
    config = format_of(recipe.adaptation).peft_config(recipe.adaptation, backbone.name)
    stored = {} if config is None else {CONFIG_FILE: config_json(config)}
    stored[TENSORS_FILE] = save(dict(tensors), metadata={"format": "pt"})
    manifest = Manifest(
        name=directory.name,
        created=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        backbone=backbone_identity(backbone, with_images=with_images),
        adaptation=recipe.adaptation,
        task=task,
        data=data,
        limits=limits,
        training=training,
        canary=canary,
        recipe_name=recipe_name,
        recipe=recipe.portable(),
        recipe_digest=recipe.digest(),
        files={name: _sha256(content) for name, content in stored.items()},
        versions={"bmpeft": __version__, **{package: version(package) for package in _VERSIONS_OF}},
    )
    files = {**stored, MANIFEST_FILE: manifest.to_json(), CARD_FILE: model_card(manifest).encode()}
    try:
        atomic.write_directory(directory, files)
    except OSError as error:
        raise ArtifactError(f"{directory}: cannot be written: {error.strerror or error}") from None
    return load_artifact(directory)


def backbone_identity(backbone: FrozenBackbone, *, with_images: bool) -> BackboneIdentity:
    """What an adapter remembers of the backbone that it was trained on; of its image processor, if it saw images."""
    processor = backbone.image_processor if with_images else None
    return BackboneIdentity(
        name=portable_name(backbone.name),
        family=backbone.family,
        init=backbone.init,
        init_seed=backbone.init_seed,
        fingerprint=backbone.fingerprint,
        tokenizer_digest=backbone.tokenizer_digest,
        images=processor
        and ImagePreprocessing(
            image_size=processor.image_size, image_mean_std=processor.image_mean_std, digest=processor.digest
        ),
        dtype=str(backbone.dtype).removeprefix("torch."),
        attention=backbone.attention,
        max_positions=backbone.max_positions,
    )


def check_writable(directory: Path, *, overwrite: bool) -> None:
    """Whether an adapter may be written here; writes nothing.

    Raises:
        ArtifactError: the name is not allowed, it is a link or a file, or exists and `overwrite` is false.
    """
    if not re.fullmatch(NAME_PATTERN, directory.name):
        raise ArtifactError(f"{directory}: an adapter's name is letters, digits, '.', '_', '-' (at most 64)")
    if directory.is_symlink() or (directory.exists() and not directory.is_dir()):
        raise ArtifactError(f"{directory}: is a link or a file, expected a directory or nothing")
    if directory.exists() and not overwrite:
        raise ArtifactError(f"{directory} exists: output.overwrite=true replaces it, output.name=... keeps both")


def load_artifact(directory: str | Path) -> Artifact:
    """Read an artifact and check all that can be checked without its backbone.

    That is: files, schema, digests, peft's configuration, the tensors' names, shapes and dtype, and that
    every value is finite. `bmpeft.adapters.runtime` checks the rest against the loaded backbone.

    Raises:
        ArtifactError: one line that names the file and the problem.
    """
    directory = Path(directory)
    manifest = _read_manifest(directory)
    tensors_path = directory / TENSORS_FILE
    config = _read_config(directory, manifest)
    if config is not None:
        _check_digest(directory / CONFIG_FILE, config, manifest)
    _check_regular(tensors_path)
    tensors = read_header(tensors_path)
    _check_tensors(tensors_path, tensors, manifest)
    content = _read(tensors_path)
    _check_digest(tensors_path, content, manifest)
    _check_finite(tensors_path, tensors, content)
    return Artifact(directory, manifest, tensors)


def read_model_card(artifact: Artifact) -> str:
    """README.md of an artifact. It is for people: no digest covers it, and nothing is read from it.

    Control characters are replaced, since the card may be a stranger's and a terminal obeys them.

    Raises:
        ArtifactError: it is missing, no regular file, too large or not UTF-8.
    """
    path = artifact.directory / CARD_FILE
    try:
        text = _read(path, limit=_LARGEST_TEXT).decode("utf-8")
    except UnicodeDecodeError:
        raise ArtifactError(f"{path}: not UTF-8") from None
    return _CONTROL_CHARACTER.sub("\N{REPLACEMENT CHARACTER}", text)


def remembered_backbone(artifact: Artifact) -> BackboneSection:
    """The backbone that an adapter names; of a directory it remembers the last part only.

    Raises:
        UsageError: it was a directory, and none of that name is here.
    """
    section = artifact.manifest.backbone.section
    if "/" not in section.name and not section.name.startswith("biomedgpt-") and not Path(section.name).is_dir():
        raise UsageError(
            f"adapter {artifact.name} was trained on a backbone directory named {section.name!r}, which is not here: "
            f"say where it is (--backbone DIRECTORY)"
        )
    return with_settings_as_trained(artifact, section)


def with_settings_as_trained(artifact: Artifact, section: BackboneSection) -> BackboneSection:
    """A backbone section with the adapter's image settings and positions where it has none of its own."""
    trained = artifact.manifest.backbone
    settings: dict[str, Any] = {"max_positions": trained.max_positions}
    if trained.images is not None:
        settings |= {"image_size": trained.images.image_size, "image_mean_std": trained.images.image_mean_std}
    return section.model_copy(update={k: v for k, v in settings.items() if getattr(section, k) is None})


def list_artifacts(root: str | Path) -> list[ArtifactSummary | BrokenArtifact]:
    """The adapters in a directory, sorted by name. Never raises; reads no tensor, so damage inside goes unseen."""
    root = Path(root)
    try:
        entries = sorted(path for path in root.iterdir() if path.is_dir())
    except FileNotFoundError:
        return []
    except OSError as error:
        return [BrokenArtifact(root, f"{root}: {error.strerror or error}")]
    names = {path.name for path in entries if not path.name.startswith(".")}
    names |= {path.name[1:].removesuffix(".replaced") for path in entries if path.name.endswith(".replaced")}
    return [_summary(root / name) for name in sorted(names)]


def update_score_card(directory: str | Path, card: Mapping[str, Any], *, markdown: str) -> None:
    """Put a score card into an artifact's manifest and its model card (`markdown`: the card as a table).

    Raises:
        ArtifactError: there is no artifact, or the disk refuses; the artifact is usable as before.
    """
    directory = Path(directory)
    manifest = _read_manifest(directory).model_copy(update={"score_card": dict(card)})
    try:
        atomic.write_file(directory / MANIFEST_FILE, manifest.to_json())
        atomic.write_file(directory / CARD_FILE, model_card(manifest, scores=markdown).encode())
    except OSError as error:
        raise ArtifactError(f"{directory}: cannot be written: {error.strerror or error}") from None


def _summary(directory: Path) -> ArtifactSummary | BrokenArtifact:
    try:
        manifest = _read_manifest(directory)
        _read_config(directory, manifest)
        _check_regular(directory / TENSORS_FILE)
        tensors = read_header(directory / TENSORS_FILE)
        _check_tensors(directory / TENSORS_FILE, tensors, manifest)
        return ArtifactSummary(directory, manifest, size=(directory / TENSORS_FILE).stat().st_size)
    except BmpeftError as error:
        return BrokenArtifact(directory, str(error))
    except OSError as error:
        return BrokenArtifact(directory, f"{directory}: {error.strerror or error}")


def _read_manifest(directory: Path) -> Manifest:
    aside = atomic.interrupted(directory)
    if aside is not None:
        raise ArtifactError(
            f"{directory}: its replacement was interrupted; the previous adapter is whole in {aside.name}: "
            f"rename that back, or train again"
        )
    if not directory.is_dir():
        raise ArtifactError(f"{directory}: no such adapter directory")
    path = directory / MANIFEST_FILE
    return parse_manifest(path, _read(path, limit=_LARGEST_TEXT))


def _read_config(directory: Path, manifest: Manifest) -> bytes | None:
    """peft's configuration, which has to be what the manifest implies; None for a method that peft does not know."""
    path = directory / CONFIG_FILE
    expected = format_of(manifest.adaptation).peft_config(manifest.adaptation, manifest.backbone.name)
    if expected is None:
        if os.path.lexists(path):
            raise ArtifactError(f"{path}: an adapter of method {manifest.adaptation.method} has no such file")
        return None
    content = _read(path, limit=_LARGEST_TEXT)
    check_config(path, content, expected)
    return content


def _read(path: Path, *, limit: int | None = None) -> bytes:
    """A file's content; of a file with more than `limit` bytes nothing is looked at."""
    _check_regular(path)
    try:
        with path.open("rb") as file:
            content = file.read(-1 if limit is None else limit + 1)
    except OSError as error:
        raise ArtifactError(f"{path}: {error.strerror or error}") from None
    if limit is not None and len(content) > limit:
        raise ArtifactError(f"{path}: has more than {limit:,} bytes")
    return content


def _check_regular(path: Path) -> None:
    """A link could point at any file of the machine, a pipe would block for ever."""
    try:
        mode = os.lstat(path).st_mode
    except OSError as error:
        raise ArtifactError(f"{path}: {error.strerror or error}") from None
    if not stat.S_ISREG(mode):
        raise ArtifactError(f"{path}: is no regular file (links are not followed)")


def _check_digest(path: Path, content: bytes, manifest: Manifest) -> None:
    expected = manifest.files.get(path.name)
    if expected != _sha256(content):
        raise ArtifactError(f"{path}: its SHA-256 is not the one in {MANIFEST_FILE}: damaged or replaced")


def _check_tensors(path: Path, tensors: Mapping[str, TensorEntry], manifest: Manifest) -> None:
    """Names, shapes and dtype, as far as they follow from the manifest."""
    if not tensors:
        raise ArtifactError(f"{path}: holds no tensors")
    shapes = {name: entry.shape for name, entry in tensors.items()}
    problem = format_of(manifest.adaptation).problem(manifest.adaptation, shapes)
    if problem is not None:
        raise ArtifactError(f"{path}: {problem}")
    for name, entry in tensors.items():
        if entry.dtype != "F32":
            raise ArtifactError(f"{path}: {name} is {entry.dtype}, expected F32")


def _check_finite(path: Path, tensors: Mapping[str, TensorEntry], content: bytes) -> None:
    import numpy as np

    for name, entry in tensors.items():
        values = np.frombuffer(content, dtype="<f4", count=(entry.end - entry.begin) // 4, offset=entry.begin)
        if not np.isfinite(values).all():
            raise ArtifactError(f"{path}: {name} has values that are not finite")


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
