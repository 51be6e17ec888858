"""One frozen backbone, many adapters.

    backbone = load_backbone("biomedgpt-nano")
    backbone.load_adapter("adapters/nano-medqa", name="medqa")
    backbone.predict(records, adapter="medqa")

The backbone's weights exist once. Each adapter adds its own tensors beside them, and exactly one adapter, or none,
takes part in a computation: the one that `Backbone.model_with` was asked for. Outside of it every adapter is switched
off, so that the bare model stays the bare model. How an adapter is switched on is its method's affair: see
`bmpeft.adaptation.method.Host`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any, Literal

from bmpeft.adaptation import method_of
from bmpeft.adaptation.method import Host
from bmpeft.adapters.artifact import Artifact, load_artifact
from bmpeft.adapters.canary import CanaryResult, canary_logits, compare_canary
from bmpeft.adapters.canary_cache import cache_key, has_passed, remember
from bmpeft.backbones import load_frozen_backbone
from bmpeft.backbones.base import FrozenBackbone
from bmpeft.errors import ArtifactError, BackboneError, UsageError, did_you_mean
from bmpeft.recipe import BackboneSection, DataSection
from bmpeft.recipe_decoding import Decoding
from bmpeft.records import Prediction, Record
from bmpeft.tasks import Task, make_task, predict_examples

DEFAULT_MAX_SOURCE_LENGTH: int = DataSection.model_fields["max_source_length"].default


def load_backbone(
    name: str,
    *,
    init: Literal["pretrained", "random"] = "pretrained",
    init_seed: int = 0,
    dtype: Literal["auto", "float32", "bfloat16"] = "auto",
    attention: Literal["auto", "eager", "sdpa", "chunked", "flash", "flex", "triton"] = "auto",
    tokenizer: str | None = None,
    max_positions: int | None = None,
    image_size: int | None = None,
    image_mean_std: Literal["half", "imagenet"] | None = None,
) -> Backbone:
    """Load a frozen backbone; the arguments are those of a recipe's section `backbone`.

    Raises:
        BackboneError: there is no such backbone, or it cannot be loaded.
    """
    section = BackboneSection(
        name=name,
        init=init,
        init_seed=init_seed,
        dtype=dtype,
        attention=attention,
        tokenizer=tokenizer,
        max_positions=max_positions,
        image_size=image_size,
        image_mean_std=image_mean_std,
    )
    return Backbone(load_frozen_backbone(section))


class Backbone:
    """A frozen backbone and the adapters that are loaded on it. One thread at a time may use it.

    Attributes:
        frozen: the backbone without adapters. Its `model` computes as the bare one between calls.
    """

    def __init__(self, frozen: FrozenBackbone) -> None:
        self.frozen = frozen
        self._artifacts: dict[str, Artifact] = {}
        # peft gets names of our own: it splits module names at dots and trips over names like "lora".
        self._slots: dict[str, str] = {}
        self._slot_numbers = count()
        self._hosts: dict[type[Host[Any]], Host[Any]] = {}
        self._active: str | None = None

    @property
    def adapters(self) -> tuple[str, ...]:
        """Names of the loaded adapters, in the order of loading."""
        return tuple(self._artifacts)

    def artifact(self, name: str) -> Artifact:
        """The artifact behind a loaded adapter. Raises UsageError for an unknown name."""
        if name not in self._artifacts:
            raise UsageError(f"no adapter {name!r} is loaded{did_you_mean(name, self._artifacts)}")
        return self._artifacts[name]

    def load_adapter(self, directory: str | Path, name: str | None = None) -> str:
        """Verify an artifact against this backbone and load it; the base weights are shared, not copied.

        At the first load of an adapter on a backbone its effect is measured, see `bmpeft.adapters.canary`.

        Args:
            directory: of the artifact.
            name: for later calls; default: the directory's name.

        Raises:
            ArtifactError: the artifact is missing, damaged, foreign, for another backbone, or has no effect or
                another one than when it was saved.
            UsageError: an adapter of this name is loaded already.
        """
        artifact = load_artifact(directory)
        name = artifact.name if name is None else name
        if name in self._artifacts:
            raise UsageError(f"an adapter {name!r} is loaded already: unload it first, or give another name")
        check_fits(artifact, self.frozen)
        tensors = artifact.read_tensors()
        slot = f"slot{next(self._slot_numbers)}"
        with self.model_with(None):
            self._host_of(artifact).add(slot, artifact.manifest.adaptation, tensors)
        self._artifacts[name], self._slots[name] = artifact, slot
        try:
            if not has_passed(cache_key(artifact, self.frozen)):
                self.check_canary(name)
        except BaseException:
            self.unload_adapter(name)
            raise
        return name

    def check_canary(self, name: str) -> CanaryResult:
        """Measure a loaded adapter's effect on the built-in input and compare it with the one when it was saved.

        Raises:
            ArtifactError: it has no effect, or another one.
            UsageError: no adapter of this name is loaded.
        """
        artifact = self.artifact(name)
        with self.model_with(None) as model:
            bare = canary_logits(self.frozen, model)
        with self.model_with(name) as model:
            adapted = canary_logits(self.frozen, model)
        result = compare_canary(artifact.directory, artifact.manifest.canary, self.frozen, bare=bare, adapted=adapted)
        remember(cache_key(artifact, self.frozen), result)
        return result

    def unload_adapter(self, name: str) -> None:
        """Free an adapter; the last one leaves the backbone exactly as it was before the first.

        Raises:
            UsageError: no adapter of this name is loaded, or it is computing right now.
        """
        artifact = self.artifact(name)
        if self._active == name:
            raise UsageError(f"adapter {name!r} is in use")
        slot = self._slots[name]
        del self._artifacts[name], self._slots[name]
        with self.model_with(None):
            self._host_of(artifact).remove(slot)

    @contextmanager
    def model_with(self, adapter: str | None) -> Iterator[Any]:
        """The model with one adapter, or with None the bare one; afterwards everything is as it was before.

        Raises:
            UsageError: no adapter of this name is loaded.
        """
        if adapter is not None:
            self.artifact(adapter)
        previous = self._active
        try:
            yield self._activate(adapter)
        finally:
            self._activate(previous)

    def predict(
        self,
        records: Sequence[Record],
        *,
        adapter: str | None = None,
        adapters: Sequence[str | None] | None = None,
        task: Task | None = None,
        decoding: Decoding | None = None,
        batch_size: int = 32,
        max_source_length: int | None = None,
        on_progress: Callable[[int], None] | None = None,
    ) -> list[Prediction]:
        """Answer records, in their order, each row with the prompt and decoding that its adapter was trained with.

        Args:
            records: rows; their labels are not looked at.
            adapter: one adapter for all of them; None is the bare backbone.
            adapters: instead, one for each row; rows of the same adapter are computed together.
            task: what to ask instead; the bare backbone needs it unless all loaded adapters have one task.
            decoding: how to answer instead.
            batch_size: rows at once.
            max_source_length: tokens per row instead; default: the adapter's.
            on_progress: told the number of rows after each batch.

        Raises:
            UsageError: unknown adapters, both kinds of argument, a wrong number of them, or no task.
        """
        if adapters is not None and adapter is not None:
            raise UsageError("give either adapter or adapters, not both")
        per_row = [adapter] * len(records) if adapters is None else list(adapters)
        if len(per_row) != len(records):
            raise UsageError(f"adapters has {len(per_row)} entries for {len(records)} records")
        predictions: dict[int, Prediction] = {}
        for name, rows in _rows_by_adapter(per_row).items():
            asked = task or self.task_of(name)
            with self.model_with(name) as model:
                answers = predict_examples(
                    self.frozen,
                    model,
                    [asked.example(records[row]) for row in rows],
                    decoding or asked.decoding,
                    batch_size=batch_size,
                    max_source_length=max_source_length or self._max_source_length(name),
                    adapter=name,
                    on_progress=on_progress,
                )
            predictions.update(zip(rows, answers, strict=True))
        return [predictions[row] for row in range(len(records))]

    def task_of(self, adapter: str | None) -> Task:
        """The task that an adapter was trained for; for the bare backbone, that of the loaded adapters.

        Raises:
            UsageError: no adapter of this name, or, for the bare backbone, no or several tasks to choose from.
        """
        if adapter is not None:
            manifest = self.artifact(adapter).manifest
            return make_task(manifest.task, manifest.data.dataset)
        tasks = {
            artifact.manifest.task.model_dump_json(): (artifact.manifest.task, artifact.manifest.data.dataset)
            for artifact in self._artifacts.values()
        }
        if len(tasks) != 1:
            raise UsageError(
                f"the bare backbone has no task of its own and the loaded adapters have {len(tasks)}: pass task=..."
            )
        return make_task(*next(iter(tasks.values())))

    def _max_source_length(self, adapter: str | None) -> int:
        artifacts = self._artifacts.values() if adapter is None else (self._artifacts[adapter],)
        return max((a.manifest.limits.max_source_length for a in artifacts), default=DEFAULT_MAX_SOURCE_LENGTH)

    def _host_of(self, artifact: Artifact) -> Host[Any]:
        """What holds adapters of this artifact's method; made for the first of them."""
        kind = method_of(artifact.manifest.adaptation).host
        if kind not in self._hosts:
            self._hosts[kind] = kind(self.frozen)
        return self._hosts[kind]

    def _activate(self, adapter: str | None) -> Any:
        """Switch everything off and one adapter on; returns the model that computes with it."""
        for host in self._hosts.values():
            host.switch_off()
        self._active = None
        if adapter is None:
            return self.frozen.model
        model = self._host_of(self._artifacts[adapter]).switch_on(self._slots[adapter])
        self._active = adapter
        return model


