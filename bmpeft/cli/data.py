"""`bmpeft data ...`."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bmpeft.cli.options import PLAIN, Json, help_without_command
from bmpeft.cli.output import print_json, print_rows, work

if TYPE_CHECKING:
    from bmpeft.datasets.overview import Overview

data = typer.Typer(help="The datasets that bmpeft reads.", **PLAIN)
data.callback()(help_without_command)

Target = Annotated[str, typer.Argument(metavar="RECIPE|DATASET", help="A recipe, or a name of `bmpeft data list`.")]
DataOverrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="DATA.KEY=VALUE", show_default=False, help="Changes, such as data.split_by=group."),
]
DataPath = Annotated[
    str | None, typer.Option("--path", metavar="PATH", help="Of the files, if not where the recipe says.")
]
TaskName = Annotated[str | None, typer.Option("--task", metavar="NAME", help="For datasets that serve several tasks.")]


@data.command("list")
def list_data(as_json: Json = False) -> None:
    """List the datasets that bmpeft reads, with task, licence, files and source."""
    from bmpeft.datasets import dataset_info, dataset_names

    infos = [dataset_info(name) for name in dataset_names()]
    if as_json:
        print_rows("datasets", [{**asdict(info), "tasks": info.tasks} for info in infos], as_json)
    else:
        columns = ("name", "task", "licence", "files", "source")
        print_rows("datasets", [{column: getattr(info, column) for column in columns} for info in infos], as_json)


@data.command("show")
def show_data(
    target: Target,
    overrides: DataOverrides = None,
    path: DataPath = None,
    task: TaskName = None,
    rows: Annotated[int, typer.Option(min=0, metavar="N", help="Also print the text of so many rows.")] = 0,
    split: Annotated[str, typer.Option(metavar="SPLIT", help="Of the rows that are printed.")] = "train",
    as_json: Json = False,
) -> None:
    """Print a dataset's splits, labels, fields, lengths and licences; no text of a row unless --rows asks for it."""
    with work(quiet=True):
        from bmpeft.datasets.overview import overview, requested_data, shown_rows

        section, task = requested_data(target, path=path, task=task, overrides=overrides or [])
        found, dataset = overview(section, task)
        shown = shown_rows(dataset, split, rows) if rows else []
    if as_json:
        print_json({**asdict(found), **({"rows": shown} if rows else {})})
        return
    _print_overview(found)
    for row in shown:
        print()
        for key, value in row.items():
            print(f"{key}: {value}")


@data.command("check")
def check_data(
    target: Target,
    overrides: DataOverrides = None,
    path: DataPath = None,
    task: TaskName = None,
    as_json: Json = False,
) -> None:
    """Read every row and decode every image; list what is wrong with file and row, and fail if anything is."""
    with work(quiet=True):
        from bmpeft.datasets.overview import check, requested_data

        section, task = requested_data(target, path=path, task=task, overrides=overrides or [])
        report = check(section, task)
    if as_json:
        print_json(asdict(report))
    else:
        for problem in report.problems:
            print(problem)
        for note in report.notes:
            print(f"note: {note}")
        print(f"{report.dataset}: {report.rows:,} rows, {report.images:,} images, {len(report.problems):,} problems")
    if report.problems:
        raise typer.Exit(1)


def _print_overview(found: Overview) -> None:
    print(f"{found.dataset}: {found.title}{' (synthetic)' if found.synthetic else ''}")
    print(f"task: {found.task}; licence: {found.licence}; divided: {found.split_method}")
    for split, sets in found.contamination.items():
        print(f"contaminated: {split} has rows of {sets}")
    for note in (*([f"{found.skipped_rows:,} bad rows skipped"] if found.skipped_rows else []), *found.notes):
        print(f"note: {note}")
    print()
    print_rows("splits", [_figures(name, found) for name in found.splits], as_json=False)
    labels = list(dict.fromkeys(label for part in found.splits.values() for label in part.labels or ()))
    if labels:
        print()
        counts = {name: part.labels or {} for name, part in found.splits.items()}
        table = [{"label": label, **{name: c.get(label, 0) for name, c in counts.items()}} for label in labels]
        print_rows("labels", table, as_json=False)
    licences = list(dict.fromkeys(licence for part in found.splits.values() for licence in part.licences))
    if len(licences) > 1:
        print()
        table = [
            {"licence": licence, **{name: part.licences.get(licence, 0) for name, part in found.splits.items()}}
            for licence in licences
        ]
        print_rows("licences", table, as_json=False)


def _figures(name: str, found: Overview) -> dict[str, Any]:
    """A split's line: how many rows, groups, rows with each field, and words (median / longest)."""
    part = found.splits[name]
    words = {f"words of {field}": f"{lengths.median:g} / {lengths.longest}" for field, lengths in part.words.items()}
    groups = {"groups": part.groups, "groups in train": part.groups_in_train if name != "train" else None}
    return {"split": name, "rows": part.rows, **groups, **part.fields, **words}
