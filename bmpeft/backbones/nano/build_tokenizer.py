"""Train nano's tokenizer: byte-level BPE with OFA's special tokens at their places.

    python -m bmpeft.backbones.nano.build_tokenizer OUTPUT.json TEXT_FILE [TEXT_FILE ...]

The layout is OFA's in small: <s> 0, <pad> 1, </s> 2, <unk> 3, then the merges, <mask> last. What the
shipped `tokenizer.json` was trained on stands in docs/nano.md.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from bmpeft.backbones.tokenizing import SPECIAL_TOKENS

VOCAB_SIZE = 8192


def build(lines: Iterable[str]) -> Tokenizer:
    """A tokenizer of `VOCAB_SIZE` entries; the same lines give the same tokenizer."""
    tokenizer = Tokenizer(models.BPE(unk_token=SPECIAL_TOKENS["unk_token"]))
    # GPT-2's splitting: a word carries the space before it, which is why prompts start with a space.
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE - 1,
        special_tokens=list(SPECIAL_TOKENS.values()),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(lines, trainer)
    tokenizer.add_special_tokens(["<mask>"])
    return tokenizer


def main(output: str, *text_files: str) -> None:
    """Train on the lines of text files and write `output`."""
    lines = [line for path in text_files for line in Path(path).read_text(encoding="utf-8").splitlines() if line]
    build(lines).save(output)


if __name__ == "__main__":
    main(*sys.argv[1:])
