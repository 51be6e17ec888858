"""Every shipped recipe through the real commands: trained, measured, loaded again in a new process, measured again.

    python benchmarks/recipes.py DATA [--only NAME ...] [--backbone DIRECTORY] [--seeds 0 1 2] [--work DIRECTORY]

DATA is the directory that holds the published sets; where each lies in it is in `RUNS`, a set that is missing is left
out and said. Each command is a process of its own, so that its peak of resident memory is its own. What `bmpeft eval`
finds on the first split must be what `bmpeft train` found, to the last digit; a difference ends the script. Runs that
stand in the result already, with the same command, backbone and recipe, are not repeated.
Result: results/recipes_nano.json, in which nothing of a row stands.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from bmpeft.backbones import load_frozen_backbone
from bmpeft.machine import describe_machine, package_versions
from bmpeft.recipe import BackboneSection, load_recipe
from bmpeft.recipe_store import shipped_recipe

RESULT = Path(__file__).parent / "results" / "recipes_nano.json"
RETINOPATHY = "data.label_names={0: no retinopathy, 1: mild, 2: moderate, 3: severe, 4: proliferative}"
TSV_SUMMARIZATION = (
    "task.name=summarization",
    "task.decoding={method: beam}",
    "data.label_names=null",
    "data.max_target_length=128",
)
ENTAILMENT = (
    "task={name: text_understanding, decoding: {method: candidates}, "
    'prompt: \' can text1 " {text} " imply text2 " {question} "?\'}',
    "data.fields={text: text, question: question, label: label, group: group}",
    "data.licence=CC BY 4.0",
    "data.max_target_length=8",
    "training.epochs=6",
    "training.batch_size=32",
)
# Long ones with fewer steps and on fewer rows, so that all are done in hours on a CPU; result and table say so.
# name of the run -> recipe, place of its data below DATA, further overrides
RUNS: dict[str, tuple[str, str, tuple[str, ...]]] = {
    "hannover_cxr": ("hannover_cxr_lora", "hannover_cxr", ()),
    "breastmnist": ("medmnist_lora", "medmnist28/breastmnist.npz", ("data.accept_leakage=true",)),
    "pneumoniamnist": ("medmnist_lora", "medmnist28/pneumoniamnist_rebuilt.npz", ()),
    "retinamnist": ("medmnist_lora", "medmnist28/retinamnist.npz", (RETINOPATHY,)),
    "medical_abstracts": ("medical_abstracts_lora", "medical_abstracts_tc", ("data.split_by=group",)),
    "pubmedqa": ("pubmedqa_lora", "pubmedqa_l", ()),
    "meqsum": ("meqsum_lora", "meqsum/biomedgpt_split", ("training.epochs=2",)),
    "meqsum_entailment": ("own_jsonl", "meqsum/biomedgpt_split", ENTAILMENT),
    "mediqa2021_qs": ("mediqa2021_qs_lora", "mediqa2021_qs_mas/Task1", ()),
    "mediqa2021_mas": (
        "mediqa2021_mas_lora",
        "mediqa2021_qs_mas/Task2",
        ("training.max_steps=20", "evaluation.limit=20"),
    ),
    "mts_dialog": (
        "mts_dialog_lora",
        "mts_dialog",
        ("data.accept_leakage=true", "training.max_steps=60", "evaluation.limit=24"),
    ),
    "covid_cxr_notes": ("covid_cxr_notes_lora", "covid_cxr_notes_NC-SA", ()),
    "vqa_rad": ("vqa_rad_lora", "vqa_rad", ("training.max_steps=80", "evaluation.limit=100")),
    "aci_bench": ("aci_bench_lora", "aci_bench", ("training.max_steps=10", "evaluation.limit=2")),
    "aci_bench_long": ("aci_bench_long_lora", "aci_bench", ("training.epochs=2", "evaluation.limit=10")),
    "aci_bench_512": (
        "aci_bench_long_lora",
        "aci_bench",
        ("data.max_source_length=512", "training.epochs=2", "evaluation.limit=10"),
    ),
    "iu_xray": ("iu_xray_lora", "NLMCXR_reports.tgz", ("training.max_steps=20", "evaluation.limit=20")),
    "medqa": ("medqa_lora", "medqa_usmle_test/test_4opt.jsonl", ("training.epochs=1",)),
    "medmcqa": ("medmcqa_lora", "medmcqa_dev/dev.json", ("training.epochs=1",)),
    "medquad": ("medquad_lora", "medquad/medquad_sample.jsonl.gz", ("training.max_steps=8", "evaluation.limit=8")),
    "biomedgpt_tsv": (
        "biomedgpt_tsv_lora",
        "meqsum/biomedgpt_split",
        (*TSV_SUMMARIZATION, "training.max_steps=30", "evaluation.limit=24"),
    ),
}


def write_entailment_pairs(source: Path, directory: Path) -> Path:
    """Of each question of MeQSum two pairs: with its own summary ("yes"), and with another's ("no").

    The other one is that of the same split which shares most words with the own one, so that the topic alone does
    not tell them apart: whether a long question implies a short one, after RQE (Ben Abacha & Demner-Fushman 2016).
    """
    directory.mkdir(parents=True, exist_ok=True)
    for split in ("train", "val", "test"):
        with (source / f"{split}.tsv").open(encoding="utf-8", newline="") as stream:
            rows = [tuple(row[:2]) for row in csv.reader(stream, delimiter="\t", quoting=csv.QUOTE_NONE)]
        words = [set(re.findall(r"\w+", summary.lower())) for _, summary in rows]
        lines = []
        for number, (text, summary) in enumerate(rows):
            others = [n for n in range(len(rows)) if words[n] != words[number]]
            nearest = max(others, key=lambda n: (len(words[n] & words[number]) / len(words[n] | words[number]), -n))
            pairs = ((summary, "yes"), (rows[nearest][1], "no"))
            lines += [
                json.dumps({"text": text, "question": question, "label": label, "group": f"{split}-{number}"})
                for question, label in pairs
            ]
        name = {"val": "validation"}.get(split, split)
        (directory / f"{name}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return directory


PREPARED = {"meqsum_entailment": write_entailment_pairs}
"""Runs whose data is made of what lies there."""


def bmpeft(*arguments: str) -> tuple[dict[str, Any], float, float]:
    """Standard output of one command as JSON, its seconds and its peak of resident memory in GiB."""
    started = time.perf_counter()
    process = subprocess.Popen([sys.executable, "-m", "bmpeft", *arguments, "--json"], stdout=subprocess.PIPE)
    assert process.stdout is not None
    output = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        raise SystemExit(f"bmpeft {' '.join(arguments)}: exit code {process.returncode}")
    return json.loads(output), time.perf_counter() - started, usage.ru_maxrss / 2**20


def run(name: str, data: Path, work: Path, backbone: str | None, seed: int, key: dict[str, Any]) -> dict[str, Any]:
    """Train and measure one recipe, then measure the stored adapter in a new process."""
    recipe, place, options = RUNS[name]
    path = PREPARED[name](data / place, work / name) if name in PREPARED else data / place
    overrides = [f"data.path={path}", *options, f"training.seed={seed}", f"output.name={name}"]
    overrides += [f"output.directory={work / 'adapters'}", f"output.runs={work / 'runs'}", "output.overwrite=true"]
    if backbone is not None:
        overrides += [f"backbone.name={backbone}"]
    trained, seconds, peak = bmpeft("train", recipe, *overrides)
    adapter = Path(trained["adapter"])
    card = trained["score_card"]
    first = card["results"][0]
    again, evaluation_seconds, evaluation_peak = bmpeft(
        "eval", str(adapter), overrides[0], "--fresh", "--split", first["split"]
    )
    if again["results"][0]["metrics"] != first["metrics"]:
        raise SystemExit(f"{name}: the stored adapter answers otherwise in a new process")
    manifest = json.loads((adapter / "bmpeft.json").read_text(encoding="utf-8"))
    training = manifest["training"]
    return {
        **key,
        "task": card["task"],
        "trainable_parameters": training["trainable_parameters"],
        "steps": training["steps"],
        "precision": training["precision"],
        "attention": manifest["backbone"]["attention"],
        "training_seconds": round(training["seconds"], 1),
        "command_seconds": round(seconds, 1),
        "peak_rss_gib": round(peak, 2),
        "evaluation_seconds": round(evaluation_seconds, 1),
        "evaluation_peak_rss_gib": round(evaluation_peak, 2),
        "threads": int(os.environ.get("OMP_NUM_THREADS", os.cpu_count() or 1)),
        "train_rows": manifest["data"]["train_rows"],
        "split_method": card["split_method"],
        "results": [split_result(result) for result in card["results"]],
    }


def split_result(result: dict[str, Any]) -> dict[str, Any]:
    """What of a split's result is committed: figures, controls, parts, truncation."""
    metrics = {m["id"]: rounded(m, "value", "low", "high") for m in result["metrics"]}
    controls = {
        control["name"]: {
            "value": round(control["metrics"][0]["value"], 4),
            "metrics": {m["id"]: round(m["value"], 4) for m in control["metrics"]},
            "model_minus_control": rounded(control["difference"], "value", "low", "high"),
        }
        for control in result["controls"]
    }
    parts = [
        {"by": p["by"], "name": p["name"], "n": p["metric"]["n"], "value": rounded(p["metric"], "value", "low", "high")}
        for p in result["parts"]
    ]
    return {
        "split": result["split"],
        "n": result["n"],
        "metrics": metrics,
        "controls": controls,
        "parts": parts,
        "truncation": result["truncation"],
        "rows_per_second": round(result["rows_per_second"], 2),
    }


