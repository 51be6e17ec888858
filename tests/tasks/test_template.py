"""Templates: what they refuse, and that values are never read as templates."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bmpeft.errors import UsageError
from bmpeft.tasks.template import parse_template

ALLOWED = ("question", "choices", "text")


@pytest.mark.parametrize(
    ("prompt", "problem"),
    [
        (" {questoin} ?", "unknown placeholder {questoin}; did you mean 'question'?"),
        (" {question} {}", "unknown placeholder {}"),
        (" {question!r}", "unknown placeholder {question!r}"),
        (" {question} {question}", "{question} may occur only once"),
        (" {question} {", "a brace without its partner"),
        (" {{question}}", "a brace without its partner"),
        (" {text}", "the placeholder {question} is missing"),
        ("", "the placeholder {question} is missing"),
    ],
)
def test_a_prompt_that_cannot_be_filled_is_refused(prompt: str, problem: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_template(prompt, allowed=ALLOWED, required="question")
    assert problem in str(caught.value)
    assert str(caught.value).startswith("task.prompt: ")


@given(st.permutations(ALLOWED), st.lists(st.text(), min_size=3, max_size=3))
def test_values_stand_where_the_spans_say_with_every_character(names: list[str], values: list[str]) -> None:
    filled = dict(zip(names, values, strict=True))
    one, two, three = ("{" + name + "}" for name in names)
    template = parse_template(f" <{one}> and {two} or {three}", allowed=ALLOWED, required="question")
    rendered = template.render(filled)
    assert rendered.text == f" <{values[0]}> and {values[1]} or {values[2]}"
    assert {name: rendered.text[start:stop] for name, (start, stop) in rendered.spans.items()} == filled
