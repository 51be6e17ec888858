"""Answers of a model for examples: batches of similar length inside, results in the order of the input."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from bmpeft.errors import BmpeftError
from bmpeft.records import Example, Prediction

if TYPE_CHECKING:
    from bmpeft.backbones.base import CandidateScores, FrozenBackbone
    from bmpeft.recipe import CandidatesDecoding, Decoding


def predict_examples(
    backbone: FrozenBackbone,
    model: Any,
    examples: Sequence[Example],
    decoding: Decoding,
    *,
    batch_size: int,
    max_source_length: int,
    adapter: str | None = None,
    on_progress: Callable[[int], None] | None = None,
) -> list[Prediction]:
    """One prediction for each example, in their order.

    `model` is the backbone's model, bare or wrapped by peft. `adapter` is only written into the
    predictions. `on_progress` is told the number of rows after each batch.

    Raises:
        BmpeftError: the model's scores are not finite; names the record.
        ValueError: the model is in training mode, in which dropout would change its answers.
    """
    import torch

    if model.training:
        raise ValueError("predict_examples needs a model in evaluation mode: call model.eval()")
    predictions: dict[int, Prediction] = {}
    with torch.inference_mode():
        for indices in _batches(examples, batch_size):
            batch = [examples[i] for i in indices]
            if decoding.method == "candidates":
                scores = backbone.score_candidates(model, batch, max_source_length=max_source_length)
                made = [_closed(e, s, decoding, adapter) for e, s in zip(batch, scores, strict=True)]
            else:
                texts = backbone.generate(model, batch, decoding, max_source_length=max_source_length)
                made = [Prediction(e.record.id, t.strip(), adapter=adapter) for e, t in zip(batch, texts, strict=True)]
            predictions.update(zip(indices, made, strict=True))
            if on_progress is not None:
                on_progress(len(batch))
    return [predictions[i] for i in range(len(examples))]


def _batches(examples: Sequence[Example], batch_size: int) -> Iterator[list[int]]:
    """Indices of examples of similar length, the longest first: what does not fit the memory fails at once.

    An image takes more positions than most texts, so that rows with one come before those without.
    """
    order = sorted(
        range(len(examples)), key=lambda i: (examples[i].image is not None, len(examples[i].source)), reverse=True
    )
    for start in range(0, len(order), batch_size):
        yield order[start : start + batch_size]


def _closed(example: Example, scores: CandidateScores, decoding: CandidatesDecoding, adapter: str | None) -> Prediction:
    sums, lengths = scores.log_likelihoods, scores.lengths
    if not all(math.isfinite(value) for value in sums):
        raise BmpeftError(
            f"record {example.record.id!r}: the model's scores are not finite; its weights or its "
            "precision are at fault (try backbone.dtype=float32)"
        )
    deciding = sums if decoding.normalization == "sum" else [s / n for s, n in zip(sums, lengths, strict=True)]
    choices = example.choices or ()
    choice = max(range(len(choices)), key=deciding.__getitem__)  # the first of equals
    return Prediction(
        id=example.record.id,
        text=choices[choice].strip(),
        choice=choice,
        choice_scores=sums,
        choice_lengths=lengths,
        adapter=adapter,
    )
