"""`bmpeft convert`: weights in a published layout to a backbone directory, and back."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch

from bmpeft.backbones.biomedgpt.backbone import BiomedGPTBackbone
from bmpeft.backbones.biomedgpt.conversion.architecture import size_of
from bmpeft.backbones.biomedgpt.conversion.backbone_directory import (
    MAX_SHARD_BYTES,
    stored_bytes,
    write_configuration,
    write_json,
    write_licence_note,
    write_tensors,
)
from bmpeft.backbones.biomedgpt.conversion.destination import check_fits, check_is_free, new_destination
from bmpeft.backbones.biomedgpt.conversion.extras import (
    ProcessorChoice,
    TokenizerChoice,
    choose_processor,
    choose_tokenizer,
)
from bmpeft.backbones.biomedgpt.conversion.published import write_fairseq, write_transformers
from bmpeft.backbones.biomedgpt.conversion.report import LICENCE, ConversionReport
from bmpeft.backbones.biomedgpt.conversion.sources import Source, Weights, open_source
from bmpeft.backbones.biomedgpt.conversion.state import CanonicalState, canonical_tensors
from bmpeft.backbones.description import LICENCE_FILE, BackboneDescription
from bmpeft.backbones.fingerprint import fingerprint_of
from bmpeft.errors import BackboneError, UsageError
from bmpeft.images.processing import PROCESSOR_FILE
from bmpeft.progress import Progress

Layout = Literal["bmpeft", "fairseq", "transformers"]
StoredDtype = Literal["float32", "float16", "bfloat16"]

REPORT_FILE = "conversion.json"


def convert(
    source: Path,
    destination: Path | None,
    *,
    tokenizer: Path | None = None,
    weights: Weights = "model",
    to: Layout = "bmpeft",
    dtype: StoredDtype | None = None,
    dry_run: bool = False,
    progress: Progress,
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> ConversionReport:
    """Convert weights and report what became of every key.

    Args:
        source: a checkpoint file, a transformers-style directory or a backbone directory.
        destination: a new directory, with ``to="fairseq"`` a new file; only a dry run does without.
        tokenizer: a directory with tokenizer files, for sources without.
        weights: of a checkpoint, its weights or their moving average.
        to: the layout to write.
        dtype: of the floating-point tensors in a backbone directory; default: the source's.
        dry_run: write nothing.
        progress: shows how far it is.
        max_shard_bytes: of one file of a backbone directory.

    Raises:
        UsageError: the destination exists, or options exclude each other; nothing was read or written.
        BackboneError: the source cannot be converted, or the destination not be written; nothing is left of it.
    """
    _check_options(destination, tokenizer, to, dtype, dry_run)
    opened = open_source(source, weights)
    state = canonical_tensors(opened)
    work = _Work(
        source=opened,
        state=state,
        to=to,
        dtype=_stored_dtype(state, dtype),
        tokenizer=choose_tokenizer(source, tokenizer, state.config.vocab_size),
        processor=choose_processor(opened, state.config),
        described=BackboneDescription.read(source) if opened.format == "bmpeft directory" else None,
    )
    report = work.report(dry_run)
    if dry_run or destination is None:
        return report
    check_fits(destination, work.bytes)
    digest = fingerprint_of(state.tensors)
    report = replace(report, fingerprint=work.fingerprint(digest))
    with (
        new_destination(destination) as temporary,
        progress.task("writing tensors", total=len(state.tensors)) as task,
    ):
        if to == "fairseq":
            write_fairseq(temporary, state.config, state.tensors)
        else:
            temporary.mkdir()
            if to == "transformers":
                write_transformers(temporary, state.config, state.tensors)
            else:
                write_tensors(temporary, state.tensors, work.dtype, task, max_shard_bytes)
                write_configuration(temporary, state.config, work.dtype)
        written = _read_again(temporary)
        if not work.casts and written != digest:
            raise BackboneError(f"{destination}: what was written is not what was read: is the disk sound?")
        if to != "fairseq":
            work.write_extras(temporary, destination.name, report, written)
    return report


@dataclass(frozen=True)
class _Work:
    """Everything that was found out before anything is written."""

    source: Source
    state: CanonicalState
    to: Layout
    dtype: torch.dtype
    tokenizer: TokenizerChoice
    processor: ProcessorChoice
    described: BackboneDescription | None

    @property
    def casts(self) -> bool:
        return self.state.float_dtypes != (str(self.dtype).removeprefix("torch."),)

    @property
    def bytes(self) -> int:
        return sum(stored_bytes(tensor, self.dtype) for tensor in self.state.tensors.values())

    def fingerprint(self, digest: str) -> str:
        """That of the first source: a backbone directory carries it on, also after a cast."""
        if self.described is None:
            return digest
        if self.described.stored_tensors != digest:
            raise BackboneError(f"{self.source.path}: the weights are not those that its backbone.json describes")
        return self.described.fingerprint

    def report(self, dry_run: bool) -> ConversionReport:
        config = self.state.config
        declared_in = self.source.declared_in
        # A backbone directory of weights that are not upstream's, such as nano's, has no note.
        upstream = self.described is None or (self.source.path / LICENCE_FILE).is_file()
        return ConversionReport(
            source=self.source.path.resolve().name,
            source_format=self.source.format,
            weights=self.source.weights,
            names=self.state.scheme,
            to=self.to,
            size=size_of(config),
            architecture={name: getattr(config, name) for name in type(config).__annotations__},
            architecture_from=f"{declared_in} and the tensors, which agree" if declared_in else "the tensors",
            assumed=self.state.assumed,
            dtypes=self.state.float_dtypes,
            stored_dtype=str(self.dtype).removeprefix("torch."),
            fingerprint=None,
            tokenizer=self.tokenizer.note,
            images=self.processor.note,
            keys=self.state.keys,
            licence=LICENCE if upstream else (),
            dry_run=dry_run,
        )

    def write_extras(self, directory: Path, name: str, report: ConversionReport, stored_tensors: str) -> None:
        """What stands in a directory beside the weights."""
        self.tokenizer.save(directory)
        if report.licence:
            write_licence_note(directory, report.licence)
        write_json(directory / PROCESSOR_FILE, self.processor.processor.content())
        if self.to == "transformers":
            self.tokenizer.save_as_published(directory, self.state.config.code_token_start)
            return
        write_json(directory / REPORT_FILE, report.content())
        assert report.fingerprint is not None
        BackboneDescription(
            family=BiomedGPTBackbone.family,
            name=name,
            init="pretrained" if self.described is None else self.described.init,
            init_seed=None if self.described is None else self.described.init_seed,
            fingerprint=report.fingerprint,
            stored_tensors=stored_tensors,
            tokenizer_digest=self.tokenizer.loaded.digest if self.tokenizer.loaded else None,
        ).write(directory)


def _check_options(
    destination: Path | None, tokenizer: Path | None, to: Layout, dtype: StoredDtype | None, dry_run: bool
) -> None:
    if destination is not None:
        check_is_free(destination)
    elif not dry_run:
        raise UsageError("convert: a destination is needed, unless --dry-run asks for the map of keys only")
    if to != "bmpeft" and dtype is not None:
        raise UsageError(f"--dtype: --to {to} goes back bit for bit; cast by a conversion to a backbone directory")
    if to == "fairseq" and destination is not None and destination.suffix == ".safetensors":
        raise UsageError(f"{destination}: --to fairseq writes a checkpoint of torch, such as {destination.stem}.pt")
    if to == "fairseq" and tokenizer is not None:
        raise UsageError("--tokenizer: a fairseq checkpoint is one file, without a tokenizer")
    if tokenizer is not None and not tokenizer.is_dir():
        raise UsageError(f"--tokenizer {tokenizer}: no such directory")


def _stored_dtype(state: CanonicalState, wanted: StoredDtype | None) -> torch.dtype:
    """The source's own, or float32 for a source of several: transformers loads a model in one type."""
    own = state.float_dtypes[0] if len(state.float_dtypes) == 1 else "float32"
    dtype: torch.dtype = getattr(torch, wanted or own)
    return dtype


def _read_again(written: Path) -> str:
    return fingerprint_of(canonical_tensors(open_source(written)).tensors)
