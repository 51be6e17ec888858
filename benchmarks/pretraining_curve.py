"""Loss curves of a pretraining run, one for each task: its log to a CSV and a plot (needs the extra `plot`).

python benchmarks/pretraining_curve.py runs/nano/log.jsonl benchmarks/results/nano_pretraining
"""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path
from typing import Any

PREFIX = "loss/"
WINDOW = 10
"""Logged losses that a point of the plot's training curves is the mean of; the CSV has them all."""


def read_log(path: Path) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The training and the validation events of a log, in the order of their steps; a repeated step counts once."""
    events = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    by_kind: dict[str, dict[int, dict[str, Any]]] = {"train": {}, "validation": {}}
    for event in events:
        if event["event"] in by_kind:
            by_kind[event["event"]][event["step"]] = event
    train, validation = (list(dict(sorted(steps.items())).values()) for steps in by_kind.values())
    return train, validation


def curve(events: list[dict[str, Any]], key: str, window: int = 1) -> tuple[list[int], list[float]]:
    """Steps and losses of the events that have this key, each the mean of itself and those before it."""
    found = [(event["step"], event[key]) for event in events if key in event]
    losses = [loss for _, loss in found]
    means = [sum(part) / len(part) for i in range(len(losses)) for part in (losses[max(0, i + 1 - window) : i + 1],)]
    return [step for step, _ in found], means


def write_csv(path: Path, train: list[dict[str, Any]], validation: list[dict[str, Any]], keys: list[str]) -> None:
    """A row for each step that was logged; an empty cell where a task had no step, or nothing was validated."""
    steps = sorted({event["step"] for event in (*train, *validation)})
    of = [{event["step"]: event for event in events} for events in (train, validation)]
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        names = [f"{kind}_{key.replace('/', '_')}" for kind in ("train", "validation") for key in keys]
        writer.writerow(["step", "supervised_tokens", *names])
        for step in steps:
            events = [by_step.get(step, {}) for by_step in of]
            losses = [event.get(key) for event in events for key in keys]
            cells = ["" if loss is None else f"{loss:.4f}" for loss in losses]
            writer.writerow([step, events[0].get("supervised_tokens", ""), *cells])


def main(log: str, output: str) -> None:
    """Write OUTPUT.csv and OUTPUT.png."""
    import matplotlib.pyplot as plt

    train, validation = read_log(Path(log))
    tasks = sorted({key for event in (*train, *validation) for key in event if key.startswith(PREFIX)})
    write_csv(Path(f"{output}.csv"), train, validation, ["loss", *tasks])
    figure, axes = plt.subplots(2, 3, figsize=(10, 5), sharex=True, layout="constrained")
    for panel, task in zip(axes.flat, tasks, strict=False):
        panel.plot(*curve(train, task, WINDOW), label="training", linewidth=1)
        panel.plot(*curve(validation, task), "o-", label="held out", markersize=3)
        panel.set(title=task.removeprefix(PREFIX).replace("_", " "), ylim=(0, None))
    for panel in axes[-1]:
        panel.set(xlabel="optimizer step")
    for panel in axes[:, 0]:
        panel.set(ylabel="loss, nats per token")
    axes.flat[0].legend()
    figure.savefig(f"{output}.png", dpi=110)


if __name__ == "__main__":
    main(*sys.argv[1:])
