"""`bmpeft bench ...`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from bmpeft.cli.options import PLAIN, Json, Quiet, help_without_command
from bmpeft.cli.output import print_json, print_rows, work

bench = typer.Typer(help="Measurements; each row names device and versions.", **PLAIN)
bench.callback()(help_without_command)

ARCHITECTURES = ("sm_80", "sm_86", "sm_89", "sm_90", "sm_100", "sm_120")


@bench.command("compile")
def compile_kernels(
    target: Annotated[
        list[str] | None, typer.Option(metavar="ARCHITECTURE", help="Such as sm_86; again for more; default: all.")
    ] = None,
    dtype: Annotated[
        list[str] | None, typer.Option(metavar="TYPE", help="float16 or bfloat16; again for both; default: both.")
    ] = None,
    head_dim: Annotated[list[int] | None, typer.Option(metavar="D", help="64 or 80; default: both.")] = None,
    csv: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the rows there, too.")] = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Compile the attention kernels for GPUs that need not be here: registers, stack, shared memory, occupancy."""
    with work(quiet=quiet) as progress:
        from bmpeft.benchmarks.compile_matrix import compile_matrix
        from bmpeft.benchmarks.rows import write_csv

        entries = compile_matrix(
            target or ARCHITECTURES, dtype or ("float16", "bfloat16"), head_dim or (64, 80), progress
        )
        rows = [row for entry in entries for row in entry.rows()]
        if csv is not None:
            write_csv(csv, rows)
    if as_json:
        print_json({"kernels": [entry.row() for entry in entries], "rows": rows})
    else:
        print_rows("kernels", [entry.row() for entry in entries], as_json=False)
