"""What `inspect` shows is what training does: the same rows, the same labels, the same account of what was cut."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from bmpeft.adapters.artifact import load_artifact
from bmpeft.adapters.canary import SOURCE
from bmpeft.backbones.base import EncodedExample
from bmpeft.backbones.biomedgpt.backbone import BiomedGPTBackbone
from bmpeft.datasets import LoadedDataset
from bmpeft.errors import BmpeftError, RecipeError, UsageError
from bmpeft.pretrain_recipe import PretrainRecipe
from bmpeft.progress import Progress
from bmpeft.recipe import Recipe, parse_recipe
from bmpeft.records import Record
from bmpeft.training import inspection
from bmpeft.training.inspection import Inspection, inspect
from bmpeft.training.inspection_view import plain_text, rich_text
from bmpeft.training.run import train
from tests.backbones.tiny import tiny_backbone, tiny_directory
from tests.training.small import question, small_recipe

QUIET = Progress(quiet=True)
IGNORED = -100
ALL = 1000
BACKBONE = tiny_backbone()
WORDS = st.lists(st.sampled_from(["fever", "aorta", "of", "β-blocker", "5 mg", "Crohn's"]), min_size=20, max_size=40)
TEXT = st.text(min_size=1, max_size=40).filter(lambda text: text.strip())


@contextmanager
def dataset_of(records: Sequence[Record]) -> Iterator[None]:
    """Records and the tiny backbone in place of files."""
    loaded = LoadedDataset(
        name="made-up", licence="", synthetic=True, splits={"train": tuple(records)}, split_method="",
        split_digests={}, contamination={}, contamination_counts={},
    )  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(inspection, "read_dataset", lambda data, task: loaded)
        patch.setattr(inspection, "load_frozen_backbone", lambda section: BACKBONE)
        yield


def recipe_for(dataset: str, *overrides: str, max_source_length: int = 128) -> Recipe:
    content = {
        "backbone": {"name": "tiny"},
        "data": {"dataset": dataset, "path": "unused", "max_source_length": max_source_length},
        "output": {"name": "unused"},
    }
    return parse_recipe(content, source="test", overrides=overrides)


def record(number: int = 0, **fields: Any) -> Record:
    common = {"id": f"row-{number}", "task": "question_answering", "split": "train", "group": f"row-{number}"}
    return Record(**{**common, **fields})


def shown(recipe: Recipe | PretrainRecipe, split: str = "train", rows: int = ALL) -> Inspection:
    return inspect(recipe, split=split, rows=rows, progress=QUIET)


def is_rest(kept: str, document: str, end: str, first_word: str) -> bool:
    """Whether `kept` is a document without its end or, where the head was cut, without what follows its first token.

    The first token stays where it holds the prompt's own space as well. A cut inside a character leaves U+FFFD.
    """
    if end == "tail":
        return document.startswith(kept.rstrip("\ufffd"))
    return any(
        first_word.startswith(kept[:i]) and document.endswith(kept[i:].lstrip("\ufffd"))
        for i in range(len(first_word) + 1)
    )


def loss_text(row: inspection.InspectedRow) -> str:
    return BACKBONE.tokenizer.decode([token.id for token in row.target_tokens if token.loss])


# --- the same as training -----------------------------------------------------------------------------------------


def test_rows_and_loss_tokens_are_those_of_the_batches_that_training_runs_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    batches: list[dict[str, Tensor]] = []
    collate = BiomedGPTBackbone.collate

    def noting(self: BiomedGPTBackbone, examples: Sequence[EncodedExample]) -> dict[str, Tensor]:
        batches.append(collate(self, examples))
        return batches[-1]

    recipe = small_recipe(
        tmp_path, "data.train_rows=13", "data.max_source_length=38", "training.max_steps=2", "evaluation.controls=[]"
    )
    with monkeypatch.context() as patch:
        patch.setattr(BiomedGPTBackbone, "collate", noting)
        train(recipe, recipe_name="small", progress=QUIET)

    decode = BACKBONE.tokenizer.decode
    trained = {
        (decode(ids[mask.bool()].tolist()), tuple(labels[labels != IGNORED].tolist()))
        for batch in batches
        if "labels" in batch
        for ids, mask, labels in zip(batch["input_ids"], batch["attention_mask"], batch["labels"], strict=True)
    }
    by_split = {split: shown(recipe, split) for split in ("train", "validation")}
    inspected = {
        (row.source, tuple(token.id for token in row.target_tokens if token.loss))
        for result in by_split.values()
        for row in result.rows
    }
    assert inspected == {row for row in trained if SOURCE not in row[0]}, "all but the canary that is stored with it"
    assert [result.summary.rows for result in by_split.values()] == [13, 6]


def test_a_label_that_the_collator_ignores_is_shown_without_loss(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Supervision is read off the batch: whatever a collator masks some day is shown as masked."""
    collate = BiomedGPTBackbone.collate

    def masking(self: BiomedGPTBackbone, examples: Sequence[EncodedExample]) -> dict[str, Tensor]:
        batch = collate(self, examples)
        batch["labels"][:, 0] = IGNORED
        return batch

    recipe = small_recipe(tmp_path)
    whole = shown(recipe).rows
    monkeypatch.setattr(BiomedGPTBackbone, "collate", masking)
    for before, row in zip(whole, shown(recipe).rows, strict=True):
        assert [token.loss for token in row.target_tokens] == [False] + [True] * (len(before.target_tokens) - 1)
        assert row.target == before.target


