"""`bmpeft eval` and `bmpeft predict`: what an adapter answers."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from bmpeft.cli.options import ADAPTER_HELP, Json, Overrides, Quiet, adapter_directory
from bmpeft.cli.output import plain, print_card, print_json, work


def evaluate(
    target: Annotated[str, typer.Argument(metavar="TARGET", help="An adapter's directory, or a recipe.")],
    overrides: Overrides = None,
    adapter: Annotated[
        str | None, typer.Option(metavar="ADAPTER", help="With a recipe: the adapter; default: the one it trains.")
    ] = None,
    split: Annotated[list[str] | None, typer.Option(metavar="SPLIT", help="Instead of the recipe's splits.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, metavar="ROWS", help="At most so many rows of a split.")] = None,
    save: Annotated[bool, typer.Option("--save", help="Put the scores into the adapter.")] = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Measure an adapter and print its scores."""
    with work(quiet) as progress:
        from bmpeft.evaluation.command import evaluate_target

        card = evaluate_target(
            target,
            overrides=overrides or [],
            adapter=adapter_directory(adapter) if adapter is not None else None,
            splits=split or [],
            limit=limit,
            save=save,
            progress=progress,
        )
    if as_json:
        print_json(plain(card))
    else:
        print_card(card)


def predict(
    adapter: Annotated[str, typer.Option(metavar="ADAPTER", help=ADAPTER_HELP)],
    input: Annotated[Path, typer.Option(metavar="FILE", help="JSON lines: question, options, image, text, id.")],
    output: Annotated[Path, typer.Option(metavar="FILE", help="Written whole at the end; replaced if there.")],
    backbone: Annotated[
        str | None, typer.Option(metavar="NAME", help="Where the backbone is now, if not where the adapter says.")
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Questions at once.")] = 32,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Answer a file of questions with an adapter."""
    with work(quiet) as progress:
        from bmpeft.adapters.predict_file import predict_file
        from bmpeft.recipe import BackboneSection

        section = BackboneSection(name=backbone) if backbone is not None else None
        count = predict_file(
            adapter_directory(adapter), input, output, progress=progress, backbone=section, batch_size=batch_size
        )
    if as_json:
        print_json({"answers": count, "output": str(output)})
    else:
        print(f"{count:,} answers: {output}")
