"""The HTML page of an evaluation: the card, plots, figures by group, and the worst examples.

It is one file without scripts, links or other resources. It holds texts and images of the data set, which may
be patients': it says so at its top, only its owner may read it, and it is refused inside an adapter, so that
nobody uploads it with one.
"""

from __future__ import annotations

import base64
import os
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from html import escape
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np

from bmpeft.adapters.manifest import MANIFEST_FILE
from bmpeft.errors import BmpeftError, UsageError
from bmpeft.evaluation import svg
from bmpeft.evaluation.metrics import Resampling, Values, accepted_answers, fixed_labels, labels
from bmpeft.evaluation.score_card import HEADINGS, PART_HEADINGS, ScoreCard, card_notes, card_rows, part_rows
from bmpeft.evaluation.split_run import MeasuredSplit
from bmpeft.records import Prediction, Record

EXAMPLES = 30
"""Worst rows of each split that are shown."""
MOST_GROUPS, MOST_LABELS, MOST_CHARACTERS, THUMBNAIL = 25, 40, 2_000, 256

WARNING = (
    "This page holds texts and images of the data set, which may be patients'. Keep it as you keep the data: "
    "do not publish it, and do not put it into an adapter or a repository."
)
_STYLE = """
body{font:15px/1.45 system-ui,sans-serif;max-width:1100px;margin:2em auto;padding:0 1em;color:#222}
.warning{background:#fff3cd;border:2px solid #c8553d;padding:.8em 1em;font-weight:600}
table{border-collapse:collapse;margin:1em 0}td,th{padding:.2em .7em;border-bottom:1px solid #ddd;text-align:left}
td.n{text-align:right}svg{font-size:11px;margin:.5em 1em .5em 0}
.example{border:1px solid #ccc;padding:.6em 1em;margin:1em 0;overflow:hidden}
.example img{float:right;max-width:256px;margin-left:1em}.text{white-space:pre-wrap}.right{color:#2a7a3f}
"""


def check_page_path(path: Path) -> None:
    """Refuse a place for the page before the long work.

    Raises:
        UsageError: it is a directory, in one that does not exist, or inside an adapter.
    """
    parent = path.absolute().parent
    if path.is_dir() or not parent.is_dir():
        raise UsageError(f"--html: {path} must be a file in a directory that exists")
    for directory in (parent.resolve(), *parent.resolve().parents):
        if (directory / MANIFEST_FILE).exists():
            raise UsageError(
                f"--html: {path} is inside the adapter {directory.name}, and the page holds texts of the data"
            )


def write_page(path: Path, card: ScoreCard, measured: Sequence[MeasuredSplit]) -> None:
    """Write or replace the page; only its owner may read it.

    Raises:
        BmpeftError: it cannot be written.
    """
    content = render(card, measured).encode()
    try:
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.writing-", dir=path.absolute().parent)  # mode 0600
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(content)
            os.replace(name, path)
        except BaseException:
            os.unlink(name)
            raise
    except OSError as error:
        raise BmpeftError(f"{path}: cannot be written: {error.strerror}") from None


def render(card: ScoreCard, measured: Sequence[MeasuredSplit]) -> str:
    """The page."""
    title = f"{card.adapter or card.backbone.name} on {card.dataset}"
    body = [
        f'<p class="warning">{escape(WARNING)}</p>',
        f"<h1>{escape(title)}</h1>",
        f"<p><b>Remarks:</b> {escape('; '.join(card.remarks) or 'none')}</p>",
        _table(HEADINGS, card_rows(card)),
    ]
    if parts := part_rows(card):
        body.append(_table(PART_HEADINGS, parts))
    body += ["<ul>", *(f"<li>{escape(name)}: {escape(value)}</li>" for name, value in card_notes(card)), "</ul>"]
    for split in measured:
        body += [f"<h2>{escape(split.result.split)}</h2>", *_split(card, split)]
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}"><meta name="robots" content="noindex">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head>\n<body>\n"
        + "\n".join(body)
        + "\n</body></html>\n"
    )


def _split(card: ScoreCard, split: MeasuredSplit) -> Iterator[str]:
    rows = split.measured.deciding_rows
    shares = _shares(card, split.predictions)
    confidence = np.array([float("nan") if share is None else share.max() for share in shares])
    yield from _confusion(split)
    if not np.isnan(confidence).any():
        yield "<h3>Calibration</h3>"
        yield _reliability(confidence, rows)
        edges = np.linspace(0.0, 1.0, labels.BINS + 1)
        series = [np.histogram(confidence[rows == value], edges)[0].tolist() for value in (1.0, 0.0)]
        yield svg.histogram(edges.tolist(), series, ("right", "wrong"), "largest probability")
    else:
        yield "<h3>Scores</h3>"
        counts, edges = np.histogram(rows, bins=20, range=(0.0, max(1.0, float(rows.max()))))
        name = split.result.metrics[0].name
        yield svg.histogram(edges.tolist(), [counts.tolist()], ("rows",), f"{name} of a row")
    yield from _groups(card, split)
    yield "<h3>Worst examples</h3>"
    order = sorted(range(len(rows)), key=lambda i: (rows[i], -np.nan_to_num(confidence[i])))
    for i in order[:EXAMPLES]:
        yield _example(split.records[i], split.predictions[i], float(rows[i]), shares[i])


