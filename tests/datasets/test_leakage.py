"""The leakage gate: what it finds, what it refuses, what it only reports, and what it costs."""

from __future__ import annotations

import dataclasses
import io
import random
from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageEnhance
from pydantic import TypeAdapter, ValidationError

from bmpeft.datasets import leakage as module
from bmpeft.datasets.leakage import Leakage, Overlap, find_leakage, images_in, require_no_leakage
from bmpeft.datasets.perceptual import perceptual_hash, rows_with_similar
from bmpeft.errors import UsageError
from bmpeft.records import Record

READS: Counter[str] = Counter()


@dataclass(frozen=True)
class Picture:
    """A made-up image: smooth random shapes of a seed, changed in one of several ways."""

    seed: int
    change: str = "none"

    @property
    def digest(self) -> str:
        READS[f"digest {self}"] += 1
        return f"{self.seed}-{self.change}"

    def load(self) -> Image.Image:
        READS[f"load {self}"] += 1
        generator = np.random.default_rng(self.seed)
        coarse = Image.fromarray(generator.integers(0, 255, (12, 12), dtype=np.uint8)).resize((200, 160))
        return CHANGES[self.change](coarse).convert("RGB")


def recompressed(image: Image.Image) -> Image.Image:
    buffer = io.BytesIO()
    image.convert("L").save(buffer, "JPEG", quality=60)
    return Image.open(io.BytesIO(buffer.getvalue()))


CHANGES = {
    "none": lambda image: image,
    "jpeg": recompressed,
    "half": lambda image: image.resize((100, 80)),
    "double": lambda image: image.resize((400, 320)),
    "bright": lambda image: ImageEnhance.Brightness(image).enhance(1.1),
}


def record(identity: str, **fields: Any) -> Record:
    return Record(id=identity, task="t", split="s", **{"group": identity, **fields})


def found(train: list[Record], test: list[Record]) -> dict[str, int]:
    result = find_leakage(train, {"test": test}, scored=("test",))
    return {overlap.kind: overlap.rows for overlap in result.overlaps}


def test_rows_that_share_nothing_have_no_overlap() -> None:
    train = [record("a", image=Picture(1), question="Is it big?"), record("b", text="A long report.")]
    test = [record("c", image=Picture(2), question="Where is it?"), record("d", text="Another one.")]
    result = find_leakage(train, {"test": test}, scored=("test",))
    assert result == Leakage(("test",))
    assert result.lines() == ()
    require_no_leakage(result, "x", accept=False)


def test_each_kind_is_found_and_counted_by_rows() -> None:
    words = " ".join(f"word{n}" for n in range(30))
    train = [
        record("a", group="patient 1"),
        record("b", image=Picture(1), question="Is there a fracture?"),
        record("c", text=words),
        record("d", question="Which drug?", choices=("x", "y")),
    ]
    assert found(train, [record("e", group="patient 1"), record("f", group="patient 1")]) == {"group": 2}
    assert found(train, [record("e", image=Picture(1), question="Where?")]) == {"image": 1}
    assert found(train, [record("e", image=Picture(1), question="is there  a FRACTURE")]) == {"image": 1, "row": 1}
    assert found(train, [record("e", image=Picture(9), question="Is there a fracture?")]) == {"question": 1}
    assert found(train, [record("e", image=Picture(1, "jpeg"), question="Where?")]) == {"similar": 1}
    assert found(train, [record("e", text=f"Different start. {words}")]) == {"document": 1}
    assert found(train, [record("e", text=words.upper())]) == {"row": 1}
    assert found(train, [record("e", question="Which drug?", choices=("y", "x"))]) == {"row": 1}
    assert found(train, [record("e", question="Which drug?", choices=("x", "z"))]) == {"question": 1}


@pytest.mark.parametrize(
    ("fields", "refused"),
    [
        ({"group": "a"}, True),
        ({"image": Picture(1)}, True),
        ({"question": "Is it?"}, True),  # nothing but the question: the whole input is the same
        ({"image": Picture(1, "half")}, False),
        ({"question": "Is it?", "image": Picture(7)}, False),
        ({"text": " ".join(f"w{n}" for n in range(20)) + " more"}, False),
    ],
)
def test_images_groups_and_whole_rows_are_refused_and_the_rest_is_reported(
    fields: dict[str, Any], refused: bool
) -> None:
    train = [
        record("a", image=Picture(1), text=" ".join(f"w{n}" for n in range(20)), question="Is it that?"),
        record("b", question="Is it?"),
    ]
    result = find_leakage(train, {"test": [record("t", **fields), record("u")]}, scored=("test",))
    assert len(result.overlaps) == 1
    if refused:
        with pytest.raises(
            UsageError, match=r"^toy: evaluation rows leak into training \(test: 1 of 2 rows "
        ) as caught:
            require_no_leakage(result, "toy", accept=False)
        assert "data.split_by=image or group" in str(caught.value)
        assert "data.accept_leakage=true" in str(caught.value)
        assert "\n" not in str(caught.value)
    else:
        require_no_leakage(result, "toy", accept=False)
    require_no_leakage(result, "toy", accept=True)


def test_a_split_that_is_not_scored_is_reported_and_never_refused() -> None:
    train = [record("a")]
    rows = [record("v", group="a")]
    result = find_leakage(train, {"validation": rows, "test": [record("t")]}, scored=("test",))
    assert [(overlap.split, overlap.leak) for overlap in result.overlaps] == [("validation", False)]
    require_no_leakage(result, "toy", accept=False)


