"""A destination is there whole or not at all, nothing is overwritten, and what it lacks is said."""

from __future__ import annotations

import json
import resource
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from bmpeft.backbones import load_frozen_backbone
from bmpeft.backbones.biomedgpt.conversion import destination as destination_module
from bmpeft.errors import BackboneError, BmpeftError, UsageError
from bmpeft.recipe import BackboneSection
from tests.backbones.conversion.published_files import run, save_fairseq, save_transformers, small_model
from tests.backbones.tiny import NANO


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint with the vocabulary of nano's tokenizer."""
    return save_fairseq(tmp_path_factory.mktemp("source") / "model.pt", small_model(vocab_size=8192))


def load(directory: Path, **fields: object) -> object:
    return load_frozen_backbone(BackboneSection.model_validate({"name": str(directory), **fields}))


@pytest.mark.parametrize("kind", ["directory", "empty directory", "file", "dangling link"])
def test_an_existing_destination_is_an_error(kind: str, source: Path, tmp_path: Path) -> None:
    place = tmp_path / "place"
    if "directory" in kind:
        place.mkdir()
    elif kind == "file":
        place.write_text("mine")
    else:
        place.symlink_to(tmp_path / "nowhere")
    if kind == "directory":
        (place / "mine").write_text("mine")
    with pytest.raises(UsageError, match="exists already"):
        run(source, place)
    assert place.is_symlink() or place.exists()


@pytest.mark.parametrize("to", ["bmpeft", "fairseq", "transformers"])
def test_a_failure_half_way_leaves_nothing(to: str, source: Path, tmp_path: Path) -> None:
    """The system refuses to let a file grow, as a full disk does."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, hard))
    try:
        with pytest.raises(BackboneError, match="backbone: cannot be written: ") as caught:
            run(source, tmp_path / "backbone", to=to)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "\n" not in str(caught.value) and list(tmp_path.iterdir()) == []


def test_a_disk_that_is_too_small_is_said_before_anything_is_written(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(destination_module.shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
    with pytest.raises(BackboneError, match=r"bytes are needed, 1,000 are free"):
        run(source, tmp_path / "backbone")
    assert list(tmp_path.iterdir()) == []


def test_a_dry_run_writes_nothing_and_needs_no_destination(source: Path, tmp_path: Path) -> None:
    report = run(source, tmp_path / "backbone", dry_run=True)
    assert report.dry_run and report.fingerprint is None
    assert list(tmp_path.iterdir()) == [] and list(source.parent.iterdir()) == [source]
    with pytest.raises(UsageError, match="a destination is needed"):
        run(source, None)


def test_weights_without_a_tokenizer_convert_and_say_what_to_do(source: Path, tmp_path: Path) -> None:
    report = run(source, tmp_path / "backbone")
    assert report.tokenizer.startswith("none:") and "--tokenizer DIR" in report.tokenizer
    with pytest.raises(BackboneError, match=r"tokenizer\.json.*backbone\.tokenizer=DIR") as caught:
        load(tmp_path / "backbone")
    assert "\n" not in str(caught.value)
    assert load(tmp_path / "backbone", tokenizer=str(NANO)).fingerprint == report.fingerprint  # type: ignore[attr-defined]


def test_a_tokenizer_that_is_given_goes_along(source: Path, tmp_path: Path) -> None:
    report = run(source, tmp_path / "backbone", tokenizer=NANO)
    assert "8,192 tokens" in report.tokenizer
    backbone = load(tmp_path / "backbone")
    assert backbone.tokenizer("a patient")["input_ids"]  # type: ignore[attr-defined]
    assert (tmp_path / "backbone" / "tokenizer.json").read_bytes() == (NANO / "tokenizer.json").read_bytes()
    # It comes along when the directory itself is the source.
    assert "from tokenizer.json of the source" in run(tmp_path / "backbone", None, dry_run=True).tokenizer


def test_the_licence_note_goes_wherever_the_weights_go(source: Path, tmp_path: Path) -> None:
    run(source, tmp_path / "backbone", tokenizer=NANO)
    note = (tmp_path / "backbone" / "LICENCE_NOTE.md").read_bytes()
    backbone: Any = load(tmp_path / "backbone")
    backbone.save_pretrained(tmp_path / "saved")
    backbone.trained("trained", torch.float32).save_pretrained(tmp_path / "trained")
    for name in ("saved", "trained"):
        assert (tmp_path / name / "LICENCE_NOTE.md").read_bytes() == note
        run(tmp_path / name, tmp_path / f"{name}-cast", dtype="bfloat16")
        assert (tmp_path / f"{name}-cast" / "LICENCE_NOTE.md").read_bytes() == note


def test_weights_that_are_not_upstreams_get_no_note_of_theirs(tmp_path: Path) -> None:
    report = run(NANO, tmp_path / "nano", dtype="bfloat16")
    assert report.licence == () and not (tmp_path / "nano" / "LICENCE_NOTE.md").exists()


def test_published_tokenizer_files_go_along_and_come_back(shared_data: Path, tmp_path: Path) -> None:
    """fairseq's three files, transformers' two, and the file that bmpeft makes of them: the same ids."""
    model = small_model(vocab_size=59_457, d_model=8, encoder_ffn_dim=8, decoder_ffn_dim=8)
    checkpoint = save_fairseq(tmp_path / "source.pt", model)
    run(checkpoint, tmp_path / "backbone", tokenizer=shared_data / "ofa_gpt2_bpe")
    run(tmp_path / "backbone", tmp_path / "published", to="transformers")
    vocabulary = json.loads((tmp_path / "published" / "vocab.json").read_text(encoding="utf-8"))
    assert len(vocabulary) == 50_265 and vocabulary["<mask>"] == 50_264
    (tmp_path / "published" / "tokenizer.json").unlink()
    report = run(tmp_path / "published", tmp_path / "again")
    assert report.tokenizer == "59,457 tokens, from OFA's files of the source"
    digests = [
        json.loads((tmp_path / d / "backbone.json").read_text())["tokenizer_digest"] for d in ("backbone", "again")
    ]
    assert digests[0] == digests[1] is not None


def test_a_tokenizer_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    directory = save_transformers(tmp_path / "source", small_model())
    with pytest.raises(BackboneError, match="8192 tokens, but the model has 600 embeddings"):
        run(directory, tmp_path / "backbone", tokenizer=NANO)
    with pytest.raises(UsageError, match="no such directory"):
        run(directory, tmp_path / "backbone", tokenizer=tmp_path / "nowhere")
    with pytest.raises(BackboneError, match="no tokenizer files"):
        run(directory, tmp_path / "backbone", tokenizer=tmp_path)
    assert not (tmp_path / "backbone").exists()


def test_what_has_to_be_converted_first_says_so(source: Path, tmp_path: Path) -> None:
    with pytest.raises(BmpeftError, match="a file; `bmpeft convert"):
        load(source)
    with pytest.raises(BmpeftError, match=r"no backbone\.json\); `bmpeft convert`"):
        load(save_transformers(tmp_path / "source", small_model()))
