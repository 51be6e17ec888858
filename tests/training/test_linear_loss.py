"""The loss without the matrix of all logits: the cross-entropy by its definition, its gradients, its memory."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from bmpeft.benchmarks.measure import LiveBytes
from bmpeft.training.linear_loss import Smoothing, linear_cross_entropy

VOCABULARY, WIDTH = 37, 8


def problem(seed: int, tokens: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Hidden states, weight, targets and what comes from behind each token's loss."""
    generator = torch.Generator().manual_seed(seed)
    states, weight = (torch.randn(n, WIDTH, generator=generator).to(dtype) for n in (tokens, VOCABULARY))
    return states, weight, torch.randint(VOCABULARY, (tokens,), generator=generator), torch.rand(tokens) + 0.5


def smoothing(share: float) -> Smoothing:
    allowed = torch.ones(VOCABULARY)
    allowed[::5] = 0.0
    each = share / (float(allowed.sum()) - 1.0)
    return Smoothing(1.0 - share - each, each, allowed)


def reference(states: Tensor, weight: Tensor, targets: Tensor, smooth: Smoothing | None) -> Tensor:
    """The definition, with the matrix of logits and torch's own gradients."""
    log_p = (states @ weight.T).log_softmax(-1)
    own = -log_p.gather(1, targets[:, None]).squeeze(1)
    return own if smooth is None else smooth.own * own - smooth.share * (log_p * smooth.allowed).sum(-1)


def relative_error(found: Tensor, exact: Tensor) -> float:
    """The largest difference, relative to the largest exact value where that is above 1."""
    return float((found.double() - exact).abs().max()) / max(1.0, float(exact.abs().max()))


@given(st.integers(0, 99), st.integers(1, 23), st.integers(1, 300), st.sampled_from([0.0, 0.1, 0.7]), st.booleans())
@settings(deadline=None)
def test_losses_and_gradients_are_those_of_the_definition(
    seed: int, tokens: int, chunk_elements: int, share: float, trained: bool
) -> None:
    """In float32 against float64: within 1e-5, relative to the largest value, whatever the chunks are."""
    states, weight, targets, behind = problem(seed, tokens)
    smooth = smoothing(share) if share else None
    exact = [states.clone().requires_grad_(), weight.clone().requires_grad_(trained)]
    expected = reference(*exact, targets, smooth)
    (expected * behind).sum().backward()
    found = [x.detach().float().requires_grad_(x.requires_grad) for x in exact]
    losses = linear_cross_entropy(*found, targets, smooth, chunk_elements=chunk_elements)
    (losses * behind).sum().backward()
    assert relative_error(losses.detach(), expected.detach()) <= 1e-5
    for mine, theirs in zip(found, exact, strict=True):
        assert (mine.grad is None) == (theirs.grad is None)
        if mine.grad is not None and theirs.grad is not None:
            assert relative_error(mine.grad, theirs.grad) <= 1e-5


@pytest.mark.parametrize("share", [0.0, 0.1])
def test_in_bfloat16_it_is_no_worse_than_the_layer_and_torch_s_loss(share: float) -> None:
    """Under autocast, against float64: at most twice the error of the matrix of logits in the same precision."""
    states, weight, targets, behind = problem(3, 64)
    smooth = smoothing(share) if share else None
    exact = states.clone().requires_grad_()
    expected = reference(exact, weight, targets, smooth)
    (expected * behind).sum().backward()
    errors = []
    for ours in (True, False):
        leaf = states.float().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16):
            if ours:
                losses = linear_cross_entropy(leaf, weight.float(), targets, smooth)
            else:
                log_p = torch.nn.functional.linear(leaf, weight.float()).float().log_softmax(-1)
                own = -log_p.gather(1, targets[:, None]).squeeze(1)
                losses = own if smooth is None else smooth.own * own - smooth.share * (log_p @ smooth.allowed).float()
        (losses * behind).sum().backward()
        assert leaf.grad is not None
        assert exact.grad is not None
        pairs = ((losses.detach(), expected.detach()), (leaf.grad, exact.grad))
        errors.append([float((mine - theirs).abs().max()) for mine, theirs in pairs])
    assert all(mine <= 2.0 * theirs for mine, theirs in zip(*errors, strict=True))


@pytest.mark.parametrize("trained", [False, True])
def test_the_matrix_of_logits_never_exists(trained: bool) -> None:
    """2,000 tokens x 5,000 entries are 40 MB in float32; three chunks of 100,000 and the weight's gradient fit in 4."""
    tokens, entries = 2000, 5000
    states, weight = torch.randn(tokens, WIDTH), torch.randn(entries, WIDTH, requires_grad=trained)
    states.requires_grad_()
    with LiveBytes() as live:
        linear_cross_entropy(
            states, weight, torch.zeros(tokens, dtype=torch.int64), chunk_elements=100_000
        ).sum().backward()
    assert live.peak < 4 * tokens * entries // 10


def test_without_gradients_nothing_is_kept_for_them() -> None:
    states, weight, targets, _ = problem(0, 5, torch.float32)
    states.requires_grad_()
    with torch.no_grad():
        assert not linear_cross_entropy(states, weight, targets).requires_grad
    assert linear_cross_entropy(states, weight, targets).requires_grad


def test_no_tokens_are_no_loss() -> None:
    states, weight, targets, _ = problem(0, 0, torch.float32)
    states.requires_grad_()
    losses = linear_cross_entropy(states, weight, targets)
    losses.sum().backward()
    assert losses.shape == (0,)
    assert states.grad is not None
    assert states.grad.shape == states.shape
