"""Arguments and options that several commands have."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from bmpeft.errors import UsageError

# Help and error pages by rich would add a fifth of a second to every start.
PLAIN: dict[str, Any] = {
    "invoke_without_command": True,
    "add_completion": False,
    "rich_markup_mode": None,
    "pretty_exceptions_enable": False,
}
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object instead.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="Show no progress.")]
RecipeName = Annotated[str, typer.Argument(metavar="RECIPE", help="A recipe's file, or the name of a shipped one.")]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="SECTION.KEY=VALUE", show_default=False, help="Changes to the recipe."),
]
ADAPTER_HELP = "An adapter's directory, or its name in adapters/."
AdapterName = Annotated[str, typer.Argument(metavar="ADAPTER", help=ADAPTER_HELP)]


def adapter_directory(name: str) -> Path:
    """A directory as given, or the adapter of that name in `adapters/`."""
    path = Path(name)
    return path if path.exists() or path.parent != Path(".") else Path("adapters") / name


def help_without_command(context: typer.Context) -> None:
    """A group of commands without one of them is its help, and a usage error."""
    if context.invoked_subcommand is None:
        print(context.get_help())
        raise typer.Exit(UsageError.exit_code)
