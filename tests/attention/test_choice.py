"""Which backend `auto` takes, and that it says why."""

from __future__ import annotations

import pytest
import torch

from bmpeft.attention import (
    AUTO,
    BACKENDS,
    PositionBias,
    attention,
    check_backend,
    choose_backend,
    describe_choices,
    why_unavailable,
)
from bmpeft.attention.choice import CHUNKED_FROM, NAMES
from bmpeft.backbones import load_frozen_backbone
from bmpeft.errors import UsageError
from bmpeft.recipe import BackboneSection


def test_every_name_is_a_backend() -> None:
    assert tuple(BACKENDS) == NAMES


@pytest.mark.parametrize(
    ("device", "queries", "keys", "backend"),
    [
        ("cpu", 511, 512, "sdpa"),
        ("cpu", 512, 512, "chunked"),
        ("cpu", 64, 4096, "chunked"),
        ("cpu", 1, 4096, "sdpa"),
        ("cuda", 4096, 4096, "sdpa"),
    ],
)
def test_auto_is_chosen_by_device_and_length(device: str, queries: int, keys: int, backend: str) -> None:
    choice = choose_backend(AUTO, device, queries, keys)
    assert choice.backend == backend
    assert device in choice.reason.lower()
    assert all(choose_backend(name, device, queries, keys).backend == name for name in BACKENDS)


@pytest.mark.parametrize("length", [8, 512])
def test_auto_computes_with_the_backend_that_it_names(length: int) -> None:
    query = torch.randn(1, 1, length, 8, generator=torch.Generator().manual_seed(0))
    chosen = choose_backend(AUTO, "cpu", length, length).backend
    outputs = {n: attention(query, query, query, bias=PositionBias(), scale=0.3, backend=n) for n in (AUTO, chosen)}
    assert torch.equal(outputs[AUTO], outputs[chosen])
    assert length * length < CHUNKED_FROM or chosen == "chunked"


def test_flash_is_taken_where_there_are_no_tables() -> None:
    assert choose_backend("flash", "cpu", 64, 4096).backend == "flash"
    choice = choose_backend("flash", "cpu", 4096, 4096, tables=True)
    assert (choice.backend, choice.reason.split(";")[0]) == ("chunked", "flash has no tables of relative positions")
    small = choose_backend("flash", "cpu", 9, 9, tables=True)
    assert small.backend == choose_backend(AUTO, "cpu", 9, 9).backend


def test_a_report_counts_the_layers_of_each_choice() -> None:
    layers = [(6, choose_backend(AUTO, "cpu", 1024, 1024)), (12, choose_backend("eager", "cpu", 9, 9))]
    first, second = describe_choices(layers)
    assert first.startswith("6/18 layers: chunked, 1,024 x 1,024 scores a head on a CPU")
    assert second == "12/18 layers: eager, asked for"


def test_a_backend_that_does_not_exist_is_refused() -> None:
    with pytest.raises(ValueError, match="'fast' is not one of auto, eager, sdpa, chunked, flash, flex, triton"):
        check_backend("fast")


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU runs it")
def test_a_backend_that_cannot_run_here_is_refused_before_anything_is_loaded() -> None:
    section = BackboneSection(name="biomedgpt-nano", attention="triton")
    with pytest.raises(UsageError, match=r"backbone\.attention=triton: Triton compiles for GPUs.* is cpu"):
        load_frozen_backbone(section)
    assert why_unavailable("chunked", "cpu") is None


def test_kernels_say_why_they_do_not_run_on_a_cpu() -> None:
    query = torch.ones(1, 1, 2, 16)
    with pytest.raises(RuntimeError, match="Triton compiles for no cpu: a GPU is needed"):
        attention(query, query, query, bias=PositionBias(), scale=0.25, backend="triton")