def check_fits(artifact: Artifact, backbone: FrozenBackbone) -> None:
    """Whether an adapter belongs to this very backbone.

    Raises:
        ArtifactError: other weights, another tokenizer, other pixels, or tensors that the model has no place for.
    """
    trained, path = artifact.manifest.backbone, artifact.directory
    if trained.fingerprint != backbone.fingerprint:
        raise ArtifactError(
            f"{path}: adapter {artifact.name} was trained on backbone {_described(trained.name, trained.fingerprint)}, "
            f"not on {_described(backbone.name, backbone.fingerprint)}"
        )
    if trained.tokenizer_digest != backbone.tokenizer_digest:
        raise ArtifactError(
            f"{path}: adapter {artifact.name} was trained with another tokenizer "
            f"({trained.tokenizer_digest[:12]}..., not {backbone.tokenizer_digest[:12]}...)"
        )
    _check_images(artifact, backbone)
    section = artifact.manifest.adaptation
    try:
        expected = method_of(section).shapes(backbone, section, with_images=artifact.with_images)
    except BackboneError as error:
        raise ArtifactError(f"{path}: {error}") from None
    for name in sorted(expected.keys() | artifact.tensors.keys()):
        if name not in artifact.tensors:
            raise ArtifactError(f"{path}: tensor {name!r} is missing")
        if name not in expected:
            raise ArtifactError(f"{path}: backbone {backbone.name} has no place for tensor {name!r}")
        if artifact.tensors[name].shape != expected[name]:
            raise ArtifactError(f"{path}: {name} has shape {artifact.tensors[name].shape}, expected {expected[name]}")


def _check_images(artifact: Artifact, backbone: FrozenBackbone) -> None:
    """An adapter that was trained without images does not care what would be made of them."""
    trained, processor = artifact.manifest.backbone.images, backbone.image_processor
    if trained is None or (processor is not None and processor.digest == trained.digest):
        return
    raise ArtifactError(
        f"{artifact.directory}: adapter {artifact.name} was trained on images of {trained.image_size} pixels, mean and "
        f"deviation {trained.image_mean_std}: load the backbone with backbone.image_size={trained.image_size} and "
        f"backbone.image_mean_std={trained.image_mean_std}"
    )


def _described(name: str, fingerprint: str) -> str:
    return f"{name} (fingerprint {fingerprint[:12]}...)"


def _rows_by_adapter(per_row: Sequence[str | None]) -> dict[str | None, list[int]]:
    groups: dict[str | None, list[int]] = {}
    for row, name in enumerate(per_row):
        groups.setdefault(name, []).append(row)
    return groups
