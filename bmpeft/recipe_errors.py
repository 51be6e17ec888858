"""What is wrong with a recipe, in one line: pydantic's validation errors in the words of the recipe's keys."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple, get_args

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from bmpeft.errors import did_you_mean

Location = tuple[int | str, ...]

_RANGES = {"greater_than", "greater_than_equal", "less_than", "less_than_equal"}
_EXPECTED = {
    "bool_parsing": "true or false",
    "bool_type": "true or false",
    "finite_number": "a finite number",
    "float_parsing": "a number",
    "float_type": "a number",
    "int_from_float": "a whole number",
    "int_parsing": "a whole number",
    "int_type": "a whole number",
    "model_attributes_type": "a section (keys with values)",
    "model_type": "a section (keys with values)",
    "string_type": "text",
    "tuple_type": "a list, such as [first, second]",
}


class _Step(NamedTuple):
    """One key, or number of a list's item, on the way to a problem; the section that a key stands in, and its field."""

    key: str | int
    section: type[BaseModel] | None
    field: FieldInfo | None


def describe(error: ValidationError, root: type[BaseModel]) -> str:
    """Return the first problem of a validation error of `root` in one line, and how many more there are."""
    problems = error.errors()
    text = _describe_one(problems[0], root)
    return text if len(problems) == 1 else f"{text} (and {len(problems) - 1} more)"


def field_at(root: type[BaseModel], keys: list[str]) -> FieldInfo | None:
    """Return the field that dotted keys lead to, or None where there is no such field in every variant."""
    steps = list(_walk(root, tuple(keys)))
    return steps[-1].field if steps else None


def dotted_key(root: type[BaseModel], location: Location) -> str:
    """The key that a location of a validation error of `root` means, as ``section.key`` or ``list[2]``."""
    return _dotted(list(_walk(root, location)))


def _describe_one(problem: ErrorDetails, root: type[BaseModel]) -> str:
    steps = list(_walk(root, problem["loc"]))
    key = _dotted(steps)
    kind, value, context = problem["type"], problem["input"], problem.get("ctx", {})
    if kind == "extra_forbidden":
        return f"unknown key {key!r}{_nearest_key(steps, root)}"
    if kind == "missing":
        return f"{key}: required, but not there"
    if kind in _RANGES:
        return f"{key}: {_short(value)} is out of range: must be {_range_of(steps[-1].field)}"
    if kind in ("too_short", "too_long"):
        bound = context.get("min_length", context.get("max_length"))
        return f"{key}: expected at {'least' if kind == 'too_short' else 'most'} {bound} value(s), got {_short(value)}"
    if kind == "literal_error":
        return f"{key}: {_short(value)} is not one of {context['expected']}{_nearest_value(value, context['expected'])}"
    if kind == "union_tag_not_found":
        return f"{key}: needs `method`, one of {', '.join(map(repr, _tags(steps[-1].field)))}"
    if kind == "union_tag_invalid":
        tags = _tags(steps[-1].field)
        hint = did_you_mean(str(context["tag"]), tags)
        return f"{key}.method: {context['tag']!r} is not one of {', '.join(map(repr, tags))}{_only_near(hint)}"
    if kind == "string_pattern_mismatch" and steps[-1].field is not None and steps[-1].field.description:
        return f"{key}: {_short(value)} does not fit: {steps[-1].field.description}"
    if kind == "value_error":
        return f"{key}: {context['error']}" if key else str(context["error"])
    if kind in _EXPECTED:
        return f"{key}: expected {_EXPECTED[kind]}, got {_short(value)}"
    return f"{key}: {problem['msg']} (got {_short(value)})"


def _walk(root: type[BaseModel], location: Location) -> Iterator[_Step]:
    """Follow a location of a validation error through the sections.

    pydantic inserts the tag of a tagged union after the union's own key; users never wrote it, so it
    chooses the variant and is not a step.
    """
    section: type[BaseModel] | None = root
    variants: list[type[BaseModel]] = []
    for part in location:
        if isinstance(part, int):
            yield _Step(part, None, None)
            continue
        if variants:
            tagged = [v for v in variants if part in get_args(v.model_fields["method"].annotation)]
            section, variants = (tagged or variants)[0], []
            if tagged:
                continue
        field = section.model_fields.get(part) if section else None
        yield _Step(part, section, field)
        section = None
        if field is not None:
            sections = list(_sections_in(field.annotation))
            variants = sections if field.discriminator else []
            section = sections[0] if len(sections) == 1 else None


def _sections_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in get_args(annotation):
        yield from _sections_in(argument)


def _dotted(steps: list[_Step]) -> str:
    """Keys joined by dots; the item of a list as ``key[2]``, counted from 1 as people do."""
    text = ""
    for step in steps:
        if isinstance(step.key, int):
            text += f"[{step.key + 1}]"
        else:
            text += f".{step.key}" if text else step.key
    return text


def _nearest_key(steps: list[_Step], root: type[BaseModel]) -> str:
    step, union = steps[-1], steps[-2].field if len(steps) > 1 else None
    valid = list(step.section.model_fields) if step.section else []
    here = did_you_mean(str(step.key), valid)
    if "did you mean" in here:
        return here
    variants = _sections_in(union.annotation) if union and union.discriminator else ()
    having = [tag for variant in variants if step.key in variant.model_fields for tag in _tags_of(variant)]
    if having:
        return f": a key of method {' and '.join(map(repr, having))} only"
    elsewhere = [
        f"{name}.{step.key}"
        for name, field in root.model_fields.items()
        for section in _sections_in(field.annotation)
        if step.key in section.model_fields
    ]
    return f"; did you mean {elsewhere[0]!r}?" if elsewhere else here


def _tags(field: FieldInfo | None) -> list[str]:
    variants = _sections_in(field.annotation) if field else ()
    return [tag for variant in variants for tag in _tags_of(variant)]


def _tags_of(variant: type[BaseModel]) -> list[str]:
    return [str(tag) for tag in get_args(variant.model_fields["method"].annotation)]


def _range_of(field: FieldInfo | None) -> str:
    signs = {"gt": ">", "ge": ">=", "lt": "<", "le": "<="}
    metadata = field.metadata if field else ()
    return " and ".join(
        f"{sign} {getattr(bound, name)}" for bound in metadata for name, sign in signs.items() if hasattr(bound, name)
    )


def _nearest_value(value: Any, expected: str) -> str:
    if not isinstance(value, str):
        return ""
    valid = [part.strip(" '") for part in expected.replace(" or ", ",").split(",")]
    return _only_near(did_you_mean(value, valid))


def _only_near(hint: str) -> str:
    """Keep a hint that names one value; the list of all is already in the text before it."""
    return hint if "did you mean" in hint else ""


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
