"""Every published format becomes the same backbone, bit for bit."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from bmpeft.backbones.biomedgpt import BiomedGPTForConditionalGeneration
from bmpeft.backbones.fingerprint import canonical_state, fingerprint_of
from bmpeft.errors import UsageError
from tests.backbones.conversion.published_files import (
    OMEGACONF,
    TIED,
    checkpoint,
    foreign_classes,
    omegaconf_tree,
    options,
    published_state,
    run,
    save_fairseq,
    save_transformers,
    shuffled,
    small_model,
)

Model = BiomedGPTForConditionalGeneration


@pytest.fixture(scope="module")
def model() -> Model:
    return small_model()


def _zip(path: Path, model: Model) -> Path:
    return save_fairseq(path, model)


def _legacy(path: Path, model: Model) -> Path:
    content = checkpoint(published_state(model, "fairseq"), args=argparse.Namespace(**options(model)))
    torch.save(content, path, _use_new_zipfile_serialization=False)
    return path


def _cfg_with_namespace(path: Path, model: Model) -> Path:
    """What fairseq writes: a plain dict, the model's part still a namespace."""
    values = options(model)
    task = {"patch_image_size": values.pop("patch_image_size")}
    return save_fairseq(path, model, args=None, cfg={"model": argparse.Namespace(**values), "task": task})


def _cfg_with_omegaconf(path: Path, model: Model) -> Path:
    with foreign_classes(*OMEGACONF, "fairseq.dataclass.configs.FairseqConfig") as made:
        classes = {cls.__name__: cls for cls in made}
        cfg = omegaconf_tree({"model": options(model), "task": {"patch_image_size": 128}}, classes)
        cfg._metadata.object_type = classes["FairseqConfig"]
        return save_fairseq(path, model, args=None, cfg=cfg)


def _without_options(path: Path, model: Model) -> Path:
    return save_fairseq(path, model, args=None)


def _shuffled(path: Path, model: Model) -> Path:
    return save_fairseq(path, model, model=shuffled(published_state(model, "fairseq")))


def _with_prefix(path: Path, model: Model) -> Path:
    state = published_state(model, "fairseq")
    return save_fairseq(path, model, model={f"module.model.{key}": value for key, value in state.items()})


def _without_output_projection(path: Path, model: Model) -> Path:
    state = published_state(model, "fairseq")
    del state["decoder.output_projection.weight"]
    return save_fairseq(path, model, model=state)


def _fused(path: Path, model: Model) -> Path:
    state = published_state(model, "fairseq")
    for attention in sorted({key.rpartition(".q_proj")[0] for key in state if ".q_proj." in key}):
        for leaf in ("weight", "bias"):
            parts = [state.pop(f"{attention}.{part}_proj.{leaf}") for part in "qkv"]
            state[f"{attention}.in_proj_{leaf}"] = torch.cat(parts)
    return save_fairseq(path, model, model=state)


def _image_positions_1025(path: Path, model: Model) -> Path:
    state = published_state(model, "fairseq")
    state["decoder.image_position_idx"] = state["decoder.image_position_idx"][:1025]
    return save_fairseq(path, model, model=state)


def _bare(path: Path, model: Model) -> Path:
    torch.save(published_state(model, "fairseq"), path)
    return path


def _directory(path: Path, model: Model) -> Path:
    return save_transformers(path, model)


def _directory_with_1026(path: Path, model: Model) -> Path:
    directory = save_transformers(path, model)
    state = torch.load(directory / "pytorch_model.bin")
    state["decoder.image_position_idx"] = published_state(model, "fairseq")["decoder.image_position_idx"]
    torch.save(state, directory / "pytorch_model.bin")
    return directory


def _directory_of_safetensors(path: Path, model: Model) -> Path:
    """Tied names are stored once there, under any one of them."""
    directory = save_transformers(path, model)
    state = torch.load(directory / "pytorch_model.bin")
    del state["encoder.embed_tokens.weight"], state["decoder.output_projection.weight"]
    save_file(state, directory / "model.safetensors")
    (directory / "pytorch_model.bin").unlink()
    return directory


