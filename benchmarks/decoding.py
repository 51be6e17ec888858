"""What answers cost with biomedgpt-nano: tokens of a long text, closed answers, 500 answers.

    python benchmarks/decoding.py [--repeats 3]

Weights, pixels and tokens are random: the time does not depend on them. One thread, and seconds of CPU time, which
on an idle machine are seconds: other work may run beside. Every figure is the smallest of several repeats, which
take turns between the ways that are compared.
Result: results/decoding_nano.json.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from bmpeft.backbones.biomedgpt import BiomedGPTForConditionalGeneration
from bmpeft.backbones.biomedgpt.generation import generate_ids
from bmpeft.backbones.biomedgpt.scoring import score_answers
from bmpeft.backbones.biomedgpt.trie import build_trie
from bmpeft.machine import describe_machine, package_versions
from bmpeft.recipe_decoding import BeamDecoding, TrieDecoding

RESULT = Path(__file__).parent / "results" / "decoding_nano.json"
PIXELS = 384
YES, NO, END = [500, 2], [600, 2], 2


def best_seconds(ways: dict[str, Callable[[], Any]], repeats: int) -> dict[str, float]:
    """The smallest CPU time of each way; they take turns."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(repeats):
        for name, way in ways.items():
            started = time.process_time()
            way()
            seconds[name].append(time.process_time() - started)
    return {name: min(values) for name, values in seconds.items()}


def long_text(model: BiomedGPTForConditionalGeneration, repeats: int) -> dict[str, Any]:
    """Cached greedy decoding of 256 tokens, and the time of each of its steps."""
    memory = model.encoder(torch.randint(4, 8000, (1, 128)))
    decoding = BeamDecoding(num_beams=1, max_new_tokens=257, min_new_tokens=256)
    times: list[float] = []
    hook = model.decoder.register_forward_hook(lambda *_: times.append(time.process_time()))
    steps = []
    for _ in range(repeats):
        times.clear()
        generate_ids(model, memory, decoding)
        steps.append([1e3 * (after - before) for before, after in pairwise(times)][:256])
    hook.remove()
    fastest = [min(values) for values in zip(*steps, strict=True)]
    parts = {f"tokens {begin + 1} to {begin + 32}": fastest[begin : begin + 32] for begin in range(0, 256, 32)}
    return {
        "cpu_milliseconds_per_token": {name: round(statistics.mean(values), 3) for name, values in parts.items()},
        "all_256_over_the_first_32": round(statistics.mean(fastest) / statistics.mean(fastest[:32]), 3),
        "last_32_over_the_first_32": round(statistics.mean(fastest[-32:]) / statistics.mean(fastest[:32]), 3),
    }


def closed_answers(model: BiomedGPTForConditionalGeneration, repeats: int) -> dict[str, Any]:
    """Yes or no to 9 questions about 9 or 4 images, which is VQA-RAD's 451 questions about 203 images in small."""
    questions, answers = 9, [YES, NO]
    ids = torch.randint(4, 8000, (questions, 12))
    pixels = torch.randn(questions, 3, PIXELS, PIXELS)
    shared = torch.arange(questions) * 4 // questions

    def one_forward_per_candidate() -> list[float]:
        scores = []
        for row in range(questions):
            for answer in answers:
                logits = model(
                    input_ids=ids[row : row + 1],
                    pixel_values=pixels[row : row + 1],
                    labels=torch.tensor([answer]),
                    use_cache=False,
                ).logits[0]
                scores.append(float(logits.log_softmax(-1)[range(len(answer)), answer].sum()))
        return scores

    def scored(rows: torch.Tensor, images: torch.Tensor) -> list[float]:
        memory = model.encoder(ids, pixel_values=images, pixel_rows=rows)
        return [score for row in score_answers(model, memory, [answers] * questions) for score in row]

    own = torch.arange(questions)
    torch.testing.assert_close(scored(own, pixels), one_forward_per_candidate(), atol=1e-3, rtol=1e-4)
    seconds = best_seconds(
        {
            "one model.forward per candidate": one_forward_per_candidate,
            "scored, an image for each question": lambda: scored(own, pixels),
            "scored, 4 images": lambda: scored(shared, pixels[:4]),
        },
        repeats,
    )
    slow = seconds["one model.forward per candidate"]
    return {
        "questions": questions,
        "candidates": 2,
        "image_pixels": PIXELS,
        "cpu_seconds": {name: round(value, 3) for name, value in seconds.items()},
        "times_as_fast": {name: round(slow / value, 2) for name, value in seconds.items() if value != slow},
    }


def many_answers(model: BiomedGPTForConditionalGeneration, repeats: int) -> dict[str, Any]:
    """500 answers of three tokens to one question: all of them scored, or one found by constrained beam search."""
    answers = [[100 + i // 25, 200 + i // 5 % 5, 300 + i % 5, END] for i in range(500)]
    memory = model.encoder(torch.randint(4, 8000, (1, 12)), pixel_values=torch.randn(1, 3, PIXELS, PIXELS))
    trie = build_trie(answers, [0])
    labels = torch.tensor(answers)

    def each_answer_alone() -> None:
        model(encoder_outputs=memory.of_rows(torch.zeros(500, dtype=torch.long)), labels=labels, use_cache=False)

    def scored() -> None:
        score_answers(model, memory, [answers])

    def found() -> None:
        generate_ids(model, memory, TrieDecoding(num_beams=5), trie=trie)

    ways = {"a decoder row for each answer": each_answer_alone, "token tree": scored, "constrained, 5 beams": found}
    seconds = best_seconds(ways, repeats)
    return {
        "questions": 1,
        "answers": 500,
        "tokens_read": {"a decoder row for each answer": 500 * 4, "token tree": len(trie.tokens)},
        "cpu_seconds_without_the_encoder": {name: round(value, 3) for name, value in seconds.items()},
    }


def main() -> None:
    """Measure everything and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    repeats: int = parser.parse_args().repeats
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = BiomedGPTForConditionalGeneration.from_size("nano", attn_implementation="sdpa").eval()
    before = os.getloadavg()[0]
    with torch.inference_mode():
        measured = {
            "long_text": long_text(model, repeats),
            "closed_answers": closed_answers(model, repeats),
            "many_answers": many_answers(model, repeats),
        }
    content = {
        "what": "decoding with biomedgpt-nano, random weights, float32, attention sdpa, one thread",
        "command": "python benchmarks/decoding.py",
        "machine": describe_machine(),
        "beside": f"other work on the same cores: load average {before:.1f} at the start, {os.getloadavg()[0]:.1f} at "
        f"the end; each figure is the smallest of {repeats} repeats that take turns",
        "versions": package_versions("torch", "transformers"),
        **measured,
    }
    RESULT.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
