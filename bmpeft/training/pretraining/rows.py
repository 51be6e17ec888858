"""Rows of a mixture, each a pure function of (seed, number): a run can be resumed at any of them.

Infilling follows BiomedGPT's prompt ` what is the complete text of " ... "?`: spans of Poisson length are
replaced by one mask token each, and the target is the whole text.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from math import exp

from transformers import PreTrainedTokenizerFast

from bmpeft.backbones.base import EncodedExample
from bmpeft.pretrain_recipe import ObjectiveSection
from bmpeft.training.pretraining.corpus import Source, split_at_sentences

INFILLING_PROMPT = (' what is the complete text of "', ' "?')
CHARACTERS_PER_TOKEN = 4.0


@dataclass(frozen=True, slots=True)
class _Pool:
    weight: float
    texts: tuple[tuple[int, ...], ...]
    questions: tuple[tuple[tuple[int, ...], tuple[int, ...]], ...]


class MixtureRows:
    """The rows of a mixture of sources, by number.

    Raises:
        ValueError: no source has anything to learn from.
    """

    def __init__(
        self, sources: Sequence[Source], tokenizer: PreTrainedTokenizerFast, objective: ObjectiveSection, seed: int
    ) -> None:
        self._tokenizer, self._objective, self._seed = tokenizer, objective, seed
        self._prompt = tuple(tuple(self._ids(part)) for part in INFILLING_PROMPT)
        pools = [self._pool(source) for source in sources]
        self._pools = [pool for pool in pools if pool.texts or pool.questions]
        if not self._pools:
            raise ValueError("no source has texts or questions")
        self._weights = [pool.weight for pool in self._pools]

    def __getitem__(self, number: int) -> EncodedExample:
        """Row `number`; any number is valid, the mixture never ends."""
        generator = random.Random(f"{self._seed}:{number}")
        pool = generator.choices(self._pools, self._weights)[0]
        asked = generator.random() < self._objective.question_share if pool.texts else True
        if asked and pool.questions:
            question, answer = generator.choice(pool.questions)
            return self._example(question, answer)
        text = generator.choice(pool.texts)
        masked = mask_spans(
            text,
            mask_id=int(self._tokenizer.mask_token_id),
            share=self._objective.mask_share,
            mean_span=self._objective.mean_span,
            generator=generator,
        )
        return self._example((*self._prompt[0], *masked, *self._prompt[1]), text)

    @property
    def counts(self) -> list[tuple[int, int]]:
        """Texts and questions of each source that is used."""
        return [(len(pool.texts), len(pool.questions)) for pool in self._pools]

    def _pool(self, source: Source) -> _Pool:
        limit = self._objective.max_target_length - 1
        room = self._objective.max_source_length - 2
        text_limit = min(limit, room - sum(map(len, self._prompt)))
        texts = (
            tuple(ids[:text_limit])
            for text in source.texts
            for piece in split_at_sentences(text, int(text_limit * CHARACTERS_PER_TOKEN))
            if (ids := self._ids(" " + piece))
        )
        # A question that does not fit is left out; an answer is cut, since every prefix of it is right.
        pairs = ((self._ids(" " + q), self._ids(" " + a)[:limit]) for q, a in source.questions)
        questions = tuple((tuple(q), tuple(a)) for q, a in pairs if len(q) <= room)
        return _Pool(source.weight, tuple(texts), questions)

    def _ids(self, text: str) -> list[int]:
        ids: list[int] = self._tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        return ids

    def _example(self, source: Sequence[int], target: Sequence[int]) -> EncodedExample:
        bos, eos = int(self._tokenizer.bos_token_id), int(self._tokenizer.eos_token_id)
        return EncodedExample(input_ids=(bos, *source, eos), labels=(*target, eos))


def mask_spans(
    ids: Sequence[int], *, mask_id: int, share: float, mean_span: float, generator: random.Random
) -> tuple[int, ...]:
    """Replace spans of Poisson(`mean_span`) tokens by one mask each until about `share` of the tokens is hidden.

    At least one token is hidden and spans never touch, so that the number of masks is the number of spans.
    """
    budget = max(1, round(share * len(ids)))
    hidden = [False] * len(ids)
    for _ in range(4 * len(ids)):
        if budget <= 0:
            break
        length = min(max(1, _poisson(mean_span, generator)), budget, len(ids))
        start = generator.randrange(len(ids) - length + 1)
        if any(hidden[max(0, start - 1) : start + length + 1]):
            continue
        hidden[start : start + length] = [True] * length
        budget -= length
    masked: list[int] = []
    for position, token in enumerate(ids):
        if not hidden[position]:
            masked.append(token)
        elif position == 0 or not hidden[position - 1]:
            masked.append(mask_id)
    return tuple(masked)


def _poisson(mean: float, generator: random.Random) -> int:
    """Knuth's method; the means here are small."""
    threshold, count, product = exp(-mean), 0, generator.random()
    while product > threshold:
        count += 1
        product *= generator.random()
    return count
