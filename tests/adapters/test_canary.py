"""The canary: an adapter that does nothing here, or something else than when it was saved, does not load."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from bmpeft import cli
from bmpeft.adaptation import attach, lora
from bmpeft.adapters import canary, canary_cache, runtime
from bmpeft.adapters.artifact import load_artifact
from bmpeft.adapters.canary import canary_logits, compare_canary, record_canary, vocabulary_entries
from bmpeft.adapters.manifest import CanaryRecord
from bmpeft.adapters.runtime import Backbone, load_backbone
from bmpeft.datasets.embedded import SPLITS, rows
from bmpeft.errors import ArtifactError
from bmpeft.progress import Progress
from bmpeft.recipe_adaptation import LoraSection
from bmpeft.training.run import train
from tests.adapters.conftest import Stored, sign
from tests.backbones.tiny import tiny_backbone
from tests.training.small import small_recipe

TENSORS, MANIFEST = "adapter_model.safetensors", "bmpeft.json"
Edit = Callable[[Path, dict[str, object]], None]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache for each test."""
    monkeypatch.setenv("BMPEFT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "canary"


@pytest.fixture
def backbone(stored: Stored) -> Backbone:
    return load_backbone(str(stored.backbone), attention="eager", dtype="float32")


def change_tensors(directory: Path, change: Callable[[str, torch.Tensor], torch.Tensor]) -> None:
    """As somebody does who computes the digests anew."""
    tensors = {name: change(name, tensor) for name, tensor in load_file(directory / TENSORS).items()}
    save_file(tensors, directory / TENSORS, metadata={"format": "pt"})
    sign(directory)


def refuse_to_compute(*_: Any) -> Any:
    raise AssertionError("the canary was computed")


# What is recorded.


def test_a_saved_adapter_carries_what_it_does(stored: Stored, backbone: Backbone) -> None:
    record = load_artifact(stored.first).manifest.canary
    assert (record.input, record.dtype, record.quantization) == ("text-1", "float32", "none")
    bare = canary_logits(backbone.frozen, backbone.frozen.model)
    assert record.logits_norm == pytest.approx(float(bare.norm()), rel=1e-6)
    result = backbone.check_canary(backbone.load_adapter(stored.first))
    assert result.recorded == pytest.approx(record.change_norm) == pytest.approx(result.change, rel=1e-4)
    assert result.distance <= result.bound < 1e-3 * result.change, "in float32 a change of a thousandth is seen"
    assert result.distance / result.change < 1e-5
    assert f"changes the logits by {record.change_norm:.4g}" in (stored.first / "README.md").read_text()


def test_the_canary_is_in_no_dataset_and_the_same_for_ever(backbone: Backbone) -> None:
    questions = {row["question"] for split in SPLITS for row in rows(split)}
    assert not any("canary" in question.lower() for question in questions)
    places = vocabulary_entries(8192)
    assert len(set(places)) > 30 and min(places) >= 0 and max(places) < 8192
    assert places[:4] == (599, 877, 3443, 4864)
    assert canary_logits(backbone.frozen, backbone.frozen.model).shape[1] == canary.ENTRIES


def test_recording_changes_no_mode_and_no_setting() -> None:
    backbone = tiny_backbone()
    attached = attach(backbone, LoraSection(rank=2, dropout=0.5), seed=0)
    model = attached.model
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    model.train()
    model.base_model.model.encoder.eval()
    modes = [module.training for module in model.modules()]
    torch.set_float32_matmul_precision("high")
    try:
        state = torch.random.get_rng_state()
        first = record_canary(backbone, attached)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert record_canary(backbone, attached) == first, "no dropout, no autocast"
        assert torch.equal(torch.random.get_rng_state(), state)
        assert torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision("highest")
    assert [module.training for module in model.modules()] == modes


def test_an_adapter_that_learned_nothing_is_saved_says_so_and_does_not_load(
    tmp_path: Path, stored: Stored, backbone: Backbone
) -> None:
    recipe = small_recipe(tmp_path, "training.learning_rate=1e-30", "training.max_steps=2", backbone=stored.backbone)
    directory = train(recipe, recipe_name="small", progress=Progress(quiet=True)).directory
    assert load_artifact(directory).manifest.canary.change_norm == 0
    assert "without effect: it changes no logit" in (directory / "README.md").read_text()
    with pytest.raises(ArtifactError, match="by 0, when saved by 0; rounding to float32 explains up to"):
        backbone.load_adapter(directory)


# The bound.


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("attention", ["eager", "sdpa", "chunked"])
def test_rounding_stays_within_the_bound_that_is_derived_for_it(seed: int, attention: str) -> None:
    exact, rounded = tiny_backbone(seed), tiny_backbone(seed, attention)
    rounded.model.to(dtype=torch.bfloat16)  # type: ignore[call-arg]
    wanted, found = (canary_logits(backbone, backbone.model) for backbone in (exact, rounded))
    error = float((wanted - found).norm())
    bound = canary._noise(rounded, "bfloat16", found)
    assert bound / 30 < error <= bound, "a bound, and one that means something"
    assert canary._noise(rounded, "float32", found) < bound / 500


@pytest.mark.parametrize("attention", ["eager", "sdpa", "chunked"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_another_type_or_backend_is_no_other_effect(stored: Stored, dtype: Any, attention: Any) -> None:
    other = load_backbone(str(stored.backbone), attention=attention, dtype=dtype)
    for directory in (stored.first, stored.second):
        result = other.check_canary(other.load_adapter(directory))
        assert result.distance <= result.bound < 0.2 * result.change


def test_a_record_in_bfloat16_serves_in_float32() -> None:
    exact, rounded = tiny_backbone(), tiny_backbone()
    rounded.model.to(dtype=torch.bfloat16)  # type: ignore[call-arg]
    results = []
    for backbone in (rounded, exact):
        attached = attach(backbone, LoraSection(rank=2), seed=0)
        model = attached.model
        generator = torch.Generator().manual_seed(1)
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.data.normal_(0.0, 0.05, generator=generator)
        model.eval()
        with attached.disabled():
            bare = canary_logits(backbone, model)
        results.append((record_canary(backbone, attached), bare, canary_logits(backbone, model)))
    record = results[0][0]
    assert record.dtype == "bfloat16"
    compare_canary(Path("x"), record, exact, bare=results[1][1], adapted=results[1][2])


# What is refused.


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_an_adapter_without_an_effect_is_refused(stored: Stored, copy: Path, dtype: Any) -> None:
    backbone = load_backbone(str(stored.backbone), attention="eager", dtype=dtype)
    change_tensors(copy, lambda name, tensor: torch.zeros_like(tensor) if ".lora_B." in name else tensor)
    names = [name for name, _ in backbone.frozen.model.named_parameters()]
    recorded = load_artifact(copy).manifest.canary.change_norm
    with pytest.raises(ArtifactError) as caught:
        backbone.load_adapter(copy)
    assert str(caught.value).startswith(
        f"{copy}: the adapter has no effect here: it changes the canary's logits by 0, when saved by {recorded:.4g}; "
    )
    assert backbone.adapters == ()
    assert [name for name, _ in backbone.frozen.model.named_parameters()] == names


@pytest.mark.parametrize("others", [False, True])
def test_an_adapter_with_another_effect_is_refused(
    stored: Stored, copy: Path, backbone: Backbone, others: bool
) -> None:
    if others:
        backbone.load_adapter(stored.second)
    other = load_file(stored.second / TENSORS)
    change_tensors(copy, lambda name, tensor: other[name])
    with pytest.raises(ArtifactError, match=r"another effect than when it was saved: .* by [\d.]+, then by [\d.]+"):
        backbone.load_adapter(copy)
    assert backbone.adapters == (("second.v2",) if others else ())


def test_a_scaling_that_is_off_by_a_little_is_seen(copy: Path, backbone: Backbone) -> None:
    change_tensors(copy, lambda name, tensor: tensor * 1.001 if ".lora_B." in name else tensor)
    with pytest.raises(ArtifactError, match="another effect than when it was saved"):
        backbone.load_adapter(copy)


def test_matrices_that_do_not_reach_their_places_are_seen(
    stored: Stored, backbone: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lora, "set_adapter_tensors", lambda *_: None)
    with pytest.raises(ArtifactError, match="has no effect here"):
        backbone.load_adapter(stored.first)


def test_a_backbone_that_computes_otherwise_is_seen(stored: Stored, backbone: Backbone) -> None:
    record = load_artifact(stored.first).manifest.canary
    bare = canary_logits(backbone.frozen, backbone.frozen.model)
    adapted = bare + torch.tensor(record.values, dtype=torch.float64).view_as(bare)
    compare_canary(stored.first, record, backbone.frozen, bare=bare, adapted=adapted)
    with pytest.raises(ArtifactError, match="the bare backbone computes otherwise than when"):
        compare_canary(stored.first, record, backbone.frozen, bare=bare * 1.01, adapted=adapted + bare * 0.01)
    with pytest.raises(ArtifactError, match="has no effect here"):
        compare_canary(stored.first, record, backbone.frozen, bare=bare, adapted=adapted * torch.nan)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"change": "no base64!"}, "canary: Value error, change is not float32 numbers in base64"),
        ({"change": "AAA="}, "canary: Value error, change is not float32 numbers in base64"),
        ({"change": CanaryRecord.encoded([3.0])}, "canary: Value error, change_norm is "),
        ({"change": CanaryRecord.encoded([float("nan")])}, "canary: Value error, change_norm is "),
        ({"change": "A" * 100_004}, "canary.change: String should have at most 100000 characters"),
        ({"change_norm": -1}, "canary.change_norm: Input should be greater than or equal to 0"),
        ({"dtype": "float16"}, "canary.dtype: Input should be 'float32' or 'bfloat16'"),
        ({"input": "text-2"}, "canary.input: Input should be 'text-1'"),
    ],
)
def test_a_record_that_cannot_be_is_refused(
    copy: Path, edit_json: Edit, changes: dict[str, object], message: str
) -> None:
    edit_json(copy / MANIFEST, {f"canary.{key}": value for key, value in changes.items()})
    with pytest.raises(ArtifactError) as caught:
        load_artifact(copy)
    assert str(caught.value).startswith(f"{copy / MANIFEST}: {message}")


