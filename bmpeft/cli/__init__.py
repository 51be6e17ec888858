"""The command `bmpeft`. Each command is a few lines that call one function.

Results go to stdout, everything else to stderr. Exit codes: 0; 2 for a usage or recipe error (nothing was
started); 1 for a failure at run time; 130 for Ctrl-C and 143 for SIGTERM.
"""

# Start-up is kept short: what imports pydantic, rich or torch is imported inside the commands.
from __future__ import annotations

import os
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated

import typer

from bmpeft import __version__
from bmpeft.cli.adapters import adapters
from bmpeft.cli.bench import bench
from bmpeft.cli.convert import convert
from bmpeft.cli.data import data
from bmpeft.cli.doctor import doctor
from bmpeft.cli.evaluate import evaluate, predict
from bmpeft.cli.options import PLAIN, help_without_command
from bmpeft.cli.output import complain
from bmpeft.cli.recipes import recipes
from bmpeft.cli.train import inspect, train
from bmpeft.errors import BmpeftError

COMMANDS: dict[str, Callable[..., None]] = {
    "train": train,
    "inspect": inspect,
    "eval": evaluate,
    "predict": predict,
    "convert": convert,
    "doctor": doctor,
}
GROUPS = {"recipes": recipes, "adapters": adapters, "data": data, "bench": bench}

app = typer.Typer(help="One frozen biomedical backbone, many small adapters.", **PLAIN)
for name, command in COMMANDS.items():
    app.command(name)(command)
for name, group in GROUPS.items():
    app.add_typer(group, name=name)


@dataclass
class Invocation:
    """What the options before the command say."""

    debug: bool


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code; a failure is one line on stderr."""
    invocation = Invocation(debug=os.environ.get("BMPEFT_DEBUG") == "1")
    try:
        code = app(args=arguments, prog_name="bmpeft", standalone_mode=False, obj=invocation)
    except BmpeftError as error:
        return _failed(str(error), error.exit_code, invocation)
    except typer.TyperException as error:
        return _failed(error.format_message(), error.exit_code, invocation)
    except Exception as error:
        hint = "; run `bmpeft --debug ...` for the traceback"
        return _failed(f"internal error: {type(error).__name__}: {error}{hint}", 1, invocation)
    if code == _INTERRUPTED:
        complain("interrupted")
    return int(code or 0)


_INTERRUPTED = 130  # what typer returns for a KeyboardInterrupt


def _failed(message: str, exit_code: int, invocation: Invocation) -> int:
    if invocation.debug:
        traceback.print_exc()
    complain(message)
    return exit_code


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"bmpeft {__version__}")
        raise typer.Exit


@app.callback()
def _before_any_command(
    context: typer.Context,
    debug: Annotated[bool, typer.Option("--debug", help="Show an error's traceback (also: BMPEFT_DEBUG=1).")] = False,
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_print_version, help="Print the version.")
    ] = False,
) -> None:
    context.obj.debug |= debug
    help_without_command(context)
