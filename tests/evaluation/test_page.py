"""The page: whole in itself, its owner's alone, and nothing of the data set is taken for HTML."""

from __future__ import annotations

import dataclasses
import os
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from bmpeft.adapters.manifest import MANIFEST_FILE
from bmpeft.errors import BmpeftError, UsageError
from bmpeft.evaluation import svg
from bmpeft.evaluation.page import EXAMPLES, WARNING, check_page_path, render, write_page
from bmpeft.evaluation.score_card import ScoreCard
from bmpeft.evaluation.split_run import MeasuredSplit
from bmpeft.recipe_decoding import BeamDecoding
from bmpeft.recipe_task import TaskSection
from tests.evaluation.test_controls import Plain
from tests.evaluation.test_run import rows, run, toy
from tests.fakes import FakeModel

HOSTILE = "</div><script>alert('x')</script><img src=http://x/y onerror=z>"


def page(**options: object) -> tuple[ScoreCard, list[MeasuredSplit]]:
    splits: list[MeasuredSplit] = []
    card = run(on_split=splits.append, **options)  # type: ignore[arg-type]
    return card, splits


def classification() -> tuple[ScoreCard, list[MeasuredSplit]]:
    choices = ("benign", "malignant & <rare>")
    test = tuple(
        dataclasses.replace(row, question=HOSTILE, image=Plain(n), meta={"organ": f"organ {n % 3}", "size": 3})
        for n, row in enumerate(rows("test", [0, 1] * 20, choices))
    )
    return page(dataset=toy(test, rows("train", [0, 1], choices)), model=FakeModel())


class Parser(HTMLParser):
    """Collects tags; every one that is opened must be closed in its turn."""

    VOID = ("meta", "img", "br")

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.open: list[str] = []
        self.sources: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.sources += [value or "" for name, value in attrs if name in ("src", "href", "xlink:href")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_is_whole_in_itself_and_escaped() -> None:
    content = render(*classification())
    parser = Parser()
    parser.feed(content)
    assert parser.open == []
    assert not {"script", "link", "iframe", "object"} & set(parser.tags)
    assert parser.tags.count("img") == EXAMPLES
    assert all(source.startswith("data:image/png;base64,") for source in parser.sources)
    assert "&lt;script&gt;" in content
    assert "malignant &amp; &lt;rare&gt;" in content
    assert "default-src &#x27;none&#x27;" in content or "default-src 'none'" in content
    assert content.index(WARNING.split("'")[0]) < content.index("<h1>")


def test_a_classification_has_its_plots_and_groups() -> None:
    content = render(*classification())
    for heading in ("Confusion matrix", "Calibration", "by group", "Worst examples"):
        assert heading in content
    assert content.count("<svg") == 2
    assert re.search(r"<td>organ</td><td>organ 2</td><td>0\.\d{3} \[0\.\d{3}, [01]\.\d{3}\]</td><td>13</td>", content)
    assert "<td>right label</td><td>benign</td>" in content
    assert "<td>size</td>" not in content


def test_the_worst_are_wrong_and_sure_of_it() -> None:
    card, splits = classification()
    shown = re.findall(
        r'<div class="example">.*?<b>(test\d+)</b> &middot; (\d\.\d{3}).*?</div></div>', render(card, splits)
    )
    values = [float(value) for _, value in shown]
    assert values == sorted(values)
    assert values[0] == 0.0
    by_id = {p.id: max(p.choice_scores or ()) - min(p.choice_scores or ()) for p in splits[0].predictions}
    sure = [by_id[identity] for identity, value in shown if float(value) == 0.0]
    assert sure == sorted(sure, reverse=True)


def test_written_answers_have_a_histogram_of_scores() -> None:
    answers = tuple(
        dataclasses.replace(r, choices=None, label=None, answers=("a b",), text="word " * 900)
        for r in rows("test", [0] * 10)
    )
    card, splits = page(
        dataset=toy(answers, answers),
        task=TaskSection(prompt=" {question}", decoding=BeamDecoding()),
        controls=("majority",),
    )
    content = render(card, splits)
    assert "exact match of a row" in content
    assert "Calibration" not in content
    assert "[...]" in content
    assert "word " * 401 not in content


def test_only_its_owner_reads_the_page(tmp_path: Path) -> None:
    card, splits = classification()
    file = tmp_path / "page.html"
    file.write_text("older, and open to all")
    file.chmod(0o644)
    write_page(file, card, splits)
    assert file.stat().st_mode & 0o777 == 0o600
    assert [other.name for other in tmp_path.iterdir()] == ["page.html"]


def test_the_page_is_refused_inside_an_adapter(tmp_path: Path) -> None:
    adapter = tmp_path / "adapters" / "mine"
    (adapter / "deeper").mkdir(parents=True)
    (adapter / MANIFEST_FILE).write_text("{}")
    (tmp_path / "link").symlink_to(adapter)
    for place in (adapter / "page.html", adapter / "deeper" / "page.html", tmp_path / "link" / "page.html"):
        with pytest.raises(UsageError, match="is inside the adapter mine"):
            check_page_path(place)
    check_page_path(tmp_path / "page.html")
    for place in (tmp_path, tmp_path / "nowhere" / "page.html"):
        with pytest.raises(UsageError, match="must be a file in a directory that exists"):
            check_page_path(place)


def test_a_page_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(BmpeftError, match="cannot be written"):
        write_page(tmp_path / "nowhere" / "page.html", *classification())


def test_charts_have_what_they_are_given() -> None:
    bars = svg.histogram([0.0, 0.5, 1.0], [[3, 0], [1, 2]], ("right", "<wrong>"), "share")
    assert bars.count("<rect") == 3
    assert "right: 3 rows from 0 to 0.5" in bars
    assert "&lt;wrong&gt;: 2 rows" in bars
    empty = svg.reliability([None, 0.9], [None, 0.25], [0, 4])
    assert empty.count("<rect") == 1
    assert "4 rows, probability 0.900, accuracy 0.250" in empty
    assert os.linesep not in empty
