"""What every family of backbones offers to the rest: tensors from examples, scores and texts from tensors.

The methods take the model to run as an argument, because the caller decides whether it is the bare
model or the same model with an adapter attached.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from bmpeft.errors import BackboneError
from bmpeft.images.processing import ImageProcessor
from bmpeft.records import Example, ImageReference

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

    from bmpeft.attention import Choice
    from bmpeft.recipe_decoding import BeamDecoding, SampleDecoding, TrieDecoding


@dataclass(frozen=True, slots=True)
class EncodedExample:
    """One example as token ids, its image still a reference: pixels exist for a batch at a time.

    Attributes:
        input_ids: the source with its special tokens.
        labels: the target with the end token; None where there is no target.
        document_tokens_cut: tokens of the document that did not fit the limit.
        image: the image in front of the text.
        image_patches: positions that it takes in the encoder.
        decoder_prefix: what the decoder reads between its start token and the answer; its tokens carry no loss.
    """

    input_ids: tuple[int, ...]
    labels: tuple[int, ...] | None
    document_tokens_cut: int = 0
    image: ImageReference | None = None
    image_patches: int = 0
    decoder_prefix: tuple[int, ...] = ()

    @property
    def source_length(self) -> int:
        """Positions in the encoder: image patches and tokens."""
        return self.image_patches + len(self.input_ids)


@dataclass(frozen=True, slots=True)
class CandidateScores:
    """Summed log-likelihood (nats) of each candidate, end token included, and how many tokens each sum covers."""

    log_likelihoods: tuple[float, ...]
    lengths: tuple[int, ...]


@dataclass(frozen=True)
class AnswerSet:
    """Answers that a backbone has compiled for its constrained search; a family may add what it needs."""

    answers: tuple[str, ...]


class FrozenBackbone(ABC):
    """A pretrained model with its tokenizer; no parameter of it requires a gradient.

    Attributes:
        name: how it was asked for (embedded name, size name, directory or hub name).
        init: "pretrained" or "random".
        init_seed: the seed of random weights; None for pretrained ones.
        fingerprint: SHA-256 that names the weights, see `bmpeft.backbones.fingerprint`.
        tokenizer_digest: SHA-256 of the tokenizer's serialisation.
        attention: the attention backend ("eager", "sdpa", "chunked"), or "auto", which chooses in each call by length.
        image_processor: what makes pixels of images; None where it reads no images.
        max_positions: tokens of a source or target after `extend_positions`; None: as many as the weights have.
        model: the transformers model, in evaluation mode.
        weights: its parameters by name, a tied one once: the same objects also while layers are wrapped around them.
        replaced: the backbone's own values of the parameters in whose place those of an adapter stand, by name.
    """

    family: ClassVar[str]

    def __init__(
        self,
        *,
        name: str,
        init: str,
        init_seed: int | None,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerFast,
        fingerprint: str,
        tokenizer_digest: str,
        attention: str,
        image_processor: ImageProcessor | None = None,
    ) -> None:
        self.name, self.init, self.init_seed = name, init, init_seed
        self.model, self.tokenizer = model, tokenizer
        self.fingerprint, self.tokenizer_digest = fingerprint, tokenizer_digest
        self.attention = attention
        self.image_processor = image_processor
        self.max_positions: int | None = None
        self.model.requires_grad_(False)
        self.model.eval()
        self.weights: Mapping[str, torch.nn.Parameter] = dict(model.named_parameters())
        self.replaced: dict[str, torch.Tensor] = {}

    @property
    def device(self) -> torch.device:
        return self.model.device

    @property
    def dtype(self) -> torch.dtype:
        """Of the frozen weights, also while an adapter's stand in their place."""
        return next(iter(self.replaced.values())).dtype if self.replaced else self.model.dtype

    @property
    def is_adapted(self) -> bool:
        """Whether an adapter is on the model: in the place of parameters, or around layers."""
        return bool(self.replaced) or not self.weights.keys() <= dict(self.model.named_parameters()).keys()

    def unreached_parameters(self, *, with_images: bool) -> tuple[str, ...]:
        """How names of parameters begin that no gradient reaches, from text alone or with images; default: none."""
        return ()

    @property
    def image_tower_parameters(self) -> tuple[str, ...]:
        """How names of the image tower's parameters begin (what makes features of pixels); default: there is none."""
        return ()

    def keep_statistics(self, keep: bool) -> None:
        """Whether the tower's BatchNorm layers stay in evaluation mode although it trains; default: there is no tower.

        Raises:
            BackboneError: they cannot, since there are none.
        """
        if keep:
            raise BackboneError(f"{self.name}: has no image tower")

    @property
    @abstractmethod
    def residual_blocks(self) -> int:
        """Attention and feed-forward blocks that text passes one after the other; rounding errors grow with them."""

    @property
    @abstractmethod
    def longest_sum(self) -> int:
        """Products that the widest of these blocks' linear layers adds up for one value."""

    def attention_layers(self, source_length: int, target_length: int) -> tuple[tuple[int, Choice], ...]:
        """How many attention layers use which of bmpeft's backends, and why, at these lengths; default: none does."""
        return ()

    @abstractmethod
    def extend_positions(self, positions: int) -> None:
        """Take longer sources and targets; the outputs for all others, and the fingerprint, stay as they are.

        Raises:
            BackboneError: the weights have more positions than that.
        """

    @abstractmethod
    def encode(self, example: Example, *, max_source_length: int, max_target_length: int) -> EncodedExample:
        """Token ids of an example; cuts its document, never the prompt's own words. Its image is not read yet.

        Raises:
            DataError: the prompt without its document, or the target, exceeds the limit.
        """

    @abstractmethod
    def collate(self, examples: Sequence[EncodedExample]) -> dict[str, torch.Tensor]:
        """Pad examples to one batch, and read their images.

        Returns:
            `input_ids` [B, L], `attention_mask` [B, L]; where one has an image, `pixel_values` [B, 3, S, S] float32
            (zeros in a row without one) and `pixel_mask` [B] boolean; where all have labels, `labels` [B, T] (-100
            ignored) and, where any decoder reads a prefix, `decoder_input_ids` [B, T].

        Raises:
            ImageError: an image cannot be read; names its file.
        """

    @abstractmethod
    def score_candidates(
        self, model: Any, examples: Sequence[Example], *, max_source_length: int
    ) -> list[CandidateScores]:
        """Log-likelihood of every one of each example's `choices`; the encoder runs once for each example.

        `model` is this backbone's model, bare or adapted. The number of choices may differ by example.
        """

    @abstractmethod
    def generate(
        self,
        model: Any,
        examples: Sequence[Example],
        decoding: BeamDecoding | SampleDecoding,
        *,
        max_source_length: int,
    ) -> list[str]:
        """Free text for every example."""

    @abstractmethod
    def compile_answers(self, answers: Sequence[str]) -> AnswerSet:
        """A set of answers for `choose`, made once and used for any number of batches.

        Raises:
            UsageError: an answer that the backbone cannot write; named by its number, from 1.
        """

    @abstractmethod
    def choose(
        self,
        model: Any,
        examples: Sequence[Example],
        answers: AnswerSet,
        decoding: TrieDecoding,
        *,
        max_source_length: int,
    ) -> list[str]:
        """One of the answers for every example, by a search that can write nothing else.

        Answers are written with a space before them, as BiomedGPT was pretrained, and returned without it.
        """

    @abstractmethod
    def save_pretrained(self, directory: str | Path) -> None:
        """Write weights, config, tokenizer and fingerprint: a directory that `load_backbone` and transformers read."""
