"""`bmpeft doctor`: what is installed here, what this machine computes with, and what can be reached.

Every part is examined on its own. One that fails, by whatever exception, becomes a finding that says so: the
command is most useful where something is broken. Nothing heavy is imported before its own probe runs.
"""

from __future__ import annotations

import os
import platform
import shutil
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, TypeVar

from bmpeft.machine import cpu_name

if TYPE_CHECKING:
    from rich.table import Table

REQUIRED = (
    "torch",
    "transformers",
    "peft",
    "trl",
    "accelerate",
    "bitsandbytes",
    "datasets",
    "safetensors",
    "tokenizers",
    "huggingface-hub",
    "numpy",
)
OPTIONAL = ("triton", "flash-attn")
HUB_SECONDS = 3.0
_GIBIBYTE = 2**30
_SCARCE_DISK = 2 * _GIBIBYTE  # a run with its checkpoints, or a small backbone from the hub
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Finding:
    """One fact: `value` for programs (JSON), `text` for people, `problem` where something needs attention."""

    name: str
    value: Any
    text: str
    problem: bool = False


Probe = Callable[[], Sequence[Finding]]


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """The findings of every probe, in the order in which they are shown."""

    findings: Mapping[str, tuple[Finding, ...]]

    @property
    def problems(self) -> tuple[str, ...]:
        """What needs attention, a line each."""
        return tuple(f"{area}, {f.name}: {f.text}" for area, found in self.findings.items() for f in found if f.problem)

    def content(self) -> dict[str, Any]:
        """For JSON: area -> name -> value, and the list of problems."""
        areas = {area: {f.name: f.value for f in found} for area, found in self.findings.items()}
        return {**areas, "problems": list(self.problems)}

    def table(self) -> Table:
        """For a terminal; problems are coloured."""
        from rich.table import Table
        from rich.text import Text

        table = Table(box=None, pad_edge=False, show_header=False)
        for area, found in self.findings.items():
            for i, finding in enumerate(found):
                text = Text(finding.text, style="yellow" if finding.problem else "")
                table.add_row(Text(area if i == 0 else "", style="bold"), Text(finding.name), text)
        return table


def diagnose(probes: Mapping[str, Probe] | None = None) -> Diagnosis:
    """Run all probes, or those given; never raises."""
    return Diagnosis({area: _examined(probe) for area, probe in (probes or PROBES).items()})


def _examined(probe: Probe) -> tuple[Finding, ...]:
    try:
        return tuple(probe())
    except Exception as error:  # whatever it is, it is what the user wants to hear about
        return (Finding("failed", _one_line(error), _one_line(error), problem=True),)


def _one_line(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())


def _versions() -> list[Finding]:
    from bmpeft import __version__

    findings = [
        Finding("bmpeft", __version__, f"{__version__} in {Path(__file__).parent}"),
        Finding("python", platform.python_version(), f"{platform.python_version()}, {sys.executable}"),
        Finding("system", platform.platform(), platform.platform()),
    ]
    return findings + [_version(name, name in REQUIRED) for name in (*REQUIRED, *OPTIONAL)]


def _version(package: str, required: bool) -> Finding:
    try:
        version = metadata.version(package)
    except metadata.PackageNotFoundError:
        return Finding(package, None, f"not installed{', but required' if required else ''}", problem=required)
    return Finding(package, version, version)


def _cpu() -> list[Finding]:
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return [
        Finding("name", cpu_name(), cpu_name()),
        Finding("cores", usable, f"{usable} logical cores for this process, {os.cpu_count()} in the machine"),
    ]


def _memory() -> list[Finding]:
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():
        figures = dict(line.split(":", 1) for line in meminfo.read_text(encoding="ascii").splitlines())
        total, available = (1024 * int(figures[name].split()[0]) for name in ("MemTotal", "MemAvailable"))
        return [_bytes("total", total), _bytes("available", available)]
    return [_bytes("total", os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))]


