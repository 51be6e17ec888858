"""Artifacts made to do harm: one clear line each, at once, without the network and without running their patterns."""

from __future__ import annotations

import json
import re
import shutil
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from bmpeft.adapters.artifact import Artifact, BrokenArtifact, list_artifacts, load_artifact, read_model_card
from bmpeft.adapters.manifest import parse_manifest
from bmpeft.adapters.runtime import Backbone, load_backbone
from bmpeft.errors import ArtifactError
from tests.adapters.conftest import DELETE, Stored, sign

CONFIG, TENSORS, MANIFEST, CARD = "adapter_config.json", "adapter_model.safetensors", "bmpeft.json", "README.md"
Edit = Callable[[Path, dict[str, object]], None]
CATASTROPHIC = r"(.*.*)*(a|a)*(encoder|decoder)*(\w+\.?)*\.layers\.x$"
SECONDS = 2.0
"""For checks that take milliseconds; a catastrophic pattern takes years."""


@pytest.fixture(scope="module")
def backbone(stored: Stored) -> Backbone:
    return load_backbone(str(stored.backbone), attention="eager")


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch, backbone: Backbone) -> None:
    def refuse(*_: Any, **__: Any) -> Any:
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setattr(socket, "create_connection", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.fixture
def patterns(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Every regular expression that is run."""
    seen: list[str] = []
    original = re._compile  # type: ignore[attr-defined]

    def noting(pattern: Any, flags: Any) -> Any:
        seen.append(str(pattern))
        return original(pattern, flags)

    monkeypatch.setattr(re, "_compile", noting)
    return seen


def refusal(directory: Path, backbone: Backbone) -> str:
    """The one line with which both `load_artifact` and `load_adapter` refuse."""
    started = time.perf_counter()
    with pytest.raises(ArtifactError) as caught:
        backbone.load_adapter(directory)
    with pytest.raises(ArtifactError) as again:
        load_artifact(directory)
    assert time.perf_counter() - started < SECONDS
    message = str(caught.value)
    assert message == str(again.value)
    assert message.isprintable() and len(message) < 600 + len(str(directory))
    assert backbone.adapters == ()
    assert isinstance(list_artifacts(directory.parent)[0], BrokenArtifact) or message.endswith("damaged or replaced")
    return message.replace(f"{directory}/", "")


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("base_model_name_or_path", "/etc", 'base_model_name_or_path is "/etc", but "tiny-backbone" in the manifest'),
        ("base_model_name_or_path", "somebody/model", 'base_model_name_or_path is "somebody/model"'),
        ("base_model_name_or_path", None, "base_model_name_or_path is null"),
        ("revision", "main", 'revision is "main", but null'),
        ("auto_mapping", {"base_model_class": "system", "parent_library": "os"}, "auto_mapping is {"),
        ("task_type", "CAUSAL_LM", 'task_type is "CAUSAL_LM"'),
        ("peft_type", "XLORA", 'peft_type is "XLORA"'),
        *(("init_lora_weights", way, f'init_lora_weights is "{way}", but true') for way in
          ("pissa", "pissa_niter_4", "olora", "corda", "eva", "loftq", "orthogonal", "gaussian", "mica")),
        ("init_lora_weights", False, "init_lora_weights is false, but true"),
        ("target_modules", CATASTROPHIC, 'target_modules is "(.*.*)*'),
        ("target_modules", "all-linear", 'target_modules is "all-linear"'),
        ("target_modules", ["embed_tokens"], 'target_modules is ["embed_tokens"]'),
        ("modules_to_save", ["encoder", "embed_tokens"], 'modules_to_save is ["encoder"'),
        ("bias", "all", 'bias is "all", but "none"'),
        ("fan_in_fan_out", True, "fan_in_fan_out is true, but false"),
        ("use_dora", True, "use_dora is true, but false"),
        *((key, value, f"unexpected key '{key}'; bmpeft writes no such key") for key, value in {
            "rank_pattern": {CATASTROPHIC: 8},
            "alpha_pattern": {CATASTROPHIC: 8},
            "layers_pattern": CATASTROPHIC,
            "layers_to_transform": [0],
            "exclude_modules": CATASTROPHIC,
            "trainable_token_indices": [0, 1, 2],
            "megatron_config": {"tensor_model_parallel_size": 2},
            "megatron_core": "os",
            "loftq_config": {"loftq_bits": 4},
            "eva_config": {"rho": 2.0},
            "corda_config": {"cache_file": "/etc/passwd"},
            "lora_ga_config": {},
            "runtime_config": {"ephemeral_gpu_offload": True},
            "layer_replication": [[0, 1000000]],
            "target_parameters": [CATASTROPHIC],
            "use_qalora": True,
            "alora_invocation_tokens": [1],
            "arrow_config": {},
            "lora_bias": True,
            "__class__": "os",
        }.items()),
    ],
)  # fmt: skip
def test_a_foreign_peft_configuration_acts_on_nothing(
    copy: Path, backbone: Backbone, edit_json: Edit, patterns: list[str], key: str, value: object, message: str
) -> None:
    edit_json(copy / CONFIG, {key: value})
    sign(copy)
    assert refusal(copy, backbone).startswith(f"{CONFIG}: {message}")
    assert not any(CATASTROPHIC in pattern for pattern in patterns)


NESTED = "[" * 200_000 + "]" * 200_000


@pytest.mark.parametrize("name", [CONFIG, MANIFEST])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: text.replace("{", '{"r": 4, "r": 4, ', 1), "not JSON: a key occurs twice in one object"),
        (lambda text: text.replace("{", '{"x": NaN, ', 1), "not JSON: NaN is no number of it"),
        (lambda text: text.replace("{", '{"x": -Infinity, ', 1), "not JSON: -Infinity is no number of it"),
        (lambda text: text.replace("{", '{"x": 1e999, ', 1), None),
        (lambda text: text.replace("{", '{"x": ' + "9" * 100_000 + ", ", 1), "not a JSON object"),
        (lambda text: NESTED, "not JSON: nested too deeply"),
        (lambda text: text.replace("{", '{"x": ' + NESTED + ", ", 1), "not JSON: nested too deeply"),
        (lambda text: text.replace("{", '{"x": ' + "[" * 900 + "]" * 900 + ", ", 1), None),
        (lambda text: f"[{text}]", "not a JSON object"),
        (lambda text: text + " " * 5_000_000, "has more than 4,000,000 bytes"),
        (lambda text: text.encode("utf-16"), "not a JSON object"),
        (lambda text: text.replace("{", '{"\\ud800": 1, ', 1), None),
        (lambda text: text.replace("{", '{"a\\n\\u001b[2Jb": 1, ', 1), None),
        (lambda text: text.replace("{", '{"' + "k" * 100_000 + '": 1, ', 1), None),
        (lambda text: "", "not a JSON object"),
    ],
)  # fmt: skip
def test_json_made_to_confuse_or_to_exhaust(
    copy: Path, backbone: Backbone, name: str, change: Callable[[str], str | bytes], message: str | None
) -> None:
    content = change((copy / name).read_text())
    (copy / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    if name == CONFIG:
        sign(copy)
    found = refusal(copy, backbone)
    assert found.startswith(f"{name}: ")
    assert message is None or found == f"{name}: {message}"


@pytest.mark.parametrize("depth", range(900, 1000, 7))
def test_no_depth_of_nesting_is_a_crash(copy: Path, backbone: Backbone, depth: int) -> None:
    nested = "[" * depth + "]" * depth
    config, manifest = (copy / CONFIG).read_text(), (copy / MANIFEST).read_text()
    (copy / CONFIG).write_text(config.replace('"modules_to_save": null', f'"modules_to_save": {nested}'))
    assert refusal(copy, backbone).startswith(f"{CONFIG}: ")
    (copy / CONFIG).write_text(config)
    (copy / MANIFEST).write_text(re.sub(r'"score_card": \{', f'"score_card": {{"x": {nested}, ', manifest))
    assert refusal(copy, backbone).startswith(f"{MANIFEST}: ")


@pytest.mark.parametrize("name", ["tiny\nbackbone", "a\x1b[2J", "", "x" * 300])
def test_names_that_are_shown_are_plain(copy: Path, backbone: Backbone, edit_json: Edit, name: str) -> None:
    edit_json(copy / MANIFEST, {"backbone.name": name})
    assert refusal(copy, backbone).startswith(f"{MANIFEST}: backbone.name: String should match pattern")


@pytest.mark.parametrize(
    "name",
    [
        "encoder.layers.0." * 200_000 + "x",
        "base_model.model." + "encoder.layers.0." * 100_000 + "q_proj.lora_A.weight",
        "base_model.model.encoder.layers.0.self_attn.q_proj.lora_A.weight\x1b[2J\n",
        "\ud800",
        "../../etc/passwd",
    ],
)
def test_a_tensor_name_made_against_the_pattern(copy: Path, backbone: Backbone, name: str) -> None:
    header = json.dumps({name: {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode()
    (copy / TENSORS).write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))
    sign(copy)
    assert refusal(copy, backbone).startswith(f"{TENSORS}: unexpected tensor ")


def test_tensors_that_overlap_or_claim_what_is_not_there(copy: Path, backbone: Backbone) -> None:
    entry = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}
    cases: list[dict[str, Any]] = [
        {"a": entry, "b": entry},
        {"a": {**entry, "shape": [10**30]}},
        {"a": {**entry, "shape": [-1]}},
        {"a": {**entry, "data_offsets": [0, 10**30]}},
        {"a": {**entry, "dtype": "PICKLE"}},
        {"a": [1]},
    ]
    for case in cases:
        header = json.dumps(case).encode()
        (copy / TENSORS).write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))
        sign(copy)
        assert refusal(copy, backbone).startswith(f"{TENSORS}: ")


def test_a_pickle_is_never_read(copy: Path, backbone: Backbone) -> None:
    """peft would take adapter_model.bin where there are no safetensors."""
    (copy / TENSORS).rename(copy / "adapter_model.bin")
    assert refusal(copy, backbone) == f"{TENSORS}: No such file or directory"


# Damage anywhere.

ON_DISK = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@st.composite
def damages(draw: st.DrawFn) -> Callable[[bytes], bytes]:
    """Bytes changed, cut out, or put in, anywhere."""
    place, length = draw(st.floats(0, 1)), draw(st.integers(1, 40))
    new = draw(st.one_of(st.binary(max_size=40), st.just(b""), st.just(bytes(length))))
    to_the_end = draw(st.booleans())

    def damage(content: bytes) -> bytes:
        start = int(place * (len(content) - 1))
        return content[:start] + new + (b"" if to_the_end else content[start + length :])

    return damage


@ON_DISK
@given(damage=damages(), name=st.sampled_from((CONFIG, TENSORS, MANIFEST, CARD)))
def test_damage_anywhere_is_one_line_or_changes_nothing(
    copy: Path, stored: Stored, damage: Callable[[bytes], bytes], name: str
) -> None:
    whole = (stored.first / name).read_bytes()
    (copy / name).write_bytes(damage(whole))
    found = loaded_or_refused(copy)
    same_content = name == MANIFEST and parsed((copy / name).read_bytes()) == json.loads(whole)
    (copy / name).write_bytes(whole)
    if isinstance(found, ArtifactError):
        assert name in str(found) and str(found).isprintable()
        assert name != CARD
    else:
        assert found.manifest == load_artifact(stored.first).manifest
        assert name == CARD or same_content or damage(whole) == whole, "README.md, or white space of bmpeft.json"


def loaded_or_refused(directory: Path) -> Artifact | ArtifactError:
    try:
        return load_artifact(directory)
    except ArtifactError as error:
        return error


def parsed(content: bytes) -> Any:
    try:
        return json.loads(content)
    except (ValueError, RecursionError):
        return None


def test_every_value_of_the_manifest_is_covered_by_its_digest(stored: Stored, tmp_path: Path) -> None:
    content = json.loads((stored.first / MANIFEST).read_bytes())

    def leaves(value: Any, place: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
        items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
        yield from (
            ((*place,),) if not items else (leaf for key, inner in items for leaf in leaves(inner, (*place, key)))
        )

    for leaf in leaves(content):
        changed = json.loads(json.dumps(content))
        inner = changed
        for key in leaf[:-1]:
            inner = inner[key]
        old = inner[leaf[-1]]
        inner[leaf[-1]] = old[:-1] + ("0" if old[-1:] != "0" else "1") if isinstance(old, str) else 7
        with pytest.raises(ArtifactError):
            parse_manifest(tmp_path / MANIFEST, json.dumps(changed).encode())


def test_the_card_is_for_people_and_cannot_crash_the_command(copy: Path, stored: Stored) -> None:
    artifact = load_artifact(copy)
    assert read_model_card(artifact) == (stored.first / CARD).read_text()
    (copy / CARD).write_text("# Title\n\x1b]0;owned\x07\x9b31mred\tas it was\n", encoding="utf-8")
    assert read_model_card(artifact) == "# Title\n\ufffd]0;owned\ufffd\ufffd31mred\tas it was\n"
    (copy / CARD).write_bytes(b"\xff\xfe")
    with pytest.raises(ArtifactError, match=r"README\.md: not UTF-8$"):
        read_model_card(artifact)
    (copy / CARD).unlink()
    with pytest.raises(ArtifactError, match=r"README\.md: No such file or directory$"):
        read_model_card(artifact)
    (copy / CARD).symlink_to("/etc/hostname")
    with pytest.raises(ArtifactError, match=r"README\.md: is no regular file"):
        read_model_card(artifact)
    assert load_artifact(copy).manifest == artifact.manifest


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensors: {name: tensor.astype(np.float64) for name, tensor in tensors.items()}, "is F64, expected F32"),
        (lambda tensors: {name: tensor.astype(np.int32) for name, tensor in tensors.items()}, "is I32, expected F32"),
        (lambda tensors: {name: tensor.T.copy() for name, tensor in tensors.items()}, "which is not of rank 4"),
    ],
)
def test_tensors_of_another_type_or_shape(
    copy: Path, backbone: Backbone, change: Callable[[dict[str, Any]], dict[str, Any]], message: str
) -> None:
    save_file(change(load_file(copy / TENSORS)), copy / TENSORS, metadata={"format": "pt"})
    sign(copy)
    assert message in refusal(copy, backbone)


def test_an_adapter_of_plain_peft_is_foreign(copy: Path, backbone: Backbone, edit_json: Edit) -> None:
    shutil.move(copy / MANIFEST, copy.parent.parent / MANIFEST)
    assert refusal(copy, backbone) == f"{MANIFEST}: No such file or directory"
    edit_json(copy.parent.parent / MANIFEST, {"canary": DELETE})
    shutil.move(copy.parent.parent / MANIFEST, copy / MANIFEST)
    assert refusal(copy, backbone) == f"{MANIFEST}: canary: Field required"
