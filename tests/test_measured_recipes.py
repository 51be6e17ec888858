"""What the recipes say of their cost and scores is what was measured and committed."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import pytest

from bmpeft.recipe import load_recipe
from bmpeft.recipe_store import shipped_recipe

ROOT = Path(__file__).resolve().parents[1]


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "benchmarks" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def documents() -> ModuleType:
    """The script that writes them."""
    return script("recipes_table")


def test_the_table_is_made_of_the_committed_result(documents: ModuleType) -> None:
    text = (ROOT / "recipes" / "README.md").read_text(encoding="utf-8")
    assert documents.readme_with_table(text, documents.read_runs()) == text


def test_headers_state_the_committed_cost(documents: ModuleType) -> None:
    runs = documents.runs_of_headers(documents.read_runs())
    assert runs
    for recipe, run in runs.items():
        text = shipped_recipe(recipe).path.read_text(encoding="utf-8")
        assert documents.header_with_cost(text, run) == text


def test_what_was_measured_is_what_is_shipped(documents: ModuleType) -> None:
    """A changed recipe or other weights of nano make the figures figures of something else."""
    shipped = json.loads((ROOT / "bmpeft" / "backbones" / "nano" / "backbone.json").read_text(encoding="utf-8"))
    options = {name: (recipe, options) for name, (recipe, _, options) in script("recipes").RUNS.items()}
    for run in documents.read_runs():
        recipe, overrides = options[run["name"]]
        assert run["backbone"] == shipped["fingerprint"]
        assert run["recipe"] == load_recipe(shipped_recipe(recipe).path, overrides).digest()


RUN = {
    "name": "a",
    "command": "bmpeft train b",
    "train_rows": 5,
    "trainable_parameters": 9000,
    "training_seconds": 130.0,
    "peak_rss_gib": 1.04,
}


@pytest.mark.parametrize("unbeaten", [True, False])
def test_a_control_that_is_not_beaten_stands_out(documents: ModuleType, unbeaten: bool) -> None:
    control = {"value": 0.5, "metrics": {}, "model_minus_control": [0.1, -0.1 if unbeaten else 0.05, 0.2]}
    result = {"split": "test", "n": 7, "metrics": {"accuracy/x@1": [0.6, 0.5, 0.7]}, "controls": {"majority": control}}
    run = {**RUN, "results": [result]}
    line = documents.table([run]).splitlines()[-1]
    expected = "**majority 0.500**" if unbeaten else "majority 0.500"
    assert line == (
        "| a | [b](b.yaml) | 9,000 | 5 | 2 min | 1.0 GiB | test (7) | `accuracy/x@1` "
        f"| 0.600 [0.500, 0.700] | {expected} |"
    )


def test_of_several_seeds_a_control_must_be_beaten_in_all_of_them(documents: ModuleType) -> None:
    """And AUROC has a line of its own, where a control without one is not named."""
    runs = []
    for margin, auroc in ((0.05, 0.9), (-0.05, 0.7)):
        controls = {
            "majority": {"value": 0.4, "metrics": {}, "model_minus_control": [0.2, 0.1, 0.3]},
            "classic": {"value": 0.5, "metrics": {"auroc/binary@1": 0.8}, "model_minus_control": [0.1, margin, 0.2]},
        }
        metrics = {"accuracy/x@1": [0.6, 0.5, 0.7], "auroc/binary@1": [auroc, 0.5, 1.0]}
        runs.append({**RUN, "results": [{"split": "test", "n": 7, "metrics": metrics, "controls": controls}]})
    first, second = documents.table(runs).splitlines()[-2:]
    assert first.endswith("| 0.600 (0.600 to 0.600, 2 seeds) | majority 0.400; **classic 0.500** |")
    assert second.endswith("| `auroc/binary@1` | 0.800 (0.700 to 0.900, 2 seeds) | **classic 0.800** |")


def test_full_fine_tuning_is_measured_as_shipped_and_its_header_says_so() -> None:
    result = json.loads((ROOT / "benchmarks" / "results" / "medqa_full_nano.json").read_text(encoding="utf-8"))
    shipped, run = shipped_recipe("medqa_full"), result["shipped"]
    backbone = json.loads((ROOT / "bmpeft" / "backbones" / "nano" / "backbone.json").read_text(encoding="utf-8"))
    assert run["recipe"] == load_recipe(shipped.path).digest()
    assert run["backbone"] == backbone["fingerprint"]
    assert f"{run['seconds']} s" in shipped.header
    assert f"{run['peak_rss_gib']:.1f} GiB" in shipped.header
    losses = {r["learning_rate"]: min(v["loss"] for v in r["validation"]) for r in (run, *result["others"])}
    assert min(losses, key=lambda rate: losses[rate]) == run["learning_rate"], "the rate of the lowest validation loss"
