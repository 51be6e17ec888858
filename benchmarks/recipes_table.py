"""What documents say of results/recipes_nano.json: the table of recipes/README.md, the Cost of each recipe's header.

python benchmarks/recipes_table.py
"""

from __future__ import annotations

import json
import re
import shlex
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULT = ROOT / "benchmarks" / "results" / "recipes_nano.json"
README = ROOT / "recipes" / "README.md"
BEGIN, END = "<!-- measured: begin -->", "<!-- measured: end -->"
AUROC = "auroc/binary@1"
HEAD = (
    "| data | recipe | trained | rows | training | memory | split (n) | metric | adapter [95 %] | controls |\n"
    "|---|---|--:|--:|--:|--:|---|---|--:|---|\n"
)


def read_runs() -> list[dict[str, Any]]:
    """The measured runs in the order of the result."""
    runs: list[dict[str, Any]] = json.loads(RESULT.read_text(encoding="utf-8"))["runs"]
    return runs


def recipe_of(run: dict[str, Any]) -> str:
    """The recipe's name."""
    return str(run["command"].split()[2])


def changes(run: dict[str, Any]) -> str:
    """What was overridden of the recipe, but for places and names."""
    words = shlex.split(run["command"])[3:]
    kept = [word for word in words if word.startswith(("training.", "evaluation.", "data.train_rows", "data.max_"))]
    return ", ".join(word for word in kept if not word.startswith("training.seed"))


def runs_of_headers(runs: Sequence[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Recipe -> the run whose cost its header states, for recipes that name a published set."""
    found = {recipe_of(run): run for run in reversed(runs)} | {"medmnist_lora": find(runs, "pneumoniamnist")}
    return {recipe: run for recipe, run in found.items() if recipe != "medqa_lora" and run is not None}


def find(runs: Sequence[dict[str, Any]], name: str) -> dict[str, Any] | None:
    """The first run of a name."""
    return next((run for run in runs if run["name"] == name), None)


def duration(seconds: float) -> str:
    """Seconds below two minutes, else minutes."""
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"


def cost(run: dict[str, Any]) -> str:
    """What a recipe's header says."""
    threads = "one CPU thread" if run["threads"] == 1 else f"{run['threads']} CPU threads"
    with_changes = f", with {changes(run)}" if changes(run) else ""
    return (
        f"nano on {threads}, other work beside{with_changes}: training {duration(run['training_seconds'])}, "
        f"with scores and controls {duration(run['command_seconds'])}, memory {run['peak_rss_gib']:.1f} GiB"
    )


def table(runs: Sequence[dict[str, Any]]) -> str:
    """A line for each split and metric; of several seeds the mean, and the smallest and the largest value."""
    lines = []
    for name in dict.fromkeys(run["name"] for run in runs):
        same = [run for run in runs if run["name"] == name]
        for number, result in enumerate(same[0]["results"]):
            lines += [_line(same, number, m) for m in (next(iter(result["metrics"])), AUROC) if m in result["metrics"]]
    return HEAD + "".join(lines)


def _line(runs: Sequence[dict[str, Any]], number: int, metric: str) -> str:
    run, result = runs[0], runs[0]["results"][number]
    value, low, high = result["metrics"][metric]
    figure = f"{value:.3f} [{low:.3f}, {high:.3f}]"
    if len(runs) > 1:
        values = [other["results"][number]["metrics"][metric][0] for other in runs]
        figure = f"{statistics.mean(values):.3f} ({min(values):.3f} to {max(values):.3f}, {len(runs)} seeds)"
    controls = "; ".join(
        _control([other["results"][number] for other in runs], metric, name)
        for name, control in result["controls"].items()
        if metric in (next(iter(result["metrics"])), *control["metrics"])
    )
    recipe = recipe_of(run)
    cells = (
        f"{run['name']}, {changes(run)}" if changes(run) else run["name"],
        f"[{recipe}]({recipe}.yaml)",
        f"{run['trainable_parameters']:,}",
        f"{run['train_rows']:,}",
        duration(run["training_seconds"]),
        f"{run['peak_rss_gib']:.1f} GiB",
        f"{result['split']} ({result['n']:,})",
        f"`{metric}`",
        figure,
        controls,
    )
    return f"| {' | '.join(cells)} |\n"


def _control(results: Sequence[dict[str, Any]], metric: str, name: str) -> str:
    """A control's figure, the mean over the seeds; bold if the adapter of some seed does not beat it.

    Of the first metric the paired interval says so; of another one, which has no such interval, the figures do.
    """
    controls = [result["controls"][name] for result in results]
    first = metric == next(iter(results[0]["metrics"]))
    values = [control["value"] if first else control["metrics"][metric] for control in controls]
    margins = [
        control["model_minus_control"][1] if first else result["metrics"][metric][0] - value
        for control, result, value in zip(controls, results, values, strict=True)
    ]
    text = f"{name} {statistics.mean(values):.3f}"
    return text if min(margins) > 0 else f"**{text}**"


def readme_with_table(text: str, runs: Sequence[dict[str, Any]]) -> str:
    """The README with this table between its marks."""
    before, rest = text.split(BEGIN)
    return f"{before}{BEGIN}\n\n{table(runs)}\n{END}{rest.split(END)[1]}"


def header_with_cost(text: str, run: dict[str, Any]) -> str:
    """A recipe's text with this run's cost in its header."""
    lines = re.search(r"^# Cost:( +)[^\n]*\n(?:#  +[^\n]*\n)*", text, re.MULTILINE)
    assert lines is not None, "the header has no Cost"
    indent = lines.group(1)
    width = 118 - len("# Cost:") - len(indent)
    words, folded = f"{cost(run)} (benchmarks/results/recipes_nano.json)".split(), [""]
    for word in words:
        if len(folded[-1]) + 1 + len(word) > width:
            folded.append("")
        folded[-1] = f"{folded[-1]} {word}".strip()
    joined = f"\n#{' ' * (len('Cost:') + 1)}{indent}".join(folded)
    return f"{text[: lines.start()]}# Cost:{indent}{joined}\n{text[lines.end() :]}"


def main() -> None:
    """Rewrite the documents."""
    runs = read_runs()
    README.write_text(readme_with_table(README.read_text(encoding="utf-8"), runs), encoding="utf-8")
    for recipe, run in runs_of_headers(runs).items():
        path = ROOT / "recipes" / f"{recipe}.yaml"
        path.write_text(header_with_cost(path.read_text(encoding="utf-8"), run), encoding="utf-8")


if __name__ == "__main__":
    main()
