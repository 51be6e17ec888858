"""Score cards: remarks come first in every rendering, and a card survives its own JSON."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console

from bmpeft.errors import BmpeftError
from bmpeft.evaluation.score_card import ScoreCard, read_card, rich_table, to_markdown


def content(**changes: Any) -> dict[str, Any]:
    metric = {"id": "accuracy/choices-sum@1", "name": "accuracy (sum)", "value": 0.5, "low": 0.4, "high": 0.6, "n": 90}
    control = {
        "name": "majority",
        "metrics": [{**metric, "value": 0.3}],
        "difference": {"value": 0.2, "low": 0.1, "high": 0.3},
        "note": "5 of 9 training rows",
    }
    result = {
        "split": "test",
        "split_digest": "a" * 64,
        "rows": 100,
        "n": 90,
        "metrics": [metric],
        "controls": [control],
        "truncation": {"rows": 90, "rows_cut": 2, "document_tokens_cut": 31},
        "seconds": 3.0,
        "rows_per_second": 30.0,
        "groups": 45,
        "parts": [
            {"by": "source length", "name": "1-32", "metric": {**metric, "value": 0.7, "low": 0.6, "high": 0.8, "n": 9}}
        ],
        "confusion": [[30, 15], [5, 40]],
        "absent": ["METEOR is absent: it needs Java"],
    }
    card = {
        "task": "question_answering",
        "prompt": " {question}",
        "decoding": {"method": "candidates", "normalization": "sum"},
        "dataset": "medqa",
        "synthetic": False,
        "split_method": "official",
        "limit": 90,
        "results": [result],
        "backbone": {
            "name": "biomedgpt-base",
            "fingerprint": "b" * 64,
            "init": "pretrained",
            "init_seed": None,
            "dtype": "float32",
            "attention": "eager",
        },
        "adapter": "mine",
        "trained_on": {"dataset": "medqa", "split_digest": "c" * 64},
        "max_source_length": 256,
        "seed": 0,
        "bootstrap_samples": 2000,
        "versions": {"bmpeft": "0.1.0"},
    }
    return {**card, **changes}


def card(**changes: Any) -> ScoreCard:
    return ScoreCard.model_validate(content(**changes))


def not_beaten() -> dict[str, Any]:
    values = content()
    values["results"][0]["controls"][0]["difference"] = {"value": 0.05, "low": 0.0, "high": 0.1}
    return values


def test_a_card_survives_json_and_tells_what_follows_from_it() -> None:
    original = card()
    dumped = original.model_dump(mode="json")
    assert dumped["remarks"] == []
    assert dumped["results"][0]["controls"][0]["beaten"] is True
    assert ScoreCard.model_validate(dumped) == original
    assert ScoreCard.model_validate_json(original.model_dump_json()) == original


def test_remarks_of_a_stored_card_are_computed_not_believed() -> None:
    stored = card(**not_beaten()).model_dump(mode="json") | {"remarks": []}
    assert ScoreCard.model_validate(stored).remarks == ("does not beat control majority on test",)


def test_a_card_of_schema_1_is_read() -> None:
    old_content = content(schema_version=1)
    for key in ("groups", "parts", "confusion", "absent"):
        del old_content["results"][0][key]
    old = read_card(old_content)
    assert (old.results[0].groups, old.results[0].parts, old.results[0].confusion) == (None, (), None)
    assert "intervals over rows" in to_markdown(old)


def test_the_confusion_matrix_is_in_the_markdown_without_names() -> None:
    assert "| 1 | 5 | 40 |" in to_markdown(card()).splitlines()


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"schema_version": 3}, "its score card has schema 3; this bmpeft reads up to 2: upgrade it"),
        ({"schema_version": "x"}, "its score card cannot be read: schema_version: "),
        ({"results": []}, "its score card cannot be read: results: "),
        ({"task": None}, "its score card cannot be read: task: "),
    ],
)
def test_what_is_no_card_of_ours_is_one_line(changes: dict[str, Any], problem: str) -> None:
    with pytest.raises(BmpeftError) as caught:
        read_card(content(**changes))
    assert str(caught.value).startswith(problem)
    assert "\n" not in str(caught.value)


CONTAMINATED = {
    "dataset": "medqa",
    "split_digest": "c" * 64,
    "contamination": "official MedQA test",
    "rows": 859,
    "contaminated_rows": 859,
}
BACKBONE = {**content()["backbone"], "init": "random", "init_seed": 0}


@pytest.mark.parametrize(
    ("changes", "remark"),
    [
        ({"trained_on": CONTAMINATED}, "contaminated: official MedQA test (859 of 859 training rows)"),
        ({"trained_on": {**CONTAMINATED, "contaminated_rows": None}}, "contaminated: official MedQA test"),
        (
            {"trained_on": {"dataset": "medqa", "split_digest": "a" * 64}},
            "test holds the rows that the adapter was trained on",
        ),
        ({"synthetic": True}, "synthetic data"),
        ({"backbone": BACKBONE}, "untrained backbone"),
        (not_beaten(), "does not beat control majority on test"),
    ],
)
def test_every_remark_is_in_the_first_line(changes: dict[str, Any], remark: str) -> None:
    made = card(**changes)
    assert made.remarks == (remark,)
    assert to_markdown(made).splitlines()[0] == f"**Remarks:** {remark}"
    assert rendered(made).splitlines()[0].strip() == remark


@pytest.mark.parametrize(
    ("changes", "remark"),
    [
        ({"groups": 19}, "only 19 groups of rows in test, so that its intervals are too narrow"),
        ({"groups": None, "n": 8}, "only 8 rows in test, so that its intervals are too narrow"),
        ({"controls": []}, "no control was run on test"),
        ({"groups": 20}, None),
        ({"groups": None, "n": 20}, None),
    ],
)
def test_what_makes_a_comparison_worth_little_is_in_the_first_line(changes: dict[str, Any], remark: str | None) -> None:
    values = content()
    values["results"][0].update(changes)
    assert card(**values).remarks == (() if remark is None else (remark,))


def test_a_bare_backbone_has_no_controls_to_be_compared_with() -> None:
    values = content(adapter=None)
    values["results"][0]["controls"] = []
    assert card(**values).remarks == ()


def test_all_remarks_stand_together_contamination_first() -> None:
    made = card(**{**not_beaten(), "trained_on": CONTAMINATED, "backbone": BACKBONE, "synthetic": True})
    first = to_markdown(made).splitlines()[0]
    assert first.startswith("**Remarks:** contaminated: official MedQA test")
    assert [part in first for part in ("synthetic data", "untrained backbone", "does not beat control majority")] == [
        True
    ] * 3


def test_without_remarks_the_first_line_says_so() -> None:
    assert to_markdown(card()).splitlines()[0] == "**Remarks:** none"


@pytest.mark.parametrize(
    "shown",
    [
        "0.500 [0.400, 0.600]",
        "+0.200 [+0.100, +0.300] beaten",
        "90 of 100 rows",
        "2 rows cut by 31 tokens in all (limit 256)",
        "biomedgpt-base",
        "aaaaaaaaaaaa",
        "2,000 bootstrap samples",
        "intervals over 45 groups of rows",
        "source length 1-32",
        "0.700 [0.600, 0.800]",
        "control majority: 5 of 9 training rows",
        "METEOR is absent: it needs Java",
    ],
)
def test_both_renderings_show_the_figures(shown: str) -> None:
    assert shown in to_markdown(card())
    assert shown in " ".join(rendered(card()).split())


def test_of_a_control_only_the_deciding_metric_is_printed_and_the_json_has_all() -> None:
    values = content()
    ece = {**values["results"][0]["metrics"][0], "id": "ece/15-equal-width-bins@1", "name": "calibration error (ECE)"}
    values["results"][0]["metrics"].append({**ece, "value": 0.41})
    values["results"][0]["controls"][0]["metrics"].append({**ece, "value": 0.77})
    made = ScoreCard.model_validate(values)
    for text in (to_markdown(made), rendered(made)):
        assert "0.410 [0.400, 0.600]" in text
        assert "0.300 [0.400, 0.600]" in text
        assert "0.770" not in text
    control = made.model_dump(mode="json")["results"][0]["controls"][0]
    assert [metric["value"] for metric in control["metrics"]] == [0.3, 0.77]


def rendered(made: ScoreCard) -> str:
    stream = io.StringIO()
    Console(file=stream, width=160).print(rich_table(made))
    return stream.getvalue()
