"""`bmpeft recipes ...`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from bmpeft.cli.options import PLAIN, Json, help_without_command
from bmpeft.cli.output import plain, print_json, print_rows

recipes = typer.Typer(help="The recipes that come with bmpeft.", **PLAIN)
recipes.callback()(help_without_command)


@recipes.command("list")
def list_recipes(as_json: Json = False) -> None:
    """List the recipes that come with bmpeft."""
    from bmpeft.recipe_store import shipped_names, shipped_recipe

    rows = [shipped_recipe(name).summary() for name in shipped_names()]
    print_rows("recipes", rows, as_json)


@recipes.command("show")
def show_recipe(name: Annotated[str, typer.Argument(help="Of a shipped recipe.")], as_json: Json = False) -> None:
    """Print a recipe; its first lines say what it does and needs."""
    from bmpeft.recipe_store import shipped_recipe

    shipped = shipped_recipe(name)
    if as_json:
        print_json({"name": shipped.name, "header": shipped.header, "recipe": plain(shipped.recipe)})
    else:
        print(shipped.path.read_text(encoding="utf-8"), end="")


@recipes.command("copy")
def copy_recipe(
    name: Annotated[str, typer.Argument(help="Of a shipped recipe.")],
    destination: Annotated[Path | None, typer.Argument(help="File or directory; default: NAME.yaml here.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a file that is there.")] = False,
) -> None:
    """Copy a recipe, to change it."""
    from bmpeft import recipe_store

    print(recipe_store.copy_recipe(name, destination, overwrite=force))


@recipes.command("schema")
def show_schema(name: Annotated[str, typer.Argument(help="Of a shipped recipe.")] = "medqa_lora") -> None:
    """Print the JSON schema that a recipe follows: keys, ranges."""
    from bmpeft.recipe_store import recipe_schema

    print_json(recipe_schema(name))
