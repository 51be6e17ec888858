"""The embedded question set: sound, balanced, split by fact and wording, and the same on every machine."""

from __future__ import annotations

import ast
import math
import os
import re
import subprocess
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bmpeft.datasets import embedded
from bmpeft.datasets.embedded import generate, relations
from bmpeft.datasets.embedded.generate import Fact

Row = dict[str, Any]
Score = Callable[[Row, str], float]  # of the option a letter names
ROOT = Path(__file__).parents[2]
KNOWN_SPLITS = ("train", "validation", "test")
HELD_OUT = ("validation", "test", "test_unknown")
DIGEST = "a70605c99675e241216d001cbe7c28e8a041e0262a6152dfa99f693763c79a27"
BY_ID = {fact.id: fact for fact in embedded.facts()}
BY_NAME = {(fact.relation, fact.subject.lower()): fact for fact in embedded.facts()}


def rows_of(splits: Iterable[str]) -> list[Row]:
    return [row for split in splits for row in embedded.rows(split)]


def asked_forward(row: Row) -> bool:
    return ".forward." in row["wording"]


def names_together(text: str, fact: Fact) -> bool:
    """Whether ``text`` holds subject and object of ``fact`` as whole words."""
    names = (fact.subject.lower(), fact.object.lower())
    lowered = text.lower()
    return all(name in lowered and re.search(rf"(?<!\w){re.escape(name)}(?!\w)", lowered) for name in names)


# --- counts -------------------------------------------------------------------------------------------------


def test_there_are_enough_facts_relations_and_questions() -> None:
    facts = embedded.facts()
    unknown = [fact for fact in facts if not fact.known]
    assert len(facts) >= 450
    assert len({fact.relation for fact in facts}) >= 14
    assert len(unknown) >= 50
    assert 0.08 < len(unknown) / len(facts) < 0.15
    assert len(rows_of(embedded.SPLITS)) >= 3000
    assert {fact.relation for fact in facts} == {relation.name for relation in relations.RELATIONS}


def test_every_fact_is_asked_as_often_as_its_split_says() -> None:
    for split, times in {"train": 7, "validation": 1, "test": 2, "test_unknown": 2}.items():
        asked = Counter(row["fact"] for row in embedded.rows(split))
        known = split != "test_unknown"
        assert asked == {fact.id: times for fact in embedded.facts() if fact.known == known}
        per_wording = Counter((row["fact"], row["wording"]) for row in embedded.rows(split))
        assert set(per_wording.values()) == {1}


def test_every_relation_has_enough_wordings() -> None:
    for relation in relations.RELATIONS:
        assert len(relations.wordings(relation.name, "train", "forward")) >= 5
        assert len(relations.wordings(relation.name, "train", "reverse")) >= 2
        assert 1 <= len(relations.wordings(relation.name, "validation")) <= 2
        assert 2 <= len(relations.wordings(relation.name, "test")) <= 3
        for direction in relations.DIRECTIONS:
            assert len(relations.wordings(relation.name, "statement", direction)) >= 3


# --- every row is sound -------------------------------------------------------------------------------------


@pytest.mark.parametrize("split", embedded.SPLITS)
def test_rows_are_well_formed(split: str) -> None:
    rows = embedded.rows(split)
    assert len({row["id"] for row in rows}) == len(rows)
    for number, row in enumerate(rows):
        assert list(row["options"]) == ["A", "B", "C", "D"]
        assert len({option.lower() for option in row["options"].values()}) == 4
        assert row["answer"] == row["options"][row["answer_idx"]]
        assert row["id"] == f"embedded-{split}-{number:06d}"
        assert row["meta_info"] == "synthetic"
        assert row["relation"] == BY_ID[row["fact"]].relation


@pytest.mark.parametrize("split", embedded.SPLITS)
def test_exactly_one_option_is_right(split: str) -> None:
    for row in embedded.rows(split):
        fact = BY_ID[row["fact"]]
        wrong = [option.lower() for letter, option in row["options"].items() if letter != row["answer_idx"]]
        if asked_forward(row):
            assert row["answer"].lower() == fact.object.lower()
            assert not {name.lower() for name in (fact.object, *fact.also)} & set(wrong)
            continue
        assert row["answer"].lower() == fact.subject.lower()
        for subject in wrong:
            other = BY_NAME[fact.relation, subject]
            assert fact.object not in (other.object, *other.also)


