"""The command `bmpeft`. Each command is a few lines that call one function.

Results go to stdout, everything else to stderr. Exit codes: 0; 2 for a usage or recipe error (nothing was
started); 1 for a failure at run time; 130 for Ctrl-C and 143 for SIGTERM.
"""

# Start-up is kept short: what imports pydantic, rich or torch is imported inside the commands.
from __future__ import annotations

import contextlib
import json
import os
import sys
import traceback
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bmpeft import __version__
from bmpeft.errors import BmpeftError, UsageError

if TYPE_CHECKING:
    from rich.console import RenderableType

    from bmpeft.evaluation.score_card import ScoreCard
    from bmpeft.pretrain_recipe import PretrainRecipe
    from bmpeft.progress import Progress

# Help and error pages by rich would add a fifth of a second to every start.
_PLAIN: dict[str, Any] = {
    "invoke_without_command": True,
    "add_completion": False,
    "rich_markup_mode": None,
    "pretty_exceptions_enable": False,
}
app = typer.Typer(help="One frozen biomedical backbone, many small adapters.", **_PLAIN)
recipes = typer.Typer(help="The recipes that come with bmpeft.", **_PLAIN)
adapters = typer.Typer(help="Stored adapters.", **_PLAIN)
data = typer.Typer(help="The datasets that bmpeft reads.", **_PLAIN)
app.add_typer(recipes, name="recipes")
app.add_typer(adapters, name="adapters")
app.add_typer(data, name="data")

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object instead.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="Show no progress.")]
RecipeName = Annotated[str, typer.Argument(metavar="RECIPE", help="A recipe's file, or the name of a shipped one.")]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="SECTION.KEY=VALUE", show_default=False, help="Changes to the recipe."),
]
ADAPTER_HELP = "An adapter's directory, or its name in adapters/."
AdapterName = Annotated[str, typer.Argument(metavar="ADAPTER", help=ADAPTER_HELP)]


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
        _complain("interrupted")
    return int(code or 0)


_INTERRUPTED = 130  # what typer returns for a KeyboardInterrupt


def _failed(message: str, exit_code: int, invocation: Invocation) -> int:
    if invocation.debug:
        traceback.print_exc()
    _complain(message)
    return exit_code


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"bmpeft {__version__}")
        raise typer.Exit


@recipes.callback()
@adapters.callback()
@data.callback()
def _help_without_command(context: typer.Context) -> None:
    if context.invoked_subcommand is None:
        print(context.get_help())
        raise typer.Exit(UsageError.exit_code)


@app.callback()
def _before_any_command(
    context: typer.Context,
    debug: Annotated[bool, typer.Option("--debug", help="Show an error's traceback (also: BMPEFT_DEBUG=1).")] = False,
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_print_version, help="Print the version.")
    ] = False,
) -> None:
    context.obj.debug |= debug
    _help_without_command(context)


@app.command()
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
    with _work(quiet) as progress:
        from bmpeft.training.run import train as train_recipe

        outcome = train_recipe(content, recipe_name=path.stem, progress=progress, resume=resume)
    if as_json:
        _print_json({"adapter": str(outcome.directory), "score_card": _plain(outcome.score_card)})
        return
    _print_card(outcome.score_card)
    print(f"adapter: {outcome.directory}")


def _pretrain(recipe: PretrainRecipe, resume: bool, as_json: bool, quiet: bool) -> None:
    with _work(quiet) as progress:
        from bmpeft.training.pretraining.run import pretrain

        outcome = pretrain(recipe, progress=progress, resume=resume)
    if as_json:
        _print_json({"backbone": str(outcome.directory), "report": outcome.report})
    else:
        print(f"backbone: {outcome.directory}, fingerprint {outcome.fingerprint}")


@app.command()
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
    with _work(quiet) as progress:
        from bmpeft.training.inspection import inspect as inspect_recipe

        inspection = inspect_recipe(content, split=split, rows=rows, progress=progress)
    if as_json:
        _print_json(asdict(inspection))
        return
    from bmpeft.training.inspection_view import plain_text, rich_text

    if sys.stdout.isatty():
        _print_rich(rich_text(inspection))
    else:
        print(plain_text(inspection))


@app.command("eval")
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
    with _work(quiet) as progress:
        from bmpeft.evaluation.command import evaluate_target

        card = evaluate_target(
            target,
            overrides=overrides or [],
            adapter=_adapter_directory(adapter) if adapter is not None else None,
            splits=split or [],
            limit=limit,
            save=save,
            progress=progress,
        )
    if as_json:
        _print_json(_plain(card))
    else:
        _print_card(card)


