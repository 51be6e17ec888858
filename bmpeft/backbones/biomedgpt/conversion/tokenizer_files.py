"""The tokenizer that a backbone directory gets: a tokenizer.json of the source, checked against its vocabulary."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from bmpeft.backbones.tokenizing import LoadedTokenizer, load_tokenizer
from bmpeft.errors import BackboneError

_WITHOUT = "none: the source has no tokenizer files; use --tokenizer DIR now, or backbone.tokenizer=DIR with each recipe"


@dataclass(frozen=True)
class TokenizerChoice:
    """A tokenizer or None, and the line that the report has about it."""

    loaded: LoadedTokenizer | None
    note: str


def choose_tokenizer(source: Path, given: Path | None, vocab_size: int) -> TokenizerChoice:
    """The tokenizer in `given`, or else in the source if that is a directory.

    Raises:
        BackboneError: `given` has none, or the files do not fit the weights.
    """
    directory = given if given is not None else source
    if (directory / "tokenizer.json").is_file():
        loaded = load_tokenizer(directory, vocab_size)
        origin = "--tokenizer" if given is not None else "the source"
        return TokenizerChoice(loaded, f"{loaded.tokenizer.vocab_size:,} tokens, tokenizer.json of {origin}")
    if given is not None:
        raise BackboneError(f"{given}: no tokenizer files: expected tokenizer.json")
    return TokenizerChoice(None, _WITHOUT)
