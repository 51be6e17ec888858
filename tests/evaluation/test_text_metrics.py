"""Summaries and captions: ROUGE, BLEU, CIDEr-D and METEOR against libraries, programs and cases by hand."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import numpy as np
import pytest
from sacrebleu.metrics.bleu import BLEU as SacreBleu

from bmpeft.errors import BmpeftError
from bmpeft.evaluation.metrics import Resampling, measure, meteor, overlap
from bmpeft.evaluation.metrics.cider import cider_of_tokens, cider_rows
from bmpeft.recipe_decoding import BeamDecoding
from bmpeft.records import Prediction, Record

ACCEPTED = (
    ("the heart is normal in size", "heart size is normal"),
    ("no focal consolidation or effusion",),
    ("the lungs are clear . no effusion",),
    ("mild cardiomegaly with clear lungs",),
)
GIVEN = ("the heart size is normal", "no effusion or consolidation", "the lungs are clear", "the heart is normal")
ROWS = [
    Record(id=str(n), task="captioning", split="test", group=str(n), answers=answers)
    for n, answers in enumerate(ACCEPTED)
]
PREDICTIONS = [Prediction(str(n), text) for n, text in enumerate(GIVEN)]
RESAMPLING = Resampling.of_rows(4, 100, 0)


def test_rouge_by_hand() -> None:
    """Five words are given; the better of the accepted texts, of 6 and 4 words, counts in each figure."""
    rows = {definition.id: values for definition, values in overlap.rouge_rows(ROWS, PREDICTIONS).items()}
    assert rows["rouge-1/f-stem@1"][0] == pytest.approx(2 * 5 / (5 + 6))
    assert rows["rouge-2/f-stem@1"][0] == pytest.approx(2 * 3 / (4 + 3))
    assert rows["rouge-l/f-stem@1"][0] == pytest.approx(2 * 4 / (5 + 4))


def test_rouge_stems_words() -> None:
    row = Record(id="0", task="captioning", split="test", group="0", answers=("lung infections",))
    values = overlap.rouge_rows([row], [Prediction("0", "lungs infection")])
    assert all(rows.tolist() == [1.0] for rows in values.values())


def test_bleu_is_sacrebleus_for_all_rows_and_for_drawn_ones() -> None:
    statistic = overlap.bleu(overlap.bleu_statistics(ROWS, PREDICTIONS))
    for drawn in ([0, 1, 2, 3], [0, 0, 2, 3], [1, 1, 1, 2]):
        streams = [[ACCEPTED[i][n] if n < len(ACCEPTED[i]) else None for i in drawn] for n in range(2)]
        expected = SacreBleu().corpus_score([GIVEN[i] for i in drawn], streams).score / 100.0
        weights = np.bincount(drawn, minlength=4).astype(float)[None]
        assert statistic(weights)[0] == pytest.approx(expected)


def test_cider_d_of_one_word_by_hand() -> None:
    """Rows of one word each: the right word has cosine 1 for n = 1 and there are no longer n-grams."""
    values = cider_of_tokens([["lung"], ["heart"], ["liver"]], [[["lung"]], [["liver"]], [["liver"]]])
    assert values.tolist() == pytest.approx([10 / 4, 0.0, 10 / 4])


def test_cider_d_of_two_words_by_hand() -> None:
    """ln(2) for every n-gram of one row; (clear lungs) against (clear heart): one word of two, no pair."""
    values = cider_of_tokens([["clear", "lungs"], ["x"]], [[["clear", "heart"]], [["spine"]]])
    assert values[0] == pytest.approx(10 / 4 * 0.5)


def test_cider_d_clips_what_is_repeated() -> None:
    """(lung lung) against (lung heart): the second "lung" adds to the norm, not to what is shared."""
    values = cider_of_tokens([["lung", "lung"], ["x"]], [[["lung", "heart"]], [["spine"]]])
    assert values[0] == pytest.approx(10 / 4 * 1 / (2 * math.sqrt(2)))


def test_cider_d_costs_length() -> None:
    short, long = ["a", "b"], ["a", "b", "c", "d", "e"]
    others = [["x", "y"]]
    exact = cider_of_tokens([short, ["x"]], [[short], others])[0]
    padded = cider_of_tokens([long, ["x"]], [[short], others])[0]
    cosines = (2 / math.sqrt(2 * 5), 1 / math.sqrt(1 * 4))  # what n = 1 and n = 2 share
    # n-grams that no accepted text has weigh like those of one row
    assert padded == pytest.approx(10 / 4 * sum(cosines) * math.exp(-(3**2) / 72))
    assert exact == pytest.approx(10 / 4 * 2)


def test_cider_d_is_the_one_of_pycocoevalcap() -> None:
    """Values of pycocoevalcap 1.2, `Cider().compute_score`, for these texts, which have no tokens to disagree on."""
    given = [text.split() for text in (*GIVEN[:3], "the heart is normal in size")]
    given[0] = ["heart", "size", "is", "normal"]
    accepted = [[answers[0].split()] for answers in ACCEPTED]
    expected = [2.6748670070797944, 2.083742851899159, 5.677459321329112, 0.0]
    assert cider_of_tokens(given, accepted).tolist() == pytest.approx(expected)


def test_cider_d_equals_pycocoevalcap_where_it_is_installed() -> None:
    cider = pytest.importorskip("pycocoevalcap.cider.cider", reason="pycocoevalcap is not installed")
    generator = np.random.default_rng(0)

    def text() -> list[str]:
        return list(generator.choice(list("abcdef"), generator.integers(1, 9)))

    for rows in range(1, 9):
        given, accepted = [text() for _ in range(rows)], [[text() for _ in range(2)] for _ in range(rows)]
        _, expected = cider.Cider().compute_score(
            {i: [" ".join(tokens) for tokens in accepted[i]] for i in range(rows)},
            {i: [" ".join(given[i])] for i in range(rows)},
        )
        assert cider_of_tokens(given, accepted).tolist() == pytest.approx(list(expected))


def test_captions_keep_their_numbers() -> None:
    row = Record(id="0", task="captioning", split="test", group="0", answers=("nodule of 1.5 cm",))
    other = Record(id="1", task="captioning", split="test", group="1", answers=("normal",))
    right, wrong = (
        cider_rows([row, other], [Prediction("0", text), Prediction("1", "normal")])[0]
        for text in ("nodule of 1.5 cm", "nodule of 15 cm")
    )
    assert right > wrong + 2.0


def test_what_is_measured_and_what_decides() -> None:
    captions = measure(ROWS, PREDICTIONS, task="captioning", decoding=BeamDecoding(), resampling=RESAMPLING)
    ids = [figure.definition.id for figure in captions.figures]
    assert ids[:3] == ["cider-d/tokens@1", "rouge-l/f-stem@1", "bleu/sacrebleu-13a@1"]
    assert (ids[3:] == ["meteor/1.5-en@1"]) == (captions.absent == ())
    summaries = measure(ROWS, PREDICTIONS, task="summarization", decoding=BeamDecoding(), resampling=RESAMPLING)
    assert [figure.definition.id for figure in summaries.figures] == [
        "rouge-l/f-stem@1",
        "rouge-1/f-stem@1",
        "rouge-2/f-stem@1",
        "bleu/sacrebleu-13a@1",
    ]
    for figure in (*captions.figures, *summaries.figures):
        assert figure.low <= figure.value <= figure.high


def test_without_java_meteor_is_absent_and_the_card_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    measured = measure(ROWS, PREDICTIONS, task="captioning", decoding=BeamDecoding(), resampling=RESAMPLING)
    assert measured.absent == ("METEOR is absent: it needs Java",)


PROGRAM = """
import sys
for line in sys.stdin:
    parts = line.rstrip("\\n").split(" ||| ")
    if parts[0] == "SCORE":
        print(len(parts) - 2, len(parts[-1].split()), flush=True)
    else:
        numbers = [float(number) for number in parts[1].split()]
        print(numbers[0] / numbers[1], numbers[0] / numbers[1], sep="\\n", flush=True)