def rounded(content: dict[str, Any], *keys: str) -> list[float]:
    """Some values of a mapping with four decimals."""
    return [round(content[key], 4) for key in keys]


def main() -> None:
    """Run what is not yet in the result, and write it after every run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--only", nargs="*", choices=RUNS, default=list(RUNS))
    parser.add_argument("--backbone", help="instead of the one that the recipes name")
    parser.add_argument("--seeds", nargs="*", type=int, default=[0])
    parser.add_argument("--work", type=Path, help="where adapters and runs go; default: a directory that is removed")
    parser.add_argument("--result", type=Path, default=RESULT)
    arguments = parser.parse_args()
    work = arguments.work or Path(tempfile.mkdtemp())
    known = json.loads(arguments.result.read_text(encoding="utf-8"))["runs"] if arguments.result.exists() else []
    fingerprint = load_frozen_backbone(BackboneSection(name=arguments.backbone or "biomedgpt-nano")).fingerprint
    for seed in arguments.seeds:
        for name in arguments.only:
            recipe, place, options = RUNS[name]
            if not (arguments.data / place).exists():
                print(f"{name}: no {place}, left out")
                continue
            command = shlex.join(["bmpeft", "train", recipe, f"data.path={place}", *options, f"training.seed={seed}"])
            digest = load_recipe(shipped_recipe(recipe).path, options).digest()
            key = {"name": name, "seed": seed, "command": command, "recipe": digest, "backbone": fingerprint}
            if any(all(row[k] == v for k, v in key.items()) for row in known):
                continue
            row = run(name, arguments.data, work, arguments.backbone, seed, key)
            row["beside"] = round(os.getloadavg()[0], 1)
            known = [r for r in known if (r["name"], r["seed"]) != (name, seed)] + [row]
            known.sort(key=lambda r: (list(RUNS).index(r["name"]), r["seed"]))
            write(arguments.result, known)
            print(f"{name}, seed {seed}: {row['command_seconds']} s", flush=True)
    if arguments.work is None:
        shutil.rmtree(work)


def write(result: Path, runs: list[dict[str, Any]]) -> None:
    """Write the result file."""
    content = {
        "what": "every shipped recipe on published data: trained, measured, loaded again in a new process with the "
        "same figures on the first split; [value, 95 % interval]; peak_rss_gib is the largest resident memory of the "
        "whole process",
        "command": "python benchmarks/recipes.py DATA",
        "machine": describe_machine(),
        "beside": "load average of the machine at the end of each run; other work took part of the two cores",
        "versions": package_versions("torch", "transformers", "peft"),
        "runs": runs,
    }
    result.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
