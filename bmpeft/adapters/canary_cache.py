"""Which adapters passed the canary already, so that only their first load pays for it.

One small file for each combination of everything that the result depends on, named by its digest, in
``$BMPEFT_CACHE/canary``, else ``$XDG_CACHE_HOME/bmpeft/canary``, else ``~/.cache/bmpeft/canary``. The cache can be
deleted at any time. Without a place that can be written every load checks again; that is no error.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bmpeft import __version__
from bmpeft.adapters import atomic
from bmpeft.adapters.artifact import Artifact
from bmpeft.adapters.canary import QUANTIZATION, CanaryResult
from bmpeft.cache import cache_directory

if TYPE_CHECKING:
    from bmpeft.backbones.base import FrozenBackbone

_COMPUTED_BY = ("torch", "transformers", "peft")


def cache_key(artifact: Artifact, backbone: FrozenBackbone) -> dict[str, Any]:
    """What the canary's result depends on: adapter, backbone, number type, and the code and device that compute."""
    return {
        "adapter": artifact.digest,
        "backbone": backbone.fingerprint,
        "tokenizer": backbone.tokenizer_digest,
        "dtype": str(backbone.dtype).removeprefix("torch."),
        "quantization": QUANTIZATION,
        "device": backbone.device.type,
        "attention": backbone.attention,
        "versions": {"bmpeft": __version__, **{package: version(package) for package in _COMPUTED_BY}},
    }


def has_passed(key: Mapping[str, Any]) -> bool:
    """Whether this very combination passed before. A file that cannot be read, or says something else, is none."""
    path = _path(key)
    if path is None:
        return False
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(content, dict) and content.get("key") == key


def remember(key: Mapping[str, Any], result: CanaryResult) -> None:
    """Note that this combination passed, if there is a place to note it."""
    path = _path(key)
    if path is not None:
        content = {"key": key, "change": result.change, "recorded": result.recorded, "bound": result.bound}
        with contextlib.suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            atomic.write_file(path, (json.dumps(content, indent=2) + "\n").encode())


def _path(key: Mapping[str, Any]) -> Path | None:
    directory = cache_directory()
    name = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
    return None if directory is None else directory / "canary" / f"{name}.json"
