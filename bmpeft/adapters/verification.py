"""`bmpeft adapters verify`: every check of an adapter, those on its backbone included where that can be loaded.

A name of the hub in an adapter is a stranger's word: nothing is downloaded for it unless the user repeats it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from bmpeft.adapters.artifact import Artifact, load_artifact, remembered_backbone, with_settings_as_trained
from bmpeft.errors import BmpeftError, UsageError
from bmpeft.recipe import BackboneSection

if TYPE_CHECKING:
    from bmpeft.adapters.canary import CanaryResult
    from bmpeft.backbones.base import FrozenBackbone


@dataclass(frozen=True)
class Verification:
    """An adapter that passed every check that was made."""

    artifact: Artifact
    canary: CanaryResult | None
    """What the adapter did to its backbone; None if only the files were checked."""
    not_checked: str | None
    """Why only the files were checked."""


def verify(directory: str | Path, *, backbone: str | None = None, files_only: bool = False) -> Verification:
    """Check an adapter's files and, unless that is not wanted or the backbone is not here, its effect on the backbone.

    Args:
        directory: of the artifact.
        backbone: name or directory; default: what the adapter remembers, if that needs no download.
        files_only: load no backbone.

    Raises:
        ArtifactError: a check failed.
        BackboneError: the backbone that was asked for cannot be loaded.
    """
    artifact = load_artifact(directory)
    if files_only:
        return Verification(artifact, None, "the files only were asked for")
    try:
        frozen = _backbone(artifact, backbone)
    except BmpeftError as error:
        if backbone is not None:
            raise
        return Verification(artifact, None, str(error))
    from bmpeft.adapters.runtime import Backbone

    runtime = Backbone(frozen)
    return Verification(artifact, runtime.check_canary(runtime.load_adapter(directory)), None)


def _backbone(artifact: Artifact, name: str | None) -> FrozenBackbone:
    if name is None:
        section = remembered_backbone(artifact)
    else:
        section = with_settings_as_trained(artifact, BackboneSection(name=name))
    if name is None and "/" in section.name and not Path(section.name).is_dir():
        raise UsageError(
            f"its backbone is {section.name!r} on the hub, which is not asked unless you say so (--backbone NAME)"
        )
    from bmpeft.backbones import load_frozen_backbone

    return load_frozen_backbone(section)