def test_wrong_options_are_answers_of_the_same_kind() -> None:
    names: dict[tuple[str, str, bool], set[str]] = defaultdict(set)
    for fact in embedded.facts():
        names[fact.relation, fact.kind, True].add(fact.object.lower())
        names[fact.relation, fact.kind, False].add(fact.subject.lower())
    for row in rows_of(embedded.SPLITS):
        fact = BY_ID[row["fact"]]
        pool = names[fact.relation, fact.kind, asked_forward(row)]
        assert {option.lower() for option in row["options"].values()} <= pool


def test_every_further_object_is_an_object_of_the_relation() -> None:
    # One that is not would be a typing error, and the option it was meant to rule out would get through.
    for fact in embedded.facts():
        objects = {other.object for other in embedded.facts() if other.relation == fact.relation}
        assert set(fact.also) <= objects - {fact.object}


def test_callers_cannot_change_what_others_get() -> None:
    embedded.rows("test")[0]["options"]["A"] = "changed"
    assert embedded.rows("test")[0]["options"]["A"] != "changed"


# --- the splits are apart -----------------------------------------------------------------------------------


def test_no_question_text_is_shared_between_splits() -> None:
    texts = {split: {row["question"] for row in embedded.rows(split)} for split in embedded.SPLITS}
    for one in embedded.SPLITS:
        for other in embedded.SPLITS:
            assert one == other or not texts[one] & texts[other]


def test_wordings_are_disjoint() -> None:
    used = {split: {row["wording"] for row in embedded.rows(split)} for split in KNOWN_SPLITS}
    assert not used["train"] & used["validation"]
    assert not used["train"] & used["test"]
    assert not used["validation"] & used["test"]
    templates = [(wording.relation, wording.text) for wording in relations._all_wordings()]
    assert len(set(templates)) == len(templates)


def test_wordings_of_one_relation_differ_in_more_than_a_word_or_two() -> None:
    for relation in relations.RELATIONS:
        seen = [w for use in KNOWN_SPLITS for w in relations.wordings(relation.name, use)]
        bags = {w.id: frozenset(re.findall(r"[a-z]+", w.text.lower())) for w in seen}
        for one in seen:
            for other in seen:
                if one.use != other.use:
                    shared = len(bags[one.id] & bags[other.id]) / len(bags[one.id] | bags[other.id])
                    assert shared < 0.6, (one, other)


def test_known_and_unknown_facts_are_disjoint() -> None:
    facts = embedded.facts()
    assert len(BY_ID) == len(facts)
    assert len({frozenset((fact.subject, fact.object)) for fact in facts}) == len(facts)
    unknown = {fact.id for fact in facts if not fact.known}
    assert {row["fact"] for row in embedded.rows("test_unknown")} == unknown
    assert not {row["fact"] for row in rows_of(KNOWN_SPLITS)} & unknown


def test_most_unknown_answers_are_answers_of_known_facts_too() -> None:
    heard = {(fact.relation, fact.object) for fact in embedded.facts() if fact.known}
    unknown = [fact for fact in embedded.facts() if not fact.known]
    assert sum((fact.relation, fact.object) in heard for fact in unknown) >= 0.7 * len(unknown)


def test_nothing_taught_gives_an_unknown_fact_away() -> None:
    taught = embedded.statements() + [f"{row['question']} {row['answer']}" for row in rows_of(KNOWN_SPLITS)]
    for fact in embedded.facts():
        if not fact.known:
            assert not [text for text in taught if names_together(text, fact)], fact


# --- the options alone say nothing --------------------------------------------------------------------------


@pytest.mark.parametrize("split", embedded.SPLITS)
def test_letters_are_balanced(split: str) -> None:
    counts = Counter(row["answer_idx"] for row in embedded.rows(split))
    assert max(counts.values()) - min(counts[letter] for letter in "ABCD") <= 1


@pytest.mark.parametrize("split", embedded.SPLITS)
def test_each_option_set_of_a_wording_has_each_of_its_options_right_equally_often(split: str) -> None:
    right: dict[tuple[str, frozenset[str]], Counter[str]] = defaultdict(Counter)
    for row in embedded.rows(split):
        right[row["wording"], frozenset(row["options"].values())][row["answer"]] += 1
    for (_, options), counts in right.items():
        assert set(counts) == options
        assert len(set(counts.values())) == 1


