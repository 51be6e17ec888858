"""Pretraining: masking, corpora, batches that a run can resume at, and the whole way to a backbone directory."""

from __future__ import annotations

import gzip
import json
import random
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from bmpeft.backbones import load_frozen_backbone
from bmpeft.backbones.biomedgpt.backbone import CODE_PARAMETERS, IMAGE_PARAMETERS
from bmpeft.datasets.embedded import rows as embedded_rows
from bmpeft.errors import DataError, UsageError
from bmpeft.pretrain_recipe import PretrainRecipe
from bmpeft.progress import Progress
from bmpeft.recipe import BackboneSection
from bmpeft.training.pretraining.batches import MixtureBatches
from bmpeft.training.pretraining.corpus import GAP, read_corpus, split_at_sentences
from bmpeft.training.pretraining.rows import MixtureRows, mask_spans
from bmpeft.training.pretraining.run import pretrain
from tests.backbones.tiny import tiny_backbone, tiny_directory

MASK = 8191


def recipe(root: Path, corpus: list[dict[str, Any]], **sections: Any) -> PretrainRecipe:
    content: dict[str, Any] = {
        "kind": "pretrain",
        "data_root": str(root),
        "backbone": {"name": "biomedgpt-nano", "init": "random"},
        "corpus": corpus,
        "training": {"steps": 6, "batch_tokens": 128, "checkpoint_steps": 2, "logging_steps": 2},
        "output": {"directory": str(root / "backbone"), "runs": str(root / "runs")},
    }
    for name, values in sections.items():
        content[name] = {**content.get(name, {}), **values} if isinstance(values, dict) else values
    return PretrainRecipe.model_validate(content)


def source(**fields: Any) -> dict[str, Any]:
    return {"name": "notes", "path": "notes.txt", "text": ["text"], "weight": 1, "licence": "CC0", **fields}


def write_notes(root: Path, lines: int = 60) -> None:
    text = "\n".join(f"Note {n} says that sample {n * 7 % 31} was normal." for n in range(lines))
    (root / "notes.txt").write_text(text, encoding="utf-8")


@given(
    ids=st.lists(st.integers(4, 100), min_size=1, max_size=60).map(tuple),
    share=st.floats(0.05, 0.9),
    mean=st.floats(1, 6),
    seed=st.integers(0, 1000),
)
def test_masking_hides_whole_spans_and_keeps_the_rest_in_order(
    ids: tuple[int, ...], share: float, mean: float, seed: int
) -> None:
    masked = mask_spans(ids, mask_id=MASK, share=share, mean_span=mean, generator=random.Random(seed))
    kept = [token for token in masked if token != MASK]
    hidden = len(ids) - len(kept)
    assert 1 <= hidden <= max(1, round(share * len(ids)))
    assert 1 <= masked.count(MASK) <= hidden
    assert all((a, b) != (MASK, MASK) for a, b in pairwise(masked))
    remaining = iter(ids)
    assert all(token in remaining for token in kept)  # a subsequence


def test_masking_reaches_its_share_on_long_text() -> None:
    generator = random.Random(0)
    masked = mask_spans(tuple(range(1000)), mask_id=MASK, share=0.3, mean_span=3.0, generator=generator)
    assert sum(token != MASK for token in masked) == 700
    assert 70 <= masked.count(MASK) <= 130  # spans of about three tokens


@given(text=st.text(alphabet="ab .!?\n", max_size=200), limit=st.integers(5, 50))
def test_splitting_loses_no_word_and_keeps_the_limit(text: str, limit: int) -> None:
    pieces = split_at_sentences(text, limit)
    assert " ".join(pieces).split() == text.split()
    assert all(len(piece) <= limit or " " not in piece for piece in pieces)