def test_what_was_cut_is_the_same_in_inspect_log_adapter_and_score_card(tmp_path: Path) -> None:
    recipe = small_recipe(
        tmp_path, "data.max_source_length=38", "data.train_rows=20", "training.max_steps=1", "evaluation.controls=[]",
        "evaluation.splits=[validation, test]",
    )  # fmt: skip
    outcome = train(recipe, recipe_name="small", progress=QUIET)
    summary = shown(recipe).summary
    assert 0 < summary.rows_cut < summary.rows
    start = json.loads(outcome.log.read_text().splitlines()[0])
    limits = load_artifact(outcome.directory).manifest.limits
    for counted in (start, limits.model_dump()):
        assert counted["rows_cut"] == summary.rows_cut
        assert counted["document_tokens_cut"] == summary.document_tokens_cut
    for result in outcome.score_card.results:
        of_split = shown(recipe, result.split).summary
        assert result.truncation.rows == of_split.rows
        assert result.truncation.rows_cut == of_split.rows_cut
        assert result.truncation.document_tokens_cut == of_split.document_tokens_cut


# --- rows ---------------------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(question=TEXT, choices=st.lists(TEXT, min_size=2, max_size=5), data=st.data())
def test_loss_tokens_spell_the_answer_and_the_end(question: str, choices: list[str], data: st.DataObject) -> None:
    label = data.draw(st.integers(0, len(choices) - 1))
    with dataset_of([record(question=question, choices=tuple(choices), label=label)]):
        (row,) = shown(recipe_for("medqa", "data.max_target_length=256", max_source_length=256)).rows
    answers = [" " + " ".join(choice.split()) for choice in choices]
    assert row.target == loss_text(row) == answers[label] + "</s>"
    assert row.options == tuple(answers)
    assert row.label == label
    asked = f"<s> {' '.join(question.split())} choices: {'; '.join(answer[1:] for answer in answers)}</s>"
    assert row.source == asked or row.document_tokens_cut


