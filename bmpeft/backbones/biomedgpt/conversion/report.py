"""What a conversion used of its source, what it ignored and why, and what was missing."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from rich.table import Table

LICENCE = (
    "Apache-2.0, by the licence file of github.com/taokz/BiomedGPT and the tag of the weights on the Hugging Face hub",
    'for academic research only, by its README: "strictly for academic research", commercial and clinical uses '
    '"strictly prohibited", a non-commercial licence inherited from the OFA framework',
)
"""The two statements that stand side by side upstream; NOTICE says how bmpeft treats them."""


@dataclass(frozen=True, slots=True)
class KeyReport:
    """One key.

    Attributes:
        source: the key in the source; None for a missing one.
        target: the key in the destination; several for a fused tensor, none for an ignored one.
        status: used, ignored, or missing (the destination has it, the source does not).
        reason: why it is ignored, or where a missing one comes from; empty where nothing needs saying.
        shape: of the tensor; None for what is not a tensor.
        dtype: of the tensor in the source, by torch's name.
    """

    source: str | None
    target: tuple[str, ...]
    status: Literal["used", "ignored", "missing"]
    reason: str = ""
    shape: tuple[int, ...] | None = None
    dtype: str | None = None


@dataclass(frozen=True, slots=True)
class ConversionReport:
    """A conversion, or with `dry_run` what it would have been.

    Attributes:
        source: name of the file or directory; no path, because the report is stored in the destination.
        source_format: "fairseq checkpoint", "state dict", "transformers directory", "bmpeft directory".
        weights: "model", or "ema" for the moving average.
        names: scheme of the source's keys, "fairseq" or "transformers".
        to: layout of the destination.
        size: the size with this architecture ("base"), or None.
        architecture: the fields of `BiomedGPTConfig` that decide what is computed.
        architecture_from: where they were found.
        assumed: fields that the source does not say, at BiomedGPT's default.
        dtypes: of the source's floating-point tensors.
        stored_dtype: of the destination's.
        fingerprint: SHA-256 of the source's canonical tensors; None in a dry run.
        tokenizer: where the tokenizer came from, or what is missing.
        images: how images become pixels, and who says so.
        keys: every key of the source, and those that it lacks.
        licence: what upstream says; empty for weights that are not upstream's.
        dry_run: nothing was written.
    """

    source: str
    source_format: str
    weights: str
    names: str
    to: str
    size: str | None
    architecture: dict[str, Any]
    architecture_from: str
    assumed: tuple[str, ...]
    dtypes: tuple[str, ...]
    stored_dtype: str
    fingerprint: str | None
    tokenizer: str
    images: str
    keys: tuple[KeyReport, ...]
    licence: tuple[str, ...]
    dry_run: bool

    def content(self) -> dict[str, Any]:
        """The report as JSON would hold it."""
        return asdict(self)

    def lines(self) -> list[str]:
        """What the report says besides its keys."""
        counts = Counter(key.status for key in self.keys)
        size = f"{self.size} " if self.size else ""
        shown = ("d_model", "encoder_layers", "decoder_layers", "encoder_attention_heads", "resnet_type", "vocab_size")
        fields = ", ".join(f"{name} {self.architecture[name]}" for name in shown)
        assumed = f"; not said by the source, so BiomedGPT's: {', '.join(self.assumed)}" if self.assumed else ""
        cast = "" if self.dtypes == (self.stored_dtype,) else f", cast from {', '.join(self.dtypes)}"
        return [
            f"source: {self.source}, {self.source_format}, weights: {self.weights}, names: {self.names}",
            f"architecture: {size}({fields}), from {self.architecture_from}{assumed}",
            f"keys: {counts['used']:,} used, {counts['ignored']:,} ignored, {counts['missing']:,} missing",
            f"stored: {self.stored_dtype}{cast}",
            f"tokenizer: {self.tokenizer}",
            f"images: {self.images}",
            *(f"licence: {statement}" for statement in self.licence),
        ]


def keys_table(report: ConversionReport) -> Table:
    """Every key on a line of its own, for a dry run."""
    from rich.markup import escape

    table = _table("status", "key", "shape", "dtype", "becomes", "why")
    for key in report.keys:
        shape = "" if key.shape is None else "x".join(map(str, key.shape)) or "scalar"
        cells = (key.status, key.source or "-", shape, key.dtype or "", "\n".join(key.target), key.reason)
        table.add_row(*map(escape, cells))
    return table


def summary_table(report: ConversionReport) -> Table:
    """Ignored and missing keys, those with the same reason together, each with an example."""
    from rich.markup import escape

    groups: dict[tuple[str, str], list[str]] = {}
    for key in report.keys:
        if key.status != "used":
            groups.setdefault((key.status, key.reason), []).append(key.source or ", ".join(key.target))
    table = _table("status", "keys", "for example", "why")
    for (status, reason), names in groups.items():
        table.add_row(status, f"{len(names):,}", escape(names[0]), reason)
    return table


def _table(*columns: str) -> Table:
    from rich.table import Table

    return Table(*columns, box=None, pad_edge=False, header_style="bold")