def test_a_record_of_another_length_is_refused(copy: Path, backbone: Backbone, edit_json: Edit) -> None:
    changes = {"canary.change": CanaryRecord.encoded([3.0, 4.0]), "canary.change_norm": 5.0}
    edit_json(copy / MANIFEST, changes)
    with pytest.raises(ArtifactError, match=r"its canary has 2 values, expected \d+ here"):
        backbone.load_adapter(copy)


# The cache.


def test_only_the_first_load_computes(
    stored: Stored, copy: Path, backbone: Backbone, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backbone.load_adapter(stored.first)
    assert len(list(cache.iterdir())) == 1
    monkeypatch.setattr(runtime, "canary_logits", refuse_to_compute)
    backbone.load_adapter(copy, name="the same elsewhere")
    load_backbone(str(stored.backbone), attention="eager", dtype="float32").load_adapter(stored.first)
    with pytest.raises(AssertionError, match="was computed"):
        backbone.load_adapter(stored.second)
    with pytest.raises(AssertionError, match="was computed"):
        load_backbone(str(stored.backbone), attention="eager", dtype="bfloat16").load_adapter(stored.first)
    with pytest.raises(AssertionError, match="was computed"):
        load_backbone(str(stored.backbone), attention="sdpa", dtype="float32").load_adapter(stored.first)
    change_tensors(copy, lambda name, tensor: tensor * 2)
    with pytest.raises(AssertionError, match="was computed"):
        backbone.load_adapter(copy, name="changed")


def test_a_refused_adapter_is_refused_again(copy: Path, backbone: Backbone, cache: Path) -> None:
    change_tensors(copy, lambda name, tensor: tensor * 2)
    for _ in range(2):
        with pytest.raises(ArtifactError, match="another effect"):
            backbone.load_adapter(copy)
    assert not cache.exists()


@pytest.mark.parametrize("content", [b"", b"[]", b"\xff", b'{"key": {}}', b"[" * 10_000])
def test_a_damaged_cache_is_an_empty_one(stored: Stored, backbone: Backbone, cache: Path, content: bytes) -> None:
    backbone.load_adapter(stored.first)
    (file,) = cache.iterdir()
    whole = file.read_bytes()
    file.write_bytes(content)
    backbone.unload_adapter("first")
    backbone.load_adapter(stored.first)
    assert file.read_bytes() == whole, "computed again and written again"


def test_a_cache_that_cannot_be_written_is_no_error(
    stored: Stored, backbone: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("BMPEFT_CACHE", str(tmp_path / "file"))
    backbone.load_adapter(stored.first)
    monkeypatch.setattr(canary_cache, "cache_directory", lambda: None)
    backbone.load_adapter(stored.second)


def test_where_the_cache_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.setenv("BMPEFT_CACHE", str(tmp_path / "own"))
    assert canary_cache.cache_directory() == tmp_path / "own"
    monkeypatch.delenv("BMPEFT_CACHE")
    assert canary_cache.cache_directory() == tmp_path / "xdg" / "bmpeft"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert canary_cache.cache_directory() == tmp_path / ".cache" / "bmpeft"


# `bmpeft adapters verify`.


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = cli.main(["adapters", "verify", *arguments])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_verify_runs_the_canary_where_the_backbone_is(
    stored: Stored, copy: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(stored.root)  # where its directory has the name that the adapter remembers
    code, out, _ = run(capsys, str(copy), "--json")
    found = json.loads(out)
    assert (code, found["verified"], found["not_checked"]) == (0, True, None)
    assert 0.0 <= found["canary"]["distance"] <= found["canary"]["bound"] < found["canary"]["change"]
    change_tensors(copy, lambda name, tensor: tensor * 2)
    code, out, err = run(capsys, str(copy))
    assert (code, out) == (1, "")
    assert err.startswith(f"bmpeft: {copy}: the adapter has another effect") and err.count("\n") == 1
    assert run(capsys, str(copy), "--files-only")[0] == 0, "its files are in order"


def test_verify_computes_even_if_the_cache_says_it_passed(
    stored: Stored, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = (str(stored.first), "--backbone", str(stored.backbone))
    assert run(capsys, *arguments)[0] == 0
    monkeypatch.setattr(runtime, "canary_logits", refuse_to_compute)
    code, _, err = run(capsys, *arguments)
    assert (code, "was computed" in err) == (1, True)


def test_verify_says_what_it_could_not_check(
    stored: Stored, copy: Path, tmp_path: Path, edit_json: Edit, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    code, out, _ = run(capsys, str(copy))
    assert (code, "not checked: adapter first was trained on a backbone directory named" in out) == (0, True)
    code, _, err = run(capsys, str(copy), "--backbone", "nowhere")
    assert (code, "no such directory" in err) == (1, True)
    edit_json(copy / MANIFEST, {"backbone.name": "somebody/model"})
    edit_json(copy / "adapter_config.json", {"base_model_name_or_path": "somebody/model"})
    sign(copy)
    code, out, _ = run(capsys, str(copy))
    assert (code, "'somebody/model' on the hub, which is not asked unless you say so" in out) == (0, True)
