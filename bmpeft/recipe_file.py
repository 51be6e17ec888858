"""Reading recipe files: YAML, overrides, and the check against a schema, with errors in one line."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from bmpeft.errors import RecipeError
from bmpeft.recipe_errors import describe, field_at

Model = TypeVar("Model", bound=BaseModel)


def read_content(path: str | Path) -> dict[str, Any]:
    """Read a YAML file that holds one mapping.

    Raises:
        RecipeError: the file is missing, cannot be read, is no YAML mapping, or has a key twice.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise RecipeError(f"{path}: no such recipe") from None
    except UnicodeDecodeError:
        raise RecipeError(f"{path}: cannot be read: not UTF-8 text") from None
    except OSError as error:
        raise RecipeError(f"{path}: cannot be read: {error.strerror}") from None
    try:
        content = yaml.load(text, Loader=_UniqueKeyLoader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or " ".join(str(error).split())
        raise RecipeError(f"{path}{where}: cannot be read as YAML: {problem}") from None
    if not isinstance(content, dict):
        raise RecipeError(f"{path}: expected sections with keys and values")
    return content


def check_content(content: dict[str, Any], schema: type[Model], *, source: str, overrides: Sequence[str] = ()) -> Model:
    """Apply overrides of the form ``section.key=value`` and check the content; `source` names it in errors.

    Raises:
        RecipeError: names the first key that is wrong and what is expected there.
    """
    for override in overrides:
        content = _apply_override(content, schema, override)
    try:
        return schema.model_validate(content)
    except ValidationError as error:
        raise RecipeError(f"{source}: {describe(error, schema)}") from None


class _UniqueKeyLoader(yaml.SafeLoader):
    """YAML's own rule is that a repeated key silently wins; in a recipe it is a slip."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            if key_node.value in seen:
                problem = f"key {key_node.value!r} appears twice"
                raise yaml.constructor.ConstructorError(None, None, problem, key_node.start_mark)
            seen.add(key_node.value)
        return super().construct_mapping(node, deep)


def _apply_override(content: dict[str, Any], schema: type[BaseModel], override: str) -> dict[str, Any]:
    key, separator, value = override.partition("=")
    keys = key.strip().split(".")
    if not separator or not all(keys):
        raise RecipeError(f"{override!r}: an override has the form section.key=value")
    return _with_value(content, keys, _override_value(schema, keys, value, override), override)


def _override_value(schema: type[BaseModel], keys: list[str], value: str, override: str) -> Any:
    field = field_at(schema, keys)
    # Text is taken as it stands: a prompt such as "{question}" or a name such as 007 is no YAML.
    if field is not None and (field.annotation is str or (field.annotation == str | None and value != "null")):
        return value
    try:
        return yaml.safe_load(value)
    except yaml.YAMLError:
        raise RecipeError(f"{override!r}: the value is not YAML") from None


def _with_value(content: dict[str, Any], keys: list[str], value: Any, override: str) -> dict[str, Any]:
    head, rest = keys[0], keys[1:]
    if not rest:
        return {**content, head: value}
    inner = content.get(head, {})
    if inner is None:
        inner = {}
    if not isinstance(inner, dict):
        raise RecipeError(f"{override!r}: {head} is a value, not a section")
    return {**content, head: _with_value(inner, rest, value, override)}
