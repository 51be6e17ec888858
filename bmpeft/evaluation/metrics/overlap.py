"""ROUGE and BLEU of summaries and captions, by the libraries that publications use."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np

from bmpeft.evaluation.metrics.answers import accepted_answers
from bmpeft.evaluation.metrics.bootstrap import MetricDefinition, Statistic, Values
from bmpeft.records import Prediction, Record

_ROUGE = "mean over rows of the largest F-measure with an accepted text, words stemmed (package rouge-score): "
ROUGE_1 = MetricDefinition("rouge-1/f-stem@1", "ROUGE-1", f"{_ROUGE}words in common")
ROUGE_2 = MetricDefinition("rouge-2/f-stem@1", "ROUGE-2", f"{_ROUGE}pairs of words in common")
ROUGE_L = MetricDefinition("rouge-l/f-stem@1", "ROUGE-L", f"{_ROUGE}longest common subsequence")
BLEU = MetricDefinition(
    "bleu/sacrebleu-13a@1",
    "BLEU",
    "corpus BLEU of up to four words (package sacrebleu, tokens 13a, smoothing exp), from 0 to 1",
)
_KEYS = {"rouge1": ROUGE_1, "rouge2": ROUGE_2, "rougeL": ROUGE_L}
ORDERS = 4


def rouge_rows(records: Sequence[Record], predictions: Sequence[Prediction]) -> dict[MetricDefinition, Values]:
    """The three figures of each row. [n]"""
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer(list(_KEYS), use_stemmer=True)
    scores = [
        scorer.score_multi(accepted_answers(record), prediction.text)
        for record, prediction in zip(records, predictions, strict=True)
    ]
    return {
        definition: np.array([score[key].fmeasure for score in scores], dtype=np.float64)
        for key, definition in _KEYS.items()
    }


def bleu_statistics(records: Sequence[Record], predictions: Sequence[Prediction]) -> Values:
    """What BLEU adds up over rows: n-grams in common and in all by order, lengths given and accepted. [n, 10]"""
    from sacrebleu.metrics.bleu import BLEU as SacreBleu

    scorer = SacreBleu(effective_order=True)  # only silences a remark on single sentences; the counts are the same
    rows = []
    for record, prediction in zip(records, predictions, strict=True):
        score = scorer.sentence_score(prediction.text, list(accepted_answers(record)))
        rows.append([*score.counts, *score.totals, score.sys_len, score.ref_len])
    return np.array(rows, dtype=np.float64)


def bleu(statistics: Values) -> Statistic:
    """Corpus BLEU of `bleu_statistics`."""
    from sacrebleu.metrics.bleu import BLEU as SacreBleu

    @functools.cache
    def of_sums(sums: tuple[int, ...]) -> float:
        score = SacreBleu.compute_bleu(
            list(sums[:ORDERS]), list(sums[ORDERS : 2 * ORDERS]), sums[-2], sums[-1], smooth_method="exp"
        )
        return float(score.score) / 100.0

    def statistic(weights: Values) -> Values:
        sums = np.rint(weights @ statistics).astype(np.int64)
        return np.array([of_sums(tuple(row)) for row in sums.tolist()])

    return statistic
