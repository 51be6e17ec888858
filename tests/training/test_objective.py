"""Options of the published recipes that change what is minimised: each by its definition, and each does something."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bmpeft.backbones.biomedgpt.modeling import sequence_loss
from bmpeft.errors import RecipeError
from bmpeft.training.losses import Objective, text_token_ids
from bmpeft.training.stochastic_depth import stochastic_depth
from tests.backbones.tiny import tiny_backbone
from tests.training.small import small_recipe
from tests.training.test_trainer import make_trainer

VOCABULARY = 12
IDENTITY = torch.eye(VOCABULARY)
TEXT = torch.tensor([2, 4, 5, 6, 7, 8])


def batch(seed: int, rows: int = 3, length: int = 5) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(rows, length, VOCABULARY, generator=generator)
    labels = TEXT[torch.randint(len(TEXT), (rows, length), generator=generator)]
    lengths = torch.randint(1, length + 1, (rows, 1), generator=generator)
    return logits, labels.masked_fill(torch.arange(length) >= lengths, -100)


@given(st.integers(0, 100))
def test_without_options_it_is_the_model_s_own_loss(seed: int) -> None:
    logits, labels = batch(seed)
    total = int(labels.ne(-100).sum())
    loss = Objective(TEXT).loss(logits, IDENTITY, labels, step=0, total=total)
    torch.testing.assert_close(loss, sequence_loss(logits, labels))


@given(st.integers(0, 100), st.floats(0.01, 0.9))
def test_label_smoothing_is_the_cross_entropy_with_a_target_spread_over_text_tokens(seed: int, share: float) -> None:
    logits, labels = batch(seed)
    supervised = labels.ne(-100)
    target = torch.zeros(*labels.shape, VOCABULARY)
    target[..., TEXT] = share / (len(TEXT) - 1)
    target.scatter_(2, labels.clamp(min=0)[..., None], 1.0 - share)
    expected = torch.nn.functional.cross_entropy(logits[supervised], target[supervised])
    loss = Objective(TEXT, label_smoothing=share).loss(logits, IDENTITY, labels, step=0, total=int(supervised.sum()))
    torch.testing.assert_close(loss, expected)


@given(st.integers(0, 100), st.sets(st.integers(1, 5)))
def test_the_parts_of_a_window_add_up_to_the_window(seed: int, cuts: set[int]) -> None:
    """Loss and gradient, whatever rows of whatever length a window is cut into: tokens weigh, not rows or batches."""
    logits, labels = batch(seed, rows=6)
    objective, total = Objective(TEXT, label_smoothing=0.1), int(labels.ne(-100).sum())
    whole = logits.clone().requires_grad_()
    parts = logits.clone().requires_grad_()
    loss = objective.loss(whole, IDENTITY, labels, step=0, total=total)
    loss.backward()
    bounds = [0, *sorted(cuts), 6]
    losses = []
    for start, end in pairwise(bounds):
        width = int(labels[start:end].ne(-100).sum(1).max())  # a part is padded to its own longest row
        losses.append(
            objective.loss(parts[start:end, :width], IDENTITY, labels[start:end, :width], step=0, total=total)
        )
        losses[-1].backward()
    torch.testing.assert_close(torch.stack(losses).sum(), loss)
    torch.testing.assert_close(parts.grad, whole.grad)


def test_nothing_is_spread_over_tokens_that_no_answer_holds() -> None:
    logits, labels = batch(0)
    logits.requires_grad_()
    Objective(TEXT, label_smoothing=0.2).loss(logits, IDENTITY, labels, step=0, total=1).backward()
    assert logits.grad is not None
    forbidden = [token for token in range(VOCABULARY) if token not in TEXT.tolist()]
    probabilities = logits.detach().softmax(-1)
    supervised = labels.ne(-100)
    # d loss / d logit = probability - target, and their target is zero.
    torch.testing.assert_close(logits.grad[supervised][:, forbidden], probabilities[supervised][:, forbidden])


def test_text_tokens_are_those_that_targets_hold() -> None:
    backbone = tiny_backbone(num_code_tokens=100, num_bin_tokens=50)
    ids = text_token_ids(backbone)
    tokenizer = backbone.tokenizer
    assert max(ids) < backbone.model.config.code_token_start == len(tokenizer) - 150
    assert tokenizer.eos_token_id in ids
    for name in ("bos", "pad", "unk"):
        assert getattr(tokenizer, f"{name}_token_id") not in ids


@given(st.integers(0, 50), st.floats(0.05, 0.95))
def test_drop_worst_leaves_out_the_tokens_of_the_highest_loss(seed: int, ratio: float) -> None:
    logits, labels = batch(seed)
    supervised = labels.ne(-100)
    losses = torch.nn.functional.cross_entropy(logits[supervised], labels[supervised], reduction="none")
    kept = max(1, int(len(losses) * (1.0 - ratio)))
    objective = Objective(TEXT, drop_worst_ratio=ratio, drop_worst_after=7)
    assert objective.counted(len(losses), 6) == len(losses)
    assert objective.counted(len(losses), 7) == kept
    before = objective.loss(logits, IDENTITY, labels, step=6, total=len(losses))
    after = objective.loss(logits, IDENTITY, labels, step=7, total=kept)
    torch.testing.assert_close(before, losses.mean())
    torch.testing.assert_close(after, losses.sort().values[:kept].mean())


@given(st.integers(0, 50))
def test_noise_replaces_text_and_neither_start_nor_padding(seed: int) -> None:
    _, labels = batch(seed, rows=4, length=9)
    inputs = tiny_backbone_inputs(labels)
    torch.manual_seed(seed)
    assert torch.equal(Objective(TEXT).with_noise(inputs, labels), inputs)
    noisy = Objective(torch.tensor([11]), decoder_noise=1.0).with_noise(inputs, labels)
    text = torch.zeros_like(inputs, dtype=torch.bool)
    text[:, 1:] = labels[:, :-1].ne(-100)
    assert bool(noisy[text].eq(11).all())
    assert torch.equal(noisy[~text], inputs[~text])


def tiny_backbone_inputs(labels: torch.Tensor) -> torch.Tensor:
    """Start token 0, then the labels without their last; padding is 1."""
    shifted = torch.nn.functional.pad(labels[:, :-1], (1, 0), value=0)
    return shifted.masked_fill(shifted == -100, 1)


def test_noise_has_its_ratio() -> None:
    labels = torch.full((100, 101), 4)
    noisy = Objective(torch.tensor([11]), decoder_noise=0.2).with_noise(tiny_backbone_inputs(labels), labels)
    assert float(noisy[:, 1:].eq(11).float().mean()) == pytest.approx(0.2, abs=0.02)


@pytest.mark.parametrize(
    "options",
    [
        {"label_smoothing": 0.1},
        {"drop_worst_ratio": 0.3},
        {"decoder_noise": 0.5},
        {"drop_path": 0.5},
    ],
)
def test_every_option_reaches_the_training(tmp_path: Path, options: dict[str, Any]) -> None:
    losses = []
    for name, chosen in (("without", {}), ("with", options)):
        trainer, seen = make_trainer(tmp_path / name, max_steps=1, batch_size=11, **chosen)
        trainer.fit()
        losses.append(seen.logs[0]["loss"])
    assert losses[0] != losses[1]


def test_drop_worst_divides_by_the_tokens_that_count_also_when_accumulating(tmp_path: Path) -> None:
    """Two forward passes of the same row: the loss of the step is that of one."""
    backbone = tiny_backbone(dropout=0.0)
    row = make_trainer(tmp_path, backbone=backbone)[0].train_dataset[0]
    results = []
    for accumulation in (1, 2):
        trainer, seen = make_trainer(
            tmp_path / str(accumulation), backbone=tiny_backbone(dropout=0.0), rows=[row] * 4, max_steps=1,
            batch_size=2, gradient_accumulation=accumulation, drop_worst_ratio=0.4,
        )  # fmt: skip
        trainer.fit()
        results.append(seen.logs[0]["loss"])
    assert results[0] == pytest.approx(results[1], rel=1e-5)


def test_stochastic_depth_rises_over_the_layers_and_goes_back() -> None:
    backbone = tiny_backbone(encoder_layers=3, encoder_drop_path_rate=0.2)
    layers = backbone.model.encoder.layers
    own = [layer.drop_path for layer in layers]
    assert own == pytest.approx([0.0, 0.1, 0.2])
    with stochastic_depth(backbone, None):
        assert [layer.drop_path for layer in layers] == own
    with stochastic_depth(backbone, 0.5):
        assert [layer.drop_path for layer in layers] == pytest.approx([0.0, 0.25, 0.5])
        assert [layer.drop_path for layer in backbone.model.decoder.layers] == pytest.approx([0.0, 0.5])
    assert [layer.drop_path for layer in layers] == own


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("training.drop_worst_after=5",), "drop_worst_after needs drop_worst_ratio"),
        (("training.label_smoothing=1",), "label_smoothing: 1 is out of range"),
        (("training.drop_path=1",), "drop_path: 1 is out of range"),
        (("training.ema_decay=1",), "ema_decay: 1 is out of range"),
    ],
)
def test_what_cannot_work_is_refused(tmp_path: Path, overrides: tuple[str, ...], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        small_recipe(tmp_path, *overrides)
