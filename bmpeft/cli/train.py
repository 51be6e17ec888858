"""`bmpeft train` and `bmpeft inspect`: what starts from a recipe."""

from __future__ import annotations

import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from bmpeft.cli.options import Json, Overrides, Quiet, RecipeName
from bmpeft.cli.output import plain, print_card, print_json, print_rich, work

if TYPE_CHECKING:
    from bmpeft.pretrain_recipe import PretrainRecipe


def train(
    recipe: RecipeName,
    overrides: Overrides = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the run's last checkpoint.")] = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Fine-tune by a recipe, store the adapter, print its scores."""
    from bmpeft.pretrain_recipe import PretrainRecipe, load_any_recipe
    from bmpeft.recipe_store import resolve_recipe

    path = resolve_recipe(recipe)
    content = load_any_recipe(path, overrides or [])
    if isinstance(content, PretrainRecipe):
        _pretrain(content, resume, as_json, quiet)
        return
    with work(quiet) as progress:
        from bmpeft.training.run import train as train_recipe

        outcome = train_recipe(content, recipe_name=path.stem, progress=progress, resume=resume)
    if as_json:
        print_json({"adapter": str(outcome.directory), "score_card": plain(outcome.score_card)})
        return
    print_card(outcome.score_card)
    print(f"adapter: {outcome.directory}")


def _pretrain(recipe: PretrainRecipe, resume: bool, as_json: bool, quiet: bool) -> None:
    with work(quiet) as progress:
        from bmpeft.training.pretraining.processes import process_number
        from bmpeft.training.pretraining.run import pretrain

        outcome = pretrain(recipe, progress=progress, resume=resume)
    if process_number() != 0:
        return
    if as_json:
        print_json({"backbone": str(outcome.directory), "report": outcome.report})
    else:
        print(f"backbone: {outcome.directory}, fingerprint {outcome.fingerprint}")


def inspect(
    recipe: RecipeName,
    overrides: Overrides = None,
    rows: Annotated[int, typer.Option(min=0, metavar="N", help="How many to show.")] = 3,
    split: Annotated[str, typer.Option(metavar="SPLIT", help="Of the recipe's data.")] = "train",
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Print rows as the model sees them, and what of them was cut."""
    from bmpeft.pretrain_recipe import load_any_recipe
    from bmpeft.recipe_store import resolve_recipe

    content = load_any_recipe(resolve_recipe(recipe), overrides or [])
    with work(quiet) as progress:
        from bmpeft.training.inspection import inspect as inspect_recipe

        inspection = inspect_recipe(content, split=split, rows=rows, progress=progress)
    if as_json:
        print_json(asdict(inspection))
        return
    from bmpeft.training.inspection_view import plain_text, rich_text

    if sys.stdout.isatty():
        print_rich(rich_text(inspection))
    else:
        print(plain_text(inspection))