@settings(max_examples=60, deadline=None)
@given(text=WORDS, question=WORDS, limit=st.integers(32, 64))
@pytest.mark.parametrize("end", ["head", "tail"])
def test_only_the_document_is_cut_and_from_the_end_that_is_named(
    end: str, text: list[str], question: list[str], limit: int
) -> None:
    """Cut from its beginning is a vignette before its options, from its end an abstract before its question."""
    document = " ".join(text)
    if end == "head":
        made = record(question=document, choices=("yes", "no"), label=0)
        dataset, closing = "medqa", " choices: yes; no"
    else:
        short = " ".join(question[:3])
        made = record(text=document, question=short, choices=("yes", "no"), label=0)
        dataset, closing = "pubmedqa", f" question: {short}"
    with dataset_of([made]):
        (whole,) = shown(recipe_for(dataset, max_source_length=256)).rows
        (row,) = shown(recipe_for(dataset, max_source_length=limit)).rows
    assert row.source.endswith(closing + "</s>")
    kept = row.source.removeprefix("<s>").removesuffix(closing + "</s>").strip()
    if row.document_tokens_cut == 0:
        assert kept == document
        assert row.document_cut is None
        assert row.source_tokens <= limit
        return
    assert row.document_cut == end
    assert row.source_tokens == limit
    assert is_rest(kept, document, end, first_word=text[0])
    assert row.source_tokens + row.document_tokens_cut == whole.source_tokens


def test_a_row_shows_ids_options_and_the_first_rows_of_the_split(tmp_path: Path) -> None:
    result = shown(small_recipe(tmp_path), rows=2)
    assert [row.id for row in result.rows] == ["row-0", "row-1"]
    assert result.rows[1].options == tuple(f" {option}" for option in question(1)["options"].values())
    assert result.rows[1].label == 1
    assert (result.dataset, result.split, result.summary.rows) == ("medqa", "train", 24)


def test_the_summary_is_of_the_whole_split_however_few_rows_are_shown(tmp_path: Path) -> None:
    recipe = small_recipe(tmp_path, "data.max_source_length=38")
    none, everything = shown(recipe, rows=0), shown(recipe)
    assert none.rows == ()
    assert none.summary == everything.summary
    summary, rows = everything.summary, everything.rows
    assert summary.longest_source == max(row.source_tokens for row in rows) == 38
    assert summary.longest_source_before_cutting == max(row.source_tokens + row.document_tokens_cut for row in rows)
    assert summary.longest_target == max(len(row.target_tokens) for row in rows)
    assert (summary.max_source_length, summary.max_target_length) == (38, 16)


# --- errors -------------------------------------------------------------------------------------------------------


def test_an_unknown_split_is_refused_before_the_backbone_is_loaded(tmp_path: Path) -> None:
    recipe = small_recipe(tmp_path, "backbone.name=no-such-backbone")
    with pytest.raises(UsageError, match=r"^medqa has no split 'tset'; did you mean 'test'\?$"):
        shown(recipe, "tset")


def test_a_row_that_training_refuses_is_refused_in_the_same_words() -> None:
    rows = [record(0, question="a?", choices=("x", "y"), label=0), record(1, question="b?", choices=("x", "y"))]
    expected = r"^record 'row-1' of split train: no answer to learn from$"
    with dataset_of(rows), pytest.raises(BmpeftError, match=expected):
        shown(recipe_for("medqa"))


# --- pretraining --------------------------------------------------------------------------------------------------


def pretrain_recipe(directory: Path, **corpus: Any) -> PretrainRecipe:
    (directory / "texts.txt").write_text(
        "".join(f"Sentence {n} is about the kidney and number {n * n}.\n" for n in range(30)), encoding="utf-8"
    )
    source = {"name": "texts", "path": "texts.txt", "text": ["text"], "weight": 1, "licence": "none", **corpus}
    return PretrainRecipe.model_validate(
        {
            "kind": "pretrain",
            "data_root": str(directory),
            "backbone": {"name": str(tiny_directory(directory / "tiny"))},
            "corpus": [source],
            "objective": {"max_source_length": 64, "max_target_length": 48},
            "training": {"steps": 1},
            "output": {"directory": str(directory / "out")},
        }
    )


