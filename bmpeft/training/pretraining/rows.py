"""Rows of a mixture, each a pure function of (seed, number): a run can be resumed at any of them.

Infilling follows BiomedGPT's prompt ` what is the complete text of " ... "?`: spans of Poisson length are
replaced by one mask token each, and the target is the whole text. Images are asked about by the prompts of the
tasks that adapters are trained for; whether a caption belongs to an image by ` does the image describe " ... "?`.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from math import exp
from typing import Literal

from transformers import PreTrainedTokenizerFast

from bmpeft.backbones.base import EncodedExample
from bmpeft.images.augmentation import Augmentation, AugmentedImage
from bmpeft.pretrain_recipe import ObjectiveSection
from bmpeft.records import ImageReference
from bmpeft.tasks.captioning import Captioning
from bmpeft.tasks.image_classification import ImageClassification
from bmpeft.training.pretraining.corpus import GAP, Source, split_at_sentences
from bmpeft.training.pretraining.images import ImageTexts, ShownImage

PretrainTask = Literal[
    "infilling",
    "question_answering",
    "captioning",
    "visual_question_answering",
    "image_classification",
    "image_text_matching",
]
TEXT_TASKS: tuple[PretrainTask, ...] = ("infilling", "question_answering")
IMAGE_TASKS: tuple[PretrainTask, ...] = (
    "captioning",
    "visual_question_answering",
    "image_classification",
    "image_text_matching",
)
INFILLING_PROMPT = (' what is the complete text of "', ' "?')
MATCHING_PROMPT = (' does the image describe " ', ' "?')
CHARACTERS_PER_TOKEN = 4.0
FINAL_ROWS = 2**40
"""Rows from this number on are those of the end of a run, where sources weigh their `final_weight`."""


@dataclass(frozen=True, slots=True)
class ImageReading:
    """How the images of a mixture are read: size and patches of each, and how it is changed (None: not at all)."""

    side: int
    patches: int
    augmentation: Augmentation | None = None


@dataclass(frozen=True, slots=True)
class MixtureRow:
    """A row and the task that it is of."""

    task: PretrainTask
    example: EncodedExample


@dataclass(frozen=True, slots=True)
class PoolCounts:
    """What became of a source: pieces of text, questions and images, and what the token limits cost."""

    texts: int
    questions: int
    images: int
    texts_cut: int
    questions_left_out: int
    answers_cut: int


@dataclass(frozen=True, slots=True)
class _Pool:
    weight: float
    final_weight: float
    texts: tuple[tuple[int, ...], ...]
    questions: tuple[tuple[tuple[int, ...], tuple[int, ...]], ...]
    images: tuple[tuple[ShownImage, ...], ...]  # one of the groups is drawn, then one of its images
    number: int
    counts: PoolCounts


class MixtureRows:
    """The rows of a mixture of sources, by number.

    Args:
        sources: texts, questions and images.
        tokenizer: of the backbone.
        objective: how rows are made.
        seed: of everything that is drawn.
        reading: of images; needed where a source has some.

    Raises:
        ValueError: no source has anything to learn from.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        tokenizer: PreTrainedTokenizerFast,
        objective: ObjectiveSection,
        seed: int,
        reading: ImageReading | None = None,
    ) -> None:
        self._tokenizer, self._objective, self._seed, self._reading = tokenizer, objective, seed, reading
        self._prompt = tuple(tuple(self._ids(part)) for part in INFILLING_PROMPT)
        self._all_pools = [self._pool(number, source) for number, source in enumerate(sources)]
        self._pools = [pool for pool in self._all_pools if pool.texts or pool.questions or pool.images]
        if not self._pools:
            raise ValueError("no source has texts, questions or images")
        self._weights = [pool.weight for pool in self._pools]
        self._final_weights = [pool.final_weight for pool in self._pools]
        self._image_texts = ImageTexts([source.images for source in sources])
        shares = {task: getattr(objective.image_tasks, task) for task in IMAGE_TASKS}
        self._image_shares: dict[PretrainTask, float] = {task: share for task, share in shares.items() if share > 0.0}
        self._known: dict[str, list[int]] = {}

    def __getitem__(self, number: int) -> EncodedExample:
        """The example of row `number`."""
        return self.row(number).example

    def row(self, number: int) -> MixtureRow:
        """Row `number`; any number is valid, the mixture never ends."""
        generator = random.Random(f"{self._seed}:{number}")
        pool = generator.choices(self._pools, self._final_weights if number >= FINAL_ROWS else self._weights)[0]
        if pool.images:
            return self._of_image(pool, number, generator)
        asked = generator.random() < self._objective.question_share if pool.texts else True
        if asked and pool.questions:
            question, answer = generator.choice(pool.questions)
            return MixtureRow("question_answering", self._example(question, answer))
        text = generator.choice(pool.texts)
        masked = mask_spans(
            text,
            mask_id=int(self._tokenizer.mask_token_id),
            share=self._objective.mask_share,
            mean_span=self._objective.mean_span,
            generator=generator,
        )
        return MixtureRow("infilling", self._example((*self._prompt[0], *masked, *self._prompt[1]), text))

    @property
    def counts(self) -> list[PoolCounts]:
        """Of each source, in their order."""
        return [pool.counts for pool in self._all_pools]

    @property
    def tasks(self) -> tuple[PretrainTask, ...]:
        """The tasks that rows can be of."""
        infilled = any(pool.texts for pool in self._pools)
        asked = any(pool.questions for pool in self._pools) and self._objective.question_share > 0.0
        of_text = [task for task, there in zip(TEXT_TASKS, (infilled, asked), strict=True) if there]
        return (*of_text, *(self._image_shares if any(pool.images for pool in self._pools) else ()))

    def _of_image(self, pool: _Pool, number: int, generator: random.Random) -> MixtureRow:
        assert self._reading is not None
        shown = generator.choice(generator.choice(pool.images))
        task = generator.choices(list(self._image_shares), list(self._image_shares.values()))[0]
        if task == "image_classification":
            source, target = ImageClassification.default_prompt, " " + shown.label
        elif task == "captioning":
            source, target = Captioning.default_prompt, " " + self._image_texts.caption(shown, generator)
        elif task == "visual_question_answering":
            question, answer = self._image_texts.question(pool.number, shown, generator)
            source, target = " " + question, " " + answer
        else:
            caption, agrees = self._image_texts.matching(pool.number, shown, generator)
            source, target = caption.join(MATCHING_PROMPT), " yes" if agrees else " no"
        image: ImageReference = shown.image
        if self._reading.augmentation is not None:
            image = AugmentedImage(
                image, self._reading.augmentation, self._reading.side, shown.mirrored, f"{self._seed}:{number}"
            )
        ids = (self._remembered_ids(text) for text in (source, target))
        return MixtureRow(task, self._example(*ids, image=image, image_patches=self._reading.patches))

    def _pool(self, number: int, source: Source) -> _Pool:
        limit = self._objective.max_target_length - 1
        room = self._objective.max_source_length - 2
        text_limit = min(limit, room - sum(map(len, self._prompt)))
        pieces = [p for text in source.texts for p in split_at_sentences(text, int(text_limit * CHARACTERS_PER_TOKEN))]
        texts = [ids for ids in (self._ids(" " + piece) for piece in pieces) if ids]
        pairs = [(self._gapped_ids(question), self._ids(" " + answer)) for question, answer in source.questions]
        # A question that does not fit is left out; an answer is cut, since every prefix of it is right.
        asked = [(question, answer) for question, answer in pairs if len(question) <= room]
        counts = PoolCounts(
            texts=len(texts),
            questions=len(asked),
            images=len(source.images),
            texts_cut=sum(len(ids) > text_limit for ids in texts),
            questions_left_out=len(pairs) - len(asked),
            answers_cut=sum(len(answer) > limit for _, answer in asked),
        )
        return _Pool(
            source.weight,
            source.weight if source.final_weight is None else source.final_weight,
            tuple(tuple(ids[:text_limit]) for ids in texts),
            tuple((tuple(question), tuple(answer[:limit])) for question, answer in asked),
            _groups(source),
            number,
            counts,
        )

    def _gapped_ids(self, text: str) -> list[int]:
        """Token ids with the mask token in every gap."""
        first, *others = (self._ids(part) for part in text.split(GAP))
        return first + [i for part in others for i in (int(self._tokenizer.mask_token_id), *part)]

    def _ids(self, text: str) -> list[int]:
        ids: list[int] = self._tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        return ids

    def _remembered_ids(self, text: str) -> list[int]:
        """`_ids` of a text that recurs: what is said of images is made of few words."""
        if text not in self._known:
            self._known[text] = self._ids(text)
        return self._known[text]

    def _example(
        self,
        source: Sequence[int],
        target: Sequence[int],
        *,
        image: ImageReference | None = None,
        image_patches: int = 0,
    ) -> EncodedExample:
        bos, eos = int(self._tokenizer.bos_token_id), int(self._tokenizer.eos_token_id)
        return EncodedExample(
            input_ids=(bos, *source, eos), labels=(*target, eos), image=image, image_patches=image_patches
        )


def _groups(source: Source) -> tuple[tuple[ShownImage, ...], ...]:
    """The images of each label where the source is balanced, else all in one group; none where it has none."""
    groups: defaultdict[str, list[ShownImage]] = defaultdict(list)
    for image in source.images:
        groups[image.label if source.balanced else ""].append(image)
    return tuple(tuple(group) for _, group in sorted(groups.items()))


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
