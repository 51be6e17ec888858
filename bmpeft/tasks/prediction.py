"""Answers of a model for examples: batches of similar length inside, results in the order of the input."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from bmpeft.errors import BmpeftError, UsageError
from bmpeft.records import Example, Prediction

if TYPE_CHECKING:
    from bmpeft.backbones.base import CandidateScores, FrozenBackbone
    from bmpeft.recipe_decoding import BeamDecoding, CandidatesDecoding, Decoding, SampleDecoding, TrieDecoding

    SingleDecoding = CandidatesDecoding | BeamDecoding | SampleDecoding | TrieDecoding
    Predictor = Callable[[Sequence[Example]], list[Prediction]]


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
    known: Mapping[int, Prediction] | None = None,
    on_batch: Callable[[Sequence[Prediction]], None] | None = None,
) -> list[Prediction]:
    """One prediction for each example, in their order.

    `model` is the backbone's model, bare or adapted. `adapter` is only written into the
    predictions. `on_progress` is told the number of rows after each batch, `on_batch` gets its predictions.
    `known` holds predictions, by index, that are there already; batches are made as without them, and those that
    are known whole are left out, so that the others come out the same to the last bit.

    Raises:
        BmpeftError: the model's scores are not finite; names the record.
        UsageError: a trie whose answers are not spelled out, or cannot be written.
        ValueError: the model is in training mode, in which dropout would change its answers.
    """
    import torch

    if model.training:
        raise ValueError("predict_examples needs a model in evaluation mode: call model.eval()")
    predictions = dict(known or {})
    with torch.inference_mode():
        for part, rows in _by_decoding(examples, decoding):
            predict = _predictor(backbone, model, part, max_source_length, adapter)
            for indices in _batches(examples, rows, batch_size):
                if predictions.keys() >= set(indices):
                    continue
                made = predict([examples[i] for i in indices])
                predictions.update(zip(indices, made, strict=True))
                if on_batch is not None:
                    on_batch(made)
                if on_progress is not None:
                    on_progress(len(indices))
    return [predictions[i] for i in range(len(examples))]


def _predictor(
    backbone: FrozenBackbone, model: Any, decoding: SingleDecoding, max_source_length: int, adapter: str | None
) -> Predictor:
    """How one way of decoding answers a batch; what it prepares serves all batches."""

    def scored(batch: Sequence[Example]) -> list[Prediction]:
        assert decoding.method == "candidates"
        scores = backbone.score_candidates(model, batch, max_source_length=max_source_length)
        return [_closed(e, s, decoding, adapter) for e, s in zip(batch, scores, strict=True)]

    def written(texts: Sequence[str], batch: Sequence[Example]) -> list[Prediction]:
        return [Prediction(e.record.id, t.strip(), adapter=adapter) for e, t in zip(batch, texts, strict=True)]

    if decoding.method == "candidates":
        return scored
    if decoding.method == "trie":
        if decoding.answers == "train":
            raise UsageError("task.decoding.answers=train: no answers are spelled out here; give a list of them")
        answers, trie = backbone.compile_answers(decoding.answers), decoding
        return lambda batch: written(
            backbone.choose(model, batch, answers, trie, max_source_length=max_source_length), batch
        )
    free = decoding
    return lambda batch: written(backbone.generate(model, batch, free, max_source_length=max_source_length), batch)


def _by_decoding(examples: Sequence[Example], decoding: Decoding) -> Iterator[tuple[SingleDecoding, list[int]]]:
    """The indices of the examples that one way of decoding is for; mixed decoding is two ways."""
    if decoding.method != "mixed":
        yield decoding, list(range(len(examples)))
        return
    yield decoding.closed, [i for i, example in enumerate(examples) if example.choices]
    yield decoding.open, [i for i, example in enumerate(examples) if not example.choices]


def _batches(examples: Sequence[Example], rows: Sequence[int], batch_size: int) -> Iterator[list[int]]:
    """Indices of examples of similar length, the longest first: what does not fit the memory fails at once.

    An image takes more positions than most texts, so that rows with one come before those without. Rows with the
    same image stand in one batch where they fit into one, since its features are computed once for a batch.
    """
    groups: dict[Hashable, list[int]] = {}
    for i in sorted(rows, key=lambda i: (examples[i].image is not None, len(examples[i].source)), reverse=True):
        image = examples[i].image
        groups.setdefault(("row", i) if image is None else ("image", image), []).append(i)
    batch: list[int] = []
    for group in groups.values():
        if len(batch) + len(group) > batch_size >= len(group):
            yield batch
            batch = []
        for i in group:
            if len(batch) == batch_size:
                yield batch
                batch = []
            batch.append(i)
    if batch:
        yield batch


def _closed(example: Example, scores: CandidateScores, decoding: CandidatesDecoding, adapter: str | None) -> Prediction:
    sums, lengths = scores.log_likelihoods, scores.lengths
    if not all(math.isfinite(value) for value in sums):
        raise BmpeftError(
            f"record {example.record.id!r}: the model's scores are not finite; its weights or its "
            "precision are at fault (try backbone.dtype=float32)"
        )
    deciding = sums if decoding.normalization == "sum" else [s / n for s, n in zip(sums, lengths, strict=True)]
    choice = max(range(len(deciding)), key=deciding.__getitem__)  # the first of equals
    names = example.record.choices or example.choices or ()  # a label's name, not the word that was scored for it
    return Prediction(
        id=example.record.id,
        text=names[choice].strip(),
        choice=choice,
        choice_scores=sums,
        choice_lengths=lengths,
        adapter=adapter,
    )
