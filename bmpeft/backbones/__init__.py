"""What stays frozen: models with their tokenizers, found by name and known by fingerprint."""

from __future__ import annotations

from bmpeft.backbones.base import CandidateScores, EncodedExample, FrozenBackbone
from bmpeft.backbones.loading import load_frozen_backbone

__all__ = ["CandidateScores", "EncodedExample", "FrozenBackbone", "load_frozen_backbone"]
