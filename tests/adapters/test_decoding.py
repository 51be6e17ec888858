"""What an adapter needs of its recipe to answer anywhere: the answers of its trie, and its positions."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bmpeft.adapters.artifact import Artifact, load_artifact
from bmpeft.adapters.predict_file import predict_file
from bmpeft.adapters.runtime import load_backbone
from bmpeft.errors import BmpeftError
from bmpeft.progress import Progress
from bmpeft.recipe import BackboneSection
from bmpeft.recipe_decoding import BeamDecoding, TrieDecoding
from bmpeft.training.run import train
from tests.training.small import COLOURS, records, small_recipe

OVERRIDES = (
    "task.decoding={method: trie, num_beams: 3}",
    "backbone.max_positions=400",
    "data.max_source_length=350",
    "training.evaluations=1",
    "evaluation.controls=[]",
)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """An adapter with a trie over its training answers, on a backbone whose weights have 256 positions."""
    root = tmp_path_factory.mktemp("trie")
    outcome = train(small_recipe(root, *OVERRIDES), recipe_name="small", progress=Progress(quiet=True))
    return load_artifact(outcome.directory)


def backbone_of(artifact: Artifact) -> str:
    return str(artifact.directory.parents[1] / "tiny-backbone")


def test_the_adapter_holds_the_training_answers_and_its_card_does_not(trained: Artifact) -> None:
    decoding = trained.manifest.task.decoding
    assert isinstance(decoding, TrieDecoding) and set(decoding.answers) <= set(COLOURS)
    card = trained.manifest.score_card
    assert card is not None and card["decoding"]["answers"]["count"] == len(decoding.answers)
    assert not any(colour in json.dumps(card) for colour in COLOURS)


def test_it_answers_from_its_set_wherever_it_is_loaded(trained: Artifact) -> None:
    backbone = load_backbone(backbone_of(trained), attention="eager")
    name = backbone.load_adapter(trained.directory)
    decoding = trained.manifest.task.decoding
    assert isinstance(decoding, TrieDecoding)
    with pytest.raises(BmpeftError, match="350 tokens asked for"):
        backbone.predict(records(2), adapter=name)  # nobody extended this backbone
    made = backbone.predict(records(3), adapter=name, max_source_length=96)
    assert all(prediction.text in decoding.answers for prediction in made)
    free = backbone.predict(
        records(1), adapter=name, max_source_length=96, decoding=BeamDecoding(num_beams=1, max_new_tokens=2)
    )
    assert free[0].text not in decoding.answers


@pytest.mark.parametrize("named", [True, False], ids=["backbone given", "backbone remembered"])
def test_predict_extends_the_backbone_as_the_adapter_says(
    trained: Artifact, named: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(Path(backbone_of(trained)).parent)
    question = " ".join(["very"] * 280)
    (tmp_path / "in.jsonl").write_text(json.dumps({"question": question, "options": ["red", "blue"]}) + "\n")
    section = BackboneSection(name=backbone_of(trained)) if named else None
    predict_file(
        trained.directory,
        tmp_path / "in.jsonl",
        tmp_path / "out.jsonl",
        progress=Progress(quiet=True),
        backbone=section,
    )
    assert json.loads((tmp_path / "out.jsonl").read_text())["answer"] in COLOURS
