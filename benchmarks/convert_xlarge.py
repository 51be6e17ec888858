"""Memory and time of `bmpeft convert` on a checkpoint of XLarge with Adam's state, about 11 GB in float32.

    python benchmarks/convert_xlarge.py DIRECTORY RESULT.json

The checkpoint is generated in DIRECTORY, which needs 20 GB and is left empty. Its values are random, its layout is
fairseq's. Memory is what only this process holds (RssAnon); pages of a mapped file belong to the system, which drops
them when others need the room.
"""

from __future__ import annotations

import argparse
import json
import platform
import shutil
import subprocess
import sys
import time
import zipfile
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch

import bmpeft
from bmpeft.backbones.biomedgpt import BiomedGPTConfig, BiomedGPTForConditionalGeneration
from bmpeft.backbones.biomedgpt.conversion.architecture import fairseq_options
from bmpeft.backbones.biomedgpt.conversion.names import TIED, to_fairseq

RUNS = ([], ["--dtype", "bfloat16"], ["--to", "transformers"])


def generate(path: Path, size: str) -> int:
    """Write a checkpoint without ever holding its tensors: first its structure with holes, then what is in them."""
    config = BiomedGPTConfig.from_size(size)
    with torch.device("meta"):
        model = BiomedGPTForConditionalGeneration(config)
        state = model.state_dict()
        state = {name: state[name] for name in state if name not in TIED}
        moments = [torch.empty_like(parameter) for parameter in model.parameters() for _ in range(2)]
    with TemporaryDirectory(dir=path.parent) as directory:
        space = Space(Path(directory) / "sparse", [*state.values(), *moments])
        tensors = {name: space.tensor_like(tensor) for name, tensor in state.items()}
        tensors |= dict.fromkeys(TIED, tensors["encoder.embed_tokens.weight"])
        averages = iter([space.tensor_like(moment) for moment in moments])
        pairs = enumerate(zip(averages, averages, strict=True))
        adam = {index: {"step": 1000, "exp_avg": first, "exp_avg_sq": second} for index, (first, second) in pairs}
        content = {
            "args": argparse.Namespace(**fairseq_options(config)),
            "model": {to_fairseq(name): tensor for name, tensor in tensors.items()},
            "optimizer_history": [{"criterion_name": "X", "optimizer_name": "FairseqAdam", "num_updates": 1000}],
            "extra_state": {"train_iterator": {"epoch": 1}},
            "last_optimizer_state": {"state": adam, "param_groups": []},
        }
        with torch.serialization.skip_data():
            torch.save(content, path)
    fill(path)
    return path.stat().st_size


class Space:
    """Tensors in a file that takes no room, because nothing is ever written to it."""

    def __init__(self, path: Path, tensors: list[torch.Tensor]) -> None:
        size = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
        with path.open("wb") as file:
            file.truncate(size)
        self._storage, self._used = torch.UntypedStorage.from_file(str(path), shared=True, nbytes=size), 0

    def tensor_like(self, tensor: torch.Tensor) -> torch.Tensor:
        """The next tensor, of the same shape and type."""
        start, self._used = self._used, self._used + tensor.numel() * tensor.element_size()
        return torch.empty(0, dtype=tensor.dtype).set_(self._storage[start : self._used], 0, tensor.shape)


def fill(path: Path) -> None:
    """Random numbers into every record of tensor data."""
    block = np.random.default_rng(0).normal(0, 0.02, 2**22).astype(np.float32).tobytes()
    with zipfile.ZipFile(path) as archive:
        records = [entry for entry in archive.infolist() if "/data/" in entry.filename]
    with path.open("r+b") as file:
        for record in records:
            file.seek(record.header_offset + 26)
            name_length, extra_length = (int.from_bytes(file.read(2), "little") for _ in range(2))
            file.seek(record.header_offset + 30 + name_length + extra_length)
            for start in range(0, record.file_size, len(block)):
                file.write(block[: record.file_size - start])


def measure(command: list[str]) -> dict[str, float]:
    """Run a command to its end and watch its memory."""
    started, peak = time.monotonic(), 0
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    while process.poll() is None:
        peak = max(peak, anonymous_bytes(process.pid))
        time.sleep(0.01)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)}: exit code {process.returncode}")
    return {"peak_rss_anon_bytes": peak, "seconds": round(time.monotonic() - started, 1)}


def anonymous_bytes(process: int) -> int:
    """RssAnon of a process; 0 once it is over."""
    try:
        status = Path(f"/proc/{process}/status").read_text(encoding="utf-8")
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("RssAnon")), 0)


def main() -> None:
    """Generate, convert in every way, write the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("directory", type=Path)
    parser.add_argument("result", type=Path)
    parser.add_argument("--size", default="xlarge")
    parser.add_argument("--machine", default=f"{platform.machine()}, {platform.system()}")
    arguments = parser.parse_args()
    source, destination = arguments.directory / f"{arguments.size}.pt", arguments.directory / "converted"
    num_bytes = generate(source, arguments.size)
    rows = []
    for options in RUNS:
        command = [sys.executable, "-m", "bmpeft", "convert", str(source), str(destination), "--quiet", *options]
        figures = measure(command)
        rows.append({"command": " ".join(["bmpeft convert SOURCE DESTINATION", *options]), **figures})
        shutil.rmtree(destination)
    source.unlink()
    result = {
        "what": f"bmpeft convert: a fairseq checkpoint of {arguments.size} with Adam's state, float32, random values",
        "command": "python benchmarks/convert_xlarge.py DIRECTORY benchmarks/results/convert_xlarge.json",
        "machine": arguments.machine,
        "versions": {"bmpeft": bmpeft.__version__, "torch": torch.__version__, "python": platform.python_version()},
        "source_bytes": num_bytes,
        "rows": rows,
    }
    arguments.result.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
