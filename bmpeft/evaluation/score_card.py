"""The score card: what was measured, on which rows, against which controls, and what speaks against the figures."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError, computed_field

from bmpeft.datasets.leakage import Leakage
from bmpeft.errors import BmpeftError
from bmpeft.recipe import portable_name

if TYPE_CHECKING:
    from rich.console import RenderableType

    from bmpeft.backbones.base import FrozenBackbone
    from bmpeft.datasets import LoadedDataset


SCHEMA_VERSION = 2
FEW_UNITS = 20
"""With fewer rows or groups, percentile intervals of the bootstrap are too narrow; of one, they have no width."""


class CardPart(BaseModel):
    """Base of all parts.

    What follows from other fields (`remarks`, `beaten`) is written with them, for readers of the JSON, and
    computed anew when a card is read, so that it cannot disagree; hence extra="ignore". Another schema is
    refused by `schema_version`.
    """

    model_config = ConfigDict(extra="ignore", frozen=True, allow_inf_nan=False)


class Metric(CardPart):
    """A figure with its definition id and 95 % bootstrap interval over `n` rows."""

    id: str
    name: str
    value: float
    low: float
    high: float
    n: int = Field(ge=1)


class Difference(CardPart):
    """The model's deciding metric minus a control's, with the 95 % interval of the paired bootstrap."""

    value: float
    low: float
    high: float


class Control(CardPart):
    """What something simpler scores on the same rows. It is beaten where the interval of the difference is above 0."""

    name: str
    metrics: tuple[Metric, ...] = Field(min_length=1)
    difference: Difference
    note: str | None = Field(None, description="what it was made with")

    @computed_field  # type: ignore[prop-decorator]
    @property
    def beaten(self) -> bool:
        return self.difference.low > 0.0


class Truncation(CardPart):
    """How many rows were shortened to fit the model, and by how many tokens of their documents in all."""

    rows: int
    rows_cut: int
    document_tokens_cut: int


class Part(CardPart):
    """The deciding metric on some of the rows: those of one answer type, or with sources of a length in tokens."""

    by: Literal["answer type", "source length"]
    name: str
    metric: Metric


class SplitResult(CardPart):
    """The figures of one split. The first metric decides comparisons."""

    split: str
    split_digest: str
    rows: int = Field(description="of the whole split")
    n: int = Field(ge=1, description="rows that were measured")
    metrics: tuple[Metric, ...] = Field(min_length=1)
    controls: tuple[Control, ...]
    truncation: Truncation
    seconds: float = Field(description="of the model's own answers, controls not included")
    rows_per_second: float
    groups: int | None = Field(
        None, description="groups (patients, images ...) of the rows, which the bootstrap draws; None: it draws rows"
    )
    parts: tuple[Part, ...] = ()
    confusion: tuple[tuple[int, ...], ...] | None = Field(
        None, description="of fixed labels: rows [right][given], labels in the order of the data set, without names"
    )
    absent: tuple[str, ...] = Field((), description="metrics that could not be measured here, and why")


class BackboneStamp(CardPart):
    """Which frozen weights were used, and how."""

    name: str
    fingerprint: str
    init: Literal["pretrained", "random"]
    init_seed: int | None
    dtype: str
    attention: str

    @classmethod
    def of(cls, backbone: FrozenBackbone) -> BackboneStamp:
        """The stamp of a loaded backbone; of a directory only the last part of its path is kept."""
        return cls.model_validate(
            {
                "name": portable_name(backbone.name),
                "fingerprint": backbone.fingerprint,
                "init": backbone.init,
                "init_seed": backbone.init_seed,
                "dtype": str(backbone.dtype).removeprefix("torch."),
                "attention": backbone.attention,
            }
        )


class TrainedOn(CardPart):
    """The rows that an adapter was trained on, and how many of them are in an official evaluation set."""

    dataset: str
    split_digest: str
    contamination: str | None = None
    rows: int | None = None
    contaminated_rows: int | None = None

    @classmethod
    def of(cls, dataset: LoadedDataset, split: str = "train") -> TrainedOn:
        return cls(
            dataset=dataset.name,
            split_digest=dataset.split_digests[split],
            rows=len(dataset.splits[split]),
            contamination=dataset.contamination.get(split),
            contaminated_rows=dataset.contamination_counts.get(split),
        )


class ScoreCard(CardPart):
    """One evaluation; may cover several splits.

    Schema 2 has what 1 has, and parts, groups, confusion, absent, note, skipped_rows.
    """

    schema_version: Literal[1, 2] = 2
    task: str
    prompt: str
    decoding: dict[str, JsonValue]
    dataset: str
    synthetic: bool
    split_method: str
    skipped_rows: int = Field(0, ge=0, description="bad rows of the data that `data.skip_bad_rows` left out")
    limit: int | None = Field(description="rows of each split at most, the first of a seeded shuffle; None: all")
    results: tuple[SplitResult, ...] = Field(min_length=1)
    backbone: BackboneStamp
    adapter: str | None
    trained_on: TrainedOn | None
    leakage: Leakage | None = Field(None, description="what these splits share with training rows; None: not known")
    max_source_length: int
    seed: int
    bootstrap_samples: int
    versions: dict[str, str]

    @computed_field  # type: ignore[prop-decorator]
    @property
    def remarks(self) -> tuple[str, ...]:
        """What a reader must know before any figure; the first line of every rendering."""
        remarks = []
        if self.trained_on is not None and self.trained_on.contamination is not None:
            remarks.append(f"contaminated: {self.trained_on.contamination}{_share(self.trained_on)}")
        if self.trained_on is not None:
            own = [r.split for r in self.results if r.split_digest == self.trained_on.split_digest]
            remarks += [f"{split} holds the rows that the adapter was trained on" for split in own]
        if self.leakage is not None:
            remarks += [f"leakage accepted: {overlap.line()}" for overlap in self.leakage.leaks]
        if self.synthetic:
            remarks.append("synthetic data")
        if self.backbone.init == "random":
            remarks.append("untrained backbone")
        for result in self.results:
            unbeaten = [control.name for control in result.controls if not control.beaten]
            if unbeaten:
                remarks.append(f"does not beat control {', '.join(unbeaten)} on {result.split}")
            if self.adapter is not None and not result.controls:
                remarks.append(f"no control was run on {result.split}")
            units = result.n if result.groups is None else result.groups
            if units < FEW_UNITS:
                what = "rows" if result.groups is None else "groups of rows"
                remarks.append(f"only {units} {what} in {result.split}, so that its intervals are too narrow")
        return tuple(remarks)


def read_card(content: Mapping[str, Any]) -> ScoreCard:
    """A card from its JSON, of this schema or an older one.

    Raises:
        BmpeftError: it is of a newer schema, or no card; one line without its source, which the caller knows.
    """
    version = content.get("schema_version")
    if isinstance(version, int) and version > SCHEMA_VERSION:
        raise BmpeftError(f"its score card has schema {version}; this bmpeft reads up to {SCHEMA_VERSION}: upgrade it")
    try:
        return ScoreCard.model_validate(content)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        key = ".".join(map(str, first["loc"]))
        raise BmpeftError(f"its score card cannot be read: {key}: {first['msg']}") from None


def _share(trained_on: TrainedOn) -> str:
    if trained_on.contaminated_rows is None or trained_on.rows is None:
        return ""
    return f" ({trained_on.contaminated_rows:,} of {trained_on.rows:,} training rows)"


def to_markdown(card: ScoreCard) -> str:
    """The card as Markdown; the first line holds the remarks."""
    lines = [f"**Remarks:** {'; '.join(card.remarks) or 'none'}", ""]
    lines += ["| " + " | ".join(HEADINGS) + " |", "|---|---|---|---|---:|---|"]
    lines += ["| " + " | ".join(row) + " |" for row in card_rows(card)]
    parts = part_rows(card)
    if parts:
        lines += ["", "| " + " | ".join(PART_HEADINGS) + " |", "|---|---|---|---|---:|"]
        lines += ["| " + " | ".join(row) + " |" for row in parts]
    for result in card.results:
        lines += _confusion_lines(result)
    lines += ["", *(f"- {name}: {value}" for name, value in card_notes(card))]
    return "\n".join(lines) + "\n"


def rich_table(card: ScoreCard) -> RenderableType:
    """The card for a terminal; the first line holds the remarks."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    table = Table(*HEADINGS, box=None, pad_edge=False, header_style="bold")
    for row in card_rows(card):
        table.add_row(*map(Text, row))
    tables = [table]
    if parts := part_rows(card):
        tables.append(Table(*PART_HEADINGS, box=None, pad_edge=False, header_style="bold"))
        for part in parts:
            tables[-1].add_row(*map(Text, part))
    remarks = Text("; ".join(card.remarks) or "no remarks", style="bold yellow" if card.remarks else "green")
    notes = Text("\n".join(f"{name}: {value}" for name, value in card_notes(card)), style="dim")
    return Group(remarks, *tables, notes)


