"""`bmpeft data ...`."""

from __future__ import annotations

from dataclasses import asdict

import typer

from bmpeft.cli.options import PLAIN, Json, help_without_command
from bmpeft.cli.output import print_rows

data = typer.Typer(help="The datasets that bmpeft reads.", **PLAIN)
data.callback()(help_without_command)


@data.command("list")
def list_data(as_json: Json = False) -> None:
    """List the datasets that bmpeft reads, with licence and source."""
    from bmpeft.datasets import dataset_info, dataset_names

    print_rows("datasets", [asdict(dataset_info(name)) for name in dataset_names()], as_json)
