"""Imports point one way, so that a part can be read, tested and replaced without what is built on it."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
LAYERS = [
    {"bmpeft_kernels"},
    {"attention", "images"},
    {"backbones"},
    {"adaptation", "adapters", "tasks", "datasets"},
    {"training", "evaluation", "benchmarks", "doctor"},
    {"cli", "__main__", "doctor"},
]
# The modules beside the packages import nothing of the layers, and may be imported from all of them.
SHARED = {file.stem for file in (ROOT / "bmpeft").glob("*.py")} - {"cli", "doctor", "__main__"}
# `bmpeft.load_backbone` is looked up when it is asked for: the one name that the package lends from a layer.
LENT = {("__init__", "adapters")}


def part_of(module: str) -> str:
    """The part of the layout that a dotted module name belongs to."""
    names = module.split(".")
    if names[0] == "bmpeft_kernels":
        return names[0]
    return names[1] if len(names) > 1 else "__init__"


def source_files() -> Iterator[tuple[str, Path]]:
    """Every module of both packages: dotted name and file."""
    for top, parent in (("bmpeft", ROOT), ("bmpeft_kernels", ROOT / "kernels")):
        for file in sorted((parent / top).rglob("*.py")):
            names = file.relative_to(parent).with_suffix("").parts
            yield ".".join(names[:-1] if names[-1] == "__init__" and len(names) > 2 else names), file


def imported_modules(file: Path, module: str) -> Iterator[str]:
    """Absolute names of the modules that a file imports when it runs, also inside functions."""
    skipped: set[ast.AST] = set()
    tree = ast.parse(file.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
            skipped.update(inner for statement in node.body for inner in ast.walk(statement))
    for node in ast.walk(tree):
        if node in skipped:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: a relative import hides its layer"
            assert node.module is not None
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def dependencies() -> dict[str, set[str]]:
    """For each part of the layout, the other parts that it imports."""
    found: dict[str, set[str]] = {}
    for module, file in source_files():
        part = part_of(module)
        used = {part_of(name) for name in imported_modules(file, module) if name.split(".")[0].startswith("bmpeft")}
        found.setdefault(part, set()).update(used - {part})
    return found


DEPENDENCIES = dependencies()
RANK = {part: rank for rank, parts in enumerate(LAYERS) for part in parts}


def test_every_module_has_a_place() -> None:
    assert set(DEPENDENCIES) <= set(RANK) | SHARED


@pytest.mark.parametrize("part", sorted(DEPENDENCIES))
def test_imports_point_downwards(part: str) -> None:
    for used in DEPENDENCIES[part] - SHARED - {"__version__"}:
        if (part, used) in LENT:
            continue
        assert part not in SHARED, f"{part} is imported from everywhere and must not import {used}"
        assert RANK[used] <= RANK[part], f"{part} must not import {used}, which is built on it"


def test_parts_of_one_layer_do_not_import_each_other_in_a_circle() -> None:
    try:
        TopologicalSorter({part: used - SHARED for part, used in DEPENDENCIES.items() if part not in SHARED}).prepare()
    except CycleError as error:
        pytest.fail(f"circle of imports: {' -> '.join(error.args[1])}")


@pytest.mark.parametrize("part", ["tasks", "datasets"])
def test_what_knows_no_tensors_is_handed_its_backbone(part: str) -> None:
    assert "backbones" not in DEPENDENCIES[part]


def test_the_kernels_need_torch_and_triton_only() -> None:
    allowed = {"torch", "triton", "bmpeft_kernels", *sys.stdlib_module_names}
    for module, file in source_files():
        if module.startswith("bmpeft_kernels"):
            assert {name.split(".")[0] for name in imported_modules(file, module)} <= allowed


def test_the_directory_kernels_is_no_package() -> None:
    assert not list((ROOT / "kernels").glob("*.py")), "a package named kernels would hide another library's"
