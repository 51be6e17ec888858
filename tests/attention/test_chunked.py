"""The blockwise backend: equal to the definition with all gradients, and nothing of it grows with the square."""

from __future__ import annotations

import weakref
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from bmpeft.attention import PositionBias, attention
from bmpeft.attention.blocks import antidiagonal_sums
from bmpeft.attention.chunked import BlockSize, chunked_attention
from bmpeft.attention.eager import eager_attention
from bmpeft.attention.sdpa import sdpa_attention
from tests.attention.cases import Case, all_cases, check_errors, make_case, solve, specification

SMALL = BlockSize(scores=64, longest=5, shortest=3)  # several blocks and one head at a time


def solve_fused(case: Case, backend: Any, **options: Any) -> dict[str, Tensor]:
    """Output and gradients of query, key and value with a frozen bias."""
    leaves = {"query": case.query, "key": case.key, "value": case.value}
    for leaf in leaves.values():
        leaf.requires_grad_()
    scale = case.query.shape[-1] ** -0.5
    output = backend(case.query, case.key, case.value, bias=case.bias, scale=scale, **case.masks, **options)
    weights = torch.randn(output.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    (output * weights.to(output.dtype)).sum().backward()
    return {"output": output.detach(), **{f"gradient of {k}": v.grad for k, v in leaves.items() if v.grad is not None}}


@pytest.mark.parametrize(("name", "arguments"), all_cases())
@pytest.mark.parametrize("solution", [solve, solve_fused])
def test_output_and_all_gradients_are_the_definitions(name: str, arguments: dict[str, Any], solution: Any) -> None:
    case = make_case(0, **arguments)
    exact = solution(case, specification)
    found = solution(case.to(torch.float64), chunked_attention, dropout=0.0, block_size=SMALL)
    assert found.keys() == exact.keys()
    for key, value in exact.items():
        torch.testing.assert_close(found[key], value, atol=1e-11, rtol=1e-9, msg=lambda m, key=key: f"{key}: {m}")


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_any_shape_gives_what_the_definition_gives(data: st.DataObject) -> None:
    batch, text = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 70))
    grid = data.draw(st.none() | st.tuples(st.integers(1, 4), st.integers(1, 4)))
    cross = data.draw(st.none() | st.integers(1, 70)) if grid is None else None
    causal = data.draw(st.booleans()) if cross is None else False
    lengths = st.lists(st.integers(0, 80), min_size=batch, max_size=batch)
    case = make_case(
        data.draw(st.integers(0, 99)),
        batch=batch,
        text=text,
        grid=grid,
        cross_keys=cross,
        causal=causal,
        padding=data.draw(st.none() | lengths),
        segments=data.draw(st.booleans()),
    )
    size = BlockSize(data.draw(st.integers(1, 3000)), data.draw(st.integers(1, 40)), data.draw(st.integers(1, 9)))
    solution = data.draw(st.sampled_from([solve, solve_fused]))
    exact = solution(case, specification)
    found = solution(case.to(torch.float64), chunked_attention, dropout=0.0, block_size=size)
    for key, value in exact.items():
        torch.testing.assert_close(found[key], value, atol=1e-10, rtol=1e-8)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("solution", [solve, solve_fused])
@pytest.mark.parametrize(
    "arguments",
    [
        {"text": 300, "head_dim": 64},
        {"text": 130, "grid": (4, 4), "head_dim": 64, "padding": [146, 90]},
        {"text": 200, "head_dim": 64, "causal": True},
        {"text": 60, "cross_keys": 300, "head_dim": 64},
    ],
)
def test_errors_are_within_those_of_eager(dtype: torch.dtype, solution: Any, arguments: dict[str, Any]) -> None:
    rounded = make_case(0, **arguments).to(dtype)
    exact = solution(rounded.to(torch.float64), specification)
    reference = solution(rounded.to(dtype), eager_attention, dropout=0.0)
    size = BlockSize(scores=2**13, longest=64, shortest=16)
    check_errors(solution(rounded.to(dtype), chunked_attention, dropout=0.0, block_size=size), reference, exact, dtype)


