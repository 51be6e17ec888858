"""Checkpoints on the disk: whole or not at all, with digests; the last two and the best are kept.

    checkpoints/step-00000120/
        checkpoint.json             step, best step, whose run it is, SHA-256 of every other file
        trainable.safetensors       the tensors that train, by their name in the model
        optimizer.safetensors       what AdamW remembers of each of them
        random.safetensors          states of torch's generators
        state.json                  schedule, generators of Python and numpy, what was measured so far
        trainer_state.json          transformers' own counters

Nothing in them is ever unpickled. What the files mean is the trainer's affair; here they are bytes.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from torch import Tensor

from bmpeft.adapters import atomic
from bmpeft.errors import BmpeftError, UsageError

MANIFEST_FILE = "checkpoint.json"
SCHEMA_VERSION = 1
_KEPT = 2


class CheckpointError(BmpeftError):
    """A checkpoint that is missing or damaged."""


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that was read whole; `files` are its verified contents."""

    directory: Path
    step: int
    best_step: int | None
    identity: Mapping[str, str]
    files: Mapping[str, bytes]

    def tensors(self, name: str) -> dict[str, Tensor]:
        """The tensors of one of its files, on the CPU."""
        from safetensors.torch import load

        return dict(load(self.files[name]))

    def content(self, name: str) -> dict[str, Any]:
        """The content of one of its JSON files."""
        content: dict[str, Any] = json.loads(self.files[name])
        return content


class CheckpointStore:
    """The checkpoints of one run.

    Args:
        directory: where they lie; need not exist.
        identity: whose they are, for example a digest for each key of the recipe; a run goes on only from
            a checkpoint of equal identity.
    """

    def __init__(self, directory: Path, identity: Mapping[str, str]) -> None:
        self.directory = directory
        self._identity = dict(identity)

    def write(self, step: int, *, best_step: int | None, files: Mapping[str, bytes]) -> None:
        """Write a checkpoint, then delete all but the last two and the best.

        Raises:
            BmpeftError: the disk is full or cannot be written; the checkpoints that were there still are.
        """
        manifest = {
            "schema_version": SCHEMA_VERSION,
            "step": step,
            "best_step": best_step,
            "identity": self._identity,
            "files": {name: _digest(content) for name, content in files.items()},
        }
        directory = self._path(step)
        try:
            atomic.write_directory(directory, {**files, MANIFEST_FILE: (json.dumps(manifest) + "\n").encode()})
        except OSError as error:
            raise BmpeftError(f"{directory}: cannot be written: {error.strerror or error}") from None
        self._prune(best_step)

    def read(self, step: int) -> Checkpoint:
        """Read a checkpoint and verify every file. Raises CheckpointError."""
        directory = self._path(step)
        try:
            manifest = json.loads((directory / MANIFEST_FILE).read_bytes())
            if manifest["schema_version"] != SCHEMA_VERSION:
                raise CheckpointError(f"{directory}: written by another version of bmpeft")
            files = {name: (directory / name).read_bytes() for name in manifest["files"]}
            damaged = [name for name, content in files.items() if _digest(content) != manifest["files"][name]]
            if damaged or manifest["step"] != step:
                raise CheckpointError(f"{directory}: damaged ({', '.join(damaged) or MANIFEST_FILE})")
            return Checkpoint(
                directory, step, manifest["best_step"], MappingProxyType(manifest["identity"]), MappingProxyType(files)
            )
        except OSError as error:
            name = Path(error.filename or MANIFEST_FILE).name
            raise CheckpointError(f"{directory}: damaged ({name}: {error.strerror})") from None
        except (ValueError, KeyError, TypeError, AttributeError):
            raise CheckpointError(f"{directory}: damaged ({MANIFEST_FILE})") from None

    def latest(self, say: Callable[[str], None]) -> Checkpoint:
        """The newest whole checkpoint; damaged ones after it are reported to `say` and deleted.

        Raises:
            UsageError: there is none, or it is another recipe's; names the keys that differ.
            CheckpointError: all are damaged.
        """
        require_checkpoints(self.directory)
        damaged: list[Path] = []
        for step in reversed(_steps(self.directory)):
            try:
                checkpoint = self.read(step)
                if checkpoint.best_step not in (None, step):
                    self.read(checkpoint.best_step or 0)
            except CheckpointError as error:
                say(f"{error}: trying the checkpoint before it")
                damaged.append(self._path(step))
                continue
            self._require_same(checkpoint)
            for directory in damaged:  # its step comes again, and must not be taken for the newest until then
                shutil.rmtree(directory)
            return checkpoint
        raise CheckpointError(f"{self.directory}: every checkpoint is damaged")

    def _require_same(self, checkpoint: Checkpoint) -> None:
        theirs, ours = checkpoint.identity, self._identity
        differing = sorted(key for key in theirs.keys() | ours.keys() if theirs.get(key) != ours.get(key))
        if differing:
            raise UsageError(f"{checkpoint.directory}: is of another recipe; different: {', '.join(differing)}")

    def _path(self, step: int) -> Path:
        return self.directory / f"step-{step:08d}"

    def _prune(self, best_step: int | None) -> None:
        steps = _steps(self.directory)
        for step in set(steps[:-_KEPT]) - {best_step}:
            shutil.rmtree(self._path(step), ignore_errors=True)
        for leftover in self.directory.glob(".step-*"):  # of writers that were killed
            shutil.rmtree(leftover, ignore_errors=True)


def require_checkpoints(directory: Path) -> None:
    """Refuse early to go on with a run that has nothing to go on from. Raises UsageError."""
    if not _steps(directory):
        raise UsageError(f"{directory}: no checkpoint to resume from; without --resume the training starts anew")


def recipe_identity(content: Mapping[str, Any]) -> dict[str, str]:
    """A digest for each key of a recipe, so that differing keys can be named and no path is stored.

    `output.overwrite` does not count: it says nothing about the training.
    """
    flat: dict[str, str] = {}

    def walk(prefix: str, value: Any) -> None:
        if isinstance(value, Mapping) and value:
            for key, inner in value.items():
                walk(f"{prefix}.{key}" if prefix else key, inner)
        elif prefix != "output.overwrite":
            flat[prefix] = _digest(json.dumps(value, sort_keys=True).encode())[:16]

    walk("", content)
    return flat


def _steps(directory: Path) -> list[int]:
    names = [path.name.removeprefix("step-") for path in directory.glob("step-*")]
    return sorted(int(name) for name in names if name.isdecimal())


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
