"""The recipes that are shipped with bmpeft, in a checkout as in an installed package.

A recipe is named by its file or, for a shipped one, by its name: ``medqa_lora`` or ``recipes/medqa_lora.yaml``.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

from bmpeft.errors import RecipeError, UsageError, did_you_mean

if TYPE_CHECKING:
    from bmpeft.pretrain_recipe import PretrainRecipe
    from bmpeft.recipe import Recipe


@dataclass(frozen=True, slots=True)
class ShippedRecipe:
    """A recipe that comes with bmpeft; `header` is its opening comment: what it does, needs and costs."""

    name: str
    path: Path
    header: str
    recipe: Recipe | PretrainRecipe

    def summary(self) -> dict[str, str]:
        """What a table of recipes shows."""
        from bmpeft.recipe import Recipe

        recipe = self.recipe
        if isinstance(recipe, Recipe):
            what = {"method": recipe.adaptation.method, "task": recipe.task.name, "dataset": recipe.data.dataset}
        else:
            what = {"method": "pretrain", "task": "", "dataset": f"{len(recipe.corpus)} sources"}
        return {"name": self.name, **what, "backbone": recipe.backbone.name, "description": recipe.description}


def shipped_names() -> tuple[str, ...]:
    """Return the names of the shipped recipes, sorted."""
    return tuple(sorted(path.stem for path in _directory().glob("*.yaml")))


def shipped_recipe(name: str) -> ShippedRecipe:
    """Read one shipped recipe. Raises RecipeError for an unknown name."""
    from bmpeft.pretrain_recipe import load_any_recipe

    path = _shipped_path(name)
    if path is None:
        raise _no_such_recipe(name)
    header = "\n".join(_opening_comment(path.read_text(encoding="utf-8")))
    return ShippedRecipe(path.stem, path, header, load_any_recipe(path))


def resolve_recipe(name_or_path: str) -> Path:
    """Return the file of a recipe: the path if there is such a file, else the shipped recipe of that name.

    Raises:
        RecipeError: neither exists; names the nearest shipped recipe.
    """
    path = Path(name_or_path)
    if path.is_file():
        return path
    shipped = _shipped_path(name_or_path)
    if shipped is None:
        raise _no_such_recipe(name_or_path)
    return shipped


def copy_recipe(name: str, destination: str | Path | None = None, *, overwrite: bool = False) -> Path:
    """Copy a shipped recipe, by default to NAME.yaml here, and return where it went.

    Raises:
        UsageError: there is such a file already and `overwrite` is false, or it cannot be written.
        RecipeError: no shipped recipe has this name.
    """
    source = _shipped_path(name)
    if source is None:
        raise _no_such_recipe(name)
    target = Path(destination or source.name)
    if target.is_dir():
        target /= source.name
    try:
        with target.open("w" if overwrite else "x", encoding="utf-8") as file:
            file.write(source.read_text(encoding="utf-8"))
    except FileExistsError:
        raise UsageError(f"{target}: exists already; --force replaces it") from None
    except OSError as error:
        raise UsageError(f"{target}: cannot be written: {error.strerror}") from None
    return target


def recipe_schema(name: str = "medqa_lora") -> dict[str, Any]:
    """Return the JSON schema that a shipped recipe follows: every key, its type, default, range and meaning."""
    return type(shipped_recipe(name).recipe).model_json_schema()


def _directory() -> Path:
    """Inside the installed package, or beside it in a checkout."""
    package = Path(__file__).resolve().parent
    inside = package / "recipes"
    return inside if inside.is_dir() else package.parent / "recipes"


def _shipped_path(name: str) -> Path | None:
    given = PurePath(name)
    if given.parent not in (PurePath("."), PurePath("recipes")) or given.suffix not in ("", ".yaml"):
        return None
    return _directory() / f"{given.stem}.yaml" if given.stem in shipped_names() else None


def _no_such_recipe(name: str) -> RecipeError:
    hint = did_you_mean(PurePath(name).stem, shipped_names())
    return RecipeError(f"{name}: no such file, and no shipped recipe of that name{hint}")


def _opening_comment(text: str) -> Iterator[str]:
    for line in text.splitlines():
        if not line.startswith("#"):
            return
        yield line.removeprefix("#").removeprefix(" ")
