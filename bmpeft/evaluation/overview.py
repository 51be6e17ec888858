"""A table of adapters with what was measured of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bmpeft.adapters.artifact import ArtifactSummary, BrokenArtifact, list_artifacts
from bmpeft.errors import BmpeftError
from bmpeft.evaluation.score_card import read_card


def adapter_rows(root: str | Path) -> list[dict[str, Any]]:
    """One row for each adapter in a directory, also for those that are damaged; all rows have the same keys.

    A score never stands alone: `remarks` says whether it is contaminated, of synthetic data or of an
    untrained backbone.
    """
    return [_row(artifact) for artifact in list_artifacts(root)]


def _row(artifact: ArtifactSummary | BrokenArtifact) -> dict[str, Any]:
    row: dict[str, Any] = dict.fromkeys(("name", "backbone", "method", "dataset", "score", "remarks", "problem"))
    row["name"] = artifact.name
    if isinstance(artifact, BrokenArtifact):
        return {**row, "problem": artifact.problem}
    manifest = artifact.manifest
    row |= {
        "backbone": manifest.backbone.name,
        "method": manifest.adaptation.method,
        "dataset": manifest.data.dataset,
    }
    if manifest.score_card is None:
        return row
    try:
        card = read_card(manifest.score_card)
    except BmpeftError as error:
        return {**row, "problem": str(error)}
    first, metric = card.results[0], card.results[0].metrics[0]
    score = f"{first.split} {metric.name} {metric.value:.3f} [{metric.low:.3f}, {metric.high:.3f}]"
    return {**row, "score": score, "remarks": "; ".join(card.remarks)}
