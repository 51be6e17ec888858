"""What `bmpeft eval` does: rebuild what a stored adapter needs, measure it, return the card.

The backbone, prompt, decoding and data come from the adapter itself or from a recipe; overrides apply to
either, so that an adapter is measured on other rows with ``data.path=FILE``.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from bmpeft.adapters.artifact import load_artifact, update_score_card
from bmpeft.datasets import read_dataset
from bmpeft.datasets.medqa import EMBEDDED
from bmpeft.datasets.splits import first_of_shuffle
from bmpeft.errors import UsageError, did_you_mean
from bmpeft.evaluation.kept import RunStore, kept_directory
from bmpeft.evaluation.page import check_page_path, write_page
from bmpeft.evaluation.run import answers_identity, evaluate, known_leakage, trained_on
from bmpeft.evaluation.score_card import ScoreCard, to_markdown
from bmpeft.recipe import Recipe, load_recipe, parse_recipe
from bmpeft.recipe_store import resolve_recipe
from bmpeft.tasks import make_task, spell_out_answers

if TYPE_CHECKING:
    from bmpeft.evaluation.split_run import MeasuredSplit
    from bmpeft.progress import Progress

SECTIONS_THAT_MATTER = ("backbone", "data", "evaluation", "output", "task")


def evaluate_target(
    target: str | Path,
    *,
    overrides: Sequence[str] = (),
    adapter: str | Path | None = None,
    splits: Sequence[str] = (),
    limit: int | None = None,
    save: bool = False,
    fresh: bool = False,
    page: Path | None = None,
    progress: Progress,
) -> ScoreCard:
    """Measure an adapter.

    Args:
        target: an adapter's directory, or a recipe (file or shipped name).
        overrides: ``section.key=value`` on the recipe, or on the one that the adapter remembers.
        adapter: with a recipe, the adapter to measure; default: the one that training it wrote.
        splits: instead of `evaluation.splits`; names or shell patterns.
        limit: instead of `evaluation.limit`.
        save: put the card into the adapter, in place of the one that it has.
        fresh: answer all rows again, also those whose answers are kept in the run's directory.
        page: write an HTML page with examples there; it holds texts and images of the data.
        progress: shows the passes over the rows.

    Raises:
        UsageError: no such target, no adapter, or an override that changes nothing here.
        BmpeftError: the adapter, its backbone or the data cannot be read.
    """
    changes = [*overrides]
    changes += [f"evaluation.splits=[{', '.join(map(repr, splits))}]"] if splits else []
    changes += [f"evaluation.limit={limit}"] if limit is not None else []
    if Path(target).is_dir():
        if adapter is not None:
            raise UsageError(f"--adapter goes with a recipe, but {target} is an adapter itself")
        directory = Path(target)
        recipe = _remembered_recipe(directory, changes)
    else:
        recipe = load_recipe(resolve_recipe(str(target)), changes)
        directory = Path(adapter) if adapter is not None else Path(recipe.output.directory) / recipe.output.name
        if not directory.is_dir():
            raise UsageError(
                f"{directory}: no adapter there; `bmpeft train {target}` makes one, --adapter names another"
            )
    if page is not None:
        check_page_path(page)
    measured: list[MeasuredSplit] = []
    card = _measure(directory, recipe, fresh, progress, measured)
    if page is not None:
        write_page(page, card, measured)
        progress.line(f"page written to {page}; it holds texts of the data: keep it as you keep those")
    if save:
        update_score_card(directory, card.model_dump(mode="json"), markdown=to_markdown(card))
    return card


def _remembered_recipe(directory: Path, overrides: list[str]) -> Recipe:
    """The recipe of an adapter, with its prompt spelled out, and with overrides."""
    for override in overrides:
        section = override.partition(".")[0]
        if section not in SECTIONS_THAT_MATTER:
            hint = did_you_mean(section, SECTIONS_THAT_MATTER)
            raise UsageError(f"{override!r}: changes nothing in an evaluation{hint}")
    manifest = load_artifact(directory).manifest
    content = {**manifest.recipe, "task": manifest.task.model_dump(mode="json")}
    recipe = parse_recipe(content, source=str(directory), overrides=overrides)
    here = recipe.data.path == EMBEDDED or recipe.data.is_hub_name or Path(recipe.data.path).expanduser().exists()
    if not here:
        raise UsageError(
            f"{directory} remembers only the name of its data, {recipe.data.path!r}, and nothing of that name is here; "
            "add data.path=FILE_OR_DIRECTORY"
        )
    return recipe


def _measure(
    directory: Path, recipe: Recipe, fresh: bool, progress: Progress, measured: list[MeasuredSplit]
) -> ScoreCard:
    """Measure the adapter of a directory; `measured` gets each split's rows and answers."""
    artifact = load_artifact(directory)
    dataset = read_dataset(recipe.data, recipe.task.name)
    task = make_task(recipe.task, recipe.data.dataset)
    train = first_of_shuffle(dataset.splits.get("train", ()), recipe.data.train_rows, recipe.data.split.seed)
    task = make_task(spell_out_answers(task, train), recipe.data.dataset)
    from bmpeft.adapters.runtime import Backbone
    from bmpeft.backbones import load_frozen_backbone

    backbone = Backbone(load_frozen_backbone(recipe.backbone))
    name = backbone.load_adapter(directory)
    with backbone.model_with(name) as model:
        return evaluate(
            backbone.frozen,
            model,
            adapter=name,
            task=task,
            dataset=dataset,
            evaluation=recipe.evaluation,
            max_source_length=recipe.data.max_source_length,
            seed=recipe.training.seed,
            trained_on=trained_on(artifact.manifest.data),
            leakage=known_leakage(artifact.manifest.data, dataset),
            without_adapter=lambda: backbone.model_with(None),
            progress=progress,
            train_records=train,
            balance_labels=recipe.data.balance_labels,
            store=RunStore(
                kept_directory(recipe.output), artifact.digest, answers_identity(recipe.backbone), fresh=fresh
            ),
            on_split=measured.append,
        )