def test_rows_depend_on_seed_and_number_alone(tmp_path: Path) -> None:
    write_notes(tmp_path)
    asked = recipe(tmp_path, [source()])
    tokenizer = tiny_backbone().tokenizer
    first, again, other = (MixtureRows(read_corpus(asked), tokenizer, asked.objective, seed) for seed in (0, 0, 1))
    order = list(range(50))
    random.Random(1).shuffle(order)
    assert {n: first[n] for n in order} == {n: again[n] for n in range(50)}
    assert [first[n] for n in range(50)] != [other[n] for n in range(50)]
    row = first[3]
    assert row.labels is not None and row.labels[-1] == 2 and MASK in row.input_ids
    text = tokenizer.decode(row.input_ids)
    assert text.startswith('<s> what is the complete text of "') and text.endswith('"?</s>')
    assert len(row.input_ids) <= asked.objective.max_source_length
    assert len(row.labels) <= asked.objective.max_target_length


def test_batches_keep_the_token_limit_and_can_be_replayed(tmp_path: Path) -> None:
    write_notes(tmp_path)
    asked = recipe(tmp_path, [source()])
    rows = MixtureRows(read_corpus(asked), tiny_backbone().tokenizer, asked.objective, 0)
    batches = list(MixtureBatches(rows, batch_tokens=256, batch_images=8, batches=300, seed=0))
    assert len(batches) == 300 and batches == list(
        MixtureBatches(rows, batch_tokens=256, batch_images=8, batches=300, seed=0)
    )
    numbers = [number for batch in batches for number in batch]
    assert len(set(numbers)) == len(numbers)
    for batch in batches:
        widths = (max(len(rows[n].input_ids) for n in batch), max(len(rows[n].labels or ()) for n in batch))
        assert len(batch) * sum(widths) <= 256


def test_at_the_end_sources_weigh_otherwise(tmp_path: Path) -> None:
    write_notes(tmp_path)
    facts = {"name": "facts", "embedded": "facts", "weight": 1e-9, "final_weight": 1, "licence": "Apache-2.0"}
    asked = recipe(tmp_path, [source(final_weight=0), facts], training={"final_share": 0.3})
    tokenizer = tiny_backbone().tokenizer
    rows = MixtureRows(read_corpus(asked), tokenizer, asked.objective, 0)
    batches = list(MixtureBatches(rows, batch_tokens=256, batch_images=8, batches=200, seed=0, final=60))
    notes = [{"Note" in tokenizer.decode(rows[number].labels) for number in batch} for batch in batches]
    assert notes[:140] == [{True}] * 140
    assert notes[140:] == [{False}] * 60
    numbers = [number for batch in batches for number in batch]
    assert len(set(numbers)) == len(numbers)


@pytest.mark.parametrize(
    ("fields", "training", "message"),
    [
        ({"final_weight": 2}, {}, "final_weight and training.final_share need each other"),
        ({}, {"final_share": 0.2}, "final_weight and training.final_share need each other"),
        ({"final_weight": 0}, {"final_share": 0.2}, "leaves nothing to read"),
    ],
)
def test_final_weights_that_do_nothing_are_refused(
    tmp_path: Path, fields: dict[str, Any], training: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValidationError, match=message):
        recipe(tmp_path, [source(**fields)], training=training)


def test_validation_texts_are_never_trained_on(tmp_path: Path) -> None:
    write_notes(tmp_path, lines=400)
    (one,) = read_corpus(recipe(tmp_path, [source()], training={"validation_share": 0.2}))
    assert one.held_out_texts and not set(one.held_out_texts) & set(one.texts)
    assert len(one.held_out_texts) + len(one.texts) == 400


def test_the_embedded_facts_are_statements_and_never_questions(tmp_path: Path) -> None:
    facts = {"name": "facts", "embedded": "facts", "weight": 1, "licence": "Apache-2.0"}
    (one,) = read_corpus(recipe(tmp_path, [facts]))
    asked = {
        row["question"] for split in ("train", "validation", "test", "test_unknown") for row in embedded_rows(split)
    }
    assert one.texts and not asked & {*one.texts, *(gapped for gapped, _ in one.questions)}
    filled = {gapped.strip().replace(GAP, answer).lower() for gapped, answer in one.questions}
    assert filled == {text.lower() for text in one.texts} and len(one.questions) == 2 * len(one.texts)


def test_a_gap_in_a_statement_is_the_mask_token(tmp_path: Path) -> None:
    facts = {"name": "facts", "embedded": "facts", "weight": 1, "licence": "Apache-2.0"}
    asked = recipe(tmp_path, [facts], objective={"question_share": 1.0})
    rows = MixtureRows(read_corpus(asked), tiny_backbone().tokenizer, asked.objective, 0)
    assert all(rows[number].input_ids.count(MASK) == 1 for number in range(100))