def _bytes(name: str, count: int) -> Finding:
    return Finding(name, count, f"{count / _GIBIBYTE:,.1f} GiB")


def _device() -> list[Finding]:
    import torch

    from bmpeft.devices import fastest_device

    device = fastest_device()
    threads = torch.get_num_threads()
    capability = torch.backends.cpu.get_cpu_capability()
    return [
        Finding("used", device.type, f"{device.type}: backbones are loaded there"),
        Finding("threads", threads, f"{threads} for computations on the CPU (OMP_NUM_THREADS)"),
        Finding("instructions", capability, f"{capability} is what torch uses of the CPU"),
        *_gpus(),
    ]


def _gpus() -> list[Finding]:
    import torch

    if torch.version.cuda is None and torch.version.hip is None:
        return [Finding("gpus", [], f"none: torch {torch.__version__} is built without CUDA")]
    if not torch.cuda.is_available():
        return [Finding("gpus", [], f"none: torch {torch.__version__} finds no GPU with a working driver")]
    properties = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
    value = [{"name": p.name, "memory": p.total_memory, "capability": f"{p.major}.{p.minor}"} for p in properties]
    lines = [
        f"{p.name}, {p.total_memory / _GIBIBYTE:,.1f} GiB, compute capability {p.major}.{p.minor}" for p in properties
    ]
    return [Finding("gpus", value, "; ".join(lines))]


def _dtypes() -> list[Finding]:
    from bmpeft.devices import fastest_device, has_fast_bfloat16, has_fast_float16

    device = fastest_device()
    chosen = "bfloat16" if has_fast_bfloat16(device) else "float32"
    return [
        _dtype("bfloat16", has_fast_bfloat16(device), f"training.precision=auto is {chosen} here"),
        _dtype("float16", has_fast_float16(device), "bmpeft does not compute with it"),
    ]


def _dtype(name: str, fast: bool, remark: str) -> Finding:
    return Finding(name, "hardware" if fast else "emulated", f"{'in hardware' if fast else 'emulated, slow'}; {remark}")


def _attention() -> list[Finding]:
    from bmpeft.attention import BACKENDS

    return [_auto_attention(), *(_backend(name) for name in BACKENDS)]


def _auto_attention() -> Finding:
    """What backbone.attention=auto takes, for a short and for a long text."""
    from bmpeft.attention import AUTO, choose_backend
    from bmpeft.devices import fastest_device

    device = fastest_device().type
    choices = {length: choose_backend(AUTO, device, length, length) for length in (256, 1024)}
    value = {str(length): choice.backend for length, choice in choices.items()}
    text = "; ".join(f"{choice.backend} ({choice.reason})" for choice in choices.values())
    return Finding(AUTO, value, text)


def _backend(name: str) -> Finding:
    """Compute something small with an attention backend: that is what "available" means."""
    import torch

    from bmpeft.attention import PositionBias, attention, why_unavailable
    from bmpeft.devices import fastest_device

    device = fastest_device()
    reason = why_unavailable(name, device.type)
    if reason is not None:
        return Finding(name, "unavailable", f"not available: {reason}")
    query = torch.ones(1, 1, 2, 16, device=device)  # [B, H, L, D]
    try:
        output = attention(query, query, query, bias=PositionBias(), causal=True, scale=0.25, backend=name)
    except Exception as error:
        return Finding(name, _one_line(error), f"not available: {_one_line(error)}", problem=True)
    if not torch.allclose(output, query):  # a mean of equal values
        return Finding(name, "wrong", "computes wrong values on this device", problem=True)
    return Finding(name, "available", "available")


