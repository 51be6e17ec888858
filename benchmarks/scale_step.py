"""What size and length cost: all sizes built and counted without memory, and single LoRA steps, measured.

    python benchmarks/scale_step.py [--threads 2] [--cases large-1024 xlarge-512 nano-4096]

Every case runs in a process of its own, so that its peak of resident memory is its own. Weights are random,
adapters float32 (rank 16 on every linear layer), activations are recomputed in the backward pass. The step is
forward, backward and AdamW on one row of random tokens. Result: results/scale_step.json, in which cases that are
not measured again stay as they are.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from bmpeft.machine import describe_machine, package_versions

RESULT = Path(__file__).parent / "results" / "scale_step.json"
CASES = {  # size, tokens of source and target, weights
    "large-1024": ("large", 1024, 128, "bfloat16"),
    "xlarge-512": ("xlarge", 512, 128, "bfloat16"),
    "nano-4096": ("nano", 4096, 1024, "float32"),
}


def count_sizes() -> dict[str, Any]:
    """Build every size on the meta device; parameters of each, and the seconds of all together."""
    import torch

    from bmpeft.backbones.biomedgpt import SIZES, BiomedGPTConfig, BiomedGPTForConditionalGeneration

    started, parameters = time.perf_counter(), {}
    for size in SIZES:
        with torch.device("meta"):
            model = BiomedGPTForConditionalGeneration(BiomedGPTConfig.from_size(size))
        parameters[size] = sum(parameter.numel() for parameter in model.parameters())
    return {"parameters": parameters, "seconds": round(time.perf_counter() - started, 1)}


def step(case: str) -> dict[str, Any]:
    """One optimizer step; its seconds and the process's peak memory."""
    import torch

    from bmpeft.adaptation.lora import add_adapter, lora_config
    from bmpeft.backbones.biomedgpt import BiomedGPTConfig, BiomedGPTForConditionalGeneration
    from bmpeft.recipe_adaptation import LoraSection

    size, source, target, weights = CASES[case]
    started = time.perf_counter()
    torch.manual_seed(0)
    torch.set_default_dtype(getattr(torch, weights))
    config = BiomedGPTConfig.from_size(size, attn_implementation="sdpa", dropout=0.0)
    model = BiomedGPTForConditionalGeneration(config)
    torch.set_default_dtype(torch.float32)
    model.extend_positions(max(source, config.max_position_embeddings))
    model.requires_grad_(False)
    adapted = add_adapter(model, lora_config(LoraSection(), f"biomedgpt-{size}"), "default")
    model.activation_checkpointing_enable()
    adapted.train()
    trainable = [parameter for parameter in adapted.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trainable, lr=1e-4)
    built = peak_gib()
    build_seconds = time.perf_counter() - started

    ids = torch.randint(4, config.code_token_start, (1, source))
    labels = torch.randint(4, config.code_token_start, (1, target))
    marks = [time.perf_counter()]
    loss = adapted(input_ids=ids, attention_mask=torch.ones_like(ids), labels=labels).loss
    marks.append(time.perf_counter())
    loss.backward()
    marks.append(time.perf_counter())
    optimizer.step()
    marks.append(time.perf_counter())
    # B starts at zero, so that A's gradient is exactly zero in the first step; B's is not.
    gradients = [p.grad for name, p in adapted.named_parameters() if "lora_B" in name]
    assert torch.isfinite(loss)
    return {
        "case": case,
        "size": size,
        "weights": weights,
        "source_tokens": source,
        "target_tokens": target,
        "parameters": sum(parameter.numel() for parameter in model.parameters()) - sum(p.numel() for p in trainable),
        "trainable_parameters": sum(parameter.numel() for parameter in trainable),
        "lora_B_with_gradient": sum(gradient is not None and bool(gradient.any()) for gradient in gradients),
        "lora_B": len(gradients),
        "threads": torch.get_num_threads(),
        "build_seconds": round(build_seconds, 1),
        "forward_seconds": round(marks[1] - marks[0], 1),
        "backward_seconds": round(marks[2] - marks[1], 1),
        "optimizer_seconds": round(marks[3] - marks[2], 1),
        "step_seconds": round(marks[3] - marks[0], 1),
        "peak_rss_gib_after_building": round(built, 2),
        "peak_rss_gib": round(peak_gib(), 2),
        "loss": round(float(loss), 3),
    }


def peak_gib() -> float:
    """Largest resident memory of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def in_a_process(arguments: list[str]) -> dict[str, Any]:
    """The JSON object that this script prints when it is run with these arguments."""
    done = subprocess.run([sys.executable, __file__, *arguments], capture_output=True, text=True, check=True)
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def main() -> None:
    """Measure all cases, or, for the inner processes, one part."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--cases", nargs="*", choices=CASES, default=list(CASES))
    parser.add_argument("--only", choices=["sizes", *CASES], help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.only is not None:
        import torch

        torch.set_num_threads(arguments.threads)
        print(json.dumps(count_sizes() if arguments.only == "sizes" else step(arguments.only)))
        return
    load_before = os.getloadavg()[0]
    threads = ["--threads", str(arguments.threads)]
    known = json.loads(RESULT.read_text(encoding="utf-8"))["steps"] if RESULT.exists() else []
    measured = [in_a_process(["--only", case, *threads]) for case in arguments.cases]
    content = {
        "what": "sizes built and counted on the meta device; one LoRA step of the largest, and of a long input",
        "command": "python benchmarks/scale_step.py",
        "machine": describe_machine(),
        "beside": f"other work on the same cores: load average {load_before:.1f} at the start of the last run",
        "versions": package_versions("torch", "peft"),
        "meta": in_a_process(["--only", "sizes", *threads]),
        "steps": [*(step for step in known if step["case"] not in arguments.cases), *measured],
    }
    RESULT.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