def test_a_corpus_without_held_out_texts_is_pretrained_without_validation(tmp_path: Path) -> None:
    facts = {"name": "facts", "embedded": "facts", "weight": 1, "licence": "Apache-2.0"}
    tiny = {"name": str(tiny_directory(tmp_path / "tiny")), "init": "pretrained"}
    asked = recipe(tmp_path, [facts], backbone=tiny, training={"steps": 2})
    assert pretrain(asked, progress=Progress(quiet=True)).report["validation_loss"] is None


@pytest.mark.parametrize(
    ("name", "content", "fields"),
    [
        ("a.jsonl", b'{"q": "Why?", "a": "So."}\n', {"prompt": " {q}", "answer": "a", "text": []}),
        ("a.json", b'{"7": {"q": ["Why?"], "a": "So."}}', {"prompt": " {q}", "answer": "a", "text": []}),
        ("a.csv", b'q,a\n"Why?","So."\n', {"prompt": " {q}", "answer": "a", "text": []}),
        ("a.tsv", b"Why?\tSo.\n", {"prompt": " {0}", "answer": "1", "text": []}),
        (
            "a.jsonl.gz",
            gzip.compress(b'{"q": "Why?", "a": "So."}\n', mtime=0),
            {"prompt": " {q}", "answer": "a", "text": []},
        ),
    ],
)
def test_every_format_gives_the_same_question(
    tmp_path: Path, name: str, content: bytes, fields: dict[str, Any]
) -> None:
    (tmp_path / name).write_bytes(content)
    (one,) = read_corpus(recipe(tmp_path, [source(path=name, **fields)]))
    assert (*one.questions, *one.held_out_questions) == ((" Why?", "So."),)


def test_rows_of_an_official_test_set_are_left_out(tmp_path: Path) -> None:
    (tmp_path / "all.json").write_text(json.dumps({str(n): {"text": f"Text {n}."} for n in range(9)}), encoding="utf-8")
    (tmp_path / "test.json").write_text(json.dumps({"3": "yes", "5": "no"}), encoding="utf-8")
    (one,) = read_corpus(recipe(tmp_path, [source(path="all.json", without_ids="test.json")]))
    assert {*one.texts, *one.held_out_texts} == {f"Text {n}." for n in range(9) if n not in (3, 5)}


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (None, b"", r"no such file \(corpus notes\); from the owner"),
        ("notes.txt", b"", "no texts"),
        ("notes.txt", b"\xff\xfe", "cannot be read"),
        ("notes.pdf", b"x", "format '.pdf' is not one of"),
        ("notes.jsonl", b'{"text": "a"}\n{"text": \n', "row 2: not JSON"),
        ("notes.jsonl", b'{"other": "a"}\n', "row 1: no column 'text'"),
        ("notes.jsonl", b'{"text": 7}\n', "row 1: column 'text' is not text"),
        ("notes.jsonl.gz", b"no gzip", "cannot be read"),
    ],
)
def test_a_wrong_file_is_one_clear_line(tmp_path: Path, name: str | None, content: bytes, message: str) -> None:
    if name is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message) as error:
        read_corpus(recipe(tmp_path, [source(path=name or "absent.txt", obtain="from the owner")]))
    assert "\n" not in str(error.value)


def test_what_the_token_limits_cost_is_counted(tmp_path: Path) -> None:
    pairs = [{"q": "word " * 40, "a": "yes"}, {"q": "short", "a": "word " * 40}, {"q": "short too", "a": "no"}]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, pairs)), encoding="utf-8")
    asked = recipe(
        tmp_path,
        [source(path="a.jsonl", text=[], prompt=" {q}", answer="a")],
        objective={"max_source_length": 20, "max_target_length": 10},
        training={"validation_share": 1e-6},
    )
    rows = MixtureRows(read_corpus(asked), tiny_backbone().tokenizer, asked.objective, 0)
    (counts,) = rows.counts
    assert (counts.questions, counts.questions_left_out, counts.answers_cut) == (2, 1, 1)


