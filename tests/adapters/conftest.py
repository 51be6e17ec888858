"""Two trained adapters on one tiny backbone, made once; tests that change files work on copies."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from bmpeft.adapters.manifest import MANIFEST_FILE, signed
from bmpeft.progress import Progress
from bmpeft.training.run import train
from tests.training.small import small_recipe


@dataclass(frozen=True)
class Stored:
    """Where things are."""

    root: Path
    backbone: Path
    first: Path
    second: Path


@pytest.fixture(scope="session")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Stored:
    root = tmp_path_factory.mktemp("stored")
    paths = [
        train(
            small_recipe(root, f"output.name={name}", f"training.seed={seed}"),
            recipe_name="small",
            progress=Progress(quiet=True),
        ).directory
        for seed, name in enumerate(("first", "second.v2"))
    ]
    return Stored(root, root / "tiny-backbone", *paths)


@pytest.fixture
def copy(stored: Stored, tmp_path: Path) -> Path:
    """A copy of the first adapter that a test may damage."""
    directory = tmp_path / "adapters" / "first"
    shutil.copytree(stored.first, directory)
    return directory


@pytest.fixture
def edit_json() -> Callable[..., None]:
    """Change values of a JSON file, as in ``{"data.licence": 3, "r": DELETE}``; a manifest is signed anew."""
    return _edit_json


DELETE = object()


def _edit_json(path: Path, changes: dict[str, object]) -> None:
    content = json.loads(path.read_text())
    for key, value in changes.items():
        *parents, last = key.split(".")
        inner = content
        for parent in parents:
            inner = inner[parent]
        if value is DELETE:
            del inner[last]
        else:
            inner[last] = value
    path.write_text(json.dumps(signed(content) if path.name == MANIFEST_FILE else content))


def sign(directory: Path) -> None:
    """Make the digests in the manifest those of the files, as somebody who tampers would."""
    content = json.loads((directory / MANIFEST_FILE).read_text())
    for name in content["files"]:
        content["files"][name] = hashlib.sha256((directory / name).read_bytes()).hexdigest()
    (directory / MANIFEST_FILE).write_text(json.dumps(signed(content)))
