"""The shipped recipes: each says what it needs, would run, and keeps what it says of splits and leaks."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from bmpeft.datasets import dataset_info, read_dataset
from bmpeft.datasets.leakage import find_leakage, require_no_leakage
from bmpeft.errors import DataError, UsageError
from bmpeft.recipe import Recipe, load_recipe, match_splits
from bmpeft.recipe_store import shipped_names, shipped_recipe
from bmpeft.tasks import make_task

OWN = ("own_csv", "own_images", "own_jsonl")
ADAPTERS = [name for name in shipped_names() if isinstance(shipped_recipe(name).recipe, Recipe)]
OF_DATASETS = [name for name in ADAPTERS if name not in OWN]
# Recipe -> what stands for `data.path` among the published sets at hand, and what else must be said for a part of one.
AT_HAND: dict[str, tuple[str, ...]] = {
    "aci_bench_long_lora": ("data.path=aci_bench",),
    "aci_bench_lora": ("data.path=aci_bench",),
    "covid_cxr_notes_lora": ("data.path=covid_cxr_notes_NC-SA",),
    "hannover_cxr_lora": ("data.path=hannover_cxr",),
    "medical_abstracts_lora": ("data.path=medical_abstracts_tc", "data.split_by=group"),
    "mediqa2021_mas_lora": ("data.path=mediqa2021_qs_mas/Task2",),
    "mediqa2021_qs_lora": ("data.path=mediqa2021_qs_mas/Task1",),
    "medmcqa_lora": ("data.path=medmcqa_dev/dev.json",),
    "medmnist_lora": ("data.path=medmnist28/retinamnist.npz",),
    "medqa_lora": ("data.path=medqa_usmle_test/test_4opt.jsonl",),
    "medquad_lora": ("data.path=medquad/medquad_sample.jsonl.gz",),
    "meqsum_lora": ("data.path=meqsum/biomedgpt_split",),
    "mts_dialog_lora": ("data.path=mts_dialog",),
    "pubmedqa_lora": ("data.path=pubmedqa_l",),
    "vqa_rad_lora": ("data.path=vqa_rad",),
}


def loaded(name: str, *overrides: str) -> Recipe:
    return load_recipe(shipped_recipe(name).path, overrides)


def test_every_dataset_of_a_reader_has_a_recipe() -> None:
    from bmpeft.datasets import dataset_names

    own = {"csv", "jsonl", "image_folder", "hf"}
    assert {loaded(name).data.dataset for name in OF_DATASETS} == set(dataset_names()) - own


@pytest.mark.parametrize("name", OF_DATASETS)
def test_a_header_names_data_licence_source_cost_and_backbone_in_lines_that_fit(name: str) -> None:
    header = shipped_recipe(name).header
    for word in ("Data:", "Cost:", "Backbone:", "licence"):
        assert word in header
    host = re.search(r"[\w.]+\.(?:com|gov|io|org)", dataset_info(loaded(name).data.dataset).source)
    assert host is None or host.group() in header or name == "biomedgpt_tsv_lora"
    assert all(len(line) <= 118 for line in header.splitlines())


@pytest.mark.parametrize("name", ADAPTERS)
def test_the_commands_of_a_header_are_valid(name: str) -> None:
    header = re.sub(r" \\\n#? +", " ", shipped_recipe(name).header)
    commands = re.findall(r"bmpeft train (\w+) ([^\n]*=[^\n]*)", header)
    assert commands or name in OWN
    for recipe, arguments in commands:
        assert recipe == name
        words = [word for word in shlex.split(arguments.replace("'", "")) if "=" in word]
        load_recipe(shipped_recipe(name).path, [word.rstrip(",") for word in words])


@pytest.mark.parametrize("name", [name for name in OF_DATASETS if name != "medqa_lora"])
def test_without_its_files_a_recipe_says_where_to_get_them(name: str, tmp_path: Path) -> None:
    recipe = loaded(name, f"data.path={tmp_path / 'gone'}")
    make_task(recipe.task, recipe.data.dataset)
    with pytest.raises(DataError) as caught:
        read_dataset(recipe.data, recipe.task.name)
    assert str(tmp_path / "gone") in str(caught.value)
    assert dataset_info(recipe.data.dataset).source in str(caught.value)


@pytest.mark.parametrize("name", OWN)
def test_a_recipe_for_your_own_data_has_at_most_25_lines(name: str, tmp_path: Path) -> None:
    assert len(shipped_recipe(name).path.read_text(encoding="utf-8").splitlines()) <= 25
    recipe = loaded(name, f"data.path={tmp_path / 'gone'}")
    with pytest.raises(DataError, match="gone: not found"):
        read_dataset(recipe.data, recipe.task.name)


@pytest.fixture
def leaks_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Similar images and documents are only reported, and take the most time to find."""
    monkeypatch.setattr("bmpeft.datasets.leakage.MAX_IMAGES", 0)
    monkeypatch.setattr("bmpeft.datasets.leakage.documents_seen", lambda documents, _: [False] * len(documents))


@pytest.mark.usefixtures("leaks_only")
@pytest.mark.parametrize("name", sorted(AT_HAND))
def test_with_its_files_every_row_can_be_asked_and_nothing_leaks_unsaid(name: str, shared_data: Path) -> None:
    path, *others = AT_HAND[name]
    recipe = loaded(name, path.replace("=", f"={shared_data}/", 1), *others)
    task = make_task(recipe.task, recipe.data.dataset)
    dataset = read_dataset(recipe.data, recipe.task.name)
    scored = match_splits(recipe.evaluation.splits, dataset.splits)
    assert dataset.splits["train"]
    assert dataset.splits["validation"]
    for split, records in dataset.splits.items():
        for record in records:
            example = task.example(record)
            assert example.source
            assert example.target or split not in ("train", "validation", *scored)
    leakage = find_leakage(
        dataset.splits["train"], {s: r for s, r in dataset.splits.items() if s != "train"}, scored=scored
    )
    require_no_leakage(leakage, name, accept=recipe.data.accept_leakage)
    assert bool(leakage.leaks) == recipe.data.accept_leakage, "accept_leakage stands only where it is needed"


@pytest.mark.usefixtures("leaks_only")
def test_the_official_split_of_vqa_rad_is_refused_with_its_counts(shared_data: Path) -> None:
    recipe = loaded("vqa_rad_lora", f"data.path={shared_data}/vqa_rad", "data.split_by=official")
    splits = read_dataset(recipe.data, recipe.task.name).splits
    train = (*splits["train"], *splits["validation"])
    leakage = find_leakage(train, {"test": splits["test"]}, scored=("test",))
    with pytest.raises(UsageError) as caught:
        require_no_leakage(leakage, "vqa_rad", accept=False)
    assert "451 of 451 rows show an image of the training rows" in str(caught.value)
    assert re.search(r"1[46] of 451 rows are in the training rows word for word", str(caught.value))
