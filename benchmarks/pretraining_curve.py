"""Loss curve of a pretraining run: its log to a CSV and a plot (needs the extra `plot`).

python benchmarks/pretraining_curve.py runs/nano/log.jsonl benchmarks/results/nano_pretraining
"""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path
from typing import Any


def read_log(path: Path) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The training and the validation events of a log, in the order of their steps; a repeated step counts once."""
    events = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    by_kind: dict[str, dict[int, dict[str, Any]]] = {"train": {}, "validation": {}}
    for event in events:
        if event["event"] in by_kind:
            by_kind[event["event"]][event["step"]] = event
    train, validation = (list(dict(sorted(steps.items())).values()) for steps in by_kind.values())
    return train, validation


def main(log: str, output: str) -> None:
    """Write OUTPUT.csv and OUTPUT.png."""
    import matplotlib.pyplot as plt

    train, validation = read_log(Path(log))
    with Path(f"{output}.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["step", "supervised_tokens", "train_loss", "validation_loss"])
        validated = {event["step"]: event["loss"] for event in validation}
        for event in train:
            validation_loss = validated.get(event["step"])
            writer.writerow(
                [
                    event["step"],
                    event["supervised_tokens"],
                    f"{event['loss']:.4f}",
                    "" if validation_loss is None else f"{validation_loss:.4f}",
                ]
            )
    figure, axes = plt.subplots(figsize=(7, 3.5), layout="constrained")
    axes.plot([e["step"] for e in train], [e["loss"] for e in train], label="training", linewidth=1)
    axes.plot([e["step"] for e in validation], [e["loss"] for e in validation], "o-", label="held-out texts", ms=3)
    axes.set(xlabel="optimizer step", ylabel="loss, nats per token")
    axes.legend()
    figure.savefig(f"{output}.png", dpi=120)


if __name__ == "__main__":
    main(*sys.argv[1:])