def test_rows_of_a_mixture_hide_spans_and_supervise_the_whole_text(tmp_path: Path) -> None:
    result = shown(pretrain_recipe(tmp_path), rows=5)
    assert [row.id for row in result.rows] == ["0", "1", "2", "3", "4"]
    for row in result.rows:
        assert re.fullmatch(r'<s> what is the complete text of ".*<mask>.*"\?</s>', row.source)
        assert re.fullmatch(r" Sentence \d+ is about the kidney and number \d+\.</s>", row.target)
        assert loss_text(row) == row.target
        assert row.options is None
    assert result.summary.endless
    assert "of a mixture without end" in plain_text(result)


def test_a_mixture_has_one_split_and_must_not_be_empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match=r"^a pretraining recipe has no split 'test': "):
        shown(pretrain_recipe(tmp_path), "test")
    monkeypatch.setattr(inspection, "read_corpus", lambda recipe: ())
    with pytest.raises(RecipeError, match=r"^corpus: no source has texts, questions or images$"):
        shown(pretrain_recipe(tmp_path))


# --- as text ------------------------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(answer=TEXT)
def test_brackets_mark_exactly_the_tokens_that_carry_loss(answer: str) -> None:
    with dataset_of([record(question="Which?", choices=(answer, "no"), label=0)]):
        result = shown(recipe_for("medqa", "data.max_target_length=256", max_source_length=256))
    text = plain_text(result)
    (line,) = (line for line in text.split("\n") if line.startswith("  target ("))
    marked = re.findall(r'\["((?:[^"\\]|\\.)*)"\]', line)
    assert len(marked) == len(result.rows[0].target_tokens)
    assert marked[-1] == "</s>"
    assert all(character.isprintable() for character in text.replace("\n", ""))


def test_tokens_without_loss_have_no_bracket_and_no_colour(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    collate = BiomedGPTBackbone.collate

    def masking(self: BiomedGPTBackbone, examples: Sequence[EncodedExample]) -> dict[str, Tensor]:
        batch = collate(self, examples)
        batch["labels"][:, 1:] = IGNORED
        return batch

    monkeypatch.setattr(BiomedGPTBackbone, "collate", masking)
    result = shown(small_recipe(tmp_path), rows=1)
    tokens = result.rows[0].target_tokens
    quoted = [f'["{tokens[0].text}"]', *(f'"{token.text}"' for token in tokens[1:])]
    assert f"  target ({len(tokens)} tokens, 1 carry loss: in brackets): {' '.join(quoted)}\n" in plain_text(result)
    coloured = rich_text(result)
    green = [coloured.plain[span.start : span.end] for span in coloured.spans if "green" in str(span.style)]
    assert green == [tokens[0].text]


def test_the_text_names_what_was_cut_and_the_right_option(tmp_path: Path) -> None:
    result = shown(small_recipe(tmp_path, "data.max_source_length=38"))
    text = plain_text(result)
    cut = next(row for row in result.rows if row.document_tokens_cut)
    assert f"  cut: {cut.document_tokens_cut} tokens from the beginning of its document\n" in text
    assert text.count(" (right)") == text.count("\nrow ") == 24
    summary = result.summary
    assert f"  {summary.rows_cut} rows cut, by {summary.document_tokens_cut} document tokens in all\n" in text
    assert f"38 tokens, {summary.longest_source_before_cutting} before cutting (limit 38)\n" in text


def test_a_text_cannot_steer_the_terminal() -> None:
    with dataset_of([record(question="\x1b[2J \x9b31m\u202e?", choices=("\x07", "b"), label=0)]):
        result = shown(recipe_for("medqa"))
    for text in (plain_text(result), rich_text(result).plain):
        assert r"\x1b[2J \x9b31m\u202e?" in text
        assert all(character.isprintable() for character in text.replace("\n", ""))
