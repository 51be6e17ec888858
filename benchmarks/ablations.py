"""What matters in nano and in its adaptation: one change at a time, trained and scored through the real commands.

    python benchmarks/ablations.py DATA [--only VARIANT ...] [--work DIRECTORY]

Variants of the backbone are pretrained anew by recipes/pretrain.yaml with `PRETRAINING_STEPS` steps instead of its own
number, from one seed, and compared with one another; variants of the adaptation start from the shipped backbone. Each
is fine-tuned on every set with `SEEDS`. Runs that stand in the result already, with the same options and backbone, are
not repeated. Result: results/ablations_nano.json, written after every run; at the end its table is printed.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import yaml

from bmpeft.backbones import load_frozen_backbone
from bmpeft.backbones.biomedgpt.modeling import BiomedGPTForConditionalGeneration
from bmpeft.machine import describe_machine, package_versions
from bmpeft.recipe import BackboneSection
from bmpeft.recipe_store import shipped_recipe

ROOT = Path(__file__).resolve().parents[1]
RESULT = ROOT / "benchmarks" / "results" / "ablations_nano.json"
SEEDS = (0, 1, 2)
PRETRAINING_STEPS = 1500
NORMFORMER_PARTS = ("scale_attn", "scale_fc", "scale_heads")

# name of the set -> recipe, place of its data below DATA, overrides, split, metrics of the table
SETS: dict[str, tuple[str, str, tuple[str, ...], str, tuple[str, ...]]] = {
    "BreastMNIST": (
        "medmnist_lora",
        "medmnist28/breastmnist.npz",
        ("data.accept_leakage=true", "training.epochs=8"),
        "test",
        ("accuracy/choices-sum@1", "auroc/binary@1"),
    ),
    "PneumoniaMNIST": (
        "medmnist_lora",
        "medmnist28/pneumoniamnist_rebuilt.npz",
        ("training.max_steps=150",),
        "test",
        ("accuracy/choices-sum@1", "auroc/binary@1"),
    ),
    "embedded facts": ("medqa_lora", "", ("training.max_steps=150",), "test", ("accuracy/choices-sum@1",)),
}
# Backbone -> what is changed, further overrides of the pretraining recipe.
BACKBONES: dict[str, tuple[str, tuple[str, ...]]] = {
    "short": ("nothing", ()),
    "random-tower": ("image tower frozen as it was drawn", ("training.tower_learning_rate_factor=0",)),
    "text-only": ("no images in the pretraining", ("training.sample_patch_num=null",)),
    "no-normformer": ("no NormFormer: neither its norms nor scales of the heads", ()),
}
# Adaptation -> what is changed, overrides of the recipes.
ADAPTATIONS: dict[str, tuple[str, tuple[str, ...]]] = {
    "rank-16": ("nothing: LoRA of rank 16, rank-stabilised", ()),
    "rank-4": ("rank 4", ("adaptation.rank=4",)),
    "rank-64": ("rank 64", ("adaptation.rank=64",)),
    "rank-16-plain": ("rank 16, not rank-stabilised", ("adaptation.rslora=false",)),
    "rank-64-plain": ("rank 64, not rank-stabilised", ("adaptation.rank=64", "adaptation.rslora=false")),
    "full": ("full fine-tuning", ("adaptation={method: full}", "training.learning_rate=1e-4")),
}


def bmpeft(*arguments: str) -> dict[str, Any]:
    """Standard output of one command as JSON."""
    process = subprocess.run([sys.executable, "-m", "bmpeft", *arguments, "--json"], stdout=subprocess.PIPE)
    if process.returncode != 0:
        raise SystemExit(f"bmpeft {shlex.join(arguments)}: exit code {process.returncode}")
    content: dict[str, Any] = json.loads(process.stdout)
    return content


def pretrained(variant: str, data: Path, work: Path) -> Path:
    """The backbone of a variant below `work`, pretrained unless it is there; a killed run is gone on with."""
    directory = work / "backbones" / variant
    if directory.exists():
        return directory
    content = yaml.safe_load(shipped_recipe("pretrain").path.read_text(encoding="utf-8"))
    if variant == "text-only":
        content["corpus"] = [source for source in content["corpus"] if "dataset" not in source]
    if variant == "no-normformer":
        content["backbone"] = {"name": str(without_normformer(work)), "image_size": 64}
    recipe = work / f"{variant}.yaml"
    recipe.write_text(yaml.safe_dump(content), encoding="utf-8")
    places = [f"data_root={data}", f"output.directory={directory}", f"output.runs={work / 'pretraining'}"]
    resumed = ["--resume"] if any((work / "pretraining" / variant / "checkpoints").glob("step-*")) else []
    steps = f"training.steps={PRETRAINING_STEPS}"
    bmpeft("train", str(recipe), *places, steps, *BACKBONES[variant][1], *resumed)
    return directory


def without_normformer(work: Path) -> Path:
    """An untrained nano without NormFormer's parts, as a backbone directory."""
    directory = work / "untrained-without-normformer"
    if not directory.exists():
        backbone: Any = load_frozen_backbone(BackboneSection(name="biomedgpt-nano", init="random"))
        parts = dict.fromkeys(NORMFORMER_PARTS, False)
        backbone.model = BiomedGPTForConditionalGeneration.from_size("nano", seed=0, normformer=False, **parts)
        backbone.trained(directory.name, torch.float32).save_pretrained(directory)
    return directory


