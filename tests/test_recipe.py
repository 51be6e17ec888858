"""The recipe schema: what it accepts survives a round trip, what it refuses is told in one helpful line."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from bmpeft.errors import RecipeError, UsageError
from bmpeft.pretrain_recipe import load_any_recipe
from bmpeft.recipe import Recipe, load_recipe, match_splits, parse_recipe
from bmpeft.recipe_adaptation import LORA_TARGETS, FullSection, LoraSection
from bmpeft.recipe_store import shipped_names, shipped_recipe

MINIMAL: dict[str, Any] = {
    "backbone": {"name": "biomedgpt-nano", "init": "random"},
    "data": {"dataset": "medqa", "path": "embedded"},
    "output": {"name": "test"},
}

METHODS = "'candidates', 'beam', 'sample', 'trie', 'mixed'"


@pytest.fixture
def recipe_file(tmp_path: Path) -> Path:
    path = tmp_path / "my.yaml"
    path.write_text(yaml.safe_dump(MINIMAL), encoding="utf-8")
    return path


def refusal(content: dict[str, Any], *overrides: str) -> str:
    """The message with which a recipe is refused; always one line that starts with the file's name."""
    with pytest.raises(RecipeError) as caught:
        parse_recipe(content, source="my.yaml", overrides=overrides)
    message = str(caught.value)
    assert "\n" not in message
    return message


# --- what is accepted ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", shipped_names())
def test_shipped_recipes_are_valid_and_introduce_themselves(name: str) -> None:
    shipped = shipped_recipe(name)
    assert shipped.recipe.description
    assert "Data:" in shipped.header
    assert "licence" in shipped.header or "synthetic" in shipped.header


def test_a_recipe_cannot_be_changed_after_reading() -> None:
    recipe = parse_recipe(MINIMAL, source="my.yaml")
    with pytest.raises(ValidationError):
        recipe.training.seed = 3  # type: ignore[misc]


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("training.learning_rate=1e-3", 0.001),
        ("training.learning_rate=0.002", 0.002),
        ("training.max_steps=7", 7),
        ("training.max_steps=null", None),
        ("adaptation.rslora=false", False),
        ("adaptation.method=lora", "lora"),
        ("adaptation.target_modules=[q_proj, v_proj]", ("q_proj", "v_proj")),
        ("evaluation.splits=[test]", ("test",)),
        ("data.split.validation=0.25", 0.25),
        ("data.path=some dir/with=equals.jsonl", "some dir/with=equals.jsonl"),
        ("output.name=007", "007"),
        ("output.name=1e3", "1e3"),
        ("task.prompt={question} [a: b]", "{question} [a: b]"),
        ("task.prompt=null", None),
        ("task.prompt= {question}", " {question}"),
    ],
)
def test_overrides_reach_their_key_with_the_type_of_the_schema(override: str, value: object) -> None:
    here: Any = parse_recipe(MINIMAL, source="my.yaml", overrides=[override])
    for key in override.partition("=")[0].split("."):
        here = getattr(here, key)
    assert here == value
    assert type(here) is type(value)


def test_a_later_override_wins_and_the_content_is_not_changed() -> None:
    before = yaml.safe_dump(MINIMAL)
    recipe = parse_recipe(MINIMAL, source="my.yaml", overrides=["training.seed=1", "training.seed=2"])
    assert recipe.training.seed == 2
    assert yaml.safe_dump(MINIMAL) == before


def test_number_written_without_a_dot_is_a_number_in_the_file_too(recipe_file: Path) -> None:
    recipe_file.write_text(recipe_file.read_text() + "training: {learning_rate: 1e-4}\n", encoding="utf-8")
    assert load_recipe(recipe_file).training.learning_rate == 1e-4


# --- round trip ---------------------------------------------------------------------------------------------------


