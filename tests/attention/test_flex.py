"""Attention by flex_attention: what its tables and masks say, by torch's own uncompiled computation of it.

Compiled for a GPU it is unmeasured; the same checks run there where there is one.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from bmpeft.attention.choice import why_unavailable
from bmpeft.attention.flex import flex_attention
from tests.attention.cases import Case, make_case, specification

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
CASES: dict[str, dict[str, Any]] = {
    "text": {"text": 45},
    "image and text, padding": {"text": 24, "grid": (3, 4), "padding": [30, 17]},
    "sampled patches": {"text": 9, "grid": (2, 4), "sampled": True},
    "image alone": {"text": 0, "grid": (4, 4)},
    "causal": {"text": 40, "causal": True},
    "cross, a row without keys": {"text": 5, "cross_keys": 41, "hidden_row": True},
    "packed and causal": {"text": 40, "segments": True, "causal": True},
    "no factors": {"text": 33, "factors": False},
    "one token": {"text": 1},
}


def output(case: Case, backend: Any, **options: Any) -> Tensor:
    arguments: dict[str, Any] = {"bias": case.bias, "scale": case.query.shape[-1] ** -0.5, **case.masks, **options}
    moved = torch.utils._pytree.tree_map_only(Tensor, lambda x: x.to(DEVICE), arguments)
    with torch.no_grad():
        found: Tensor = backend(case.query.to(DEVICE), case.key.to(DEVICE), case.value.to(DEVICE), **moved)
    return found.cpu()


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.skipif(DEVICE.type == "cuda", reason="compiled there; the arguments are on the CPU")
@pytest.mark.parametrize("name", CASES)
def test_it_computes_what_the_definition_says(name: str) -> None:
    case = make_case(0, **CASES[name], head_dim=16).to(torch.float32)
    found = output(case, flex_attention, dropout=0.0)
    torch.testing.assert_close(found.double(), output(case.to(torch.float64), specification), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("options", "message"), [({"dropout": 0.1}, "no dropout"), ({}, "no token trees")])
def test_what_it_has_not_is_refused(options: dict[str, float], message: str) -> None:
    case = make_case(0, text=5)
    masks = {**case.masks, "visible_until": torch.full((1, 5), 5)}
    with pytest.raises(ValueError, match=message):
        flex_attention(
            case.query, case.key, case.value, bias=case.bias, scale=1.0, **{"dropout": 0.0, **options}, **masks
        )


def test_it_is_for_gpus() -> None:
    assert why_unavailable("flex", "cuda") is None
    assert why_unavailable("flex", "cpu") == "torch compiles it for GPUs, and the device is cpu"
