"""Find a backbone by name: an embedded or size name, a directory, or a name on the hub."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from bmpeft.attention import check_backend, why_unavailable
from bmpeft.backbones.base import FrozenBackbone
from bmpeft.backbones.biomedgpt import SIZES, BiomedGPTConfig, BiomedGPTForConditionalGeneration
from bmpeft.backbones.biomedgpt.backbone import BiomedGPTBackbone
from bmpeft.backbones.biomedgpt.image_tower import make_processor
from bmpeft.backbones.description import BACKBONE_FILE, LICENCE_FILE, BackboneDescription
from bmpeft.backbones.fingerprint import canonical_state, fingerprint_of
from bmpeft.backbones.quiet_loading import no_progress_bars
from bmpeft.backbones.tokenizing import load_tokenizer
from bmpeft.devices import fastest_device, has_fast_bfloat16
from bmpeft.errors import BackboneError, UsageError, did_you_mean
from bmpeft.images.processing import ImageProcessor, read_processor
from bmpeft.recipe import BackboneSection

PREFIX = "biomedgpt-"
NANO = Path(__file__).parent / "nano"
"""Tokenizer of all sizes without one of their own, and the directory of nano's pretrained weights."""
SHIPPED = {PREFIX + "nano": NANO}
# Fields of the configuration that came after the first fingerprints.
_LATER_FIELDS = frozenset({"scale_resids", "batch_norm_eps"})


def load_frozen_backbone(section: BackboneSection) -> FrozenBackbone:
    """Load what a recipe's `backbone` section names, frozen, on the fastest device there is.

    Raises:
        UsageError: there is no such size, it has no pretrained weights, or the attention backend cannot run here.
        BackboneError: the directory is missing, incomplete, damaged or not a backbone; the hub cannot be reached.
    """
    device = fastest_device()
    reason = why_unavailable(section.attention, device.type)
    if reason is not None:
        raise UsageError(f"backbone.attention={section.attention}: {reason}")
    directory = Path(section.name).expanduser()
    if section.name in SHIPPED and section.init == "pretrained":
        backbone = _from_directory(SHIPPED[section.name], section)
    elif directory.is_dir():
        backbone = _from_directory(directory, section)
    elif directory.is_file():
        raise BackboneError(f"backbone {section.name!r}: a file; `bmpeft convert {section.name} DIRECTORY` comes first")
    elif section.name.startswith(PREFIX) and "/" not in section.name:
        backbone = _from_size(section)
    elif section.name.count("/") == 1 and not section.name.startswith((".", "/", "~")):
        backbone = _from_directory(_download(section.name), section)
    else:
        names = [PREFIX + size for size in SIZES]
        raise BackboneError(f"backbone {section.name!r}: no such directory{did_you_mean(section.name, names)}")
    if section.max_positions is not None:
        backbone.extend_positions(section.max_positions)
    backbone.model.to(device=device, dtype=_dtype(section.dtype, device))  # type: ignore[call-arg]  # an untyped wrapper
    return backbone


def _from_size(section: BackboneSection) -> BiomedGPTBackbone:
    """Random weights of a size; the fingerprint covers configuration, seed and tensors."""
    size = section.name.removeprefix(PREFIX)
    if size not in SIZES:
        raise UsageError(f"backbone {section.name!r}: unknown{did_you_mean(section.name, [PREFIX + s for s in SIZES])}")
    if section.init != "random":
        raise UsageError(
            f"backbone {section.name}: its weights do not come with bmpeft; give a backbone directory, "
            "or backbone.init=random for untrained weights"
        )
    model = BiomedGPTForConditionalGeneration.from_size(
        size, seed=section.init_seed, attn_implementation=check_backend(section.attention)
    )
    tokenizer = load_tokenizer(Path(section.tokenizer) if section.tokenizer else NANO, model.config.vocab_size)
    context = {"size": size, "config": _architecture(model.config), "seed": section.init_seed}
    return BiomedGPTBackbone(
        name=section.name,
        init="random",
        init_seed=section.init_seed,
        model=model,
        tokenizer=tokenizer,
        fingerprint=fingerprint_of(canonical_state(model), context=context),
        image_processor=_image_processor(section, model.config, None),
    )


