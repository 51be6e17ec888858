"""`bmpeft inspect`: rows of a recipe as the model sees them, and what was cut of them.

Rows take the way that training takes: the same records, task, token ids and batches. Which tokens carry the
loss is read off the labels of a collated batch, so that it is what the model is trained on and not a second
opinion. The result holds text of the data set, because it was asked for; nothing here logs or stores it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from bmpeft.backbones import EncodedExample, FrozenBackbone, load_frozen_backbone
from bmpeft.datasets import read_dataset
from bmpeft.datasets.splits import first_of_shuffle
from bmpeft.errors import RecipeError, UsageError, did_you_mean
from bmpeft.pretrain_recipe import PretrainRecipe
from bmpeft.progress import Progress
from bmpeft.recipe import Recipe
from bmpeft.records import Example
from bmpeft.tasks import make_task
from bmpeft.training.encoding import encode_split
from bmpeft.training.pretraining.corpus import read_corpus
from bmpeft.training.pretraining.run import mixture_rows

IGNORED_LABEL = -100  # see `FrozenBackbone.collate`
SURVEYED_ROWS = 2048
"""Rows of a pretraining mixture, which has no end, that its summary covers."""


@dataclass(frozen=True, slots=True)
class TargetToken:
    """A token that the decoder is to write, and whether the loss counts it."""

    id: int
    text: str
    loss: bool


@dataclass(frozen=True, slots=True)
class InspectedImage:
    """The image of a row: its size in pixels, the square that it is resized to, the patches that the encoder reads."""

    width: int
    height: int
    side: int
    patches: int


@dataclass(frozen=True, slots=True)
class InspectedRow:
    """One row as the model sees it; texts are decoded from token ids, special tokens included.

    Attributes:
        id: of the record; of a pretraining mixture, the row's number.
        source: what the encoder reads.
        source_tokens: its length. None of these tokens carries loss.
        target: what the decoder is to write, behind the prefix that it reads (see `task.prompt_layout`).
        target_tokens: the same, token by token.
        options: the closed answers as the model would write them; None for open ones.
        label: index of the right one among `options`, from 0.
        document_tokens_cut: how many tokens its document lost to fit `max_source_length`.
        document_cut: the end that they were taken from; None where nothing was.
        image: what is in front of the text.
    """

    id: str
    source: str
    source_tokens: int
    target: str
    target_tokens: tuple[TargetToken, ...]
    options: tuple[str, ...] | None
    label: int | None
    document_tokens_cut: int
    document_cut: Literal["head", "tail"] | None
    image: InspectedImage | None


@dataclass(frozen=True, slots=True)
class Summary:
    """All rows of a split, or of a mixture without end the first `SURVEYED_ROWS`. Lengths are in tokens."""

    rows: int
    endless: bool
    rows_with_image: int
    rows_cut: int
    document_tokens_cut: int
    longest_source: int
    longest_source_before_cutting: int
    longest_target: int
    max_source_length: int
    max_target_length: int


@dataclass(frozen=True, slots=True)
class Inspection:
    """Some rows of a split, and figures of all of them."""

    backbone: str
    dataset: str
    split: str
    rows: tuple[InspectedRow, ...]
    summary: Summary


@dataclass(frozen=True, slots=True)
class _Split:
    """What both kinds of recipes come down to; `examples[i]` (None in a mixture of texts) became `encoded[i]`."""

    dataset: str
    ids: Sequence[str]
    examples: Sequence[Example | None]
    encoded: Sequence[EncodedExample]
    endless: bool
    max_source_length: int
    max_target_length: int


def inspect(recipe: Recipe | PretrainRecipe, *, split: str, rows: int, progress: Progress) -> Inspection:
    """Read and encode a split, and show the first `rows` of it.

    Args:
        recipe: of either kind.
        split: "train" is what training reads, after `data.train_rows`; another split is shown whole. A
            pretraining recipe has "train" only.
        rows: how many to show; the summary covers the whole split anyway.
        progress: shows the encoding.

    Raises:
        UsageError: there is no such split.
        BmpeftError: data or backbone cannot be read, or a row does not fit, as training would say.
    """
    if isinstance(recipe, PretrainRecipe):
        backbone, content = _of_mixture(recipe, split, rows, progress)
    else:
        backbone, content = _of_dataset(recipe, split, progress)
    return Inspection(
        backbone=backbone.name,
        dataset=content.dataset,
        split=split,
        rows=_shown_rows(backbone, content, rows),
        summary=_summary(content),
    )


def _of_dataset(recipe: Recipe, split: str, progress: Progress) -> tuple[FrozenBackbone, _Split]:
    dataset = read_dataset(recipe.data, recipe.task.name)
    if split not in dataset.splits:
        raise UsageError(f"{dataset.name} has no split {split!r}{did_you_mean(split, dataset.splits)}")
    records = dataset.splits[split]
    if split == "train":
        records = first_of_shuffle(records, recipe.data.train_rows, recipe.data.split.seed)
    backbone = load_frozen_backbone(recipe.backbone)
    encoded = encode_split(
        backbone,
        make_task(recipe.task, recipe.data.dataset),
        records,
        max_source_length=recipe.data.max_source_length,
        max_target_length=recipe.data.max_target_length,
        progress=progress,
    )
    return backbone, _Split(
        dataset=dataset.name,
        ids=[record.id for record in records],
        examples=encoded.examples,
        encoded=encoded.encoded,
        endless=False,
        max_source_length=recipe.data.max_source_length,
        max_target_length=recipe.data.max_target_length,
    )


def _of_mixture(recipe: PretrainRecipe, split: str, rows: int, progress: Progress) -> tuple[FrozenBackbone, _Split]:
    if split != "train":
        raise UsageError(f"a pretraining recipe has no split {split!r}: inspect shows its mixture, --split train")
    sources = read_corpus(recipe)
    backbone = load_frozen_backbone(recipe.backbone)
    with progress.task("tokenizing", total=1) as bar:
        try:
            mixture = mixture_rows(sources, backbone, recipe)
        except ValueError as error:
            raise RecipeError(f"corpus: {error}") from None
        encoded = [mixture[number] for number in range(max(rows, SURVEYED_ROWS))]
        bar.advance(1)
    return backbone, _Split(
        dataset="mixture of " + ", ".join(source.name for source in sources),
        ids=[str(number) for number in range(len(encoded))],
        examples=[None] * len(encoded),
        encoded=encoded,
        endless=True,
        max_source_length=recipe.objective.max_source_length,
        max_target_length=recipe.objective.max_target_length,
    )


def _summary(split: _Split) -> Summary:
    return Summary(
        rows=len(split.encoded),
        endless=split.endless,
        rows_with_image=sum(row.image is not None for row in split.encoded),
        rows_cut=sum(row.document_tokens_cut > 0 for row in split.encoded),
        document_tokens_cut=sum(row.document_tokens_cut for row in split.encoded),
        longest_source=max((len(row.input_ids) for row in split.encoded), default=0),
        longest_source_before_cutting=max(
            (len(row.input_ids) + row.document_tokens_cut for row in split.encoded), default=0
        ),
        longest_target=max((len(row.labels or ()) for row in split.encoded), default=0),
        max_source_length=split.max_source_length,
        max_target_length=split.max_target_length,
    )


def _shown_rows(backbone: FrozenBackbone, split: _Split, count: int) -> tuple[InspectedRow, ...]:
    encoded = split.encoded[:count]
    if not encoded:
        return ()
    batch = backbone.collate(encoded)
    tensors = zip(batch["input_ids"], batch["attention_mask"], batch["labels"], strict=True)
    named = zip(split.ids[:count], split.examples[:count], encoded, strict=True)
    rows = []
    for (identity, example, row), (input_ids, mask, labels) in zip(named, tensors, strict=True):
        source = input_ids[mask.bool()].tolist()
        target = _target_tokens(backbone, (*row.decoder_prefix, *(row.labels or ())), labels.tolist())
        rows.append(
            InspectedRow(
                id=identity,
                source=_decoded(backbone, source),
                source_tokens=len(source),
                target=_decoded(backbone, [token.id for token in target]),
                target_tokens=target,
                options=example.choices if example is not None else None,
                label=example.record.label if example is not None else None,
                document_tokens_cut=row.document_tokens_cut,
                document_cut=example.document_cut if example is not None and row.document_tokens_cut else None,
                image=_image(backbone, row),
            )
        )
    return tuple(rows)


def _image(backbone: FrozenBackbone, row: EncodedExample) -> InspectedImage | None:
    if row.image is None or backbone.image_processor is None:
        return None
    width, height = row.image.load().size
    return InspectedImage(width, height, backbone.image_processor.image_size, row.image_patches)


def _target_tokens(backbone: FrozenBackbone, ids: Sequence[int], labels: Sequence[int]) -> tuple[TargetToken, ...]:
    """The tokens of a batch's row of labels (padding left out); one that is ignored is named by the row's own `ids`."""
    tokens = []
    for position, label in enumerate(labels):
        loss = label != IGNORED_LABEL
        if loss or position < len(ids):
            token = label if loss else ids[position]
            tokens.append(TargetToken(token, _decoded(backbone, [token]), loss))
    return tuple(tokens)


def _decoded(backbone: FrozenBackbone, ids: list[int]) -> str:
    text = backbone.tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
    assert isinstance(text, str), "a list of ids is one text"
    return text