def measure(set_name: str, data: Path, work: Path, backbone: Path | None, seed: int, options: Sequence[str]) -> Any:
    """Metrics of one fine-tuned adapter, and how much of it trained."""
    recipe, place, own, split, _ = SETS[set_name]
    overrides = [*own, *options, f"training.seed={seed}", "evaluation.controls=[]", f"evaluation.splits=[{split}]"]
    overrides += [f"data.path={data / place}"] if place else []
    overrides += [f"backbone.name={backbone}"] if backbone is not None else []
    overrides += [f"output.directory={work / 'adapters'}", f"output.runs={work / 'runs'}", "output.overwrite=true"]
    trained = bmpeft("train", recipe, *overrides, "output.name=ablation")
    manifest = json.loads((Path(trained["adapter"]) / "bmpeft.json").read_text(encoding="utf-8"))
    metrics = trained["score_card"]["results"][0]["metrics"]
    return {
        "fingerprint": manifest["backbone"]["fingerprint"],
        "trainable_parameters": manifest["training"]["trainable_parameters"],
        "training_seconds": round(manifest["training"]["seconds"], 1),
        "metrics": {metric["id"]: round(metric["value"], 4) for metric in metrics},
    }


def table(runs: Sequence[dict[str, Any]]) -> str:
    """Mean and sample standard deviation over the seeds, a row for each variant, a column for each metric."""
    columns = [(name, metric) for name, (*_, metrics) in SETS.items() for metric in metrics]
    lines = [
        "| | changed | trained | " + " | ".join(f"{name}, {metric.split('/')[0]}" for name, metric in columns) + " |",
        "|---|---|--:|" + "--:|" * len(columns),
    ]
    for kind, variants in (("backbone", BACKBONES), ("adaptation", ADAPTATIONS)):
        for variant, (changed, _) in variants.items():
            own = [run for run in runs if run["variant"] == variant]
            if not own:
                continue
            cells = [_mean([r["metrics"][metric] for r in own if r["set"] == name]) for name, metric in columns]
            first = f"{kind}" if variant in ("short", "rank-16") else ""
            lines.append(f"| {first} | {changed} | {own[0]['trainable_parameters']:,} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _mean(values: Sequence[float]) -> str:
    if not values:
        return ""
    spread = f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.3f}{spread}"


def write(runs: list[dict[str, Any]]) -> None:
    """Write the result file."""
    content = {
        "what": "one thing changed at a time; backbones are pretrained by recipes/pretrain.yaml with "
        f"{PRETRAINING_STEPS} steps and seed 0, adaptations start from the shipped nano",
        "command": "python benchmarks/ablations.py DATA",
        "machine": describe_machine(),
        "versions": package_versions("torch", "transformers", "peft"),
        "runs": runs,
    }
    RESULT.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def main() -> None:
    """Run what is not yet in the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    variants = [*BACKBONES, *ADAPTATIONS]
    parser.add_argument("--only", nargs="*", choices=variants, default=variants)
    parser.add_argument("--pretrain", action="store_true", help="only the backbones, without fine-tuning")
    parser.add_argument("--work", type=Path, help="where everything goes; default: a directory that is removed")
    arguments = parser.parse_args()
    work = arguments.work or Path(tempfile.mkdtemp())
    work.mkdir(parents=True, exist_ok=True)
    runs: list[dict[str, Any]] = []
    if RESULT.exists():
        runs = json.loads(RESULT.read_text(encoding="utf-8"))["runs"]
    shipped = load_frozen_backbone(BackboneSection(name="biomedgpt-nano")).fingerprint
    for variant in arguments.only:
        backbone = pretrained(variant, arguments.data, work) if variant in BACKBONES else None
        if arguments.pretrain:
            continue
        named = BackboneSection(name=str(backbone)) if backbone is not None else None
        fingerprint = shipped if named is None else load_frozen_backbone(named).fingerprint
        for seed in SEEDS:
            for name in SETS:
                options = () if backbone is not None else ADAPTATIONS[variant][1]
                key = {"variant": variant, "set": name, "seed": seed, "options": [*SETS[name][2], *options]}
                if any(all(r[k] == v for k, v in key.items()) and r["fingerprint"] == fingerprint for r in runs):
                    continue
                row = {**key, **measure(name, arguments.data, work, backbone, seed, options)}
                runs = [r for r in runs if (r["variant"], r["set"], r["seed"]) != (variant, name, seed)] + [row]
                order = {v: number for number, v in enumerate(variants)}
                runs.sort(key=lambda r: (order[r["variant"]], list(SETS).index(r["set"]), r["seed"]))
                write(runs)
                print(f"{variant}, {name}, seed {seed}: {row['metrics']}", flush=True)
    print(table(runs))
    if arguments.work is None:
        shutil.rmtree(work)


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