def test_what_is_known_of_some_splits() -> None:
    overlap = Overlap("group", "test", 1, 2, leak=True)
    whole = Leakage(("validation", "test"), (overlap, Overlap("image", "validation", 1, 1, leak=False)))
    assert whole.of(["test"]) == Leakage(("test",), (overlap,))
    assert whole.of(["test", "test_unknown"]) is None


def test_it_is_stored_and_read_with_nothing_lost_or_slipped_in() -> None:
    whole = Leakage(("test",), (Overlap("row", "test", 1, 2, leak=True),), ("too many images",))
    adapter = TypeAdapter(Leakage)
    content = adapter.dump_json(whole)
    assert adapter.validate_json(content, strict=True) == whole
    with pytest.raises(ValidationError, match="Unexpected keyword"):
        adapter.validate_json(content.replace(b'"rows":1', b'"rows":1,"x":1'))


def test_every_image_is_read_once_however_many_rows_show_it() -> None:
    READS.clear()
    train = [record(f"a{n}", image=Picture(n % 3)) for n in range(30)]
    test = [record(f"b{n}", image=Picture(n % 5)) for n in range(20)]
    seen: list[int] = []
    find_leakage(train, {"test": test}, scored=("test",), on_image=lambda: seen.append(1))
    assert len(seen) == images_in(train, {"test": test}) == 5
    assert set(READS.values()) == {1}


def test_above_the_limit_similar_images_are_not_searched_which_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_IMAGES", 1)
    train, test = [record("a", image=Picture(1))], [record("b", image=Picture(1, "jpeg"))]
    result = find_leakage(train, {"test": test}, scored=("test",))
    assert result.overlaps == ()
    assert result.lines() == ("similar images were not searched: 2 images, the limit is 1",)


def test_a_part_of_the_word_sequences_finds_the_same_documents(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = random.Random(0)
    texts = [" ".join(f"w{generator.randrange(500)}" for _ in range(300)) for _ in range(12)]
    train = [record(f"a{n}", text=text) for n, text in enumerate(texts[:6])]
    test = [record(f"b{n}", text="New beginning: " + text) for n, text in enumerate(texts[3:9])]
    assert found(train, test) == {"document": 3}
    monkeypatch.setattr(module, "MAX_GRAMS", 200)
    assert found(train, test) == {"document": 3}


def test_half_of_a_documents_sequences_decide() -> None:
    known = " ".join(f"k{n}" for n in range(40))
    new = " ".join(f"n{n}" for n in range(200))
    train = [record("a", text=known)]
    assert found(train, [record("b", text=f"{known} {new}")]) == {}
    assert found(train, [record("b", text=f"{known} {new[:60]}")]) == {"document": 1}
    assert found(train, [record("b", text="k0 k1 k2")]) == {}  # too short for a sequence of 13 words


@pytest.mark.parametrize("change", ["jpeg", "half", "double", "bright"])
def test_perceptual_hashes_survive_what_copies_go_through(change: str) -> None:
    originals = [perceptual_hash(Picture(seed).load()) for seed in range(20)]
    copies = [perceptual_hash(Picture(seed, change).load()) for seed in range(20)]
    assert sum(rows_with_similar(copies, originals)) >= 19
    others = [perceptual_hash(Picture(seed).load()) for seed in range(100, 120)]
    assert not any(rows_with_similar(copies, others))


def test_comparing_in_parts_finds_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    hashes = [perceptual_hash(Picture(seed).load()) for seed in range(10)]
    others = [perceptual_hash(Picture(seed, "jpeg").load()) for seed in range(5, 15)]
    whole = rows_with_similar(hashes, others)
    monkeypatch.setattr("bmpeft.datasets.perceptual._COMPARISONS_AT_ONCE", 11)
    assert rows_with_similar(hashes, others) == whole == [False] * 5 + [True] * 5
    assert rows_with_similar([], others) == []
    assert rows_with_similar(hashes[:2], []) == [False, False]


rows = st.lists(st.tuples(st.sampled_from("abcdef"), st.sampled_from(["Is it?", "Where?", "Why then?"])), max_size=8)


@settings(max_examples=40, deadline=None)
@given(rows, rows)
def test_counts_do_not_depend_on_the_order_and_each_is_at_most_the_split(first: Any, second: Any) -> None:
    train = [record(f"t{n}", group=group, question=question) for n, (group, question) in enumerate(first)]
    test = [record(f"e{n}", group=group, question=question) for n, (group, question) in enumerate(second)]
    result = find_leakage(train, {"test": test}, scored=("test",))
    assert result == find_leakage(train[::-1], {"test": test[::-1]}, scored=("test",))
    groups, questions = {r.group for r in train}, {r.question for r in train}
    expected = {
        "group": sum(r.group in groups for r in test),
        "row": sum(r.question in questions for r in test),
    }
    assert {o.kind: o.rows for o in result.overlaps} == {kind: count for kind, count in expected.items() if count}


def test_no_text_of_a_row_is_in_a_message() -> None:
    secret = record("a", question="Secret question of patient Smith?")
    result = find_leakage([secret], {"test": [dataclasses.replace(secret, id="b")]}, scored=("test",))
    with pytest.raises(UsageError) as caught:
        require_no_leakage(result, "toy", accept=False)
    assert "Smith" not in str(caught.value) + " ".join(result.lines())
