"""How answers are read off the model: the variants of `task.decoding`, see docs/decoding.md."""

from __future__ import annotations

import hashlib
from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from bmpeft.recipe_section import MAX_POSITIONS, Section


class CandidatesDecoding(Section):
    """Closed answers: the log-likelihood of every choice; the encoder runs once for each row."""

    method: Literal["candidates"] = "candidates"
    normalization: Literal["sum", "length"] = Field("sum", description="which score decides; both are reported")


class WrittenDecoding(Section):
    """What beam search and sampling have in common."""

    max_new_tokens: int = Field(64, ge=1, le=MAX_POSITIONS, description="end token included")
    min_new_tokens: int = Field(0, ge=0, le=MAX_POSITIONS, description="tokens before the answer may end")
    no_repeat_ngram_size: int = Field(0, ge=0, le=16, description="so many tokens in a row are never written twice")

    @model_validator(mode="after")
    def _room_to_end(self) -> Self:
        if self.min_new_tokens >= self.max_new_tokens:
            raise ValueError("min_new_tokens must be smaller than max_new_tokens")
        return self


class BeamDecoding(WrittenDecoding):
    """Open answers by beam search; num_beams 1 is greedy."""

    method: Literal["beam"] = "beam"
    num_beams: int = Field(5, ge=1, le=64)
    length_penalty: float = Field(1.0, description="the log-likelihood is divided by length ** length_penalty")


class SampleDecoding(WrittenDecoding):
    """Open answers by sampling."""

    method: Literal["sample"] = "sample"
    temperature: float = Field(1.0, gt=0.0, le=10.0)
    top_p: float = Field(1.0, gt=0.0, le=1.0)
    seed: int = Field(0, ge=0)


class TrieDecoding(Section):
    """Open answers from a closed set: beam search that can write nothing but one of them.

    The set is stored in the adapter, which has to give the same answers elsewhere.
    """

    method: Literal["trie"] = "trie"
    answers: Literal["train"] | tuple[str, ...] = Field(
        "train", description="`train`: those of the training rows, never of others; or a list"
    )
    answers_file: str | None = Field(None, description="instead of answers: a text file, one answer in each line")
    min_count: int = Field(1, ge=1, description="with answers=train: leave out those of fewer training rows")
    num_beams: int = Field(5, ge=1, le=256, description="1 is greedy; as many as there are answers is exhaustive")
    normalization: Literal["sum", "length"] = Field("sum", description="which score decides, as with candidates")

    @field_validator("answers", mode="before")
    @classmethod
    def _one_line_each(cls, value: Any) -> Any:
        if value == "train":
            return value
        if not isinstance(value, list | tuple) or not all(isinstance(item, str) for item in value):
            raise ValueError("expected `train`, or a list such as [first, second] of texts")
        lines = tuple(" ".join(item.split()) for item in value)
        if not lines or not all(lines):
            raise ValueError("expected at least one answer, and none that is empty")
        return tuple(dict.fromkeys(lines))

    @model_validator(mode="after")
    def _one_source(self) -> TrieDecoding:
        if self.answers_file is not None and self.answers != "train":
            raise ValueError("answers and answers_file say the same thing in two ways: give one of them")
        if self.min_count > 1 and (self.answers_file is not None or self.answers != "train"):
            raise ValueError("min_count counts training rows: it needs answers=train")
        return self


OpenDecoding = Annotated[BeamDecoding | SampleDecoding | TrieDecoding, Field(discriminator="method")]


class MixedDecoding(Section):
    """Each row by its kind: one with choices (a yes/no question) is scored, any other one is written freely."""

    method: Literal["mixed"] = "mixed"
    closed: CandidatesDecoding = CandidatesDecoding()
    open: OpenDecoding = BeamDecoding(max_new_tokens=32)


Decoding = Annotated[
    CandidatesDecoding | BeamDecoding | SampleDecoding | TrieDecoding | MixedDecoding, Field(discriminator="method")
]


def trie_of(decoding: Decoding) -> TrieDecoding | None:
    """The part of a decoding that writes answers from a set, if it has one."""
    part = decoding.open if isinstance(decoding, MixedDecoding) else decoding
    return part if isinstance(part, TrieDecoding) else None


def with_trie(decoding: Decoding, trie: TrieDecoding) -> Decoding:
    """The same decoding with another `trie_of` it."""
    return decoding.model_copy(update={"open": trie}) if isinstance(decoding, MixedDecoding) else trie


def without_answers(decoding: Decoding) -> dict[str, Any]:
    """A decoding as a score card shows it: of a set of answers their number and digest."""
    trie = trie_of(decoding)
    if trie is None or trie.answers == "train":
        return decoding.model_dump(mode="json")
    digest = hashlib.sha256("\n".join(sorted(trie.answers)).encode()).hexdigest()
    content = trie.model_dump(mode="json") | {"answers": {"count": len(trie.answers), "sha256": digest}}
    return content if decoding is trie else {**decoding.model_dump(mode="json"), "open": content}