HEADINGS = ("split", "who", "metric", "value [95 %]", "n", "model minus control [95 %]")


PART_HEADINGS = ("split", "rows", "metric", "value [95 %]", "n")
_MOST_LABELS_SHOWN = 12


class TableRow(NamedTuple):
    """One line of a card's table; columns as in `HEADINGS`."""

    split: str
    who: str
    metric: str
    value: str
    n: str
    difference: str


def card_rows(card: ScoreCard) -> list[TableRow]:
    """The model's metrics and then each control, split by split; only new split and system names are written.

    Of a control there is the deciding metric and the difference in it; the card's JSON has its other metrics.
    """
    rows = []
    for result in card.results:
        model = card.adapter or "bare backbone"
        for i, metric in enumerate(result.metrics):
            rows.append(_row(metric, split=result.split if i == 0 else "", who=model if i == 0 else ""))
        for control in result.controls:
            rows.append(_row(control.metrics[0], who=f"control {control.name}", difference=_verdict(control)))
    return rows


def _row(metric: Metric, *, split: str = "", who: str, difference: str = "") -> TableRow:
    return TableRow(split, who, metric.name, _interval(metric), f"{metric.n:,}", difference)


def part_rows(card: ScoreCard) -> list[tuple[str, str, str, str, str]]:
    """The deciding metric on parts of the rows, split by split; columns as in `PART_HEADINGS`."""
    return [
        (result.split, f"{part.by} {part.name}", part.metric.name, _interval(part.metric), f"{part.metric.n:,}")
        for result in card.results
        for part in result.parts
    ]


