"""What a backbone directory needs besides weights: a tokenizer and the preprocessing of images."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from bmpeft.backbones.biomedgpt.configuration import BiomedGPTConfig
from bmpeft.backbones.biomedgpt.conversion.sources import Source
from bmpeft.backbones.biomedgpt.image_tower import make_processor
from bmpeft.backbones.biomedgpt.ofa_tokenizer import FAIRSEQ_FILES, TRANSFORMERS_FILES, has_ofa_files
from bmpeft.backbones.tokenizing import LoadedTokenizer, load_tokenizer
from bmpeft.errors import BackboneError
from bmpeft.images.processing import ImageProcessor, MeanStdName, read_processor

_NO_TOKENIZER = "none: the source has no tokenizer files; --tokenizer DIR adds one, or backbone.tokenizer=DIR later"


@dataclass(frozen=True)
class TokenizerChoice:
    """A tokenizer or None, and the line that the report has about it."""

    loaded: LoadedTokenizer | None
    note: str

    def save(self, directory: Path) -> None:
        """Write the tokenizer's files, if there is a tokenizer; tokenizer.json as it was given."""
        if self.loaded is not None:
            self.loaded.tokenizer.save_pretrained(directory)
            (directory / "tokenizer.json").write_text(self.loaded.text, encoding="utf-8")

    def save_as_published(self, directory: Path, text_tokens: int) -> None:
        """Write vocab.json (ids below `text_tokens`) and merges.txt, which is what upstream's tokenizer reads.

        A tokenizer that is none of OFA's has no such files.
        """
        content = json.loads(self.loaded.text) if self.loaded is not None else {"model": {}}
        vocabulary = content["model"].get("vocab")
        if content["model"].get("type") != "BPE" or "<mask>" not in vocabulary:
            return
        text = {token: number for token, number in vocabulary.items() if number < text_tokens}
        merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in content["model"]["merges"]]
        (directory / TRANSFORMERS_FILES[0]).write_text(json.dumps(text, ensure_ascii=False), encoding="utf-8")
        lines = "\n".join(["#version: 0.2", *merges, ""])
        (directory / TRANSFORMERS_FILES[1]).write_text(lines, encoding="utf-8")


@dataclass(frozen=True)
class ProcessorChoice:
    """How images become pixels, and the line that the report has about it."""

    processor: ImageProcessor
    note: str


def choose_tokenizer(source: Path, given: Path | None, vocab_size: int) -> TokenizerChoice:
    """The tokenizer in `given`, or else in the source where that is a directory.

    Raises:
        BackboneError: `given` has none, or the files do not fit the weights.
    """
    directory = given if given is not None else source
    whole = (directory / "tokenizer.json").is_file()
    if not whole and not has_ofa_files(directory):
        if given is None:
            return TokenizerChoice(None, _NO_TOKENIZER)
        raise BackboneError(
            f"{given}: no tokenizer files: expected tokenizer.json, or {', '.join(FAIRSEQ_FILES)}, "
            f"or {', '.join(TRANSFORMERS_FILES)}"
        )
    loaded = load_tokenizer(directory, vocab_size)
    files = "tokenizer.json" if whole else "OFA's files"
    origin = "--tokenizer" if given is not None else "the source"
    return TokenizerChoice(loaded, f"{len(loaded.tokenizer):,} tokens, from {files} of {origin}")


def choose_processor(source: Source, config: BiomedGPTConfig) -> ProcessorChoice:
    """A directory's own preprocessing, what fairseq's options say, or BiomedGPT's.

    Raises:
        BackboneError: the source describes one that this model cannot have.
    """
    own = read_processor(source.path) if source.path.is_dir() else None
    size, mean_std = None, None
    if source.declared_in in ("args", "cfg"):
        stated = source.declared.get("patch_image_size")
        size = stated if type(stated) is int else None
        mean_std = _mean_std(source.declared.get("imagenet_default_mean_and_std"))
    try:
        processor = make_processor(config, own, image_size=size, image_mean_std=mean_std)
    except ValueError as error:
        raise BackboneError(f"{source.path}: {error}") from None
    origin = "the source" if own or size else "BiomedGPT's default"
    side = processor.image_size
    return ProcessorChoice(processor, f"{side} x {side} pixels, mean and std {processor.image_mean_std}, from {origin}")


def _mean_std(imagenet: object) -> MeanStdName | None:
    if not isinstance(imagenet, bool):
        return None
    return "imagenet" if imagenet else "half"