def option(row: Row, letter: str) -> str:
    return str(row["options"][letter])


def rates(key: Callable[[Row, str], Iterable[object]], *, as_count: bool = False) -> Score:
    """Score an option by how often its features were right in train (smoothed share, or plain count)."""
    seen: Counter[object] = Counter()
    right: Counter[object] = Counter()
    for row in embedded.rows("train"):
        for letter in row["options"]:
            features = list(key(row, letter))
            seen.update(features)
            right.update(features if letter == row["answer_idx"] else [])

    def score(row: Row, letter: str) -> float:
        values = [right[f] if as_count else (right[f] + 1) / (seen[f] + 4) for f in key(row, letter)]
        return sum(values) / len(values)

    return score


def words(row: Row, letter: str) -> list[str]:
    return option(row, letter).lower().split()


GUESSERS: dict[str, Callable[[], Score]] = {
    "share right per option": lambda: rates(lambda row, letter: [option(row, letter)]),
    "times right per option": lambda: rates(lambda row, letter: [option(row, letter)], as_count=True),
    "share right per word": lambda: rates(words),
    "times right per word": lambda: rates(words, as_count=True),
    "share right per letter": lambda: rates(lambda row, letter: [letter]),
    "share right per option and letter": lambda: rates(lambda row, letter: [(option(row, letter), letter)]),
    "longest option": lambda: lambda row, letter: len(option(row, letter)),
    "shortest option": lambda: lambda row, letter: -len(option(row, letter)),
    "most words": lambda: lambda row, letter: len(words(row, letter)),
    "first in the alphabet": lambda: lambda row, letter: -ord(option(row, letter)[0]),
}


def accuracy(score: Score, rows: list[Row]) -> float:
    """The share of ``rows`` whose best-scored option is right; equal scores are settled by the text."""

    def pick(row: Row) -> str:
        return max("ABCD", key=lambda letter: (score(row, letter), option(row, letter)))

    return sum(bool(row["answer_idx"] == pick(row)) for row in rows) / len(rows)


@pytest.mark.parametrize("name", GUESSERS)
def test_guessing_from_the_options_alone_stays_at_chance(name: str) -> None:
    score = GUESSERS[name]()
    for split in HELD_OUT:
        rows = embedded.rows(split)
        bound = 2.576 * math.sqrt(0.25 * 0.75 / len(rows)) + 0.02
        assert abs(accuracy(score, rows) - 0.25) <= bound, split


# --- the language -------------------------------------------------------------------------------------------

VOWEL_SOUND = re.compile(r"(?!university)[aeiou]|[AEIO]|H2|SGLT2|8|11-|18-")


def check_grammar(text: str) -> None:
    assert not re.search(r"[{}\t\n]|  | [.,;:?]|[.,;:?]{2}|^ | $", text), text
    assert text.isascii(), text
    assert text[0].isupper(), text
    assert not re.search(r"\b(?!loa\b)(\w+) \1\b", text, re.IGNORECASE), text
    for found, following in re.findall(r"(?:^A|(?<=[.?] )A|\ba)(n?) (\S+)", text):
        assert bool(found) == bool(VOWEL_SOUND.match(following)), text


def test_questions_read_well() -> None:
    for row in rows_of(embedded.SPLITS):
        check_grammar(row["question"])
        assert row["question"][-1] in "?:"
        for text in row["options"].values():
            assert text == text.strip()
            assert text[0].isupper() or text[1].isupper()
            assert 1 <= len(text.split()) <= 6


