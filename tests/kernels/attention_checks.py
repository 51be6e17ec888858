"""The attention kernels against the definition in float64: under Triton's interpreter, or on a GPU where there is one.

Not collected by itself: the interpreter has to be chosen before the kernels are imported, and kernels that were
imported for it cannot be compiled. `test_interpreter.py` runs this file in a process of its own.
"""

from __future__ import annotations

import os
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from bmpeft.attention import PositionBias
from bmpeft.attention.eager import eager_attention
from bmpeft.attention.triton import triton_attention
from tests.attention.cases import check_errors, make_case, solve, specification
from tests.backbones.tiny import tiny_model

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = torch.device("cpu" if INTERPRETED else "cuda")
# The interpreter keeps bfloat16 as bit patterns and computes with those: wrong without an error.
DTYPES = [torch.float32, torch.float16] if INTERPRETED else [torch.float32, torch.float16, torch.bfloat16]
CASES: dict[str, dict[str, Any]] = {
    "text": {"text": 45},
    "beyond the last bucket": {"text": 130, "batch": 1, "heads": 1},
    "image and text, padding": {"text": 24, "grid": (3, 4), "padding": [30, 17]},
    "sampled patches": {"text": 9, "grid": (2, 4), "sampled": True},
    "image alone": {"text": 0, "grid": (4, 4)},
    "causal": {"text": 70, "causal": True, "batch": 1},
    "cross, a row without keys": {"text": 5, "cross_keys": 41, "hidden_row": True},
    "packed and causal": {"text": 40, "segments": True, "causal": True},
    "no factors": {"text": 33, "factors": False},
    "no tables": {"text": 33, "tables": False},
    "one token": {"text": 1},
}


@pytest.fixture(autouse=True)
def poisoned_memory() -> Any:
    """What a kernel does not write is NaN, never a lucky zero."""
    fill = torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    yield
    torch.use_deterministic_algorithms(False)
    torch.utils.deterministic.fill_uninitialized_memory = fill


def kernels(*tensors: Tensor, **arguments: Any) -> Tensor:
    """The backend on the device that runs it; the cases are on the CPU."""
    moved = torch.utils._pytree.tree_map_only(Tensor, lambda x: x.to(DEVICE), {**arguments, "bias": None})
    bias = on_device(arguments["bias"])
    return triton_attention(*(x.to(DEVICE) for x in tensors), **{"dropout": 0.0, **moved, "bias": bias}).cpu()


def on_device(bias: PositionBias) -> PositionBias:
    names = ("query_factor", "key_factor", "token_table", "image_table")
    parts = {name: part if part is None else part.to(DEVICE) for name in names for part in [getattr(bias, name)]}
    ids = bias.layout.image_ids
    return replace(bias, **parts, layout=replace(bias.layout, image_ids=None if ids is None else ids.to(DEVICE)))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("head_dim", [64, 80])
@pytest.mark.parametrize("name", CASES)
def test_errors_are_within_those_of_eager(name: str, head_dim: int, dtype: torch.dtype) -> None:
    if INTERPRETED and head_dim == 80 and name not in ("image and text, padding", "causal"):
        pytest.skip("64 + 16 is one code path for every layout")
    rounded = make_case(0, **CASES[name], head_dim=head_dim).to(dtype)
    exact = solve(rounded.to(torch.float64), specification)
    reference = solve(rounded.to(dtype), eager_attention, dropout=0.0)
    check_errors(solve(rounded.to(dtype), kernels), reference, exact, dtype)


@settings(max_examples=int(os.environ.get("EXAMPLES", "4")) if INTERPRETED else 100, deadline=None)
@given(data=st.data())
def test_any_shape_gives_what_the_definition_gives(data: st.DataObject) -> None:
    batch = data.draw(st.integers(1, 2))
    text = data.draw(st.integers(1, int(os.environ.get("LONGEST", "130"))))
    grid = data.draw(st.none() | st.tuples(st.integers(1, 4), st.integers(1, 4)))
    cross = data.draw(st.none() | st.integers(1, 130)) if grid is None else None
    case = make_case(
        data.draw(st.integers(0, 99)),
        batch=batch,
        text=text,
        grid=grid,
        cross_keys=cross,
        causal=data.draw(st.booleans()) if cross is None else False,
        padding=data.draw(st.none() | st.lists(st.integers(0, 140), min_size=batch, max_size=batch)),
        segments=data.draw(st.booleans()),
        heads=1,
        head_dim=data.draw(st.sampled_from([16, 32])),
    ).to(torch.float32)
    exact = solve(case.to(torch.float64), specification)
    # Wrong indices are wrong by whole numbers; how errors compare with eager's is measured above.
    largest = max(float(x.abs().max()) for x in exact.values() if x.numel())
    allowed = 64 * torch.finfo(torch.float32).eps * largest
    for name, x in solve(case, kernels).items():
        torch.testing.assert_close(x.double(), exact[name], atol=allowed, rtol=0.0)


