"""The command line: exit codes, errors of one line, pure JSON, the commands on recipes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bmpeft import cli
from bmpeft.errors import ArtifactError, UsageError
from bmpeft.recipe_store import shipped_names

SCRIPT = Path(sys.executable).parent / "bmpeft"


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands run in an empty directory, as users' do, and not in the checkout."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("BMPEFT_DEBUG", raising=False)


@pytest.fixture
def fail(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Run a command that must fail with this exit code, and return its one line of stderr."""

    def run(code: int, *arguments: str) -> str:
        assert cli.main(arguments) == code
        captured = capsys.readouterr()
        assert captured.out == ""
        assert captured.err.count("\n") == 1
        assert captured.err.startswith("bmpeft: ")
        return captured.err.removeprefix("bmpeft: ").rstrip("\n")

    return run


@pytest.fixture
def read_json(capsys: pytest.CaptureFixture[str]) -> Callable[..., dict[str, Any]]:
    """Run a command with --json and return its one object; nothing else may be on stdout."""

    def run(*arguments: str) -> dict[str, Any]:
        assert cli.main(arguments) == 0
        content = json.loads(capsys.readouterr().out)
        assert isinstance(content, dict)
        return content

    return run


# --- the installed command ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", [[str(SCRIPT)], [sys.executable, "-m", "bmpeft"]])
def test_both_ways_to_start_it_give_the_exit_code_and_one_line(command: list[str]) -> None:
    result = subprocess.run([*command, "train", "medqa_lor"], capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert result.stdout == ""
    assert result.stderr == (
        "bmpeft: medqa_lor: no such file, and no shipped recipe of that name; did you mean 'medqa_lora'?\n"
    )


def test_a_closed_pipe_is_no_error() -> None:
    shell = f"set -o pipefail; {SCRIPT} recipes schema | head -n 1"
    result = subprocess.run(["bash", "-c", shell], capture_output=True, text=True, check=False)
    assert result.stdout == "{\n"
    assert "Traceback" not in result.stderr


# --- errors -------------------------------------------------------------------------------------------------------


def test_usage_errors_exit_with_2_and_name_the_option(fail: Callable[..., str]) -> None:
    assert fail(2, "trian") == "No such command 'trian'. Did you mean 'train'?"
    assert "'--input'" in fail(2, "predict", "--adapter", "x")
    assert "--jsn" in fail(2, "recipes", "list", "--jsn")


def test_a_wrong_recipe_is_refused_before_anything_heavy_is_loaded(fail: Callable[..., str]) -> None:
    assert fail(2, "train", "medqa_lora", "training.lerning_rate=1").endswith(
        "unknown key 'training.lerning_rate'; did you mean 'learning_rate'?"
    )
    Path("mine.yaml").write_text("backbone: {name: x}\n", encoding="utf-8")
    assert fail(2, "train", "mine.yaml") == "mine.yaml: data: required, but not there (and 1 more)"


def test_a_path_comes_before_a_shipped_name(fail: Callable[..., str]) -> None:
    Path("medqa_lora").write_text("- not a recipe\n", encoding="utf-8")
    # The override would be wrong for the shipped recipe, so that no training begins if that were taken.
    assert fail(2, "train", "medqa_lora", "training.seed=x").startswith("medqa_lora: expected sections")


@pytest.mark.parametrize("name", ["medqa_lora", "recipes/medqa_lora.yaml", "medqa_lora.yaml"])
def test_a_shipped_recipe_is_found_by_name_from_any_directory(name: str, fail: Callable[..., str]) -> None:
    assert "medqa_lora.yaml: training.seed: expected a whole number" in fail(2, "train", name, "training.seed=x")


@pytest.mark.parametrize("name", ["../medqa_lora", "other/medqa_lora.yaml", "/medqa_lora", "medqa_lora.json", ""])
def test_other_paths_are_not_taken_for_a_shipped_name(name: str, fail: Callable[..., str]) -> None:
    assert fail(2, "train", name).startswith(f"{name}: no such file, and no shipped recipe of that name")


@pytest.mark.parametrize("command", [["adapters", "show"], ["adapters", "verify"]])
def test_a_failure_at_run_time_exits_with_1(command: list[str], fail: Callable[..., str]) -> None:
    assert fail(1, *command, "nothing") == "adapters/nothing: no such adapter directory"
    assert fail(1, *command, "some/where") == "some/where: no such adapter directory"


def raising(error: BaseException) -> Callable[..., None]:
    def command(*_: object, **__: object) -> None:
        raise error

    return command


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (UsageError("wrong"), 2, "wrong"),
        (ArtifactError("two\n  lines"), 1, "two lines"),
        (KeyError("bug"), 1, "internal error: KeyError: 'bug'; run `bmpeft --debug ...` for the traceback"),
        (KeyboardInterrupt(), 130, "interrupted"),
    ],
)
def test_every_exception_becomes_one_line_and_its_exit_code(
    error: BaseException, code: int, message: str, fail: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bmpeft.recipe_store.shipped_names", raising(error))
    assert fail(code, "recipes", "list") == message


@pytest.mark.parametrize("by_environment", [True, False])
def test_debug_shows_the_traceback_before_the_line(
    by_environment: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("bmpeft.recipe_store.shipped_names", raising(KeyError("bug")))
    if by_environment:
        monkeypatch.setenv("BMPEFT_DEBUG", "1")
    assert cli.main(["recipes", "list"] if by_environment else ["--debug", "recipes", "list"]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("Traceback (most recent call last)")
    assert captured.err.splitlines()[-1].startswith("bmpeft: internal error: KeyError")


@pytest.mark.parametrize("group", [[], ["recipes"], ["adapters"], ["data"]])
def test_without_a_command_the_help_is_shown(group: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(group) == 2
    captured = capsys.readouterr()
    assert captured.out.startswith(" ".join(["Usage: bmpeft", *group]))
    assert captured.err == ""


# --- recipes, data, adapters --------------------------------------------------------------------------------------


def test_recipes_list_shows_every_recipe_once(
    read_json: Callable[..., dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    rows = read_json("recipes", "list", "--json")["recipes"]
    assert tuple(row["name"] for row in rows) == shipped_names()
    assert cli.main(["recipes", "list"]) == 0
    table = capsys.readouterr().out.splitlines()
    assert table[0].split() == ["name", "method", "task", "dataset", "backbone", "description"]
    assert [line.split()[0] for line in table[1:]] == list(shipped_names())


def test_the_table_of_recipes_in_the_repository_is_the_one_of_the_command(
    repository: Path, read_json: Callable[..., dict[str, Any]]
) -> None:
    text = (repository / "recipes" / "README.md").read_text(encoding="utf-8")
    lines = text[: text.index("## Measured")].splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]
    expected = [
        [f"[{row['name']}]({row['name']}.yaml)", *list(row.values())[1:]]
        for row in read_json("recipes", "list", "--json")["recipes"]
    ]
    assert rows[0] == ["name", "method", "task", "dataset", "backbone", "description"]
    assert rows[2:] == expected


def test_recipes_show_prints_the_file_as_it_is(repository: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["recipes", "show", "medqa_lora"]) == 0
    assert capsys.readouterr().out == (repository / "recipes" / "medqa_lora.yaml").read_text(encoding="utf-8")


def test_recipes_copy_never_replaces_a_file_unasked(
    capsys: pytest.CaptureFixture[str], fail: Callable[..., str]
) -> None:
    assert cli.main(["recipes", "copy", "medqa_lora"]) == 0
    assert capsys.readouterr().out == "medqa_lora.yaml\n"
    copy = Path("medqa_lora.yaml")
    original = copy.read_text(encoding="utf-8")
    copy.write_text("changed", encoding="utf-8")
    assert fail(2, "recipes", "copy", "medqa_lora") == "medqa_lora.yaml: exists already; --force replaces it"
    assert copy.read_text(encoding="utf-8") == "changed"
    assert cli.main(["recipes", "copy", "medqa_lora", "--force"]) == 0
    assert copy.read_text(encoding="utf-8") == original


def test_recipes_copy_takes_a_directory_or_a_file(fail: Callable[..., str]) -> None:
    Path("mine").mkdir()
    assert cli.main(["recipes", "copy", "medqa_lora", "mine"]) == 0
    assert cli.main(["recipes", "copy", "medqa_lora", "mine/other.yaml"]) == 0
    assert sorted(os.listdir("mine")) == ["medqa_lora.yaml", "other.yaml"]


def test_recipes_copy_says_what_is_wrong(fail: Callable[..., str]) -> None:
    assert "did you mean 'medqa_lora'?" in fail(2, "recipes", "copy", "medqa_lorra")
    assert fail(2, "recipes", "copy", "medqa_lora", "no/dir.yaml") == (
        "no/dir.yaml: cannot be written: No such file or directory"
    )


def test_the_schema_describes_every_section(read_json: Callable[..., dict[str, Any]]) -> None:
    schema = read_json("recipes", "schema")
    assert {"backbone", "adaptation", "task", "data", "training", "evaluation", "output"} <= set(schema["properties"])
    rate = schema["$defs"]["TrainingSection"]["properties"]["learning_rate"]
    assert (rate["exclusiveMinimum"], rate["maximum"], rate["default"]) == (0.0, 1.0, 0.001)


def test_data_list_names_licence_and_source(read_json: Callable[..., dict[str, Any]]) -> None:
    rows = {row["name"]: row for row in read_json("data", "list", "--json")["datasets"]}
    assert {"medqa", "medmcqa", "pubmedqa", "vqa_rad", "csv"} <= set(rows)
    assert all(row["licence"] and row["source"] for row in rows.values())


def test_adapters_list_of_nothing_is_an_empty_list(
    read_json: Callable[..., dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert read_json("adapters", "list", "--json") == {"adapters": []}
    assert cli.main(["adapters", "list"]) == 0
    assert capsys.readouterr().out == "no adapters\n"


def test_adapters_list_shows_what_is_damaged(
    read_json: Callable[..., dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    Path("adapters/broken").mkdir(parents=True)
    Path("adapters/broken/bmpeft.json").write_text("{", encoding="utf-8")
    (row,) = read_json("adapters", "list", "--json")["adapters"]
    assert row["name"] == "broken"
    assert row["problem"] == "adapters/broken/bmpeft.json: not a JSON object"
    assert cli.main(["adapters", "list"]) == 0
    assert "not a JSON object" in capsys.readouterr().out