def _directory_in_shards(path: Path, model: Model) -> Path:
    directory = save_transformers(path, model)
    state = torch.load(directory / "pytorch_model.bin")
    (directory / "pytorch_model.bin").unlink()
    weight_map = {key: f"pytorch_model-{n % 2 + 1:05}-of-00002.bin" for n, key in enumerate(state)}
    for file in set(weight_map.values()):
        torch.save({key: state[key] for key, home in weight_map.items() if home == file}, directory / file)
    (directory / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return directory


def _directory_without_config(path: Path, model: Model) -> Path:
    directory = save_transformers(path, model)
    (directory / "config.json").unlink()
    return directory


FORMATS: list[Callable[[Path, Model], Path]] = [
    _zip, _legacy, _cfg_with_namespace, _cfg_with_omegaconf, _without_options, _shuffled, _with_prefix,
    _without_output_projection, _fused, _image_positions_1025, _bare, _directory, _directory_with_1026,
    _directory_of_safetensors, _directory_in_shards, _directory_without_config,
]  # fmt: skip


@pytest.mark.parametrize("make", FORMATS, ids=lambda make: make.__name__.strip("_"))
def test_every_format_becomes_the_same_weights(
    make: Callable[[Path, Model], Path], model: Model, tmp_path: Path
) -> None:
    source = make(tmp_path / "source.pt", model)
    report = run(source, tmp_path / "backbone")
    expected = canonical_state(model)
    stored = load_file(tmp_path / "backbone" / "model.safetensors")
    assert stored.keys() == expected.keys()
    assert all(
        torch.equal(stored[name], expected[name]) and stored[name].dtype == expected[name].dtype for name in expected
    )
    described = json.loads((tmp_path / "backbone" / "backbone.json").read_text())
    # One name for the weights, whatever they came in.
    assert report.fingerprint == described["fingerprint"] == described["stored_tensors"] == fingerprint_of(expected)
    assert described["init"] == "pretrained" and described["init_seed"] is None
    config = json.loads((tmp_path / "backbone" / "config.json").read_text())
    for name in ("d_model", "encoder_layers", "resnet_type", "image_bucket_size", "scale_attn", "scale_heads",
                 "max_position_embeddings", "token_bucket_size", "vocab_size", "attn_scale_factor"):  # fmt: skip
        assert config[name] == getattr(model.config, name)
    used = {target for key in report.keys for target in key.target if key.status != "ignored"}
    assert used == {*expected, *TIED}, "every tensor of the model has its line in the report"


def test_half_precision_stays_and_goes_back_to_float32_on_request(model: Model, tmp_path: Path) -> None:
    half = small_model().half()
    source = save_fairseq(tmp_path / "half.pt", half)
    kept, cast = run(source, tmp_path / "kept"), run(source, tmp_path / "cast", dtype="float32")
    assert (kept.stored_dtype, cast.stored_dtype, cast.dtypes) == ("float16", "float32", ("float16",))
    low, high = (load_file(tmp_path / name / "model.safetensors") for name in ("kept", "cast"))
    for name, tensor in canonical_state(half).items():
        assert torch.equal(low[name], tensor) and low[name].dtype == tensor.dtype
        assert torch.equal(high[name], tensor.float() if tensor.is_floating_point() else tensor)
    assert fingerprint_of(canonical_state(Model.from_pretrained(tmp_path / "kept"))) == kept.fingerprint
    # The name is that of the source; what the cast made of it is described beside it.
    assert cast.fingerprint == kept.fingerprint == fingerprint_of(canonical_state(half))
    described = json.loads((tmp_path / "cast" / "backbone.json").read_text())
    assert described["stored_tensors"] == fingerprint_of(high) != described["fingerprint"]


def test_the_moving_average_is_what_is_asked_for(model: Model, tmp_path: Path) -> None:
    average = small_model(seed=1)
    extra = {
        "ema": published_state(average, "fairseq"),
        "ema_fp32_params": {"encoder.layer_norm.weight": torch.ones(64)},
    }
    source = save_fairseq(tmp_path / "tuned.pt", model, extra_state=extra)
    plain, smooth = run(source, tmp_path / "plain"), run(source, tmp_path / "smooth", weights="ema")
    assert plain.fingerprint == fingerprint_of(canonical_state(model))
    assert smooth.fingerprint == fingerprint_of(canonical_state(average)) and smooth.weights == "ema"
    reasons = {key.source: key.reason for key in plain.keys if key.status == "ignored"}
    assert "--weights ema takes it" in reasons["extra_state.ema"]
    assert reasons["last_optimizer_state"] == "optimizer state"


def test_a_moving_average_that_is_not_there_is_an_error(model: Model, tmp_path: Path) -> None:
    for make, name in ((_zip, "a.pt"), (_bare, "b.pt"), (_directory, "c")):
        with pytest.raises(UsageError, match="--weights ema"):
            run(make(tmp_path / name, model), tmp_path / "never", weights="ema")
    assert not (tmp_path / "never").exists()


def test_frozen_statistics_and_short_image_tables_are_completed(model: Model, tmp_path: Path) -> None:
    state = published_state(model, "fairseq")
    for key in [key for key in state if key.endswith("num_batches_tracked")]:
        del state[key]
    state["encoder.embed_image_positions.weight"] = state["encoder.embed_image_positions.weight"][:40]
    source = save_fairseq(tmp_path / "old.pt", model, model=state)
    report = run(source, tmp_path / "backbone")
    stored = load_file(tmp_path / "backbone" / "model.safetensors")
    assert stored["encoder.embed_images.bn1.num_batches_tracked"] == 0
    table = stored["encoder.embed_image_positions.weight"]
    assert table.shape == (65, 64) and torch.equal(table[:40], state["encoder.embed_image_positions.weight"])
    assert 0.5 < table[40:].std() * 64**0.5 < 1.5
    assert run(source, tmp_path / "again").fingerprint == report.fingerprint
    missing = {key.target: key.reason for key in report.keys if key.status == "missing"}
    assert "rows 40 to 64: untrained" in missing[("encoder.embed_image_positions.weight",)]


def test_embeddings_that_differ_stay_apart(model: Model, tmp_path: Path) -> None:
    directory = save_transformers(tmp_path / "source", model)
    state = torch.load(directory / "pytorch_model.bin")
    state["decoder.output_projection.weight"] += 1
    torch.save(state, directory / "pytorch_model.bin")
    run(directory, tmp_path / "backbone")
    loaded = Model.from_pretrained(tmp_path / "backbone")
    assert torch.equal(loaded.decoder.output_projection.weight, state["decoder.output_projection.weight"])
    assert torch.equal(loaded.decoder.embed_tokens.weight, state["encoder.embed_tokens.weight"])
    assert loaded.decoder.output_projection.weight is not loaded.encoder.embed_tokens.weight
    described = json.loads((tmp_path / "backbone" / "backbone.json").read_text())
    assert fingerprint_of(canonical_state(loaded)) == described["stored_tensors"]


@pytest.mark.parametrize(
    ("vocabulary", "codes", "bins"),
    [(600, 0, 0), (50_265, 0, 0), (50_300, 35, 0), (59_457, 8192, 1000), (59_470, 8192, 1013)],
)
def test_any_vocabulary_converts_and_its_text_tokens_stay_text(
    vocabulary: int, codes: int, bins: int, tmp_path: Path
) -> None:
    """A grown dictionary's additions stand behind codes and bins; none of these is ever generated unasked."""
    model = small_model(vocab_size=vocabulary, d_model=8, encoder_ffn_dim=8, decoder_ffn_dim=8)
    report = run(save_fairseq(tmp_path / "source.pt", model), None, dry_run=True)
    assert report.architecture["vocab_size"] == vocabulary
    assert (report.architecture["num_code_tokens"], report.architecture["num_bin_tokens"]) == (codes, bins)


def test_nothing_of_the_machine_that_trained_is_stored(model: Model, tmp_path: Path) -> None:
    run(save_fairseq(tmp_path / "source.pt", model), tmp_path / "backbone")
    for file in (tmp_path / "backbone").iterdir():
        content = file.read_bytes()
        assert b"somebody" not in content and str(tmp_path).encode() not in content


def test_a_pretraining_checkpoint_asks_for_no_helper_files(model: Model, tmp_path: Path) -> None:
    """Its options name a task with files that nobody has; the task is never built."""
    helpers = {"task": "unify_task", "neg_sample_dir": "/data/negative_sample", "selected_cols": "0,1,2"}
    source = save_fairseq(tmp_path / "pretrained.pt", model, args=argparse.Namespace(**options(model, **helpers)))
    assert run(source, tmp_path / "backbone").fingerprint == fingerprint_of(canonical_state(model))


def test_both_statements_on_the_licence_are_there(model: Model, tmp_path: Path) -> None:
    report = run(save_fairseq(tmp_path / "source.pt", model), tmp_path / "backbone")
    note = (tmp_path / "backbone" / "LICENCE_NOTE.md").read_text(encoding="utf-8")
    for text in (note, "\n".join(report.lines())):
        assert "Apache-2.0" in text and "strictly for academic research" in text


def test_options_of_images_come_from_the_checkpoint(model: Model, tmp_path: Path) -> None:
    arguments = argparse.Namespace(**options(model, patch_image_size=96, imagenet_default_mean_and_std=True))
    run(save_fairseq(tmp_path / "source.pt", model, args=arguments), tmp_path / "backbone")
    content: dict[str, Any] = json.loads((tmp_path / "backbone" / "preprocessor_config.json").read_text())
    assert content["size"] == {"height": 96, "width": 96} and content["image_mean"] == [0.485, 0.456, 0.406]
