"""What is installed: a light import, a complete wheel, and no harm to the libraries that bmpeft stands on."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import pytest

import bmpeft

# What would make a start slow. (pydantic is typer's own way of checking the arguments of a command.)
HEAVY = {
    "accelerate",
    "bitsandbytes",
    "datasets",
    "numpy",
    "pandas",
    "peft",
    "rich",
    "sklearn",
    "tensorboard",
    "tokenizers",
    "torch",
    "transformers",
    "triton",
    "trl",
}

LIBRARIES_PROBE = """
import importlib.util, json, sys
import bitsandbytes, torch, transformers, trl
from transformers.utils import is_kernels_available
from trl import SFTConfig, SFTTrainer

torch.manual_seed(0)
plain = torch.nn.Linear(64, 64)
quantized = bitsandbytes.nn.Linear4bit(64, 64, compute_dtype=torch.float32, quant_type="nf4")
quantized.load_state_dict(plain.state_dict())
with torch.no_grad():
    output = quantized.to("cpu").eval()(torch.ones(2, 64)).tolist()
spec = importlib.util.find_spec("kernels")
print(json.dumps({
    "kernels is a package with code": spec is not None and spec.origin is not None,
    "transformers finds kernels": is_kernels_available(),
    "bitsandbytes": output,
    "trl": SFTTrainer.__module__,
}))
"""


def modules_after(code: str) -> set[str]:
    """Top-level modules that are loaded after running code in a fresh interpreter."""
    probe = f"{code}\nimport sys; print(*sorted({{name.partition('.')[0] for name in sys.modules}}), file=sys.stderr)"
    result = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True)
    return set(result.stderr.split())


def test_importing_the_package_loads_nothing_heavy() -> None:
    assert not modules_after("import bmpeft") & (HEAVY | {"pydantic", "typer", "yaml"})


@pytest.mark.parametrize("arguments", [["--help"], ["train", "--help"], ["--version"], ["recipes", "--help"]])
def test_help_loads_nothing_heavy(arguments: list[str]) -> None:
    started = time.perf_counter()
    loaded = modules_after(f"from bmpeft.cli import main; assert main({arguments!r}) == 0")
    # The time is printed, not asserted: it is the machine's as much as ours.
    print(f"bmpeft {' '.join(arguments)}: {time.perf_counter() - started:.2f} s")
    assert not loaded & HEAVY


@pytest.mark.parametrize(
    "arguments",
    [["recipes", "list"], ["recipes", "schema"], ["data", "list"], ["adapters", "list"], ["train", "no_such_recipe"]],
)
def test_commands_that_only_read_do_not_load_torch(arguments: list[str]) -> None:
    loaded = modules_after(f"from bmpeft.cli import main; main({arguments!r})")
    assert not loaded & {"torch", "transformers", "peft", "trl", "bitsandbytes", "datasets"}


def test_the_libraries_behave_the_same_with_the_checkout_first_on_the_path(repository: Path, tmp_path: Path) -> None:
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    # With -c the working directory is the first entry of sys.path.
    runs = [
        subprocess.Popen(
            [sys.executable, "-c", LIBRARIES_PROBE],
            cwd=directory,
            env=environment,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        for directory in (repository, tmp_path)
    ]
    outputs = [run.communicate() for run in runs]
    assert [run.returncode for run in runs] == [0, 0], outputs
    with_checkout, without = (json.loads(output.strip().splitlines()[-1]) for output, _ in outputs)
    assert with_checkout == without


# --- the wheel ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def installed(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory that holds what a wheel installs; built from a copy, so that nothing is left in the checkout."""
    source = tmp_path_factory.mktemp("source")
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE", "NOTICE"):
        shutil.copy(repository / name, source)
    for name in ("bmpeft", "kernels", "recipes"):
        shutil.copytree(repository / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    wheels = tmp_path_factory.mktemp("wheels")
    options = ["--no-deps", "--no-build-isolation", "--no-index", "--quiet", "--wheel-dir", str(wheels)]
    subprocess.run([sys.executable, "-m", "pip", "wheel", *options, str(source)], check=True, capture_output=True)
    (wheel,) = wheels.glob("*.whl")
    target = tmp_path_factory.mktemp("installed")
    zipfile.ZipFile(wheel).extractall(target)
    return target


def run_installed(installed: Path, cwd: Path, *arguments: str) -> dict[str, Any]:
    environment = {**os.environ, "PYTHONPATH": str(installed)}
    result = subprocess.run(
        [sys.executable, "-m", "bmpeft", *arguments],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    content: dict[str, Any] = json.loads(result.stdout)
    return content


def test_the_wheel_holds_every_module_and_every_data_file(repository: Path, installed: Path) -> None:
    """A new package or data file that the build does not know about would be missing for users only."""
    expected = {
        path.relative_to(base).as_posix()
        for base, top in ((repository, "bmpeft"), (repository / "kernels", "bmpeft_kernels"))
        for path in (base / top).rglob("*")
        if path.is_file() and path.suffix != ".pyc"
    }
    expected |= {f"bmpeft/recipes/{path.name}" for path in (repository / "recipes").glob("*.yaml")}
    found = {path.relative_to(installed).as_posix() for path in installed.rglob("*") if path.is_file()}
    assert {name for name in found if ".dist-info/" not in name} == expected


def test_the_wheel_brings_licence_notice_and_no_other_top_level_package(installed: Path) -> None:
    top = {path.name for path in installed.iterdir()}
    (metadata,) = (name for name in top if name.endswith(".dist-info"))
    assert top == {"bmpeft", "bmpeft_kernels", metadata}
    assert {path.name for path in (installed / metadata / "licenses").iterdir()} == {"LICENSE", "NOTICE"}


def test_recipes_are_found_by_the_installed_package_from_anywhere(installed: Path, tmp_path: Path) -> None:
    names = {row["name"] for row in run_installed(installed, tmp_path, "recipes", "list", "--json")["recipes"]}
    assert names == {path.stem for path in (installed / "bmpeft" / "recipes").glob("*.yaml")}
    assert "medqa_lora" in names
    shown = run_installed(installed, tmp_path, "recipes", "show", "medqa_lora", "--json")
    assert shown["recipe"]["data"]["path"] == "embedded"


# --- versions -----------------------------------------------------------------------------------------------------


def test_every_dependency_is_pinned_in_the_constraints_except_what_builds_from_source(repository: Path) -> None:
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    project = tomllib.loads((repository / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lines = (repository / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pinned = {canonicalize_name(pin.name): pin for pin in map(Requirement, (x for x in lines if not x.startswith("#")))}
    for text in [*project["dependencies"], *project["optional-dependencies"]["test"]]:
        requirement = Requirement(text)
        (specifier,) = pinned[canonicalize_name(requirement.name)].specifier
        assert specifier.operator == "=="
        assert requirement.specifier.contains(specifier.version), f"{text} excludes the pinned {specifier.version}"
    assert "flash-attn" not in pinned


def test_the_version_is_the_same_everywhere(repository: Path) -> None:
    assert f"version: {bmpeft.__version__}\n" in (repository / "CITATION.cff").read_text(encoding="utf-8")