def _confusion_lines(result: SplitResult) -> list[str]:
    """The confusion matrix as Markdown; labels are numbered, since their names are the data set's."""
    if result.confusion is None or len(result.confusion) > _MOST_LABELS_SHOWN:
        return []
    labels = [str(number) for number in range(len(result.confusion))]
    heading = f"| {result.split}: right label | " + " | ".join(f"given {label}" for label in labels) + " |"
    rows = (
        f"| {label} | " + " | ".join(f"{n:,}" for n in row) + " |"
        for label, row in zip(labels, result.confusion, strict=True)
    )
    return ["", heading, "|---|" + "---:|" * len(labels), *rows]


def card_notes(card: ScoreCard) -> list[tuple[str, str]]:
    """What the figures were made with: name and text of each note."""
    backbone, trained_on = card.backbone, card.trained_on
    random = f", random weights (seed {backbone.init_seed})" if backbone.init == "random" else ""
    skipped = f"; {card.skipped_rows:,} bad rows left out" if card.skipped_rows else ""
    notes = [
        ("data", f"{card.dataset}{' (synthetic)' if card.synthetic else ''}, split {card.split_method}{skipped}"),
        (
            "backbone",
            f"{backbone.name}{random}, {backbone.dtype}, attention {backbone.attention}, "
            f"fingerprint {backbone.fingerprint[:12]}",
        ),
    ]
    if trained_on is not None:
        rows = "" if trained_on.rows is None else f", {trained_on.rows:,} rows"
        notes.append(("trained on", f"{trained_on.dataset}{rows}, digest {trained_on.split_digest[:12]}"))
    if card.leakage is not None:
        notes.append(("overlap with training rows", "; ".join(card.leakage.lines()) or "none found"))
    elif trained_on is not None:
        notes.append(("overlap with training rows", "not known: not the splits that the adapter was trained beside"))
    for result in card.results:
        parts = (
            f"{result.n:,} of {result.rows:,} rows, digest {result.split_digest[:12]}",
            f"{_cut(result.truncation)} (limit {card.max_source_length})",
            f"{result.rows_per_second:,.1f} rows/s",
            f"intervals over {'rows' if result.groups is None else f'{result.groups:,} groups of rows'}",
            *(f"control {control.name}: {control.note}" for control in result.controls if control.note),
            *result.absent,
        )
        notes.append((result.split, "; ".join(parts)))
    return [*notes, ("seed", f"{card.seed}, {card.bootstrap_samples:,} bootstrap samples")]


def _cut(truncation: Truncation) -> str:
    if truncation.rows_cut == 0:
        return "no row cut"
    return f"{truncation.rows_cut:,} rows cut by {truncation.document_tokens_cut:,} tokens in all"


def _verdict(control: Control) -> str:
    return f"{_interval(control.difference, sign='+')} {'beaten' if control.beaten else 'not beaten'}"


def _interval(figure: Metric | Difference, sign: str = "") -> str:
    return f"{figure.value:{sign}.3f} [{figure.low:{sign}.3f}, {figure.high:{sign}.3f}]"
