"""Whether bfloat16 is fast is asked in one place, and what depends on it follows."""

from __future__ import annotations

from types import MappingProxyType

import pytest
import torch

from bmpeft.backbones.loading import load_frozen_backbone
from bmpeft.devices import has_fast_bfloat16, has_fast_float16
from bmpeft.recipe import BackboneSection
from bmpeft.training.trainer import resolve_precision

CPU = torch.device("cpu")


def with_capabilities(patch: pytest.MonkeyPatch, **capabilities: bool | str | int) -> None:
    patch.setattr(torch.cpu, "get_capabilities", lambda: MappingProxyType(capabilities))


@pytest.mark.parametrize(
    ("capabilities", "bfloat16", "float16"),
    [
        ({"architecture": "x86_64", "avx2": True, "f16c": True}, False, False),
        ({"avx2": True, "avx512_f": True, "avx512_bw": True, "avx512_vl": True, "avx512_dq": True}, False, False),
        ({"avx512_f": True, "avx512_bf16": True, "avx512_fp16": False}, True, False),
        ({"avx512_bf16": True, "avx512_fp16": True, "amx_bf16": True}, True, True),
        ({"architecture": "aarch64", "neon": True, "bf16": True, "fp16_arith": True}, True, True),
        ({"architecture": "aarch64", "neon": True, "sve_max_length": 32}, False, False),
        ({}, False, False),
    ],
)
def test_a_cpu_is_asked_for_its_instructions(
    capabilities: dict[str, bool | str | int], bfloat16: bool, float16: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_capabilities(monkeypatch, **capabilities)
    assert has_fast_bfloat16(CPU) is bfloat16
    assert has_fast_float16(CPU) is float16
    assert resolve_precision("auto", CPU) == ("bfloat16" if bfloat16 else "float32")


def test_the_names_of_the_instructions_are_those_of_torch() -> None:
    """A renamed key would silently read as "not there"."""
    known = torch.cpu.get_capabilities()
    expected = {"x86_64": {"avx512_bf16", "amx_bf16", "avx512_fp16", "amx_fp16"}, "aarch64": {"bf16", "fp16_arith"}}
    if known.get("architecture") not in expected:
        pytest.skip(f"no expectation for {known.get('architecture')}")
    assert expected[known["architecture"]] <= known.keys()


@pytest.mark.parametrize("capable", [True, False])
@pytest.mark.parametrize("asked", ["float32", "bfloat16"])
def test_a_precision_that_is_asked_for_is_taken(capable: bool, asked: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with_capabilities(monkeypatch, avx512_bf16=capable)
    assert resolve_precision(asked, CPU) == asked


def test_frozen_weights_stay_float32_on_a_cpu_that_computes_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    with_capabilities(monkeypatch, avx512_bf16=True)
    backbone = load_frozen_backbone(BackboneSection(name="biomedgpt-nano", init="random"))
    if backbone.device.type != "cpu":
        pytest.skip("backbones are loaded on a GPU here")
    assert backbone.dtype == torch.float32


def test_a_device_that_is_neither_cpu_nor_gpu_has_nothing() -> None:
    assert not has_fast_bfloat16(torch.device("meta"))
    assert not has_fast_float16(torch.device("meta"))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_a_gpu_is_asked_for_its_compute_capability() -> None:
    for index in range(torch.cuda.device_count()):
        capable = torch.version.hip is not None or torch.cuda.get_device_capability(index) >= (8, 0)
        assert has_fast_bfloat16(torch.device("cuda", index)) is capable