@pytest.fixture
def tiny_recipe(tmp_path: Path) -> PretrainRecipe:
    """Six steps on the tiny backbone."""
    write_notes(tmp_path)
    directory = tiny_directory(tmp_path / "tiny")
    return recipe(tmp_path, [source()], backbone={"name": str(directory), "init": "pretrained"})


def test_from_texts_to_a_backbone_that_loads(tiny_recipe: PretrainRecipe) -> None:
    # Stored in float32: rounding to bfloat16 would hide what six steps change.
    tiny_recipe = tiny_recipe.model_copy(update={"output": tiny_recipe.output.model_copy(update={"dtype": "float32"})})
    before = load_frozen_backbone(tiny_recipe.backbone)
    outcome = pretrain(tiny_recipe, progress=Progress(quiet=True))
    after = load_frozen_backbone(BackboneSection(name=str(outcome.directory)))
    assert after.fingerprint == outcome.fingerprint != before.fingerprint
    assert after.init == "pretrained" and after.model.config.dropout == 0.1
    old, new = before.model.state_dict(), after.model.state_dict()
    for name, tensor in old.items():
        same = torch.equal(tensor, new[name])
        assert same == name.startswith((*IMAGE_PARAMETERS, *CODE_PARAMETERS)) or "rel_pos_table" in name, name
    report = json.loads((outcome.directory / "pretraining.json").read_text(encoding="utf-8"))
    assert report["fingerprint"] == outcome.fingerprint and report["sources"][0]["licence"] == "CC0"
    assert str(tiny_recipe.data_root) not in json.dumps(report)
    with pytest.raises(UsageError, match="exists"):
        pretrain(tiny_recipe, progress=Progress(quiet=True))


def test_the_encoder_trains_at_its_share_of_the_learning_rate(tiny_recipe: PretrainRecipe) -> None:
    # The first step of Adam moves every tensor by the learning rate, whatever its gradient.
    training = {"steps": 1, "warmup": 0.0, "weight_decay": 0.0, "encoder_learning_rate_factor": 0.1}
    changed = tiny_recipe.model_copy(
        update={
            "training": tiny_recipe.training.model_copy(update=training),
            "output": tiny_recipe.output.model_copy(update={"dtype": "float32"}),
        }
    )
    before = load_frozen_backbone(tiny_recipe.backbone).model.state_dict()
    trained = pretrain(changed, progress=Progress(quiet=True)).directory
    after = load_frozen_backbone(BackboneSection(name=str(trained))).model.state_dict()
    moved = {name: float((after[name] - before[name]).abs().max()) for name in before if name.endswith("fc1.weight")}
    rates = {name: 1e-4 if name.startswith("encoder.") else 1e-3 for name in moved}
    assert moved == pytest.approx(rates, rel=0.02) and len(set(rates.values())) == 2


class _PowerCut(BaseException):
    pass


def test_an_interrupted_run_ends_as_an_uninterrupted_one(
    tiny_recipe: PretrainRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = pretrain(
        tiny_recipe.model_copy(
            update={"output": tiny_recipe.output.model_copy(update={"directory": str(tmp_path / "whole")})}
        ),
        progress=Progress(quiet=True),
    )
    from bmpeft.training.pretraining.trainer import PretrainTrainer

    original = PretrainTrainer.training_step

    def cut(self: Any, *args: Any, **kwargs: Any) -> Any:
        if self.state.global_step == 3:
            raise _PowerCut
        return original(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(PretrainTrainer, "training_step", cut)
        with pytest.raises(_PowerCut):
            pretrain(tiny_recipe, progress=Progress(quiet=True))
    assert not Path(tiny_recipe.output.directory).exists()
    resumed = pretrain(tiny_recipe, progress=Progress(quiet=True), resume=True)
    assert resumed.fingerprint == whole.fingerprint


def test_there_is_nothing_to_go_on_from(tiny_recipe: PretrainRecipe) -> None:
    with pytest.raises(UsageError, match=r"runs/backbone/checkpoints: no checkpoint to resume from"):
        pretrain(tiny_recipe, progress=Progress(quiet=True), resume=True)
