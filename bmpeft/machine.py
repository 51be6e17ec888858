"""What a measurement was made with: the words that stand beside every committed figure."""

from __future__ import annotations

import os
import platform
from importlib import metadata
from pathlib import Path


def cpu_name() -> str:
    """The processor's name as its system gives it."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines() if cpuinfo.exists() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


def describe_machine() -> str:
    """Kind of machine in one line: processor, cores, what it computes in hardware, memory, GPU; no name, no path."""
    import torch

    from bmpeft.devices import has_fast_bfloat16

    cpu = torch.device("cpu")
    parts = [
        f"{os.cpu_count()} {platform.machine()} cores ({cpu_name()}, {torch.backends.cpu.get_cpu_capability()})",
        f"bfloat16 {'in hardware' if has_fast_bfloat16(cpu) else 'emulated'}",
        f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.0f} GiB memory",
        torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU",
    ]
    return ", ".join(parts)


def package_versions(*packages: str) -> dict[str, str]:
    """Versions of Python and of these packages."""
    return {"python": platform.python_version()} | {package: metadata.version(package) for package in packages}