"""


def test_the_program_is_asked_row_by_row_and_for_the_sums(tmp_path: Path) -> None:
    script = tmp_path / "program.py"
    script.write_text(PROGRAM)
    tricky = [Prediction("0", "a ||| b\nc"), *PREDICTIONS[1:]]
    with meteor.MeteorProgram([sys.executable, "-S", str(script)]) as program:
        counts = program.counts(ROWS, tricky)
        assert counts.tolist() == [[2.0, 3.0], [1.0, 4.0], [1.0, 4.0], [1.0, 4.0]]
        weights = np.array([[1.0, 1.0, 1.0, 1.0], [2.0, 0.0, 0.0, 2.0]])
        assert program.statistic(counts)(weights).tolist() == pytest.approx([5 / 15, 6 / 14])


def test_a_program_that_ends_is_one_line() -> None:
    with (
        pytest.raises(BmpeftError, match="METEOR: the Java program ended unexpectedly"),
        meteor.MeteorProgram([sys.executable, "-S", "-c", ""]) as program,
    ):
        program.counts(ROWS, PREDICTIONS)
    with (
        pytest.raises(BmpeftError, match="METEOR: no-such-java cannot be started"),
        meteor.MeteorProgram(["no-such-java"]),
    ):
        pass


@pytest.mark.skipif(meteor.missing() is not None, reason="METEOR needs Java and pycocoevalcap")
def test_meteor_of_the_program_itself() -> None:
    """Values of meteor-1.5.jar, called by hand."""
    rows = [
        Record(id="0", task="captioning", split="test", group="0", answers=ACCEPTED[0]),
        Record(id="1", task="captioning", split="test", group="1", answers=("no focal consolidation",)),
    ]
    texts = ("the heart size is within normal limits", "no pleural effusion or consolidation")
    with meteor.MeteorProgram() as program:
        counts = program.counts(rows, [Prediction(str(n), text) for n, text in enumerate(texts)])
        assert [program.score(row) for row in counts] == pytest.approx([0.4322802371242765, 0.21052631578947367])
