"""The artifact on disk: written whole or not at all, read strictly, listed whatever happened to it."""

from __future__ import annotations

import ast
import errno
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from bmpeft.adapters import atomic
from bmpeft.adapters.artifact import (
    ArtifactSummary,
    BrokenArtifact,
    check_writable,
    list_artifacts,
    load_artifact,
    update_score_card,
)
from bmpeft.errors import ArtifactError
from tests.adapters.conftest import DELETE, Stored, sign

CONFIG, TENSORS, MANIFEST = "adapter_config.json", "adapter_model.safetensors", "bmpeft.json"
FILES = (CONFIG, TENSORS, MANIFEST)
ON_DISK = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
Edit = Callable[[Path, dict[str, object]], None]


def problem(directory: Path) -> str:
    """The one line that loading fails with."""
    with pytest.raises(ArtifactError) as caught:
        load_artifact(directory)
    message = str(caught.value)
    assert "\n" not in message
    assert str(directory) in message
    return message.replace(f"{directory}/", "").replace(str(directory), "")


def change_tensors(directory: Path, change: Callable[[dict[str, Any]], None]) -> None:
    tensors = load_file(directory / TENSORS)
    change(tensors)
    save_file(tensors, directory / TENSORS, metadata={"format": "pt"})
    sign(directory)


def test_an_artifact_says_what_it_is(stored: Stored) -> None:
    artifact = load_artifact(stored.first)
    manifest = artifact.manifest
    assert artifact.name == manifest.name == "first"
    assert manifest.backbone.name == "tiny-backbone", "of a path only the last part leaves the machine"
    assert manifest.task.prompt == " {question} choices: {choices}", "the resolved prompt"
    assert manifest.recipe["data"]["path"] == "questions"
    assert manifest.data.train_rows == 24
    assert manifest.data.split_digests.keys() == {"train", "validation", "test"}
    assert manifest.versions.keys() == {"bmpeft", "torch", "transformers", "peft", "safetensors", "tokenizers"}
    assert manifest.score_card is not None


def test_the_model_card_says_what_a_reader_must_know(stored: Stored) -> None:
    card = (stored.first / "README.md").read_text()
    for text in ("Research only", "random (untrained)", "licence of the data | MIT", "Scores", "accuracy"):
        assert text in card


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_named(copy: Path, name: str) -> None:
    (copy / name).unlink()
    assert problem(copy) == f"{name}: No such file or directory"


@ON_DISK
@given(data=st.data(), name=st.sampled_from(FILES))
def test_a_truncated_file_never_loads(copy: Path, stored: Stored, data: st.DataObject, name: str) -> None:
    content = (stored.first / name).read_bytes()
    (copy / name).write_bytes(content[: data.draw(st.integers(0, len(content) - 2))])
    problem(copy)
    (copy / name).write_bytes(content)


