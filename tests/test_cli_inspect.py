"""`bmpeft inspect` as users type it."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest

from bmpeft import cli
from tests.backbones.tiny import tiny_directory
from tests.training.small import question, write_questions

RECIPE = ["medqa_lora", "backbone.name=tiny", "backbone.init=pretrained", "data.path=questions",
          "data.max_source_length=96", "--quiet"]  # fmt: skip


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    tiny_directory(tmp_path / "tiny")
    write_questions(tmp_path / "questions")
    return tmp_path


def test_json_is_one_object_with_rows_and_summary(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["inspect", *RECIPE, "--json", "--rows", "2", "--split", "test"]) == 0
    captured = capsys.readouterr()
    content = json.loads(captured.out)
    assert captured.err == ""
    assert [row["id"] for row in content["rows"]] == ["row-30", "row-31"]
    expected = question(30)
    row = content["rows"][0]
    assert row["source"] == f"<s> {' '.join(expected['question'].split())}</s>"
    assert row["target"] == f" {expected['answer']}</s>"
    assert all(token["loss"] for token in row["target_tokens"])
    assert row["options"][row["label"]] == f" {expected['answer']}"
    assert content["summary"]["rows"] == 6


def test_without_a_terminal_the_text_is_plain_and_nothing_is_written(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(here.rglob("*"))
    assert cli.main(["inspect", *RECIPE]) == 0
    text = capsys.readouterr().out
    assert text.count("\nrow ") == 3
    assert '["</s>"]' in text
    assert "\x1b" not in text
    assert "all 24 rows" in text
    assert sorted(here.rglob("*")) == before


def test_on_a_terminal_tokens_with_loss_are_coloured(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert cli.main(["inspect", *RECIPE, "--rows", "1"]) == 0
    text = capsys.readouterr().out
    assert "\x1b[1;32m</s>" in text or "\x1b[1;4;32m</s>" in text
    assert '["</s>"]' not in text


def test_an_unknown_split_is_a_usage_error_of_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["inspect", *RECIPE, "--split", "tets"]) == 2
    assert capsys.readouterr().err == "bmpeft: medqa has no split 'tets'; did you mean 'test'?\n"


def test_the_output_in_the_documentation_is_the_one_of_the_command(
    repository: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = (repository / "docs" / "inspect.md").read_text(encoding="utf-8")
    command = re.findall(r"^```bash\nbmpeft (.*)$", page, re.MULTILINE)[0]
    (shown,) = re.findall(r"^```text\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    assert cli.main([*shlex.split(command), "--quiet"]) == 0
    assert capsys.readouterr().out == shown
