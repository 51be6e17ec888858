"""A backbone without a network, for tests of what is around one."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from bmpeft.backbones.base import AnswerSet, CandidateScores, EncodedExample, FrozenBackbone
from bmpeft.recipe_decoding import BeamDecoding, SampleDecoding, TrieDecoding
from bmpeft.records import Example

Score = Callable[[Example, str], float]


def hashed_score(example: Example, choice: str) -> float:
    """A log-likelihood that depends on source and choice alone, as a model's does."""
    digest = hashlib.sha256(f"{example.source}|{choice}".encode()).digest()
    return -1.0 - int.from_bytes(digest[:4], "big") / 2**28


@dataclass
class FakeModel:
    """Stands for the network: how it scores a choice and what it writes."""

    score: Score = hashed_score
    write: Callable[[Example], str] = lambda example: f" {example.source}"
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    dtype: torch.dtype = torch.float32
    training: bool = False

    def requires_grad_(self, requires_grad: bool) -> None:
        """Nothing to freeze."""

    def eval(self) -> None:
        """No modes."""

    def named_parameters(self) -> Iterator[tuple[str, torch.nn.Parameter]]:
        """No parameters."""
        return iter(())


class FakeBackbone(FrozenBackbone):
    """Words are tokens; `batches` records the sources of every batch that a model was given."""

    family = "fake"

    def __init__(self, model: FakeModel | None = None, *, name: str = "fake-small", init: str = "pretrained") -> None:
        fake: Any = model or FakeModel()
        tokenizer: Any = None
        super().__init__(
            name=name,
            init=init,
            init_seed=0 if init == "random" else None,
            model=fake,
            tokenizer=tokenizer,
            fingerprint="f" * 64,
            tokenizer_digest="d" * 64,
            attention="eager",
        )
        self.batches: list[list[str]] = []

    @property
    def residual_blocks(self) -> int:
        raise NotImplementedError

    @property
    def longest_sum(self) -> int:
        raise NotImplementedError

    def extend_positions(self, positions: int) -> None:
        raise NotImplementedError

    def encode(self, example: Example, *, max_source_length: int, max_target_length: int) -> EncodedExample:
        cut = max(0, len(example.source.split()) - max_source_length)
        return EncodedExample((0,) * min(len(example.source.split()), max_source_length), None, cut)

    def collate(self, examples: Sequence[EncodedExample]) -> dict[str, torch.Tensor]:
        raise NotImplementedError

    def score_candidates(
        self, model: Any, examples: Sequence[Example], *, max_source_length: int
    ) -> list[CandidateScores]:
        self._record(examples)
        scores = []
        for example in examples:
            choices = example.choices or ()
            lengths = tuple(len(choice.split()) + 1 for choice in choices)
            scores.append(CandidateScores(tuple(model.score(example, choice) for choice in choices), lengths))
        return scores

    def generate(
        self,
        model: Any,
        examples: Sequence[Example],
        decoding: BeamDecoding | SampleDecoding,
        *,
        max_source_length: int,
    ) -> list[str]:
        self._record(examples)
        return [model.write(example) for example in examples]

    def compile_answers(self, answers: Sequence[str]) -> AnswerSet:
        return AnswerSet(tuple(answers))

    def choose(
        self,
        model: Any,
        examples: Sequence[Example],
        answers: AnswerSet,
        decoding: TrieDecoding,
        *,
        max_source_length: int,
    ) -> list[str]:
        self._record(examples)
        return [max(answers.answers, key=lambda answer: model.score(example, f" {answer}")) for example in examples]

    def save_pretrained(self, directory: str | Path) -> None:
        raise NotImplementedError

    def _record(self, examples: Sequence[Example]) -> None:
        assert torch.is_inference_mode_enabled()
        self.batches.append([example.source for example in examples])
