"""What all sections of a recipe share."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

TRAINED_POSITIONS = 1024
"""Tokens of a source or target that the published weights have positions for."""
MAX_POSITIONS = 16_384
"""Most that `backbone.max_positions` may ask for: attention over them costs memory by their square."""


class Section(BaseModel):
    """What all sections share: no unknown keys, no change after reading, no infinite numbers."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False)