def test_statements_read_well_and_say_their_fact() -> None:
    known = [fact for fact in embedded.facts() if fact.known]
    texts = embedded.statements()
    assert len(set(texts)) == len(texts)
    for number, text in enumerate(texts):
        check_grammar(text)
        assert text.endswith(".")
        assert names_together(text, known[number // 6])


def test_statements_hold_unknown_facts_only_when_asked_and_never_a_question() -> None:
    assert len(embedded.statements()) == 6 * sum(fact.known for fact in embedded.facts())
    assert len(embedded.statements(known_only=False)) == 6 * len(embedded.facts())
    questions = {row["question"] for row in rows_of(embedded.SPLITS)}
    assert not questions & set(embedded.statements(known_only=False))
    assert not [text for text in embedded.statements(known_only=False) if "?" in text]


@pytest.mark.parametrize(
    ("noun", "article"),
    [
        ("ACE inhibitor", "an"),
        ("SGLT2 inhibitor", "an"),
        ("H2 receptor antagonist", "an"),
        ("DPP-4 inhibitor", "a"),
        ("beta blocker", "a"),
        ("Ixodes tick", "an"),
        ("8-year-old", "an"),
        ("18-year-old", "an"),
        ("81-year-old", "an"),
        ("19-year-old", "a"),
        ("78-year-old", "a"),
    ],
)
def test_articles(noun: str, article: str) -> None:
    assert relations.article(noun) == article


def test_names_with_an_inner_capital_stay_as_they_are() -> None:
    assert relations.capitalized("mTOR") == "mTOR"
    assert relations.capitalized("anti-Smith") == "Anti-Smith"


NAMES = st.text(st.characters(categories=("Ll", "Lu")), min_size=1, max_size=12)


@given(NAMES, NAMES)
def test_rendering_puts_both_names_in(subject: str, thing: str) -> None:
    assert relations.render("{s} and {o}", subject, thing) == f"{subject} and {thing}"
    assert relations.render("x {an o}", subject, thing).endswith(f" {thing}")


@pytest.mark.parametrize("text", ["{x}", "{}", "{the o}", "{an big o}", "{person}"])
def test_unknown_placeholders_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="cannot be filled in"):
        relations.render(text, "subject", "object")


# --- dealing and determinism --------------------------------------------------------------------------------


@given(st.lists(st.integers(1, 4), min_size=4, max_size=20), st.integers(0, 10**6))
def test_any_pool_that_can_be_dealt_is_dealt_into_blocks_of_four_answers(sizes: list[int], seed: int) -> None:
    names = [f"object {index}" for index, size in enumerate(sizes) for _ in range(size)]
    names = names[: len(names) // 4 * 4]
    pool = [Fact("r", f"subject {number}", name, (), True) for number, name in enumerate(names)]
    if max(Counter(names).values()) * 4 > len(names):
        return
    blocks = generate._deal(pool, generate._rng(str(seed)))
    assert sorted(fact.id for block in blocks for fact in block) == sorted(fact.id for fact in pool)
    assert all(len({fact.object for fact in block}) == 4 for block in blocks)


def test_an_impossible_pool_is_refused_by_name() -> None:
    pool = [Fact("r", f"subject {number}", f"object {number % 2}", (), True, "k") for number in range(4)]
    with pytest.raises(ValueError, match="r/k has no partition"):
        generate._deal(pool, generate._rng("seed"))
    with pytest.raises(ValueError, match="'object 0' is the answer of over a quarter of the pool r/k"):
        generate._check_pool(pool)
    with pytest.raises(ValueError, match="r/k holds 3 facts"):
        generate._check_pool(pool[:3])


@given(st.text(max_size=20))
def test_other_splits_are_refused_with_the_valid_names(split: str) -> None:
    if split not in embedded.SPLITS:
        with pytest.raises(ValueError, match="train, validation, test, test_unknown"):
            embedded.rows(split)


def test_rows_are_the_same_on_every_machine() -> None:
    # The constant pins the published set. Change it only together with the facts or the wordings.
    assert embedded.digest() == DIGEST


@pytest.mark.parametrize("hash_seed", ["0", "4242"])
def test_rows_do_not_depend_on_the_hash_seed(hash_seed: str) -> None:
    code = "from bmpeft.datasets import embedded; print(embedded.digest())"
    environment = {**os.environ, "PYTHONHASHSEED": hash_seed, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == embedded.digest()


def test_only_the_standard_library_is_imported() -> None:
    for path in Path(embedded.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom):
                imported = [node.module or ""]
            else:
                imported = [name.name for name in node.names] if isinstance(node, ast.Import) else []
            for name in imported:
                own = name.startswith("bmpeft.datasets.embedded")
                assert own or name.split(".")[0] in sys.stdlib_module_names
