"""`bmpeft bench ...`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from bmpeft.cli.options import PLAIN, Json, Quiet, help_without_command
from bmpeft.cli.output import print_json, print_rows, work

bench = typer.Typer(help="Measurements; each row names device and versions.", **PLAIN)
bench.callback()(help_without_command)

# Options that several of the commands have.
Csv = Annotated[Path | None, typer.Option(metavar="FILE", help="Write the rows there, too.")]
Plot = Annotated[Path | None, typer.Option(metavar="FILE", help="Draw them there (PNG; needs matplotlib).")]
NumberTypes = Annotated[list[str] | None, typer.Option(metavar="TYPE", help="float32 or bfloat16; default: both.")]
Heads = Annotated[int, typer.Option(min=1, metavar="H", help="Heads.")]
HeadDim = Annotated[int, typer.Option(min=1, metavar="D", help="Dimension of a head.")]
Repeats = Annotated[int, typer.Option(min=1, metavar="N", help="Measurements of each time.")]
Batch = Annotated[int, typer.Option(min=1, metavar="B", help="Rows.")]

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
    csv: Csv = None,
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


@bench.command("attention")
def measure_attention(
    backend: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="Again for more; default: eager, sdpa, chunked.")
    ] = None,
    dtype: NumberTypes = None,
    length: Annotated[
        list[int] | None, typer.Option(min=1, metavar="L", help="Again for more; default: 512, 1024, 2048.")
    ] = None,
    batch: Batch = 2,
    heads: Heads = 12,
    head_dim: HeadDim = 64,
    repeats: Repeats = 5,
    csv: Csv = None,
    plot: Plot = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Measure the attention backends on the CPU: processor time and memory over the length."""
    with work(quiet=quiet) as progress:
        from bmpeft.benchmarks.attention import bench_attention
        from bmpeft.benchmarks.plot import plot_rows
        from bmpeft.benchmarks.rows import write_csv

        rows = bench_attention(
            backends=backend or ("eager", "sdpa", "chunked"),
            dtypes=dtype or ("float32", "bfloat16"),
            lengths=length or (512, 1024, 2048),
            batch=batch,
            heads=heads,
            head_dim=head_dim,
            repeats=repeats,
            progress=progress,
        )
        if csv is not None:
            write_csv(csv, rows)
        if plot is not None:
            plot_rows(plot, rows)
    _print(rows, ("backend", "dtype", "pass", "length"), as_json=as_json)


@bench.command("loss")
def measure_loss(
    backend: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="matrix, torch or chunked; again for more; default: all.")
    ] = None,
    dtype: NumberTypes = None,
    tokens: Annotated[
        list[int] | None, typer.Option(min=1, metavar="N", help="Again for more; default: 128, 512, 2048.")
    ] = None,
    vocabulary: Annotated[int, typer.Option(min=2, metavar="V", help="Entries.")] = 59_457,
    width: Annotated[int, typer.Option(min=1, metavar="D", help="Of the hidden states.")] = 768,
    repeats: Repeats = 5,
    csv: Csv = None,
    plot: Plot = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Measure the loss behind BiomedGPT's vocabulary on the CPU: processor time and memory over the target tokens."""
    with work(quiet=quiet) as progress:
        from bmpeft.benchmarks.loss import bench_loss
        from bmpeft.benchmarks.plot import plot_rows
        from bmpeft.benchmarks.rows import write_csv

        rows = bench_loss(
            backends=backend or ("matrix", "torch", "chunked"),
            dtypes=dtype or ("float32", "bfloat16"),
            tokens=tokens or (128, 512, 2048),
            vocabulary=vocabulary,
            width=width,
            repeats=repeats,
            progress=progress,
        )
        if csv is not None:
            write_csv(csv, rows)
        if plot is not None:
            plot_rows(plot, rows)
    _print(rows, ("backend", "dtype", "case", "length"), as_json=as_json)


@bench.command("decode")
def measure_decoding(
    backend: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="Again for more; default: eager, sdpa, chunked, flash.")
    ] = None,
    dtype: NumberTypes = None,
    length: Annotated[
        list[int] | None, typer.Option(min=1, metavar="L", help="Again for more; default: 512, 1024, 4096.")
    ] = None,
    batch: Batch = 4,
    heads: Heads = 12,
    head_dim: HeadDim = 64,
    repeats: Repeats = 20,
    csv: Csv = None,
    plot: Plot = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Measure attention of one new token to a long source on the CPU: processor time and memory."""
    with work(quiet=quiet) as progress:
        from bmpeft.benchmarks.decode import bench_decode
        from bmpeft.benchmarks.plot import plot_rows
        from bmpeft.benchmarks.rows import write_csv

        rows = bench_decode(
            backends=backend or ("eager", "sdpa", "chunked", "flash"),
            dtypes=dtype or ("float32", "bfloat16"),
            lengths=length or (512, 1024, 4096),
            batch=batch,
            heads=heads,
            head_dim=head_dim,
            repeats=repeats,
            progress=progress,
        )
        if csv is not None:
            write_csv(csv, rows)
        if plot is not None:
            plot_rows(plot, rows)
    _print(rows, ("backend", "dtype", "length"), as_json=as_json)


@bench.command("step")
def measure_step(
    size: Annotated[str, typer.Option(metavar="SIZE", help="nano ... xlarge; random weights.")] = "base",
    backend: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="Again for more; default: eager, sdpa, chunked.")
    ] = None,
    dtype: Annotated[
        list[str] | None, typer.Option(metavar="TYPE", help="Of the computation: float32 or bfloat16; default: both.")
    ] = None,
    loss: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="matrix or chunked; again for both; default: chunked.")
    ] = None,
    checkpointing: Annotated[bool, typer.Option(help="Recompute the layers in the backward pass.")] = False,
    source: Annotated[int, typer.Option(min=1, metavar="L", help="Tokens of a source.")] = 1024,
    target: Annotated[int, typer.Option(min=1, metavar="T", help="Tokens of a target.")] = 64,
    batch: Batch = 2,
    repeats: Repeats = 3,
    csv: Csv = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Measure one LoRA step of a whole model on the CPU: processor time, and memory beyond model and optimizer."""
    with work(quiet=quiet) as progress:
        from bmpeft.benchmarks.rows import write_csv
        from bmpeft.benchmarks.step import bench_step

        rows = bench_step(
            size=size,
            backends=backend or ("eager", "sdpa", "chunked"),
            dtypes=dtype or ("float32", "bfloat16"),
            losses=loss or ("chunked",),
            checkpointing=checkpointing,
            source=source,
            target=target,
            batch=batch,
            repeats=repeats,
            progress=progress,
        )
        if csv is not None:
            write_csv(csv, rows)
    _print(rows, ("backend", "dtype", "case", "length"), as_json=as_json)


def _print(rows: Sequence[Mapping[str, Any]], names: Sequence[str], *, as_json: bool) -> None:
    """The rows whole as JSON, or as a table with these columns and, to microseconds, the figures."""
    if as_json:
        print_json({"rows": list(rows)})
    else:
        shown = (*names, "metric", "unit", "p20", "p50", "p80", "n")
        table = [{n: round(row[n], 6) if isinstance(row[n], float) else row[n] for n in shown} for row in rows]
        print_rows("rows", table, as_json=False)
