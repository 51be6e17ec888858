"""The recipe medqa_full as shipped, and the same with the higher learning rates that it does not have.

    OMP_NUM_THREADS=1 python benchmarks/medqa_full.py

Each run is `bmpeft train` in a process of its own, so that seconds and peak memory are that command's. The shipped rate
is the one of the lowest validation loss among those that were tried; test rows took no part in the choice.
Result: results/medqa_full_nano.json.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from bmpeft.machine import describe_machine, package_versions
from bmpeft.recipe import load_recipe
from bmpeft.recipe_store import shipped_recipe

RESULT = Path(__file__).parent / "results" / "medqa_full_nano.json"
RECIPE = "medqa_full"
OTHER_RATES = ("3e-4", "1e-3")
"""The last is the default, LoRA's."""


def run(work: Path, *overrides: str) -> dict[str, Any]:
    """Train and measure once: figures of the command, of the training and of the card."""
    places = [f"output.directory={work / 'adapters'}", f"output.runs={work / 'runs'}", "output.overwrite=true"]
    command = [sys.executable, "-m", "bmpeft", "train", RECIPE, *overrides, *places, "--json"]
    started = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE)
    assert process.stdout is not None
    output = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        raise SystemExit(f"{shlex.join(command)}: exit code {process.returncode}")
    trained = json.loads(output)
    adapter = Path(trained["adapter"])
    manifest = json.loads((adapter / "bmpeft.json").read_text(encoding="utf-8"))
    log = (work / "runs" / manifest["name"] / "log.jsonl").read_text(encoding="utf-8").splitlines()
    validations = [event for event in map(json.loads, log) if event["event"] == "validation"]
    return {
        "command": shlex.join(["bmpeft", "train", RECIPE, *overrides]),
        "recipe": load_recipe(shipped_recipe(RECIPE).path, overrides).digest(),
        "backbone": manifest["backbone"]["fingerprint"],
        "learning_rate": manifest["recipe"]["training"]["learning_rate"],
        "seconds": round(time.perf_counter() - started),
        "training_seconds": round(manifest["training"]["seconds"]),
        "peak_rss_gib": round(usage.ru_maxrss / 2**20, 2),
        "precision": manifest["training"]["precision"],
        "trainable_parameters": manifest["training"]["trainable_parameters"],
        "adapter_bytes": (adapter / "adapter_model.safetensors").stat().st_size,
        "validation": [{key: event[key] for key in ("step", "loss", "accuracy")} for event in validations],
        "beside": round(os.getloadavg()[0], 1),
        "score_card": trained["score_card"],
    }


def main() -> None:
    """Run all rates and write the result."""
    with tempfile.TemporaryDirectory() as directory:
        work = Path(directory)
        shipped = run(work)
        quick = ("evaluation.controls=[]", "training.tensorboard=false")
        others = [run(work, f"training.learning_rate={rate}", *quick) for rate in OTHER_RATES]
    content = {
        "what": "full fine-tuning of biomedgpt-nano on the embedded synthetic set, as shipped, and at higher rates",
        "command": "OMP_NUM_THREADS=1 python benchmarks/medqa_full.py",
        "machine": describe_machine(),
        "threads": int(os.environ.get("OMP_NUM_THREADS", os.cpu_count() or 1)),
        "note": "beside: load average of the machine at the end of each run; other work took part of its cores",
        "versions": package_versions("torch", "transformers", "peft"),
        "shipped": shipped,
        "others": others,
    }
    RESULT.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
