"""`bmpeft adapters ...`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from bmpeft.cli.options import PLAIN, AdapterName, Json, adapter_directory, help_without_command
from bmpeft.cli.output import plain, print_json, print_rows, work

adapters = typer.Typer(help="Stored adapters.", **PLAIN)
adapters.callback()(help_without_command)


@adapters.command("list")
def list_adapters(
    root: Annotated[Path, typer.Argument(metavar="[DIRECTORY]", help="That holds the adapters.")] = Path("adapters"),
    as_json: Json = False,
) -> None:
    """List the adapters in a directory, also those that are damaged."""
    from bmpeft.evaluation.overview import adapter_rows

    print_rows("adapters", adapter_rows(root), as_json)


@adapters.command("show")
def show_adapter(adapter: AdapterName, as_json: Json = False) -> None:
    """Print an adapter's model card."""
    from bmpeft.adapters.artifact import load_artifact, read_model_card

    artifact = load_artifact(adapter_directory(adapter))
    if as_json:
        print_json(plain(artifact.manifest))
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
    with work(quiet=True):
        from bmpeft.adapters.verification import verify

        found = verify(adapter_directory(adapter), backbone=backbone, files_only=files_only)
    if as_json:
        print_json(
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
