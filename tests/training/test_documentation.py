"""docs/training.md names every option with its default."""

from __future__ import annotations

from pathlib import Path

import pytest

from bmpeft.recipe import TrainingSection
from bmpeft.recipe_adaptation import LORA_TARGETS, FullSection, LoraSection


def documented(repository: Path) -> dict[str, str]:
    lines = (repository / "docs" / "training.md").read_text(encoding="utf-8").splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("| `")]
    return {row[0].strip("`"): row[1] for row in rows}


@pytest.mark.parametrize(
    ("prefix", "section"), [("training", TrainingSection), ("adaptation", LoraSection), ("adaptation", FullSection)]
)
def test_every_option_is_documented_with_its_default(
    repository: Path, prefix: str, section: type[TrainingSection] | type[LoraSection] | type[FullSection]
) -> None:
    table = documented(repository)
    for name, field in section.model_fields.items():
        if name == "method":
            continue
        stated, default = table[f"{prefix}.{name}"], field.get_default()
        if default is None:
            assert stated == ""
        elif default == LORA_TARGETS:
            assert stated == "all six"
            assert len(LORA_TARGETS) == 6
        elif isinstance(default, bool | str):
            assert stated == str(default).lower()
        else:
            assert float(stated) == default
