"""Text to token ids: the tokenizer's files, and truncation that never touches the prompt's own words."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from bmpeft.backbones.biomedgpt.ofa_tokenizer import build_ofa_tokenizer, has_ofa_files
from bmpeft.errors import BackboneError, BmpeftError
from bmpeft.records import Example

SPECIAL_TOKENS = {"bos_token": "<s>", "pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
"""In the order of their ids, 0 to 3."""


@dataclass(frozen=True)
class LoadedTokenizer:
    """A tokenizer with the text of its file, which is what is digested and stored again."""

    tokenizer: PreTrainedTokenizerFast
    text: str

    @property
    def digest(self) -> str:
        """SHA-256 of the file's content, independent of its JSON layout."""
        return hashlib.sha256(json.dumps(json.loads(self.text), sort_keys=True).encode()).hexdigest()


def load_tokenizer(directory: Path, vocab_size: int) -> LoadedTokenizer:
    """Read a tokenizer and check it against the model.

    It is ``tokenizer.json`` or, where there is none, one of the two sets of files that OFA's tokenizer is published
    as, see `bmpeft.backbones.biomedgpt.ofa_tokenizer`. Text never becomes a special token, not even "</s>".

    Raises:
        BackboneError: no such files, damaged ones, special tokens elsewhere than at ids 0 to 3, or more
            tokens than the model has embeddings.
    """
    path = directory / "tokenizer.json"
    if not path.exists() and has_ofa_files(directory):
        path = directory
        core = build_ofa_tokenizer(directory)
        text = core.to_str()
    else:
        core, text = _read_file(path)
    for expected, token in enumerate(SPECIAL_TOKENS.values()):
        if core.token_to_id(token) != expected:
            raise BackboneError(f"{path}: {token} has id {core.token_to_id(token)}, expected {expected}")
    if core.get_vocab_size() > vocab_size:
        raise BackboneError(f"{path}: {core.get_vocab_size()} tokens, but the model has {vocab_size} embeddings")
    mask = {"mask_token": "<mask>"} if core.token_to_id("<mask>") is not None else {}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, split_special_tokens=True, **SPECIAL_TOKENS, **mask)
    return LoadedTokenizer(tokenizer, text)


def _read_file(path: Path) -> tuple[Tokenizer, str]:
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise BackboneError(
            f"{path}: no such file; backbone.tokenizer names a directory with tokenizer.json, with encoder.json, "
            "vocab.bpe and dict.txt, or with vocab.json and merges.txt"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise BackboneError(f"{path}: cannot be read: {error}") from None
    try:
        return Tokenizer.from_str(text), text
    except Exception as error:  # the Rust parser raises plain Exception
        raise BackboneError(f"{path}: not a tokenizer file: {error}") from None


def source_ids(tokenizer: PreTrainedTokenizerFast, example: Example, limit: int) -> tuple[list[int], int]:
    """Token ids of an example's source, without special tokens, and how many document tokens were cut.

    Tokens are removed from the inside of `example.document` only, at the end that
    `example.document_cut` names.

    Raises:
        BmpeftError: the source without its document is longer than `limit` tokens.
    """
    encoding = tokenizer(example.source, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    ids: list[int] = encoding["input_ids"]
    excess = len(ids) - limit
    if excess <= 0:
        return ids, 0
    start, stop = _document_tokens(encoding["offset_mapping"], example)
    if stop - start < excess:
        raise BmpeftError(
            f"record {example.record.id}: the prompt without its document takes {len(ids) - (stop - start)} tokens, "
            f"and {limit} fit: raise data.max_source_length"
        )
    cut = slice(start, start + excess) if example.document_cut == "head" else slice(stop - excess, stop)
    del ids[cut]
    return ids, excess


def _document_tokens(offsets: list[tuple[int, int]], example: Example) -> tuple[int, int]:
    """Range of the tokens that lie inside the document's characters.

    A word's token carries the space before it, so the first one may begin with the prompt's space.
    """
    if example.document is None:
        return 0, 0
    first, last = example.document
    inside = [
        token
        for token, (start, stop) in enumerate(offsets)
        if first < stop <= last and not example.source[start:first].strip()
    ]
    return (inside[0], inside[-1] + 1) if inside else (0, 0)


def target_ids(tokenizer: PreTrainedTokenizerFast, example: Example, limit: int) -> list[int]:
    """Token ids of an example's target with the end token.

    Raises:
        BmpeftError: there is no target, or it is longer than `limit` tokens.
    """
    if not example.target or not example.target.strip():
        raise BmpeftError(f"record {example.record.id}: no answer to train on")
    ids = [*tokenizer(example.target, add_special_tokens=False, verbose=False)["input_ids"], tokenizer.eos_token_id]
    if len(ids) > limit:
        raise BmpeftError(
            f"record {example.record.id}: the answer has {len(ids)} tokens, and {limit} fit: "
            "raise data.max_target_length"
        )
    return ids
