"""`bmpeft eval` and `bmpeft predict`: what an adapter answers."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from bmpeft.cli.options import ADAPTER_HELP, Json, Overrides, Quiet, adapter_directory
from bmpeft.cli.output import plain, print_card, print_json, print_rows, work
from bmpeft.errors import UsageError


def evaluate(
    target: Annotated[
        str | None, typer.Argument(metavar="TARGET", show_default=False, help="An adapter's directory, or a recipe.")
    ] = None,
    overrides: Overrides = None,
    adapter: Annotated[
        str | None, typer.Option(metavar="ADAPTER", help="With a recipe: the adapter; default: the one it trains.")
    ] = None,
    split: Annotated[list[str] | None, typer.Option(metavar="SPLIT", help="Instead of the recipe's splits.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, metavar="ROWS", help="At most so many rows of a split.")] = None,
    save: Annotated[bool, typer.Option("--save", help="Put the scores into the adapter.")] = False,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Answer all rows again, also those whose answers are kept.")
    ] = False,
    html: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write a page with plots and the worst rows: patients' texts.")
    ] = None,
    compare: Annotated[
        tuple[str, str] | None,
        typer.Option(metavar="A B", show_default=False, help="Two measured adapters instead: which is better?"),
    ] = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Measure an adapter and print its scores, or compare two that were measured."""
    if compare is not None:
        if target is not None or html is not None:
            raise UsageError("--compare takes two adapters, and neither a target nor --html")
        _compare(adapter_directory(compare[0]), adapter_directory(compare[1]), as_json)
        return
    if target is None:
        raise UsageError("eval needs a TARGET, an adapter's directory or a recipe, or --compare A B")
    with work(quiet) as progress:
        from bmpeft.evaluation.command import evaluate_target

        card = evaluate_target(
            target,
            overrides=overrides or [],
            adapter=adapter_directory(adapter) if adapter is not None else None,
            splits=split or [],
            limit=limit,
            save=save,
            fresh=fresh,
            page=html,
            progress=progress,
        )
    if as_json:
        print_json(plain(card))
    else:
        print_card(card)


def _compare(first: Path, second: Path, as_json: bool) -> None:
    from bmpeft.evaluation.compare import as_rows, compare

    rows = as_rows(compare(first, second))
    if not as_json:
        rows = [{name: round(v, 4) if isinstance(v, float) else v for name, v in row.items()} for row in rows]
    print_rows("comparisons", rows, as_json)


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