@ON_DISK
@given(data=st.data(), name=st.sampled_from((CONFIG, TENSORS)))
def test_a_flipped_bit_never_loads(copy: Path, stored: Stored, data: st.DataObject, name: str) -> None:
    content = bytearray((stored.first / name).read_bytes())
    content[data.draw(st.integers(0, len(content) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    (copy / name).write_bytes(content)
    problem(copy)
    (copy / name).write_bytes((stored.first / name).read_bytes())


@ON_DISK
@given(content=st.one_of(st.binary(max_size=200), st.recursive(st.none() | st.booleans() | st.integers() | st.text(),
       lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)).map(lambda v: json.dumps(v).encode())),
       name=st.sampled_from(FILES))  # fmt: skip
def test_garbage_is_an_error_and_never_a_crash(copy: Path, stored: Stored, content: bytes, name: str) -> None:
    (copy / name).write_bytes(content)
    problem(copy)
    assert isinstance(list_artifacts(copy.parent)[0], BrokenArtifact)
    (copy / name).write_bytes((stored.first / name).read_bytes())


def test_a_header_that_is_too_long_is_not_read(copy: Path) -> None:
    (copy / TENSORS).write_bytes((2**60).to_bytes(8, "little") + b"{}")
    assert problem(copy) == f"{TENSORS}: no safetensors file, or truncated (10 bytes)"


def test_trailing_bytes_are_refused(copy: Path) -> None:
    with (copy / TENSORS).open("ab") as file:
        file.write(b"more")
    assert "truncated or extended" in problem(copy)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"schema_version": 4}, "schema version 4 is newer than this bmpeft reads (3): upgrade bmpeft"),
        ({"schema_version": 1}, "schema version 1 is older than this bmpeft reads (3): train the adapter again"),
        ({"schema_version": "3"}, "schema_version: Input should be 3"),
        ({"surprise": 1}, "surprise: Extra inputs are not permitted"),
        ({"backbone.fingerprint": "ab"}, "backbone.fingerprint: String should match pattern '^[0-9a-f]{64}$'"),
        ({"training.steps": "4"}, "training.steps: Input should be a valid integer"),
        ({"training.seconds": DELETE}, "training.seconds: Field required"),
        ({"data.synthetic": "no"}, "data.synthetic: Input should be a valid boolean"),
        ({"adaptation.rank": 0}, "adaptation.rank: Input should be greater than or equal to 1"),
        ({"name": "../elsewhere"}, "name: String should match pattern '^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$'"),
        ({"files": {}}, f"{CONFIG}: its SHA-256 is not the one in bmpeft.json: damaged or replaced"),
    ],
)
def test_the_manifest_is_strict(copy: Path, edit_json: Edit, changes: dict[str, object], message: str) -> None:
    edit_json(copy / MANIFEST, changes)
    found = problem(copy)
    assert found in (f"{MANIFEST}: {message}", message)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"peft_type": "VERA"}, 'peft_type is "VERA", but "LORA" in the manifest'),
        ({"auto_mapping": {"base_model_class": "X", "parent_library": "os"}}, "auto_mapping is {"),
        ({"base_model_name_or_path": "somebody/else"}, 'base_model_name_or_path is "somebody/else", but "tiny-bac'),
        ({"modules_to_save": ["encoder"]}, 'modules_to_save is ["encoder"], but null'),
        ({"target_modules": "(a+)+$"}, 'target_modules is "(a+)+$", but ["q_proj"'),
        ({"target_modules": ["q_proj"]}, 'target_modules is ["q_proj"], but ["q_proj", "k_proj"'),
        ({"init_lora_weights": "pissa"}, 'init_lora_weights is "pissa", but true'),
        ({"use_rslora": 1}, "use_rslora is 1, but true"),
        ({"r": 5}, "r is 5, but 4"),
        ({"lora_alpha": DELETE}, "lora_alpha is missing, expected 16"),
        ({"rank_pattern": {".*": 1}}, "unexpected key 'rank_pattern'; bmpeft writes no such key"),
        ({"trainable_token_indices": [1]}, "unexpected key 'trainable_token_indices'"),
    ],
)
def test_a_foreign_peft_configuration_is_refused_even_with_a_right_digest(
    copy: Path, edit_json: Edit, changes: dict[str, object], message: str
) -> None:
    edit_json(copy / CONFIG, changes)
    sign(copy)
    assert problem(copy).startswith(f"{CONFIG}: {message}")


def _without_one(tensors: dict[str, Any]) -> None:
    del tensors[max(tensors)]


def _with_another(tensors: dict[str, Any]) -> None:
    tensors["base_model.model.encoder.embed_tokens.weight"] = np.zeros((2, 2), np.float32)


def _of_another_rank(tensors: dict[str, Any]) -> None:
    tensors[min(tensors)] = np.zeros((7, 64), np.float32)


def _of_another_dtype(tensors: dict[str, Any]) -> None:
    tensors[min(tensors)] = tensors[min(tensors)].astype(np.float16)


def _with_infinity(tensors: dict[str, Any]) -> None:
    tensors[max(tensors)][-1, -1] = np.inf


def _with_nan(tensors: dict[str, Any]) -> None:
    tensors[min(tensors)][0, 0] = np.nan


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_without_one, "is missing"),
        (_with_another, "unexpected tensor 'base_model.model.encoder.embed_tokens.weight'"),
        (_of_another_rank, "has shape (7, 64), which is not of rank 4"),
        (_of_another_dtype, "is F16, expected F32"),
        (_with_infinity, "has values that are not finite"),
        (_with_nan, "has values that are not finite"),
        (dict.clear, "holds no tensors"),
    ],
)
def test_foreign_tensors_are_refused_even_with_a_right_digest(
    copy: Path, change: Callable[[dict[str, Any]], None], message: str
) -> None:
    change_tensors(copy, change)
    found = problem(copy)
    assert found.startswith(f"{TENSORS}: ")
    assert message in found


@pytest.mark.parametrize("name", FILES)
def test_links_are_not_followed(copy: Path, tmp_path: Path, name: str) -> None:
    (copy / name).rename(tmp_path / name)
    (copy / name).symlink_to(tmp_path / name)
    assert problem(copy) == f"{name}: is no regular file (links are not followed)"


def test_a_directory_that_is_not_there(tmp_path: Path) -> None:
    assert problem(tmp_path / "none") == ": no such adapter directory"


