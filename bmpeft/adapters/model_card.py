"""README.md of an adapter artifact: what it is, what it was trained on, what it must not be used for.

Generated from the manifest, so it cannot disagree with it; it holds no row of any dataset.
"""

from __future__ import annotations

from bmpeft.adaptation.formats import format_of
from bmpeft.adapters.manifest import Manifest

_TEMPLATE = """\
---
library_name: {library}
tags: [biomedical, {tag}, bmpeft]
license: other
---
# {name}

{notices}{what} `{backbone}`, trained with bmpeft {bmpeft} on {created}.

**Research only.** Not a medical device: do not use its answers for diagnosis, treatment or any decision about
a patient. The published weights of BiomedGPT are for research too.

## Use

    import bmpeft
    backbone = bmpeft.load_backbone({load})
    backbone.load_adapter("adapters/{name}")
    backbone.predict(records, adapter="{name}")

It works with the backbone of fingerprint `{fingerprint}` and no other; bmpeft refuses the rest.
{remark}Canary: on a built-in input it changes the logits by {canary:.4g} (Euclidean norm; the bare backbone's have
{logits:.4g}; {dtype}). bmpeft compares at the first load.

## Task

{task}, decoding `{decoding}`; at most {max_source_length} source tokens.

## Data

| | |
|---|---|
| dataset | {dataset}{synthetic} |
| licence of the data | {licence} |
| split | {split_method} |
| training rows | {train_rows:,} |
| validation rows | {validation_rows:,} |
| rows in official test sets | {contamination} |

## Training

{settings}: {trainable:,} trainable parameters
({share:.2%}). {steps:,} optimizer steps in {seconds:,.0f} s on {device} ({precision}), seed {seed}; stored: step
{selected_step:,} ({selected_by}). Mean training loss {train_loss:.4f} nats per token{validation}. Documents cut:
{rows_cut:,} rows, {tokens_cut:,} tokens. Recipe `{recipe_name}`, digest `{recipe_digest}`.

## Scores

{scores}
"""


def model_card(manifest: Manifest, *, scores: str | None = None) -> str:
    """The text of README.md; `scores` is the score card as Markdown, None before the evaluation."""
    backbone, data, training = manifest.backbone, manifest.data, manifest.training
    words = format_of(manifest.adaptation).card(manifest.adaptation)
    return _TEMPLATE.format(
        name=manifest.name,
        notices="".join(f"> **{notice}**\n\n" for notice in _notices(manifest)),
        backbone=backbone.name,
        bmpeft=manifest.versions.get("bmpeft", "of unknown version"),
        created=manifest.created[:10],
        load=_load_arguments(manifest),
        fingerprint=backbone.fingerprint,
        canary=manifest.canary.change_norm,
        logits=manifest.canary.logits_norm,
        dtype=manifest.canary.dtype,
        task=manifest.task.name.replace("_", " ").capitalize(),
        decoding=manifest.task.decoding.method,
        max_source_length=manifest.limits.max_source_length,
        dataset=data.dataset,
        synthetic=" (synthetic)" if data.synthetic else "",
        licence=data.licence,
        split_method=data.split_method,
        train_rows=data.train_rows,
        validation_rows=data.validation_rows,
        contamination="; ".join(f"{split}: {what}" for split, what in data.contamination.items()) or "none known",
        library=words.library,
        tag=words.tag,
        what=words.what,
        settings=words.settings,
        remark=words.remark,
        trainable=training.trainable_parameters,
        share=training.trainable_parameters / training.total_parameters,
        steps=training.steps,
        seconds=training.seconds,
        device=training.device,
        precision=training.precision,
        seed=training.seed,
        selected_step=training.selected_step,
        selected_by=training.selected_by,
        train_loss=training.train_loss,
        validation="" if training.validation_loss is None else f", validation loss {training.validation_loss:.4f}",
        rows_cut=manifest.limits.rows_cut,
        tokens_cut=manifest.limits.document_tokens_cut,
        recipe_name=manifest.recipe_name,
        recipe_digest=manifest.recipe_digest,
        scores=scores.strip() if scores else "Not evaluated yet.",
    )


def _load_arguments(manifest: Manifest) -> str:
    section, images = manifest.backbone.section, manifest.backbone.images
    arguments = [f'"{section.name}"']
    if section.init == "random":
        arguments += ['init="random"', f"init_seed={section.init_seed}"]
    if images is not None:
        arguments += [f"image_size={images.image_size}", f'image_mean_std="{images.image_mean_std}"']
    if manifest.backbone.max_positions is not None:
        arguments.append(f"max_positions={manifest.backbone.max_positions}")
    return ", ".join(arguments)


def _untrained(manifest: Manifest) -> bool:
    return manifest.backbone.init == "random"


def _notices(manifest: Manifest) -> list[str]:
    """What a reader must not miss."""
    notices = []
    if "train" in manifest.data.contamination:
        rows = manifest.data.contaminated_rows.get("train", 0)
        notices.append(
            f"contaminated: {manifest.data.contamination['train']} "
            f"({rows:,} of {manifest.data.train_rows:,} training rows)"
        )
    if manifest.data.synthetic:
        notices.append("trained on a synthetic set: its scores say nothing about real questions")
    if manifest.canary.change_norm == 0:
        notices.append("without effect: it changes no logit of the canary, and bmpeft will not load it")
    if _untrained(manifest):
        notices.append("the backbone's weights are random (untrained)")
    return notices
