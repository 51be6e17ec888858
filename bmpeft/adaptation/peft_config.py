"""peft's ``adapter_config.json``: exactly what bmpeft writes, and nothing else accepted.

peft acts on what this file says: it can name another base model or code to import, select modules by a
regular expression, train whole modules or re-initialise base weights. The manifest already says everything
that an adapter of bmpeft may vary, so the file must equal what the manifest implies, key by key.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bmpeft.errors import ArtifactError
from bmpeft.recipe import portable_name
from bmpeft.recipe_adaptation import LoraSection
from bmpeft.strict_json import parse_object


def config_content(section: LoraSection, backbone_name: str) -> dict[str, Any]:
    """What ``adapter_config.json`` says for a LoRA adapter; keys left out have peft's defaults, which do nothing."""
    return {
        "auto_mapping": None,
        "base_model_name_or_path": portable_name(backbone_name),
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "lora_alpha": int(section.alpha) if section.alpha.is_integer() else section.alpha,
        "lora_dropout": section.dropout,
        "modules_to_save": None,
        "peft_type": "LORA",
        "r": section.rank,
        "revision": None,
        "target_modules": list(section.target_modules),
        "task_type": "SEQ_2_SEQ_LM",
        "use_dora": False,
        "use_rslora": section.rslora,
    }


def config_json(content: Mapping[str, Any]) -> bytes:
    """The file's bytes; the same content always gives the same."""
    return (json.dumps(content, indent=2, sort_keys=True) + "\n").encode()


def check_config(path: Path, content: bytes, expected: Mapping[str, Any]) -> None:
    """Compare the file's content with what it has to be.

    Raises:
        ArtifactError: names the first key that is missing, unknown or has another value.
    """
    try:
        found = parse_object(content)
    except ValueError as error:
        raise ArtifactError(f"{path}: {error}") from None
    for key in sorted(expected.keys() | found.keys()):
        if key not in found:
            raise ArtifactError(f"{path}: {key} is missing, expected {expected[key]!r}")
        if key not in expected:
            raise ArtifactError(f"{path}: unexpected key {key[:100]!r}; bmpeft writes no such key")
        if type(found[key]) is not type(expected[key]) or found[key] != expected[key]:
            raise ArtifactError(
                f"{path}: {key} is {_shown(found[key])}, but {json.dumps(expected[key])} in the manifest"
            )


def _shown(value: Any) -> str:
    """A value of the file in a message: ASCII, and not much of it."""
    try:
        text = json.dumps(value)
    except RecursionError:
        return "nested too deeply"
    return text if len(text) <= 100 else text[:100] + "..."
