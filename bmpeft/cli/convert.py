"""`bmpeft convert`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from bmpeft.cli.options import Json, Quiet
from bmpeft.cli.output import print_json, print_rich, work


def convert(
    source: Annotated[Path, typer.Argument(help="A fairseq checkpoint, a transformers-style or a backbone directory.")],
    destination: Annotated[
        Path | None, typer.Argument(show_default=False, help="A new directory; with --to fairseq a new file.")
    ] = None,
    tokenizer: Annotated[
        Path | None, typer.Option(metavar="DIR", help="With tokenizer files, for a source without.")
    ] = None,
    weights: Annotated[Literal["model", "ema"], typer.Option(help="ema: their moving average.")] = "model",
    to: Annotated[Literal["bmpeft", "fairseq", "transformers"], typer.Option(help="Layout to write.")] = "bmpeft",
    dtype: Annotated[
        Literal["float32", "float16", "bfloat16"] | None,
        typer.Option(help="Of the stored weights; default: the source's.", show_default=False),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print what would become of every key.")] = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Convert published weights to a backbone directory, or back."""
    with work(quiet) as progress:
        from bmpeft.backbones.biomedgpt.conversion import convert as convert_weights

        report = convert_weights(
            source,
            destination,
            tokenizer=tokenizer,
            weights=weights,
            to=to,
            dtype=dtype,
            dry_run=dry_run,
            progress=progress,
        )
    written = None if dry_run else str(destination)
    if as_json:
        print_json({"destination": written, **report.content()})
        return
    from bmpeft.backbones.biomedgpt.conversion import keys_table, summary_table

    print_rich(keys_table(report) if dry_run else summary_table(report))
    print("\n".join(report.lines()))
    if written:
        print(f"fingerprint: {report.fingerprint}")
        print(f"written: {written}")
