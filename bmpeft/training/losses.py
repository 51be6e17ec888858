"""The training objective: cross-entropy, and the options of the published BiomedGPT recipes that change it.

For a supervised token t with logits over the vocabulary V, log p the log-softmax over all of V, and A the
tokens that an answer can hold (text tokens and the end token; neither bos, pad, unk and mask nor image codes
and location bins):

    loss = (1 - s - e) * -log p[t]  +  e * sum over a in A of -log p[a],     e = s / (|A| - 1)

which is the cross-entropy with a target that has 1 - s on t and s spread evenly over the rest of A. s is
the label smoothing; with s = 0 this is the plain cross-entropy. Source: `adjust_label_smoothed_cross_entropy`
of OFA and BiomedGPT, which smooths over the allowed tokens of a row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from bmpeft.backbones.base import FrozenBackbone
from bmpeft.recipe import TrainingSection
from bmpeft.training.linear_loss import Smoothing, linear_cross_entropy

IGNORED_LABEL = -100


@dataclass(frozen=True)
class Objective:
    """What a step minimises.

    Attributes:
        text_ids: [A] the tokens that an answer can hold.
        label_smoothing: share of the target that is spread over the other text tokens.
        drop_worst_ratio: share of the tokens of a forward pass, those of the highest loss, that do not count.
        drop_worst_after: optimizer steps before any token is dropped.
        decoder_noise: share of the decoder's input tokens that are replaced by random text tokens.
    """

    text_ids: Tensor
    label_smoothing: float = 0.0
    drop_worst_ratio: float = 0.0
    drop_worst_after: int = 0
    decoder_noise: float = 0.0

    def counted(self, tokens: int, step: int) -> int:
        """How many of a forward pass's supervised tokens count after `step` optimizer steps."""
        return max(1, int(tokens * (1.0 - self.drop_worst_ratio))) if self._drops(step) else tokens

    def loss(self, hidden_states: Tensor, weight: Tensor, labels: Tensor, *, step: int, total: Tensor | int) -> Tensor:
        """Sum over the tokens that count, divided by how many there are in the whole window of the step.

        Args:
            hidden_states: [B, T, D] of the decoder.
            weight: [V, D] of the layer that makes logits of them.
            labels: [B, T], -100 where nothing is learned.
            step: optimizer steps that were taken.
            total: `counted` tokens of all forward passes of this step.
        """
        supervised = labels.ne(IGNORED_LABEL)
        smoothing = self._smoothing(weight)
        losses = linear_cross_entropy(hidden_states[supervised], weight, labels[supervised], smoothing)
        if self._drops(step):
            losses = losses.topk(self.counted(len(losses), step), largest=False).values
        return losses.sum() / total

    def with_noise(self, decoder_input_ids: Tensor, labels: Tensor) -> Tensor:
        """Decoder inputs [B, T] with random text tokens in some places; never in the first, nor in the padding."""
        if self.decoder_noise == 0.0:
            return decoder_input_ids
        # Position i holds label i - 1.
        holds_text = nn.functional.pad(labels[:, :-1].ne(IGNORED_LABEL), (1, 0))
        replaced = holds_text & (torch.rand(labels.shape, device=labels.device) < self.decoder_noise)
        ids = self.text_ids.to(labels.device)
        random_ids = ids[torch.randint(len(ids), labels.shape, device=labels.device)]
        return torch.where(replaced, random_ids, decoder_input_ids)

    def _smoothing(self, weight: Tensor) -> Smoothing | None:
        if self.label_smoothing == 0.0:
            return None
        share = self.label_smoothing / (len(self.text_ids) - 1)
        allowed = torch.zeros(len(weight), device=weight.device)
        allowed[self.text_ids.to(weight.device)] = 1.0
        return Smoothing(1.0 - self.label_smoothing - share, share, allowed)

    def _drops(self, step: int) -> bool:
        return self.drop_worst_ratio > 0.0 and step >= self.drop_worst_after


def make_objective(section: TrainingSection, backbone: FrozenBackbone) -> Objective:
    """The objective that a recipe asks for."""
    return Objective(
        text_ids=torch.tensor(text_token_ids(backbone)),
        label_smoothing=section.label_smoothing,
        drop_worst_ratio=section.drop_worst_ratio,
        drop_worst_after=section.drop_worst_after,
        decoder_noise=section.decoder_noise,
    )


def text_token_ids(backbone: FrozenBackbone) -> Sequence[int]:
    """Ids that a text answer can hold: those below the image codes, of the special ones only the end token."""
    tokenizer: Any = backbone.tokenizer
    never = set(tokenizer.all_special_ids) - {tokenizer.eos_token_id}
    return [token for token in range(backbone.model.config.code_token_start) if token not in never]