def optional(**strategies: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries({}, optional=strategies)


def numbers(low: float, high: float, **options: bool) -> st.SearchStrategy[float]:
    return st.floats(low, high, allow_nan=False, allow_infinity=False, **options)


TEXT = st.text(st.characters(codec="utf-8", exclude_categories=["Cs", "Cc"]), max_size=30)
SEED = st.integers(0, 2**31)
DECODINGS = st.one_of(
    st.fixed_dictionaries(
        {"method": st.just("candidates")}, optional={"normalization": st.sampled_from(["sum", "length"])}
    ),
    st.fixed_dictionaries(
        {"method": st.just("beam")}, optional={"num_beams": st.integers(1, 64), "length_penalty": numbers(-2, 2)}
    ),
    st.fixed_dictionaries(
        {"method": st.just("sample")},
        optional={
            "temperature": numbers(0, 10, exclude_min=True),
            "top_p": numbers(0, 1, exclude_min=True),
            "seed": SEED,
        },
    ),
)


@st.composite
def recipe_contents(draw: st.DrawFn) -> dict[str, Any]:
    """Any valid recipe, as the mapping that a YAML file holds."""
    decoding = draw(DECODINGS)
    closed = decoding["method"] == "candidates"
    controls = ["majority", "frozen_backbone", *(["options_only"] if closed else [])]
    dataset = draw(st.sampled_from(["medqa", "medmcqa", "pubmedqa"]))
    data = {"dataset": dataset, "path": draw(TEXT.filter(lambda path: path != "embedded"))}
    if dataset == "medmcqa":
        data["cop_base"] = draw(st.sampled_from([0, 1]))
    return {
        "description": draw(TEXT),
        "backbone": {
            "name": draw(TEXT),
            **draw(
                optional(
                    init_seed=SEED, tokenizer=TEXT | st.none(), attention=st.sampled_from(["auto", "eager", "sdpa"])
                )
            ),
        },
        "adaptation": draw(
            optional(
                rank=st.integers(1, 1024),
                alpha=numbers(0, 1e6, exclude_min=True),
                dropout=numbers(0, 1, exclude_max=True),
                rslora=st.booleans(),
                target_modules=st.lists(st.sampled_from(LORA_TARGETS), min_size=1, unique=True),
            )
        ),
        "task": {"decoding": decoding, **draw(optional(prompt=TEXT | st.none()))},
        "data": {
            **data,
            **draw(
                optional(
                    split=optional(validation=numbers(0, 0.4), test=numbers(0, 0.5), seed=SEED),
                    max_source_length=st.integers(8, 1024),
                    train_rows=st.integers(1, 10**6) | st.none(),
                )
            ),
        },
        "training": draw(
            optional(
                learning_rate=numbers(0, 1, exclude_min=True),
                epochs=numbers(0, 10_000, exclude_min=True),
                seed=SEED,
                warmup=numbers(0, 1, exclude_max=True),
                tensorboard=st.booleans(),
            )
        ),
        "evaluation": {
            "controls": draw(st.lists(st.sampled_from(controls), unique=True)),
            **draw(optional(splits=st.lists(TEXT, min_size=1), limit=st.integers(1, 10**6) | st.none())),
        },
        "output": {
            "name": draw(st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", fullmatch=True)),
            **draw(optional(overwrite=st.booleans(), directory=TEXT)),
        },
    }


@settings(deadline=None)
@given(recipe_contents())
def test_any_valid_recipe_survives_yaml_and_keeps_its_digest(content: dict[str, Any]) -> None:
    recipe = parse_recipe(content, source="my.yaml")
    for dumped in (
        yaml.safe_dump(recipe.model_dump(mode="json")),
        yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, default_flow_style=True),
    ):
        again = parse_recipe(yaml.safe_load(dumped), source="my.yaml")
        assert again == recipe
        assert again.digest() == recipe.digest()


@given(recipe_contents(), st.data())
def test_an_unknown_key_is_refused_in_every_section(content: dict[str, Any], data: st.DataObject) -> None:
    sections = {
        "": content,
        **{f"{name}.": value for name, value in content.items() if isinstance(value, dict)},
        "task.decoding.": content["task"]["decoding"],
    }
    prefix = data.draw(st.sampled_from(sorted(sections)))
    sections[prefix]["no_such_key"] = 1
    assert f"my.yaml: unknown key '{prefix}no_such_key'" in refusal(content)


@settings(deadline=None)
@given(recipe_contents())
def test_the_stored_form_names_no_directory(content: dict[str, Any]) -> None:
    recipe = parse_recipe(content, source="my.yaml", overrides=["data.path=/home/someone/rows.jsonl"])
    stored = recipe.portable()
    assert stored["data"]["path"] == "rows.jsonl"
    assert "/home/someone" not in str(stored)
    assert Recipe.model_validate(stored).training == recipe.training


def test_the_digest_depends_on_every_value() -> None:
    overrides = ["training.seed=1", "data.max_source_length=64", "adaptation.dropout=0.1", "output.name=other"]
    digests = {
        parse_recipe(MINIMAL, source="my.yaml", overrides=some).digest() for some in ([], *([one] for one in overrides))
    }
    assert len(digests) == len(overrides) + 1


# --- what is refused, and how -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("training.lerning_rate=1", "my.yaml: unknown key 'training.lerning_rate'; did you mean 'learning_rate'?"),
        ("learning_rate=1", "my.yaml: unknown key 'learning_rate'; did you mean 'training.learning_rate'?"),
        ("trainin.seed=1", "my.yaml: unknown key 'trainin'; did you mean 'training'?"),
        ("data.split.sed=1", "my.yaml: unknown key 'data.split.sed'; did you mean 'seed'?"),
        (
            "adaptation.qqq=1",
            "my.yaml: unknown key 'adaptation.qqq'; valid: alpha, dropout, method, rank, rslora, target_modules",
        ),
        (
            "adaptation={method: fulll}",
            "my.yaml: adaptation.method: 'fulll' is not one of 'lora', 'full'; did you mean 'full'?",
        ),
        (
            "adaptation={method: full, rank: 4}",
            "my.yaml: unknown key 'adaptation.rank': a key of method 'lora' only",
        ),
        (
            "adaptation={method: full}",
            "my.yaml: training.learning_rate: adaptation.method=full needs one, such as 1e-4; the default, 0.001, is "
            "for adapters that start without an effect",
        ),
        ("adaptation=full", "my.yaml: adaptation: expected a section (keys with values), got 'full'"),
        ("training.learning_rate=2", "my.yaml: training.learning_rate: 2 is out of range: must be > 0.0 and <= 1.0"),
        ("adaptation.rank=0", "my.yaml: adaptation.rank: 0 is out of range: must be >= 1 and <= 1024"),
        ("training.batch_size=-3", "my.yaml: training.batch_size: -3 is out of range: must be >= 1"),
        ("data.split.test=1.5", "my.yaml: data.split.test: 1.5 is out of range: must be >= 0.0 and < 1.0"),
        ("training.max_grad_norm=.inf", "my.yaml: training.max_grad_norm: expected a finite number, got inf"),
        ("training.seed=abc", "my.yaml: training.seed: expected a whole number, got 'abc'"),
        ("training.seed=1.5", "my.yaml: training.seed: expected a whole number, got 1.5"),
        ("training.epochs=abc", "my.yaml: training.epochs: expected a number, got 'abc'"),
        ("training.tensorboard=maybe", "my.yaml: training.tensorboard: expected true or false, got 'maybe'"),
        ("training=3", "my.yaml: training: expected a section (keys with values), got 3"),
        ("evaluation.splits=test", "my.yaml: evaluation.splits: expected a list, such as [first, second], got 'test'"),
        ("evaluation.splits=[]", "my.yaml: evaluation.splits: expected at least 1 value(s), got []"),
        (
            "evaluation.controls=[majorty]",
            "my.yaml: evaluation.controls[1]: 'majorty' is not one of 'majority', 'best_constant', 'lead_sentence', "
            "'options_only', 'question_only', 'shuffled_images', 'classic' or 'frozen_backbone'; "
            "did you mean 'majority'?",
        ),
        ("adaptation.target_modules=[q_proj, q_proj]", "my.yaml: adaptation.target_modules: each module at most once"),
        (
            "training.schedule=cosin",
            "my.yaml: training.schedule: 'cosin' is not one of 'linear', 'cosine', 'polynomial' or 'constant'; "
            "did you mean 'cosine'?",
        ),
        ("output.name=a/b", "my.yaml: output.name: 'a/b' does not fit: of the adapter: letters, digits, . _ -"),
        (
            "task.decoding.num_beams=3",
            "my.yaml: task.decoding: needs `method`, one of 'candidates', 'beam', 'sample', 'trie', 'mixed'",
        ),
        (
            "task.decoding.method=baem",
            f"my.yaml: task.decoding.method: 'baem' is not one of {METHODS}; did you mean 'beam'?",
        ),
        (
            "task.decoding={method: beam, num_beam: 3}",
            "my.yaml: unknown key 'task.decoding.num_beam'; did you mean 'num_beams'?",
        ),
        (
            "task.decoding={method: beam, num_beams: 99}",
            "my.yaml: task.decoding.num_beams: 99 is out of range: must be >= 1 and <= 64",
        ),
        ("version=2", "my.yaml: version: 2 is not one of 1"),
    ],
)
def test_a_wrong_value_is_told_with_file_key_and_what_is_valid(override: str, message: str) -> None:
    assert refusal(MINIMAL, override) == message