def test_mixed_number_types_of_autocast_are_computed_in_the_values_type() -> None:
    case = make_case(0, text=33, head_dim=16).to(torch.float32)
    low = Case(*(x.bfloat16() for x in (case.query, case.key, case.value)), case.bias, case.masks)
    with torch.autocast("cpu", torch.bfloat16):
        found = solve(low, chunked_attention, dropout=0.0, block_size=SMALL)
    assert found["output"].dtype == torch.bfloat16
    assert found["gradient of token_table"].dtype == torch.float32
    exact = solve(low.to(torch.float64), specification)
    reference = solve(case.to(torch.bfloat16), eager_attention, dropout=0.0)
    check_errors(found, reference, exact, torch.bfloat16)


class Allocations(TorchDispatchMode):
    """The largest tensor that any operation returns, and the most bytes that live at once."""

    def __init__(self) -> None:
        super().__init__()
        self.largest = self.live = self.peak = 0
        self._seen: set[int] = set()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        for x in torch.utils._pytree.tree_leaves(result):
            if isinstance(x, Tensor):
                self._track(x.untyped_storage())
        return result

    def _track(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._seen:
            return
        self._seen.add(key)
        weakref.finalize(storage, self._free, key, size)
        self.largest, self.live = max(self.largest, size), self.live + size
        self.peak = max(self.peak, self.live)

    def _free(self, key: int, size: int) -> None:
        self._seen.discard(key)
        self.live -= size


def allocations(length: int, backend: Any, trained: bool, dropout: float = 0.0, **options: Any) -> Allocations:
    """What forward and backward at a length allocate."""
    arguments: dict[str, Any] = {"text": length, "batch": 1, "head_dim": 8, "padding": [length - 1]}
    case = make_case(0, **arguments).to(torch.float32)
    with Allocations() as measured:
        (solve if trained else solve_fused)(case, backend, dropout=dropout, **options)
    return measured


@pytest.mark.parametrize(("trained", "dropout"), [(False, 0.0), (True, 0.0), (True, 0.1), (False, 0.1)])
def test_neither_forward_nor_backward_allocates_the_square_of_the_length(trained: bool, dropout: float) -> None:
    size = BlockSize(scores=2**16, longest=128, shortest=16)
    short, long = (allocations(n, chunked_attention, trained, dropout, block_size=size) for n in (512, 2048))
    assert long.largest < 2048 * 2048  # bytes: a quarter of one head's scores
    assert long.peak <= 4.4 * short.peak
    for backend in (eager_attention, sdpa_attention):
        assert allocations(512, backend, trained).largest >= 4 * 512 * 512


@pytest.mark.parametrize("solution", [solve, solve_fused])
def test_a_planner_can_run_it_on_tensors_without_data(solution: Any) -> None:
    with FakeTensorMode():
        found = solution(make_case(0, text=20, padding=[20, 3]), chunked_attention, dropout=0.1, block_size=SMALL)
    assert {x.shape for x in found.values() if x.dim() == 4} <= {(2, 2, 20, 8), (1, 2, 20, 8)}


class Operations(TorchDispatchMode):
    """How often each operation is called."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: dict[str, int] = {}

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = function.__name__.split(".")[0]
        self.counts[name] = self.counts.get(name, 0) + 1
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    ("wanted", "absent"),
    [
        ({"query_factor", "key_factor"}, "index_add_"),  # which sums the tables' gradients
        ({"token_table"}, "nothing"),
        (set(), "index_add_"),
    ],
)
def test_gradients_of_factors_and_of_tables_are_separate_switches(wanted: set[str], absent: str) -> None:
    case = make_case(0, text=20)
    exact = solve(case, specification)
    case = case.to(torch.float64)
    tensors = case.tensors()
    for name in wanted | {"query"}:
        tensors[name].requires_grad_()
    output = chunked_attention(
        case.query, case.key, case.value, bias=case.bias, scale=8**-0.5, dropout=0.0, block_size=SMALL, **case.masks
    )
    weights = torch.randn(output.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    with Operations() as operations:
        (output * weights).sum().backward()
    for name, leaf in tensors.items():
        if name in wanted | {"query"}:
            torch.testing.assert_close(leaf.grad, exact[f"gradient of {name}"], atol=1e-11, rtol=1e-9)
        else:
            assert leaf.grad is None
    assert absent not in operations.counts


def test_dropout_is_fixed_by_the_seed_and_the_backward_pass_draws_the_same_masks() -> None:
    case = make_case(0, text=23, causal=True)

    def output(x: Tensor) -> Tensor:
        torch.manual_seed(5)
        return chunked_attention(
            x, case.key, case.value, bias=case.bias, scale=0.3, dropout=0.4, block_size=SMALL, **case.masks
        )

    query = case.query.clone().requires_grad_()
    assert torch.equal(output(query), output(query))
    assert not torch.equal(output(query), chunked_attention(
        query, case.key, case.value, bias=case.bias, scale=0.3, dropout=0.0, block_size=SMALL, **case.masks
    ))  # fmt: skip
    assert torch.autograd.gradcheck(output, (query,), fast_mode=True)


def test_a_token_tree_has_the_distances_of_its_depths() -> None:
    case = make_case(0, text=12)
    depths = torch.tensor([[0, 1, 2, 2, 1, 2, 3, 3, 1, 0, 1, 2]])
    layout = case.bias.layout.__class__(token_bucket_size=8, max_positions=16, text_positions=depths)
    bias = PositionBias(case.bias.query_factor, case.bias.key_factor, case.bias.token_table, layout=layout)
    ends = torch.tensor([[9, 5, 3, 4, 8, 8, 7, 8, 9, 12, 12, 12]])
    tree = Case(case.query, case.key, case.value, bias, {**case.masks, "causal": True, "visible_until": ends})
    exact = solve(tree, specification)
    found = solve(tree.to(torch.float64), chunked_attention, dropout=0.0, block_size=SMALL)
    for key, value in exact.items():
        torch.testing.assert_close(found[key], value, atol=1e-11, rtol=1e-9)


@settings(deadline=None)
@given(n=st.integers(1, 6), k=st.integers(1, 7))
def test_antidiagonal_sums_add_up_what_has_one_distance(n: int, k: int) -> None:
    x = torch.arange(2 * n * k, dtype=torch.float64).reshape(2, n, k)
    sums = antidiagonal_sums(x)
    assert sums.shape == (2, n + k - 1)
    for m in range(n + k - 1):
        expected = sum((x[:, i, m - i] for i in range(n) if 0 <= m - i < k), torch.zeros(2, dtype=torch.float64))
        assert torch.equal(sums[:, m], expected)


def test_gradients_are_the_same_bits_in_every_run() -> None:
    runs = [solve(make_case(0, text=90, grid=(4, 4)).to(torch.bfloat16), chunked_attention, dropout=0.0) for _ in "12"]
    assert all(torch.equal(runs[0][key], runs[1][key]) for key in runs[0])


def test_the_dispatch_scales_heads_after_any_backend() -> None:
    case = make_case(0, text=9).to(torch.float32)
    scale = torch.tensor([0.5, -2.0], requires_grad=True)
    outputs = {}
    for name in ("eager", "sdpa", "chunked"):
        scale.grad = None
        output = attention(case.query, case.key, case.value, bias=case.bias, scale=0.3, head_scale=scale, backend=name)
        output.sum().backward()
        outputs[name] = (output.detach(), scale.grad.clone())
    for output, gradient in outputs.values():
        torch.testing.assert_close(output, outputs["eager"][0], atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(gradient, outputs["eager"][1], atol=1e-4, rtol=1e-4)
