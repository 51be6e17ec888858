"""The command itself: what it prints, its exit codes, and that a fresh process needs nothing but the files."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from bmpeft import cli
from bmpeft.backbones.biomedgpt import BiomedGPTForConditionalGeneration
from tests.backbones.conversion.published_files import published_state, save_fairseq, small_model


@pytest.fixture(scope="module")
def model() -> BiomedGPTForConditionalGeneration:
    return small_model()


@pytest.fixture(scope="module")
def source(model: BiomedGPTForConditionalGeneration, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_fairseq(tmp_path_factory.mktemp("command") / "biomedgpt.pt", model)


def test_a_new_process_converts(source: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "bmpeft", "convert", str(source), "backbone", "--dtype", "bfloat16", "--json"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stderr == ""
    content = json.loads(done.stdout)
    stored = json.loads((tmp_path / "backbone" / "conversion.json").read_text())
    assert content == {"destination": "backbone", **stored}
    assert (content["source"], content["stored_dtype"], content["fingerprint"]) == (
        "biomedgpt.pt",
        "bfloat16",
        json.loads((tmp_path / "backbone" / "backbone.json").read_text())["fingerprint"],
    )


def test_a_dry_run_prints_the_map_of_all_keys(
    source: Path, model: BiomedGPTForConditionalGeneration, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["convert", str(source), "--dry-run"]) == 0
    lines = capsys.readouterr().out.splitlines()
    rows = {line.split()[1]: line for line in lines if line.split()[0] in ("used", "ignored", "missing")}
    assert rows.keys() >= published_state(model, "fairseq").keys()
    key = "decoder.layers.1.encoder_attn.q_proj.weight"
    assert rows[key].split() == ["used", key, "64x64", "float32", key.replace("encoder_attn", "cross_attn")]
    assert "optimizer state" in rows["last_optimizer_state"]
    assert any(line.startswith("architecture: (d_model 64, encoder_layers 2") for line in lines)
    assert any(line.startswith("tokenizer: none") for line in lines)


def test_the_summary_says_what_was_left_out(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["convert", str(source), str(tmp_path / "backbone"), "--quiet"]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    assert "encoder.layers" not in captured.out, "used keys are counted, not listed"
    for part in ("computed from the architecture", "optimizer state", "licence: Apache-2.0", "fingerprint: "):
        assert part in captured.out


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["{source}", "{source}"], 2, "exists already"),
        (["{source}"], 2, "a destination is needed"),
        (["{source}", "x", "--to", "onnx"], 2, "'onnx' is not one of"),
        (["{source}", "x", "--dtype", "int8"], 2, "'int8' is not one of"),
        (["{source}", "x", "--weights", "ema"], 2, "no extra_state.ema"),
        (["nowhere.pt", "x"], 1, "nowhere.pt: no such file or directory"),
        (["{text}", "x"], 1, "no checkpoint"),
    ],
)
def test_what_cannot_be_done_is_one_line(
    arguments: list[str],
    code: int,
    message: str,
    source: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.pt").write_text("not found")
    filled = [argument.format(source=source, text=tmp_path / "text.pt") for argument in arguments]
    assert cli.main(["convert", *filled]) == code
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.count("\n") == 1 and message in captured.err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["text.pt"]