@pytest.mark.parametrize("override", ["training.seed", "=3", "training..seed=3", ".=1", ""])
def test_an_override_without_a_key_or_value_is_refused(override: str) -> None:
    assert refusal_of_form(override) == f"{override!r}: an override has the form section.key=value"


@pytest.mark.parametrize("override", ["output.name.x=1", "training.seed=[1"])
def test_an_override_that_fits_no_section_names_itself(override: str) -> None:
    assert refusal_of_form(override).startswith(repr(override))


def refusal_of_form(override: str) -> str:
    with pytest.raises(RecipeError) as caught:
        parse_recipe(MINIMAL, source="my.yaml", overrides=[override])
    return str(caught.value)


def test_a_missing_section_and_more_problems_are_counted() -> None:
    assert refusal({}) == "my.yaml: backbone: required, but not there (and 2 more)"


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["training.select_by=accuracy", "task.decoding={method: beam}"], "task.decoding.method=candidates"),
        (
            ["task.decoding={method: sample}", "evaluation.controls=[options_only]"],
            "options_only needs task.decoding.method=candidates",
        ),
        (["data.dataset=medmcqa", "data.path=x"], "data.cop_base: medmcqa needs 0"),
        (["data.cop_base=1"], "option of medmcqa, not of medqa"),
        (["data.dataset=pubmedqa"], "data.path=embedded exists for dataset medqa"),
        (["backbone.name=./dir"], "backbone.init=random needs a size name"),
        (["data.split.validation=0.6", "data.split.test=0.5"], "must leave something to train on"),
        (["data.max_source_length=4096"], "data.max_source_length=4096 needs backbone.max_positions=4096"),
        (["data.max_target_length=2000", "backbone.max_positions=1999"], "there are positions for 1999"),
        (
            ["task.decoding={method: sample, max_new_tokens: 1025}", "evaluation.controls=[]"],
            "task.decoding.max_new_tokens=1025 needs backbone.max_positions=1025",
        ),
    ],
)
def test_combinations_that_cannot_work_are_refused(overrides: list[str], words: str) -> None:
    assert words in refusal(MINIMAL, *overrides)


