"""OFA's text tokenizer from the files that it is published with.

The vocabulary, in the order of its ids: <s>, <pad>, </s>, <unk>; the tokens of GPT-2's byte-level BPE in the order of
fairseq's ``dict.txt`` with three fillers; <mask>; 8,192 image codes; 1,000 location bins. 59,457 in all. It comes as

    encoder.json, vocab.bpe, dict.txt     of fairseq: GPT-2's own two files, and the order
    vocab.json, merges.txt                of transformers, perhaps with added_tokens.json

and both give the same tokenizer. Text never becomes a special token, a code or a bin, whatever it says: "</s>" in a
document is five characters. A word has other ids with a space before it than without, so that prompts and answers
begin with one.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from bmpeft.errors import BackboneError

NUM_CODE_TOKENS, NUM_BIN_TOKENS = 8192, 1000
FAIRSEQ_FILES = ("encoder.json", "vocab.bpe", "dict.txt")
TRANSFORMERS_FILES = ("vocab.json", "merges.txt")
ADDED_FILE = "added_tokens.json"

_SPECIAL = ("<s>", "<pad>", "</s>", "<unk>")
_MASK = "<mask>"
_LARGEST_FILE = 1 << 26

Merges = list[tuple[str, str]]


def has_ofa_files(directory: Path) -> bool:
    """Whether one of the two sets of files is here."""
    return any(all((directory / name).is_file() for name in names) for names in (FAIRSEQ_FILES, TRANSFORMERS_FILES))


def build_ofa_tokenizer(directory: Path) -> Tokenizer:
    """The tokenizer of a directory with one of the two sets of files; fairseq's where both are there.

    Raises:
        BackboneError: a file is missing or damaged, or the files do not fit each other; names the file.
    """
    if all((directory / name).is_file() for name in FAIRSEQ_FILES):
        vocabulary, merges_file = _fairseq_vocabulary(directory), directory / "vocab.bpe"
    else:
        vocabulary, merges_file = _transformers_vocabulary(directory), directory / "merges.txt"
    for token in (
        *(f"<code_{number}>" for number in range(NUM_CODE_TOKENS)),
        *(f"<bin_{number}>" for number in range(NUM_BIN_TOKENS)),
    ):
        vocabulary.setdefault(token, len(vocabulary))
    merges = _merges(merges_file, vocabulary)
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _fairseq_vocabulary(directory: Path) -> dict[str, int]:
    """Ids up to <mask>. A line of ``dict.txt`` is GPT-2's id of a token, or a filler, and a count."""
    encoder = _token_ids(directory / "encoder.json")
    tokens = {str(number): token for token, number in encoder.items()}
    path = directory / "dict.txt"
    vocabulary = {token: number for number, token in enumerate(_SPECIAL)}
    for row, line in enumerate(_text(path).splitlines(), start=1):
        name, _, count = line.partition(" ")
        token = tokens.pop(name, None) if name.isdigit() else name
        if token is None or not token or not count.isdigit() or token in vocabulary:
            raise BackboneError(f"{path}, row {row}: expected an id of encoder.json that is new here, and a count")
        vocabulary[token] = len(vocabulary)
    if tokens:
        raise BackboneError(f"{path}: lacks {len(tokens)} of the ids in encoder.json")
    return vocabulary | {_MASK: len(vocabulary)}


def _transformers_vocabulary(directory: Path) -> dict[str, int]:
    """Ids as they stand in ``vocab.json``, with those of ``added_tokens.json``."""
    path = directory / "vocab.json"
    vocabulary = _token_ids(path)
    if (directory / ADDED_FILE).is_file():
        added = _token_ids(directory / ADDED_FILE)
        if any(vocabulary.get(token, number) != number for token, number in added.items()):
            raise BackboneError(f"{directory / ADDED_FILE}: gives a token of {path.name} another id")
        vocabulary |= added
    ordered = sorted(vocabulary, key=vocabulary.__getitem__)
    if [vocabulary[token] for token in ordered] != list(range(len(ordered))):
        raise BackboneError(f"{path}: the ids are not 0 to {len(ordered) - 1}, each once")
    if tuple(ordered[: len(_SPECIAL)]) != _SPECIAL or _MASK not in vocabulary:
        raise BackboneError(f"{path}: not OFA's vocabulary: expected {', '.join(_SPECIAL)} as ids 0 to 3, and {_MASK}")
    return {token: vocabulary[token] for token in ordered}


def _merges(path: Path, vocabulary: dict[str, int]) -> Merges:
    """Pairs of tokens in the order in which they are joined."""
    merges = []
    for row, line in enumerate(_text(path).split("\n"), start=1):
        line = line.rstrip("\r")
        if not line or (row == 1 and line.startswith("#version")):
            continue
        left, _, right = line.partition(" ")
        if not {left, right, left + right} <= vocabulary.keys():
            raise BackboneError(f"{path}, row {row}: expected two tokens of the vocabulary that join to a third")
        merges.append((left, right))
    return merges


def _token_ids(path: Path) -> dict[str, int]:
    try:
        content: Any = json.loads(_text(path))
    except (ValueError, RecursionError):
        raise BackboneError(f"{path}: not JSON") from None
    if not isinstance(content, dict) or any(type(number) is not int for number in content.values()):
        raise BackboneError(f"{path}: expected tokens and their ids")
    if len(set(content.values())) != len(content):
        raise BackboneError(f"{path}: two tokens have the same id")
    return content


def _text(path: Path) -> str:
    try:
        if path.stat().st_size > _LARGEST_FILE:
            raise BackboneError(f"{path}: too large for a tokenizer's file")
        return path.read_bytes().decode("utf-8")
    except UnicodeDecodeError:
        raise BackboneError(f"{path}: not UTF-8") from None
    except OSError as error:
        raise BackboneError(f"{path}: {error.strerror or 'cannot be read'}") from None