def test_adapters_are_listed_sound_and_broken_without_torch(copy: Path, stored: Stored) -> None:
    root = copy.parent
    shutil.copytree(stored.second, root / "second.v2")
    (root / "empty").mkdir()
    (root / "a-file").write_text("no directory")
    shutil.copytree(copy, root / "cut")
    (root / "cut" / TENSORS).write_bytes(b"")
    code = (
        "import sys; from pathlib import Path; from bmpeft.adapters.artifact import list_artifacts;"
        "print([(type(a).__name__, a.name) for a in list_artifacts(Path(sys.argv[1]))]);"
        "assert not {'torch', 'peft', 'transformers'} & sys.modules.keys()"
    )
    result = subprocess.run([sys.executable, "-c", code, root], capture_output=True, text=True, check=True)
    assert ast.literal_eval(result.stdout) == [
        ("BrokenArtifact", "cut"),
        ("BrokenArtifact", "empty"),
        ("ArtifactSummary", "first"),
        ("ArtifactSummary", "second.v2"),
    ]
    broken = [a for a in list_artifacts(root) if isinstance(a, BrokenArtifact)]
    assert broken[0].problem == f"{root}/cut/{TENSORS}: no safetensors file, or truncated (0 bytes)"
    assert broken[1].problem == f"{root}/empty/{MANIFEST}: No such file or directory"
    assert list_artifacts(root / "none") == []


def test_a_score_card_is_added_and_nothing_else_changes(copy: Path) -> None:
    before = load_artifact(copy)
    update_score_card(copy, {"accuracy": 0.5}, markdown="| a table |")
    after = load_artifact(copy)
    assert after.manifest.score_card == {"accuracy": 0.5}
    assert after.manifest == before.manifest.model_copy(update={"score_card": {"accuracy": 0.5}})
    assert "| a table |" in (copy / "README.md").read_text()
    assert sorted(path.name for path in copy.iterdir()) == sorted(["README.md", *FILES])


@pytest.mark.parametrize("name", ["..", "-x", "ä", "x" * 65, ".hidden", "a b"])
def test_names_that_are_no_names(tmp_path: Path, name: str) -> None:
    with pytest.raises(ArtifactError, match="an adapter's name is letters, digits"):
        check_writable(tmp_path / name, overwrite=True)


def test_a_link_is_not_written_through(tmp_path: Path) -> None:
    (tmp_path / "name").symlink_to(tmp_path)
    with pytest.raises(ArtifactError, match="is a link or a file"):
        check_writable(tmp_path / "name", overwrite=True)


# Writing: whole or not at all.


def contents(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


OLD, NEW = {"one": b"old", "two": b"old"}, {"one": b"new", "three": b"new"}


@pytest.mark.parametrize("exists", [False, True])
def test_a_directory_is_replaced_as_a_whole(tmp_path: Path, exists: bool) -> None:
    directory = tmp_path / "parent" / "name"
    if exists:
        atomic.write_directory(directory, OLD)
    atomic.write_directory(directory, NEW)
    assert contents(directory) == NEW
    assert list(directory.parent.iterdir()) == [directory]


def failures() -> list[tuple[str, int, BaseException]]:
    return [
        (method, call, error)
        for method in ("write_bytes", "rename")
        for call in (0, 1)
        for error in (OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt())
    ]


@pytest.mark.parametrize(("method", "call", "error"), failures())
def test_a_write_that_fails_leaves_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str, call: int, error: BaseException
) -> None:
    directory = tmp_path / "name"
    atomic.write_directory(directory, OLD)
    original = getattr(Path, method)
    calls: list[Path] = []

    def failing(self: Path, *arguments: Any) -> Any:
        calls.append(self)
        if len(calls) == call + 1:
            raise error
        return original(self, *arguments)

    monkeypatch.setattr(Path, method, failing)
    with pytest.raises(type(error)):
        atomic.write_directory(directory, NEW)
    monkeypatch.undo()
    assert contents(directory) == OLD
    assert list(tmp_path.iterdir()) == [directory]


def test_a_crash_between_the_renames_is_explained_and_repaired(copy: Path) -> None:
    whole = contents(copy)
    copy.rename(copy.with_name(".first.replaced"))  # what a power cut at the worst moment leaves
    (copy.parent / ".first.writing-abc").mkdir()
    assert "the previous adapter is whole in .first.replaced: rename that back, or train again" in problem(copy)
    listed = list_artifacts(copy.parent)
    assert [type(entry) for entry in listed] == [BrokenArtifact]
    assert listed[0].name == "first"
    atomic.repair(copy)
    assert contents(copy) == whole
    assert isinstance(list_artifacts(copy.parent)[0], ArtifactSummary)
    atomic.write_directory(copy, whole)
    assert [path.name for path in copy.parent.iterdir()] == ["first"], "leftovers are gone after the next write"


def test_a_crash_before_the_old_one_is_deleted_is_no_problem(tmp_path: Path) -> None:
    directory = tmp_path / "name"
    atomic.write_directory(tmp_path / ".name.replaced", OLD)
    atomic.write_directory(directory, NEW)
    assert contents(directory) == NEW
    assert list(tmp_path.iterdir()) == [directory]


def test_a_file_is_replaced_or_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    atomic.write_file(path, b"old")

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="No space left"):
        atomic.write_file(path, b"new")
    monkeypatch.undo()
    assert contents(tmp_path) == {"file": b"old"}
    atomic.write_file(path, b"new")
    assert contents(tmp_path) == {"file": b"new"}
