"""Prompt templates: literal text with placeholders such as ``{question}``.

Values are put in by concatenation, never by `str.format`, so braces inside a question are just text,
and every value's place in the result is known.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from bmpeft.errors import UsageError, did_you_mean

_PLACEHOLDER = re.compile(r"\{([^{}]*)\}")


@dataclass(frozen=True, slots=True)
class Rendered:
    """A filled template; `spans` gives the half-open range of characters that each value takes."""

    text: str
    spans: Mapping[str, tuple[int, int]]


@dataclass(frozen=True, slots=True)
class Template:
    """A parsed prompt: literals and placeholders in turn, starting and ending with a literal."""

    literals: tuple[str, ...]
    names: tuple[str, ...]

    def render(self, values: Mapping[str, str]) -> Rendered:
        """Fill the template; `values` has an entry for every name in `names`."""
        text, spans = self.literals[0], {}
        for name, literal in zip(self.names, self.literals[1:], strict=True):
            spans[name] = (len(text), len(text) + len(values[name]))
            text += values[name] + literal
        return Rendered(text, spans)


def parse_template(prompt: str, *, allowed: tuple[str, ...], required: str | None) -> Template:
    """Parse a prompt.

    Raises:
        UsageError: an unknown placeholder, a brace that belongs to none, a placeholder that occurs twice,
            or no `required` one, if there is to be any.
    """
    parts = _PLACEHOLDER.split(prompt)
    literals, names = tuple(parts[::2]), tuple(parts[1::2])
    for name in names:
        if name not in allowed:
            raise UsageError(f"task.prompt: unknown placeholder {{{name}}}{did_you_mean(name, allowed)}")
        if names.count(name) > 1:
            raise UsageError(f"task.prompt: the placeholder {{{name}}} may occur only once")
    if any("{" in literal or "}" in literal for literal in literals):
        raise UsageError("task.prompt: a brace without its partner; placeholders have the form {question}")
    if required is not None and required not in names:
        raise UsageError(f"task.prompt: the placeholder {{{required}}} is missing")
    return Template(literals, names)
