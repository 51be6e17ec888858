"""LoRA on the tiny backbone: where adapters go, how they start, what their file says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel

from bmpeft.adaptation import attach, count_parameters
from bmpeft.adaptation.lora import adapter_shapes, adapter_tensors, lora_config, set_adapter_tensors
from bmpeft.adaptation.peft_config import config_content, config_json
from bmpeft.backbones.biomedgpt.backbone import BiomedGPTBackbone
from bmpeft.errors import BackboneError, UsageError
from bmpeft.recipe_adaptation import LORA_TARGETS, LoraSection
from tests.backbones.tiny import tiny_backbone
from tests.training.small import encoded_rows

SECTION = LoraSection(rank=4)


def logits(backbone: BiomedGPTBackbone, model: torch.nn.Module) -> torch.Tensor:
    batch = backbone.collate(encoded_rows(backbone, 3).encoded)
    with torch.inference_mode():
        output: torch.Tensor = model(**batch).logits
    return output


def test_every_linear_of_the_layers_gets_an_adapter_and_nothing_else_does() -> None:
    backbone = tiny_backbone()
    linears = {name for name, module in backbone.model.named_modules() if isinstance(module, torch.nn.Linear)}
    in_layers = {name for name in linears if re.match(r"(encoder|decoder)\.layers\.", name)}
    assert linears - in_layers, "the test needs linear layers outside, such as position projections"
    model = attach(backbone, SECTION).model
    adapted = {re.sub(r"^base_model\.model\.|\.lora_[AB]\.weight$", "", name) for name in adapter_tensors(model)}
    assert adapted == in_layers
    assert {name for name, p in model.named_parameters() if p.requires_grad} == {
        name for name, _ in model.named_parameters() if "lora_" in name
    }


@pytest.mark.parametrize("target", LORA_TARGETS)
def test_a_single_target_selects_only_its_own_layers(target: str) -> None:
    model = attach(tiny_backbone(), LoraSection(rank=2, target_modules=(target,))).model
    assert {name.split(".")[-3] for name in adapter_tensors(model)} == {target}


def test_the_projection_of_images_gets_an_adapter_where_that_is_asked_for() -> None:
    section = LoraSection(rank=2, target_modules=("q_proj", "image_proj"))
    backbone = tiny_backbone()
    model = attach(backbone, section, with_images=True).model
    names = [name for name in adapter_tensors(model) if "image_proj" in name]
    assert names == [f"base_model.model.encoder.image_proj.lora_{part}.weight" for part in "AB"]
    assert set(names) <= set(adapter_shapes(tiny_backbone(), section))
    assert not any("image_proj" in name for name in adapter_shapes(tiny_backbone(), SECTION))
    with pytest.raises(UsageError, match=r"target_modules: image_proj is reached by images, and no row has one"):
        attach(tiny_backbone(), section, with_images=False)


def test_a_target_outside_the_layers_is_refused() -> None:
    backbone = tiny_backbone()
    backbone.model.encoder.add_module("fc1", torch.nn.Linear(2, 2))
    with pytest.raises(BackboneError, match=r"'encoder\.fc1' is not in an encoder or decoder layer"):
        attach(backbone, SECTION)


def test_a_fresh_adapter_changes_nothing() -> None:
    backbone = tiny_backbone()
    before = logits(backbone, backbone.model)
    model = attach(backbone, SECTION).model.eval()
    assert torch.equal(logits(backbone, model), before)


def test_the_seed_alone_decides_the_start_and_no_other_generator_moves() -> None:
    torch.manual_seed(1)
    state = torch.random.get_rng_state()
    first = attach(tiny_backbone(), SECTION, seed=3).tensors()
    assert torch.equal(torch.random.get_rng_state(), state)
    torch.manual_seed(2)
    second = attach(tiny_backbone(), SECTION, seed=3).tensors()
    other = attach(tiny_backbone(), SECTION, seed=4).tensors()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)


def test_adapters_are_float32_on_a_bfloat16_backbone() -> None:
    backbone = tiny_backbone()
    backbone.model.to(torch.bfloat16)
    assert {tensor.dtype for tensor in attach(backbone, SECTION).tensors().values()} == {torch.float32}


def test_parameters_are_counted_once() -> None:
    backbone = tiny_backbone()
    bare = sum(parameter.numel() for parameter in backbone.model.parameters())
    expected = sum(rows * columns for rows, columns in adapter_shapes(backbone, SECTION).values())
    assert count_parameters(attach(backbone, SECTION).model) == (expected, bare + expected)


def test_a_second_adapter_is_not_stacked_on_the_first() -> None:
    backbone = tiny_backbone()
    attach(backbone, SECTION)
    with pytest.raises(BackboneError, match="already carries an adapter"):
        attach(backbone, SECTION)


def test_shapes_are_those_of_the_real_tensors() -> None:
    backbone = tiny_backbone()
    shapes = adapter_shapes(backbone, SECTION)
    assert shapes == {name: tuple(tensor.shape) for name, tensor in attach(backbone, SECTION).tensors().items()}


def test_tensors_are_written_all_or_not_at_all() -> None:
    model = attach(tiny_backbone(), SECTION).model
    tensors = {name: torch.full_like(tensor, 0.5) for name, tensor in adapter_tensors(model).items()}
    name = min(tensors)
    for wrong in (
        {other: tensor for other, tensor in tensors.items() if other != name},
        {**tensors, "base_model.model.extra.lora_A.weight": torch.zeros(1)},
        {**tensors, name: tensors[name][:1]},
    ):
        before = adapter_tensors(model)
        with pytest.raises(ValueError, match="tensors differ"):
            set_adapter_tensors(model, wrong)
        assert all(torch.equal(tensor, before[other]) for other, tensor in adapter_tensors(model).items())
    set_adapter_tensors(model, tensors)
    assert all(torch.equal(tensor, tensors[other]) for other, tensor in adapter_tensors(model).items())


@pytest.mark.parametrize(
    "section",
    [LoraSection(), LoraSection(rank=3, alpha=0.5, dropout=0.0, rslora=False, target_modules=("fc2", "q_proj"))],
)
def test_peft_reads_our_configuration_as_its_own(section: LoraSection, tmp_path: Path) -> None:

    directory = tmp_path
    (directory / "adapter_config.json").write_bytes(config_json(config_content(section, "/somewhere/biomedgpt")))
    read = LoraConfig.from_pretrained(directory).to_dict()
    meant = LoraConfig(
        task_type="SEQ_2_SEQ_LM",
        base_model_name_or_path="biomedgpt",
        inference_mode=True,
        r=section.rank,
        lora_alpha=section.alpha,  # type: ignore[arg-type]
        lora_dropout=section.dropout,
        use_rslora=section.rslora,
        target_modules=list(section.target_modules),
    ).to_dict()
    assert read == meant
    assert not lora_config(section, "biomedgpt").inference_mode


def test_the_wrapper_is_peft_s_own_for_sequence_to_sequence() -> None:
    model = attach(tiny_backbone(), SECTION).model
    assert isinstance(model, PeftModel)
    assert type(model).__name__ == "PeftModelForSeq2SeqLM"