def _shares(card: ScoreCard, predictions: Sequence[Prediction]) -> list[Values | None]:
    """The probabilities of each row's choices, by the score that decides."""
    closed = card.decoding.get("closed")
    decoding: Any = closed if isinstance(closed, dict) else card.decoding
    normalization: labels.Normalization = "length" if decoding.get("normalization") == "length" else "sum"
    return [None if p.choice_scores is None else labels.probabilities(p, normalization) for p in predictions]


def _reliability(confidence: Values, rows: Values) -> str:
    bins = labels.confidence_bins(confidence)
    members = [bins == number for number in range(labels.BINS)]
    return svg.reliability(
        [float(confidence[member].mean()) if member.any() else None for member in members],
        [float(rows[member].mean()) if member.any() else None for member in members],
        [int(member.sum()) for member in members],
    )


def _confusion(split: MeasuredSplit) -> Iterator[str]:
    names, matrix = fixed_labels(split.records), split.result.confusion
    if names is None or matrix is None or len(names) > MOST_LABELS:
        return
    yield "<h3>Confusion matrix</h3>"
    heads = "".join(f"<th>{escape(name)}</th>" for name in names)
    lines = [f"<table><tr><th>right \\ given</th>{heads}</tr>"]
    for name, row in zip(names, matrix, strict=True):
        total = max(1, sum(row))
        cells = "".join(
            f'<td class="n" style="background:rgba(59,110,165,{0.8 * count / total:.2f})">{count:,}</td>'
            for count in row
        )
        lines.append(f"<tr><th>{escape(name)}</th>{cells}</tr>")
    yield "".join([*lines, "</table>"])


def _groups(card: ScoreCard, split: MeasuredSplit) -> Iterator[str]:
    """The deciding metric for each value of what the data set says about its rows, and for each right label."""
    rows, table = split.measured.deciding_rows, []
    for name, values in _groupings(split.records):
        resampling = Resampling.of_records(split.records, card.bootstrap_samples, card.seed)
        for value in sorted(set(values)):
            member = np.array([other == value for other in values])
            mean, low, high = resampling.mean(np.where(member, rows, np.nan))
            table.append((name, value, f"{mean:.3f} [{low:.3f}, {high:.3f}]", f"{int(member.sum()):,}"))
    if table:
        yield f"<h3>{escape(split.result.metrics[0].name)} by group</h3>"
        yield _table(("what", "group", "value [95 %]", "n"), table)


def _groupings(records: Sequence[Record]) -> Iterator[tuple[str, list[str]]]:
    keys = sorted({key for record in records for key, value in record.meta.items() if isinstance(value, str)})
    for key in keys:
        values = [str(record.meta.get(key) or "(none)").strip() for record in records]
        if 1 < len(set(values)) <= MOST_GROUPS:
            yield key, values
    names = fixed_labels(records)
    if names is not None and len(names) <= MOST_GROUPS and all(record.label is not None for record in records):
        yield "right label", [names[record.label or 0] for record in records]


def _example(record: Record, prediction: Prediction, value: float, shares: Values | None) -> str:
    lines = [f"<b>{escape(record.id)}</b> &middot; {value:.3f}"]
    for name, text in (("text", record.text), ("question", record.question)):
        if text:
            cut = text if len(text) <= MOST_CHARACTERS else f"{text[:MOST_CHARACTERS]} [...]"
            lines.append(f'<div class="text"><b>{name}:</b> {escape(cut)}</div>')
    lines.append(f'<div class="text"><b>given:</b> {escape(prediction.text)}</div>')
    answers = " / ".join(accepted_answers(record))
    lines.append(f'<div class="text right"><b>right:</b> {escape(answers)}</div>')
    if shares is not None:
        named = zip(record.choices or (), shares, strict=True)
        lines.append("<div>" + ", ".join(f"{escape(choice)} {share:.3f}" for choice, share in named) + "</div>")
    image = "" if record.image is None else f'<img alt="image of the row" src="{_thumbnail(record)}">'
    return f'<div class="example">{image}{"".join(lines)}</div>'


def _thumbnail(record: Record) -> str:
    """The row's image, at most 256 pixels a side, as a data URI."""
    assert record.image is not None, "asked for rows with an image only"
    image = record.image.load()
    image.thumbnail((THUMBNAIL, THUMBNAIL))
    stream = BytesIO()
    image.save(stream, format="PNG")
    return f"data:image/png;base64,{base64.b64encode(stream.getvalue()).decode('ascii')}"


def _table(headings: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    head = "".join(f"<th>{escape(heading)}</th>" for heading in headings)
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><tr>{head}</tr>{body}</table>"
