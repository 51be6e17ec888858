"""From questions to an adapter, its scores and its answers, by the commands that users type."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from bmpeft import cli

QUICK = [
    "backbone.init=random",
    "training.max_steps=2",
    "training.batch_size=4",
    "training.evaluations=1",
    "evaluation.bootstrap_samples=100",
    "evaluation.limit=4",
    "adaptation.rank=2",
    "output.name=tiny",
]


def questions(count: int) -> list[dict[str, Any]]:
    return [
        {
            "question": f"Which number follows {n}?",
            "answer_idx": "ABCD"[n % 4],
            "options": {
                letter: str(n + 1 if letter == "ABCD"[n % 4] else n + 10 * i + 7) for i, letter in enumerate("ABCD")
            },
        }
        for n in range(count)
    ]


def write_lines(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """A directory in which `bmpeft train` ran, and what it printed."""
    directory = tmp_path_factory.mktemp("trained")
    write_lines(directory / "rows.jsonl", questions(40))
    command = [sys.executable, "-m", "bmpeft", "train", "medqa_lora", "data.path=rows.jsonl", *QUICK, "--json"]
    # Warnings as everybody sees them: pytest's own settings must not hide noise.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONWARNINGS"}
    result = subprocess.run(command, cwd=directory, env=environment, capture_output=True, text=True, check=False)
    return directory, result


@pytest.fixture
def here(trained: tuple[Path, object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory of the test's own that holds the trained adapter and its data."""
    shutil.copytree(trained[0], tmp_path / "work")
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "work"


def output(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    code = cli.main(arguments)
    captured = capsys.readouterr()
    assert code == 0, captured.err
    content: dict[str, Any] = json.loads(captured.out)
    return content


def test_train_prints_one_object_and_says_what_the_score_is_worth(
    trained: tuple[Path, subprocess.CompletedProcess[str]],
) -> None:
    directory, result = trained
    assert result.returncode == 0, result.stderr
    content = json.loads(result.stdout)
    assert (directory / content["adapter"]).is_dir()
    assert "untrained backbone" in content["score_card"]["remarks"]
    assert "untrained" in result.stderr


def test_train_is_not_noisy(trained: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    """What the libraries have to say does not concern the user; progress and remarks are a few lines."""
    lines = trained[1].stderr.splitlines()
    assert not [line for line in lines if "arning" in line or "kernels" in line or "it/s" in line]
    assert len(lines) < 10, lines


def test_train_holds_no_text_of_the_data_in_adapter_and_logs(trained: tuple[Path, object]) -> None:
    for part in ("adapters", "runs"):
        for file in (trained[0] / part).rglob("*"):
            assert not file.is_file() or b"Which number" not in file.read_bytes(), file


def test_train_refuses_to_replace_an_adapter_unasked(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (here / "adapters/tiny/bmpeft.json").read_bytes()
    assert cli.main(["train", "medqa_lora", "data.path=rows.jsonl", *QUICK]) == 1
    assert "output.overwrite=true" in capsys.readouterr().err
    assert (here / "adapters/tiny/bmpeft.json").read_bytes() == before


def test_adapters_are_listed_shown_and_verified(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (row,) = output(capsys, "adapters", "list", "--json")["adapters"]
    assert (row["name"], row["backbone"], row["problem"]) == ("tiny", "biomedgpt-nano", None)
    assert row["score"].startswith("test accuracy")
    assert "untrained backbone" in row["remarks"]
    for name in ("tiny", "adapters/tiny"):
        assert output(capsys, "adapters", "verify", name, "--json")["verified"] is True
        assert output(capsys, "adapters", "show", name, "--json")["name"] == "tiny"
    assert cli.main(["adapters", "show", "tiny"]) == 0
    assert "Research only" in capsys.readouterr().out


def test_a_damaged_adapter_fails_to_verify(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = here / "adapters/tiny/adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"?")
    assert cli.main(["adapters", "verify", "tiny"]) == 1
    captured = capsys.readouterr()
    assert captured.err.startswith("bmpeft: adapters/tiny/adapter_model.safetensors: ")
    assert captured.err.count("\n") == 1


def test_eval_gives_the_figures_of_training(
    trained: tuple[Path, subprocess.CompletedProcess[str]], here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    card = json.loads(trained[1].stdout)["score_card"]
    again = output(capsys, "eval", "adapters/tiny", "--json", "--quiet")
    assert [result["metrics"] for result in again["results"]] == [result["metrics"] for result in card["results"]]
    by_recipe = output(capsys, "eval", "medqa_lora", "data.path=rows.jsonl", *QUICK, "--json", "--quiet")
    assert by_recipe["results"][0]["metrics"] == card["results"][0]["metrics"]


def test_eval_prints_the_remarks_first(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["eval", "adapters/tiny", "--quiet"]) == 0
    captured = capsys.readouterr()
    assert "untrained backbone" in captured.out.splitlines()[0]
    assert captured.err == ""


def test_predict_answers_every_question_in_order(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = [
        {"id": f"q{i}", **{key: row[key] for key in ("question", "options")}} for i, row in enumerate(questions(5))
    ]
    write_lines(here / "questions.jsonl", asked)
    arguments = ["--adapter", "tiny", "--input", "questions.jsonl", "--output", "answers.jsonl"]
    assert output(capsys, "predict", *arguments, "--json") == {"answers": 5, "output": "answers.jsonl"}
    answers = [json.loads(line) for line in (here / "answers.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [answer["id"] for answer in answers] == [row["id"] for row in asked]
    for row, answer in zip(asked, answers, strict=True):
        assert row["options"][answer["choice"]] == answer["answer"]
        assert answer["choice"] == max(answer["scores"], key=answer["scores"].get)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "questions.jsonl: holds no questions"),
        ('{"question": "a?", "options": ["x", "y"]}\n{"question"\n', "questions.jsonl, row 2: not JSON"),
        ('{"question": "a?", "option": ["x", "y"]}\n', "row 1: unknown key 'option'; did you mean 'options'?"),
    ],
)
def test_predict_names_the_row_of_a_bad_file_and_writes_nothing(
    here: Path, content: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (here / "questions.jsonl").write_text(content, encoding="utf-8")
    (here / "answers.jsonl").write_text("kept", encoding="utf-8")
    arguments = ["--adapter", "tiny", "--input", "questions.jsonl", "--output", "answers.jsonl"]
    assert cli.main(["predict", *arguments]) == 1
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.err.count("\n") == 1
    assert (here / "answers.jsonl").read_text(encoding="utf-8") == "kept"


def test_the_python_of_the_readme_runs(repository: Path, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    readme = (repository / "README.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"^```python\n(.*?)^```", readme, re.DOTALL | re.MULTILINE)
    # The adapter of these tests belongs to untrained weights.
    block = block.replace("adapters/medqa-lora", "adapters/tiny").replace('-nano"', '-nano", init="random"')
    exec(compile(block, "README.md", "exec"), {})
    assert "Vitamin" in capsys.readouterr().out