def _from_directory(directory: Path, section: BackboneSection) -> BiomedGPTBackbone:
    """A directory that `FrozenBackbone.save_pretrained` wrote; its stored tensors are checked against their digest."""
    if section.init == "random":
        raise UsageError(f"backbone {section.name}: a directory has weights; backbone.init=random needs a size name")
    described = BackboneDescription.read(directory)
    _check_tokenizer(directory, section)
    try:
        with no_progress_bars():
            model = BiomedGPTForConditionalGeneration.from_pretrained(
                directory, attn_implementation=check_backend(section.attention), local_files_only=True
            )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise BackboneError(f"{directory}: weights cannot be loaded: {_first_line(error)}") from None
    if fingerprint_of(canonical_state(model)) != described.stored_tensors:
        raise BackboneError(f"{directory}: the weights are not those that {BACKBONE_FILE} describes")
    tokenizer = load_tokenizer(Path(section.tokenizer) if section.tokenizer else directory, model.config.vocab_size)
    return BiomedGPTBackbone(
        name=section.name,
        init=described.init,
        init_seed=described.init_seed,
        model=model,
        tokenizer=tokenizer,
        fingerprint=described.fingerprint,
        image_processor=_image_processor(section, model.config, read_processor(directory)),
        licence_note=_licence_note(directory),
    )


def _licence_note(directory: Path) -> bytes | None:
    path = directory / LICENCE_FILE
    try:
        return path.read_bytes() if path.is_file() else None
    except OSError as error:
        raise BackboneError(f"{path}: {error.strerror or error}") from None


def _check_tokenizer(directory: Path, section: BackboneSection) -> None:
    """Say what is missing before the weights are read, which may take a minute."""
    if not section.tokenizer and not (directory / "tokenizer.json").exists():
        raise BackboneError(
            f"{directory}: no such file tokenizer.json, as these weights were converted without one; "
            "backbone.tokenizer=DIR names a directory with tokenizer files"
        )


def _image_processor(section: BackboneSection, config: BiomedGPTConfig, own: ImageProcessor | None) -> ImageProcessor:
    try:
        return make_processor(config, own, image_size=section.image_size, image_mean_std=section.image_mean_std)
    except ValueError as error:
        raise UsageError(f"backbone {section.name}: {error}") from None


def _download(name: str) -> Path:
    """The hub's copy of a backbone directory, from the cache where the hub cannot be reached."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, allow_patterns=["*.json", "*.safetensors", LICENCE_FILE]))
    except (LocalEntryNotFoundError, ConnectionError, TimeoutError):
        raise BackboneError(f"backbone {name!r}: the hub cannot be reached and no copy is cached") from None
    except (HfHubHTTPError, OSError, ValueError) as error:
        raise BackboneError(f"backbone {name!r}: {_first_line(error)}") from None


def _architecture(config: BiomedGPTConfig) -> dict[str, Any]:
    """The configuration's own fields, without versions and run-time settings of transformers.

    Of fields that came after the first fingerprints, only those that are not at their default: they would rename
    weights that are the same.
    """
    fields = {name: getattr(config, name) for name in BiomedGPTConfig.__annotations__}
    default = BiomedGPTConfig()
    return {name: v for name, v in fields.items() if name not in _LATER_FIELDS or v != getattr(default, name)}


def _dtype(name: str, device: torch.device) -> torch.dtype:
    if name == "auto":
        # On a CPU the weights stay as they are stored, whatever it computes with: memory is not scarce there.
        name = "bfloat16" if device.type == "cuda" and has_fast_bfloat16(device) else "float32"
    return torch.bfloat16 if name == "bfloat16" else torch.float32


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
