"""`bmpeft convert`: weights in a published layout to a backbone directory, and back."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Literal

import torch

from bmpeft.backbones.biomedgpt.backbone import describe
from bmpeft.backbones.biomedgpt.conversion.architecture import size_of
from bmpeft.backbones.biomedgpt.conversion.backbone_directory import (
    MAX_SHARD_BYTES,
    stored_bytes,
    write_configuration,
    write_image_options,
    write_json,
    write_licence_note,
    write_tensors,
)
from bmpeft.backbones.biomedgpt.conversion.destination import check_fits, check_is_free, new_destination
from bmpeft.backbones.biomedgpt.conversion.published import write_fairseq, write_transformers
from bmpeft.backbones.biomedgpt.conversion.report import LICENCE, ConversionReport
from bmpeft.backbones.biomedgpt.conversion.sources import Source, Weights, open_source
from bmpeft.backbones.biomedgpt.conversion.state import CanonicalState, canonical_tensors
from bmpeft.backbones.biomedgpt.conversion.tokenizer_files import TokenizerChoice, choose_tokenizer
from bmpeft.backbones.fingerprint import fingerprint_of
from bmpeft.backbones.loading import read_description
from bmpeft.errors import BackboneError, UsageError
from bmpeft.progress import Progress

Layout = Literal["bmpeft", "fairseq", "transformers"]
StoredDtype = Literal["float32", "float16", "bfloat16"]

REPORT_FILE = "conversion.json"


def convert(
    source_path: Path,
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
        source_path: a checkpoint file, a transformers-style directory or a backbone directory.
        destination: a new directory, with `to="fairseq"` a new file; only a dry run does without.
        tokenizer: a directory with tokenizer files, for sources without.
        weights: of a checkpoint: its weights, or their moving average.
        to: the layout to write.
        dtype: of the floating-point tensors in a backbone directory; default: the source's.
        dry_run: write nothing.
        progress: shows how far it is.
        max_shard_bytes: of one file of a backbone directory.

    Raises:
        UsageError: the destination exists, or options exclude each other; nothing was read or written.
        BackboneError: the source cannot be converted, or the destination not be written; nothing is left behind.
    """
    _check_options(destination, tokenizer, to, dtype, dry_run)
    source = open_source(source_path, weights)
    state = canonical_tensors(source)
    stored = _stored_dtype(state, dtype)
    choice = choose_tokenizer(source_path, tokenizer, state.config.vocab_size)
    report = _report(source, state, stored, choice, to, dry_run)
    if dry_run or destination is None:
        return report
    check_fits(destination, sum(stored_bytes(tensor, stored) for tensor in state.tensors.values()))
    digest = fingerprint_of(state.tensors)
    report = replace(report, fingerprint=_fingerprint(source, digest))
    with (
        new_destination(destination) as temporary,
        progress.task("writing tensors", total=len(state.tensors)) as task,
    ):
        if to == "fairseq":
            write_fairseq(temporary, state.config, state.tensors)
        else:
            temporary.mkdir()
            if choice.loaded is not None:
                choice.loaded.save(temporary)
        if to == "transformers":
            write_transformers(temporary, state.config, state.tensors)
        if to == "bmpeft":
            write_tensors(temporary, state.tensors, stored, task, max_shard_bytes)
            write_configuration(temporary, state.config, stored)
        written = fingerprint_of(canonical_tensors(open_source(temporary)).tensors)
        if stored == _stored_dtype(state, None) and len(state.float_dtypes) == 1 and written != digest:
            raise BackboneError(f"{destination}: what was written is not what was read: is the disk sound?")
        if to == "bmpeft":
            _write_identity(temporary, destination.name, source, report, written, choice)
        if to != "fairseq" and report.licence:
            write_licence_note(temporary, report.licence)
    return report