def _quantization() -> list[Finding]:
    import bitsandbytes
    import torch

    from bmpeft.devices import fastest_device

    device = fastest_device()
    weight = torch.linspace(-1.0, 1.0, 4096, device=device).reshape(64, 64)
    packed, state = bitsandbytes.functional.quantize_4bit(weight, quant_type="nf4")
    restored = bitsandbytes.functional.dequantize_4bit(packed, state)
    # The widest gap of the NF4 code, between -1 and -0.696, bounds the error (Dettmers et al. 2023, appendix E).
    if float((restored - weight).abs().max()) > 0.16:
        return [Finding("bitsandbytes", "wrong", f"4-bit weights are restored wrongly on {device}", problem=True)]
    return [Finding("bitsandbytes", device.type, f"4-bit weights (NF4) work on {device}")]


def _disk() -> list[Finding]:
    from huggingface_hub.constants import HF_HUB_CACHE

    from bmpeft.cache import cache_directory

    places = {"here": Path.cwd(), "hub_cache": Path(HF_HUB_CACHE), "bmpeft_cache": cache_directory()}
    return [_free(name, path) for name, path in places.items() if path is not None]


def _free(name: str, directory: Path) -> Finding:
    """Free space where a directory is, or will be once it is made."""
    directory = directory.absolute()
    existing = next(path for path in (directory, *directory.parents) if path.exists())
    free = shutil.disk_usage(existing).free
    not_yet = "" if existing == directory else " (does not exist yet)"
    value = {"directory": str(directory), "free": free}
    return Finding(name, value, f"{free / _GIBIBYTE:,.1f} GiB free, {directory}{not_yet}", free < _SCARCE_DISK)


def _hub() -> list[Finding]:
    from huggingface_hub import get_session, is_offline_mode
    from huggingface_hub.constants import ENDPOINT

    if is_offline_mode():
        text = f"offline: HF_HUB_OFFLINE or TRANSFORMERS_OFFLINE is set, {ENDPOINT} is not asked"
        return [Finding("state", "offline", text)]
    try:
        status = _within(HUB_SECONDS, lambda: get_session().head(ENDPOINT, timeout=HUB_SECONDS).status_code)
    except TimeoutError:
        text = f"unreachable: {ENDPOINT}: no answer in {HUB_SECONDS:g} s"
        return [Finding("state", "unreachable", text, problem=True)]
    except Exception as error:
        return [Finding("state", "unreachable", f"unreachable: {ENDPOINT}: {_one_line(error)}", problem=True)]
    return [Finding("state", "reachable", f"reachable: {ENDPOINT} (HTTP status {status})")]


def _within(seconds: float, call: Callable[[], T]) -> T:
    """What `call` returns or raises, or TimeoutError: a request's own limit does not cover looking up the name."""
    result: Future[T] = Future()

    def run() -> None:
        try:
            result.set_result(call())
        except Exception as error:
            result.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return result.result(timeout=seconds)


def _files() -> list[Finding]:
    from bmpeft.adapters.artifact import BrokenArtifact, list_artifacts
    from bmpeft.recipe_store import resolve_recipe, shipped_names

    names, root = shipped_names(), Path("adapters").absolute()
    if names:
        directory = resolve_recipe(f"recipes/{names[0]}.yaml").absolute().parent
        recipes = Finding("recipes", str(directory), f"{len(names)} in {directory}")
    else:
        recipes = Finding("recipes", None, "none: the installation is incomplete", problem=True)
    adapters = list_artifacts(root)
    damaged = sum(isinstance(adapter, BrokenArtifact) for adapter in adapters)
    remark = f", {damaged} of them damaged: see `bmpeft adapters list`" if damaged else ""
    return [recipes, Finding("adapters", str(root), f"{len(adapters)} in {root}{remark}", problem=damaged > 0)]


PROBES: Mapping[str, Probe] = MappingProxyType(
    {
        "versions": _versions,
        "cpu": _cpu,
        "memory": _memory,
        "device": _device,
        "dtypes": _dtypes,
        "attention": _attention,
        "quantization": _quantization,
        "disk": _disk,
        "hub": _hub,
        "files": _files,
    }
)
