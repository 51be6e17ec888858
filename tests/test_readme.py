"""What the documents say is true: every command works or at least parses, every link leads somewhere."""

from __future__ import annotations

import ast
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from bmpeft import cli

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = [*sorted(ROOT.glob("*.md")), ROOT / "recipes" / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
READ_ONLY = {"recipes", "data", "adapters", "doctor"}  # their commands are run as they stand
NEEDS_AN_ADAPTER = {("adapters", "show"), ("adapters", "verify")}


def blocks(document: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", document.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


def commands(document: Path) -> list[str]:
    """The lines of a document's shell blocks; a backslash at the end continues a line."""
    text = "\n".join(blocks(document, "bash")).replace("\\\n", " ")
    return [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("#")]


ALL_COMMANDS = [(document.relative_to(ROOT), line) for document in DOCUMENTS for line in commands(document)]
IN_BMPEFT = [(document, line) for document, line in ALL_COMMANDS if re.match(r"(\.venv/bin/)?bmpeft ", line)]
OTHERS = [(document, line) for document, line in ALL_COMMANDS if (document, line) not in IN_BMPEFT]


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> dict[str, dict[str, Any]]:
    """Replaces the long work by notes of what it would have been called with."""
    noted: dict[str, dict[str, Any]] = {}

    def note(name: str) -> Any:
        def function(*arguments: Any, **options: Any) -> None:
            noted[name] = {"arguments": arguments, **options}
            raise cli.typer.Exit(0)

        return function

    for module, function in (
        ("bmpeft.training.run", "train"),
        ("bmpeft.training.pretraining.run", "pretrain"),
        ("bmpeft.evaluation.command", "evaluate_target"),
        ("bmpeft.training.inspection", "inspect"),
        ("bmpeft.adapters.predict_file", "predict_file"),
        ("bmpeft.backbones.biomedgpt.conversion", "convert"),
    ):
        monkeypatch.setitem(sys.modules, module, SimpleNamespace(**{function: note(function)}))
    return noted


@pytest.mark.parametrize(("document", "line"), IN_BMPEFT, ids=[line for _, line in IN_BMPEFT])
def test_commands_of_bmpeft_work(
    document: Path,
    line: str,
    calls: dict[str, dict[str, Any]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Cheap commands are run, long ones up to the point where the work would begin: their recipe is valid."""
    monkeypatch.chdir(tmp_path)
    arguments = shlex.split(line)[1:]
    code = cli.main(arguments)
    captured = capsys.readouterr()
    if tuple(arguments[:2]) in NEEDS_AN_ADAPTER:
        assert captured.err.endswith("no such adapter directory\n")
        return
    assert code == 0, f"{document}: {line}: {captured.err}"
    assert bool(calls) == (arguments[0] not in READ_ONLY)


@pytest.mark.parametrize(("document", "line"), OTHERS, ids=[line for _, line in OTHERS])
def test_other_commands_are_those_that_ci_runs(document: Path, line: str) -> None:
    words = shlex.split(line)
    if words[0] == "make":
        dry_run = ["make", "--dry-run", *words[1:]]
        assert subprocess.run(dry_run, cwd=ROOT, capture_output=True, check=False).returncode == 0
    elif words[0] == "torchrun":
        # Several processes of a command that is also given for one; test_pretraining_processes.py runs them.
        assert words[2:4] == ["-m", "bmpeft"]
        assert f"bmpeft {' '.join(words[4:])}" in commands(ROOT / document)
    elif words[0] == ".venv/bin/pip":
        assert words[1:] == ["install", "--editable", ".[test]", "--constraint", "constraints.txt"]
        project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
        assert "test" in project["optional-dependencies"]
    else:
        assert line in (
            "python3 -m venv .venv",
            ".venv/bin/python -m pytest",
            ".venv/bin/ruff check .",
            ".venv/bin/mypy",
        ), f"{document}: no test runs {line!r}"


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda document: str(document.relative_to(ROOT)))
def test_links_lead_somewhere_and_python_is_python(document: Path) -> None:
    for link in re.findall(r"\]\(([^)#\s]+)", document.read_text(encoding="utf-8")):
        if not link.startswith(("http://", "https://", "mailto:")):
            assert (document.parent / link).exists(), f"{document.name}: {link}"
    for block in blocks(document, "python"):
        ast.parse(block)


def test_ci_runs_make_test() -> None:
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert re.search(r"^.*\bmake test$", script, re.MULTILINE)
    assert "flash" not in script