@app.command()
def predict(
    adapter: Annotated[str, typer.Option(metavar="ADAPTER", help=ADAPTER_HELP)],
    input: Annotated[Path, typer.Option(metavar="FILE", help="JSON lines with question, options and, if any, id.")],
    output: Annotated[Path, typer.Option(metavar="FILE", help="Written whole at the end; replaced if there.")],
    backbone: Annotated[
        str | None, typer.Option(metavar="NAME", help="Where the backbone is now, if not where the adapter says.")
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Questions at once.")] = 32,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Answer a file of questions with an adapter."""
    with _work(quiet) as progress:
        from bmpeft.adapters.predict_file import predict_file
        from bmpeft.recipe import BackboneSection

        section = BackboneSection(name=backbone) if backbone is not None else None
        count = predict_file(
            _adapter_directory(adapter), input, output, progress=progress, backbone=section, batch_size=batch_size
        )
    if as_json:
        _print_json({"answers": count, "output": str(output)})
    else:
        print(f"{count:,} answers: {output}")


@recipes.command("list")
def list_recipes(as_json: Json = False) -> None:
    """List the recipes that come with bmpeft."""
    from bmpeft.recipe_store import shipped_names, shipped_recipe

    rows = [shipped_recipe(name).summary() for name in shipped_names()]
    _print_rows("recipes", rows, as_json)


@recipes.command("show")
def show_recipe(name: Annotated[str, typer.Argument(help="Of a shipped recipe.")], as_json: Json = False) -> None:
    """Print a recipe; its first lines say what it does and needs."""
    from bmpeft.recipe_store import shipped_recipe

    shipped = shipped_recipe(name)
    if as_json:
        _print_json({"name": shipped.name, "header": shipped.header, "recipe": _plain(shipped.recipe)})
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

    _print_json(recipe_schema(name))


@adapters.command("list")
def list_adapters(
    root: Annotated[Path, typer.Argument(metavar="[DIRECTORY]", help="That holds the adapters.")] = Path("adapters"),
    as_json: Json = False,
) -> None:
    """List the adapters in a directory, also those that are damaged."""
    from bmpeft.evaluation.overview import adapter_rows

    _print_rows("adapters", adapter_rows(root), as_json)


@adapters.command("show")
def show_adapter(adapter: AdapterName, as_json: Json = False) -> None:
    """Print an adapter's model card."""
    from bmpeft.adapters.artifact import load_artifact, read_model_card

    artifact = load_artifact(_adapter_directory(adapter))
    if as_json:
        _print_json(_plain(artifact.manifest))
    else:
        print(read_model_card(artifact), end="")


@adapters.command("verify")
def verify_adapter(
    adapter: AdapterName,
    backbone: Annotated[
        str | None, typer.Option(metavar="NAME", help="Where the backbone is now, if not where the adapter says.")
    ] = None,
    files_only: Annotated[bool, typer.Option("--files-only", help="Load no backbone: a moment, not seconds.")] = False,
    as_json: Json = False,
) -> None:
    """Check an adapter's files, digests and tensors, and that it does to its backbone what it did when saved."""
    with _work(quiet=True):
        from bmpeft.adapters.verification import verify

        found = verify(_adapter_directory(adapter), backbone=backbone, files_only=files_only)
    if as_json:
        _print_json(
            {
                "adapter": str(found.artifact.directory),
                "tensors": len(found.artifact.tensors),
                "verified": True,
                "canary": asdict(found.canary) if found.canary else None,
                "not_checked": found.not_checked,
            }
        )
        return
    print(f"{found.artifact.directory}: {len(found.artifact.tensors)} tensors, all as described")
    if found.canary:
        print(f"canary: as when saved (change {found.canary.change:.4g}, {found.canary.recorded:.4g} when saved)")
    else:
        print(f"canary: not checked: {found.not_checked}")


@data.command("list")
def list_data(as_json: Json = False) -> None:
    """List the datasets that bmpeft reads, with licence and source."""
    from bmpeft.datasets import dataset_info, dataset_names

    _print_rows("datasets", [asdict(dataset_info(name)) for name in dataset_names()], as_json)


@app.command()
def doctor(as_json: Json = False) -> None:
    """Report versions, device, number types, backends, disk and hub."""
    with _work(quiet=True):
        from bmpeft.doctor import diagnose

        diagnosis = diagnose()
    if as_json:
        _print_json(diagnosis.content())
    else:
        _print_rich(diagnosis.table())


@contextlib.contextmanager
def _work(quiet: bool) -> Iterator[Progress]:
    """Long work: libraries are quiet, and whatever they print goes to stderr, so that stdout has results only."""
    from bmpeft.progress import Progress
    from bmpeft.quiet import quiet_libraries

    quiet_libraries()
    with contextlib.redirect_stdout(sys.stderr):
        yield Progress(quiet=quiet)


def _adapter_directory(name: str) -> Path:
    path = Path(name)
    return path if path.exists() or path.parent != Path(".") else Path("adapters") / name


def _complain(message: str) -> None:
    print(f"bmpeft: {' '.join(message.split())}", file=sys.stderr)


def _plain(model: Any) -> dict[str, Any]:
    content: dict[str, Any] = model.model_dump(mode="json")
    return content


def _print_json(content: Mapping[str, Any]) -> None:
    print(json.dumps(content, indent=2, ensure_ascii=False))


def _print_rows(name: str, rows: Sequence[Mapping[str, Any]], as_json: bool) -> None:
    """A table with one column for each key of the rows, or as JSON an object with the list under `name`."""
    if as_json:
        _print_json({name: list(rows)})
    elif rows:
        from rich.table import Table

        table = Table(*rows[0], box=None, pad_edge=False, header_style="bold")
        for row in rows:
            table.add_row(*_cells(row.values()))
        _print_rich(table)
    else:
        print(f"no {name}")


def _cells(values: Iterable[Any]) -> list[str]:
    from rich.markup import escape

    return ["" if value is None else escape(str(value)) for value in values]


def _print_card(card: ScoreCard) -> None:
    from bmpeft.evaluation.score_card import rich_table

    _print_rich(rich_table(card))


def _print_rich(content: RenderableType) -> None:
    from rich.console import Console

    # A file or a pipe has no width to fit; rich would assume 80 columns and break the lines.
    Console(width=None if sys.stdout.isatty() else 10_000, highlight=False).print(content)