def test_long_inputs_need_and_may_use_more_positions() -> None:
    overrides = ["backbone.max_positions=4096", "data.max_source_length=4096", "data.max_target_length=1025"]
    assert parse_recipe(MINIMAL, source="my.yaml", overrides=overrides).backbone.max_positions == 4096


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "expected sections with keys and values"),
        ("- 1\n- 2\n", "expected sections with keys and values"),
        ("a: [1\nb: 2\n", "line 2: cannot be read as YAML"),
        ("data: {}\nbackbone: {}\ndata: {}\n", "line 3: cannot be read as YAML: key 'data' appears twice"),
        ("data: {path: a,\n path: b}\n", "line 2: cannot be read as YAML: key 'path' appears twice"),
        ("x: !!python/object/apply:os.getcwd []\n", "line 1: cannot be read as YAML"),
    ],
)
def test_a_file_that_is_no_recipe_is_refused_with_its_line(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "broken.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(RecipeError) as caught:
        load_recipe(path)
    assert str(caught.value).startswith(str(path))
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    for path in (tmp_path / "missing.yaml", tmp_path, tmp_path / "binary.yaml"):
        with pytest.raises(RecipeError, match=path.name):
            load_recipe(path)


def test_a_problem_in_a_list_names_the_item(tmp_path: Path) -> None:
    text = shipped_recipe("pretrain").path.read_text(encoding="utf-8")
    path = tmp_path / "mine.yaml"
    path.write_text(text.replace("weight: 60", "weight: -60"), encoding="utf-8")
    with pytest.raises(RecipeError, match=r"corpus\[1\]\.weight: -60 is out of range: must be > 0\.0$"):
        load_any_recipe(path)
    path.write_text(text.replace("obtain: PubMedQA", "obtained: PubMedQA"), encoding="utf-8")
    with pytest.raises(RecipeError, match=r"unknown key 'corpus\[6\]\.obtained'; did you mean 'obtain'\?$"):
        load_any_recipe(path)


def test_the_kind_of_a_recipe_decides_what_it_is_for(tmp_path: Path) -> None:
    pretrain = shipped_recipe("pretrain").path
    with pytest.raises(RecipeError, match=r"is no recipe for an adapter \(kind 'pretrain'\)$"):
        load_recipe(pretrain)
    path = tmp_path / "mine.yaml"
    path.write_text(pretrain.read_text(encoding="utf-8").replace("kind: pretrain", "kind: pretrian"), encoding="utf-8")
    with pytest.raises(RecipeError, match="kind: 'pretrian' is not one of 'pretrain'; did you mean 'pretrain'"):
        load_any_recipe(path)


# --- splits -------------------------------------------------------------------------------------------------------


def test_split_patterns_choose_every_match_once_in_order() -> None:
    available = ["train", "validation", "test", "test_unknown"]
    assert match_splits(["test*"], available) == ("test", "test_unknown")
    assert match_splits(["test*"], ["train", "test"]) == ("test",)
    assert match_splits(["validation", "test_unknown", "test*"], available) == ("validation", "test_unknown", "test")


def test_a_split_pattern_without_a_match_is_refused() -> None:
    with pytest.raises(UsageError, match=r"no split matches 'tset'; did you mean 'test'\?"):
        match_splits(["test", "tset"], ["train", "test"])


def test_a_setting_that_came_later_does_not_rename_recipes_that_leave_it_alone() -> None:
    """The digest of a recipe before there was augmentation: committed results and checkpoints name it."""
    content = parse_recipe(MINIMAL, source="my.yaml").model_dump(mode="json")
    del content["training"]["augmentation"], content["data"]["balance_labels"]
    before = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    assert parse_recipe(MINIMAL, source="my.yaml").digest() == before
    named = parse_recipe(MINIMAL, source="my.yaml", overrides=["training.augmentation={}"])
    assert named.digest() != before


def test_lora_is_the_method_where_none_is_named_and_no_digest_knows_the_difference() -> None:
    named = parse_recipe({**MINIMAL, "adaptation": {"method": "lora", "rank": 4}}, source="my.yaml")
    unnamed = parse_recipe({**MINIMAL, "adaptation": {"rank": 4}}, source="my.yaml")
    assert named == unnamed
    assert named.digest() == unnamed.digest()
    assert parse_recipe(MINIMAL, source="my.yaml").adaptation == LoraSection()


def test_full_fine_tuning_has_no_learning_rate_but_the_one_that_is_named() -> None:
    recipe = parse_recipe(
        MINIMAL, source="my.yaml", overrides=("adaptation={method: full}", "training.learning_rate=1e-3")
    )
    assert recipe.adaptation == FullSection()
    assert recipe.training.learning_rate == 1e-3
    again = parse_recipe(recipe.model_dump(mode="json"), source="my.yaml")
    assert again.digest() == recipe.digest()
