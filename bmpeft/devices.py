"""What a device computes in hardware. Imports nothing of bmpeft."""

from __future__ import annotations

import torch

_CPU_BFLOAT16 = ("avx512_bf16", "amx_bf16", "bf16")
"""Names in `torch.cpu.get_capabilities`: x86-64, and the last one 64-bit ARM."""

_CPU_FLOAT16 = ("avx512_fp16", "amx_fp16", "fp16_arith")
"""As above. `f16c` is missing here because it converts only."""

_TENSOR_CORES = (7, 0)
"""CUDA compute capability from which float16 products are faster than float32."""


def fastest_device() -> torch.device:
    """Where backbones are put: the GPU if torch can use one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def has_fast_bfloat16(device: torch.device) -> bool:
    """Whether a device multiplies bfloat16 matrices in hardware.

    torch computes with bfloat16 everywhere, but where it is emulated that is slower than float32, on a CPU
    about ten times. `torch.ops.mkldnn._is_mkldnn_bf16_supported` does not ask for this: it is true for any
    AVX-512, where oneDNN converts to float32 and back.
    """
    if device.type == "cuda":
        with torch.cuda.device(device):
            return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return device.type == "cpu" and _cpu_has_one_of(_CPU_BFLOAT16)


def has_fast_float16(device: torch.device) -> bool:
    """Whether a device multiplies float16 matrices in hardware."""
    if device.type == "cuda":
        return torch.version.hip is not None or torch.cuda.get_device_capability(device) >= _TENSOR_CORES
    return device.type == "cpu" and _cpu_has_one_of(_CPU_FLOAT16)


def _cpu_has_one_of(names: tuple[str, ...]) -> bool:
    capabilities = torch.cpu.get_capabilities()
    return any(bool(capabilities.get(name)) for name in names)