def test_two_runs_give_the_same_bits() -> None:
    case = make_case(1, text=40, grid=(3, 4), head_dim=64).to(torch.float16)
    first, second = (solve(case.to(torch.float16), kernels) for _ in "12")
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_factors_and_tables_are_separate_switches() -> None:
    case = make_case(0, text=33, head_dim=16).to(torch.float32)
    exact = solve(case.to(torch.float64), specification)
    for wanted in ((), ("query_factor", "key_factor"), ("token_table",)):
        own = case.to(torch.float32)
        tensors = own.tensors()
        for name in ("query", *wanted):
            tensors[name].requires_grad_()
        output = kernels(own.query, own.key, own.value, bias=own.bias, scale=0.25, **own.masks)
        weights = torch.randn(output.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        (output * weights.float()).sum().backward()
        assert {name for name, leaf in tensors.items() if leaf.grad is not None} == {"query", *wanted}
        for name in ("query", *wanted):
            expected = exact[f"gradient of {name}"].float()
            torch.testing.assert_close(tensors[name].grad, expected, atol=1e-4, rtol=1e-4)


def test_dropout_keeps_the_mean_and_its_backward_pass_has_the_same_masks() -> None:
    case = make_case(0, text=33, batch=1, heads=1, head_dim=16).to(torch.float32)

    def output(value: Tensor, dropout: float = 0.5) -> Tensor:
        torch.manual_seed(3)
        return kernels(case.query, case.key, value, bias=case.bias, scale=0.25, dropout=dropout, **case.masks)

    # The output is linear in the values, so <output(x), g> = <x, gradient> holds exactly with one and the same mask.
    value = case.value.clone().requires_grad_()
    found = output(value)
    gradient = torch.randn(found.shape, generator=torch.Generator().manual_seed(2))
    found.backward(gradient)
    torch.testing.assert_close((value.grad * value).sum(), (found * gradient).sum(), atol=1e-4, rtol=1e-4)
    ones = output(torch.ones_like(case.value))  # row sums of the kept probabilities, in the mean one
    assert ones.std() > 0.1 and abs(ones.mean() - 1.0) < 0.3
    assert torch.allclose(output(torch.ones_like(case.value), 0.0), torch.ones_like(ones))


def test_operators_have_shapes_for_tensors_without_data() -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        case = make_case(0, text=20, grid=(2, 2), padding=[24, 3], head_dim=16).to(torch.float32)
        found = solve(case, kernels)
        shapes = {name: x.shape for name, x in case.tensors().items()}
    assert {name.removeprefix("gradient of "): x.shape for name, x in found.items() if name != "output"} == shapes
    assert found["output"].shape == (2, 2, 24, 16)


def test_registration_is_what_torch_library_wants() -> None:
    from bmpeft_kernels.attention import _forward

    case = make_case(0, text=17, batch=1, head_dim=16).to(torch.float32)
    tensors = [x.to(DEVICE).requires_grad_() for x in (case.query, case.key, case.value)]
    none: list[Tensor | None] = [None] * 8
    torch.library.opcheck(_forward, (*tensors, *none, 0.25, 0, 0, 0, True, 0, 0.0, 0))


def test_a_head_dimension_without_kernels_is_refused() -> None:
    case = make_case(0, text=5, head_dim=24).to(torch.float32)
    with pytest.raises(ValueError, match="head dimension 24: the kernels have 16, 32, 64, 80"):
        kernels(case.query, case.key, case.value, bias=case.bias, scale=0.25, **case.masks)


def test_a_tiny_model_trains_alike_with_every_backend() -> None:
    losses = {name: training_losses(name) for name in ("eager", "sdpa", "chunked", "triton")}
    assert losses["eager"][-1] < losses["eager"][0]
    for curve in losses.values():
        torch.testing.assert_close(curve, losses["eager"], atol=0.0, rtol=1e-5)


def training_losses(attention: str) -> Tensor:
    """Losses [3] of three steps in which every parameter trains, on a padded batch."""
    model = tiny_model(attention=attention, dropout=0.0).to(DEVICE).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    ids = torch.randint(4, 400, (2, 12), generator=torch.Generator().manual_seed(0), device=DEVICE)
    mask = torch.arange(12, device=DEVICE)[None] < torch.tensor([[12], [7]], device=DEVICE)
    found = []
    for _ in range(3):
        loss = model(input_ids=ids.masked_fill(~mask, 1), attention_mask=mask, labels=ids[:, :5]).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        found.append(loss.detach())
    return torch.stack(found)
