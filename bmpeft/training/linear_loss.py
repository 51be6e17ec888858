"""Cross-entropy behind a linear layer, token by token, without the matrix of all logits.

BiomedGPT's vocabulary has 59,457 entries: the logits of 8,192 target tokens take 1.9 GB in float32, their gradient as
much again. Here tokens come in chunks, of which only the losses and the gradients of the hidden states are kept.

For a token t with hidden state h, logits z = W h and log p their log-softmax over all of V entries, with the allowed
entries A and the two weights of `bmpeft.training.losses`

    loss = (1 - s - e) * -log p[t] + e * sum over a in A of -log p[a]
    d loss / d z = softmax(z) - (1 - s - e) * [t] - e * [A]         since (1 - s - e) + e |A| = 1

so that d loss / d h = W^T (d loss / d z) is known in the forward pass, up to the factor that comes from behind: the
backward pass costs nothing more while W is frozen. Where W trains, its gradient needs d loss / d z too: that of one
chunk is kept, that of several is computed once more.
Same idea: Wijmans et al. 2024 (arXiv:2411.09009), Hsu et al. 2024 (arXiv:2410.10989).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

CHUNK_ELEMENTS = 2**24
"""Logits that exist at once: 64 MB in float32."""


@dataclass(frozen=True)
class Smoothing:
    """A target that has `share` on each of some entries beside its own.

    Attributes:
        own: weight of the target's own -log p, 1 - s - e.
        share: weight e of each allowed entry's.
        allowed: [V] float32, 1 for the allowed entries and 0 for the others.
    """

    own: float
    share: float
    allowed: Tensor


def linear_cross_entropy(
    hidden_states: Tensor,
    weight: Tensor,
    targets: Tensor,
    smoothing: Smoothing | None = None,
    *,
    chunk_elements: int = CHUNK_ELEMENTS,
) -> Tensor:
    """Losses [N] float32 in nats.

    Under autocast the products are computed in its dtype, like those of the layer; everything else is in float32.

    Args:
        hidden_states: [N, D].
        weight: [V, D] of the linear layer.
        targets: [N] int64, all of them below V.
        smoothing: of the targets; None is plain cross-entropy.
        chunk_elements: logits that exist at once, at least those of one token.
    """
    device = hidden_states.device.type
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
        hidden_states, weight = hidden_states.to(dtype), weight.to(dtype)
    wants = torch.is_grad_enabled() and hidden_states.requires_grad
    losses: Tensor = _LinearCrossEntropy.apply(hidden_states, weight, targets, smoothing, wants, chunk_elements)
    return losses


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_states: Tensor,
        weight: Tensor,
        targets: Tensor,
        smoothing: Smoothing | None,
        wants_hidden: bool,
        chunk_elements: int,
    ) -> Tensor:
        rows = max(1, chunk_elements // len(weight))
        losses = torch.empty(len(targets), dtype=torch.float32, device=hidden_states.device)
        normalizer = torch.empty_like(losses)
        of_hidden = torch.empty_like(hidden_states) if wants_hidden else None
        kept = None
        for start in range(0, len(targets), rows):
            part = slice(start, start + rows)
            logits = _logits(hidden_states[part], weight)
            normalizer[part] = logits.logsumexp(-1)
            losses[part] = _losses(logits, normalizer[part], targets[part], smoothing)
            if of_hidden is not None:
                of_logits = _of_logits(logits, normalizer[part], targets[part], smoothing).to(weight.dtype)
                of_hidden[part] = _product(of_logits, weight)
                kept = of_logits if rows >= len(targets) and ctx.needs_input_grad[1] else None
        ctx.smoothing, ctx.rows = smoothing, rows
        ctx.save_for_backward(hidden_states, weight, targets, normalizer, of_hidden, kept)
        return losses

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = gradients
        hidden_states, weight, targets, normalizer, of_hidden, kept = ctx.saved_tensors
        found, of_weight = None, None
        if ctx.needs_input_grad[0] and of_hidden is not None:
            found = (of_hidden * gradient[:, None]).to(hidden_states.dtype)
        if ctx.needs_input_grad[1] and kept is not None:
            of_weight = _product((kept * gradient[:, None]).to(weight.dtype).T, hidden_states)
        elif ctx.needs_input_grad[1]:
            total = torch.zeros_like(weight, dtype=torch.float32)
            for start in range(0, len(targets), ctx.rows):
                part = slice(start, start + ctx.rows)
                logits = _logits(hidden_states[part], weight)
                of_logits = _of_logits(logits, normalizer[part], targets[part], ctx.smoothing)
                scaled = of_logits.mul_(gradient[part, None]).to(weight.dtype)
                total += _product(scaled.T, hidden_states[part])
            of_weight = total.to(weight.dtype)
        return found, of_weight, None, None, None, None


def _logits(hidden_states: Tensor, weight: Tensor) -> Tensor:
    """[n, V] float32."""
    return _product(hidden_states, weight.T).float()


def _product(a: Tensor, b: Tensor) -> Tensor:
    """a b in their own dtype, also under autocast."""
    with torch.autocast(a.device.type, enabled=False):
        return a @ b


def _losses(logits: Tensor, normalizer: Tensor, targets: Tensor, smoothing: Smoothing | None) -> Tensor:
    """[n] from logits [n, V] and their log-sum-exp [n]."""
    own = normalizer - logits.gather(1, targets[:, None]).squeeze(1)
    if smoothing is None:
        return own
    # Relative to the log-sum-exp first: a sum of |A| logits and |A| times it would lose digits to each other.
    spread = -(logits - normalizer[:, None]).mv(smoothing.allowed)
    return smoothing.own * own + smoothing.share * spread


def _of_logits(logits: Tensor, normalizer: Tensor, targets: Tensor, smoothing: Smoothing | None) -> Tensor:
    """The gradient [n, V] of each row's loss; overwrites the logits."""
    gradient = logits.sub_(normalizer[:, None]).exp_()
    own = 1.0
    if smoothing is not None:
        gradient.sub_(smoothing.share * smoothing.allowed)
        own = smoothing.own
    return gradient.scatter_add_(1, targets[:, None], gradient.new_full((len(targets), 1), -own))
