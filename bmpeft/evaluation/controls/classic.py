"""A classic baseline on the same training rows: logistic regression on words, or on pixels.

If it is as good, the backbone adds nothing. Texts: tf-idf (sublinear counts) of words and pairs of words, the
50,000 most frequent. Images: 28 x 28 RGB pixels, standardised. At most `MOST_ROWS` training rows, the first of a
seeded shuffle, so that the control costs seconds on any data set.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from bmpeft.datasets.splits import first_of_shuffle
from bmpeft.records import Prediction, Record

if TYPE_CHECKING:
    import numpy.typing as npt

MOST_ROWS = 5_000
MOST_WORDS = 50_000
SIDE = 28
ITERATIONS = 200
_LEAST_PROBABILITY = 1e-12
"""Of a label that no training row has."""


class ClassicBaseline:
    """The fitted baseline.

    Attributes:
        rows: training rows that it saw.
    """

    def __init__(self, train: Sequence[Record], *, seed: int, balance_labels: bool = False) -> None:
        """Fit it; all rows have the same labels and either an image or a text.

        With `balance_labels` the rows of each label weigh as much as those of any other.
        """
        from sklearn.exceptions import ConvergenceWarning

        chosen = first_of_shuffle(train, MOST_ROWS, seed)
        self.rows = len(chosen)
        self._labels = sorted({_label(row) for row in chosen})
        self._model: Any = None
        if len(self._labels) > 1:
            weights = "balanced" if balance_labels else None
            self._model = _image_model(weights) if chosen[0].image is not None else _text_model(weights)
            with warnings.catch_warnings():
                # A baseline after ITERATIONS steps is one, too; the limit is documented.
                warnings.simplefilter("ignore", ConvergenceWarning)
                self._model.fit(_features(chosen), [_label(row) for row in chosen])

    def predict(self, records: Sequence[Record]) -> list[Prediction]:
        """The most probable label of each row; `choice_scores` are log-probabilities (nats)."""
        known = np.ones((len(records), 1)) if self._model is None else self._model.predict_proba(_features(records))
        predictions = []
        for record, row in zip(records, known, strict=True):
            choices = record.choices or ()
            shares = np.full(len(choices), _LEAST_PROBABILITY)
            shares[self._labels] = np.maximum(row, _LEAST_PROBABILITY)
            choice = int(shares.argmax())
            predictions.append(Prediction(record.id, choices[choice], choice, tuple(np.log(shares).tolist())))
        return predictions


def _label(record: Record) -> int:
    assert record.label is not None, "classic is refused for training rows without labels"
    return record.label


def _features(records: Sequence[Record]) -> list[str] | npt.NDArray[np.float32]:
    if records[0].image is not None:
        return np.stack([_pixels(record) for record in records])
    return [f"{record.text or ''} {record.question or ''}" for record in records]


def _pixels(record: Record) -> npt.NDArray[np.float32]:
    """[SIDE * SIDE * 3], from 0 to 1."""
    from PIL.Image import Resampling

    assert record.image is not None, "all rows of an image data set have one"
    image = record.image.load().resize((SIDE, SIDE), Resampling.BOX)
    return np.asarray(image, dtype=np.float32).ravel() / 255.0


def _text_model(weights: str | None) -> Any:
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    words = TfidfVectorizer(
        ngram_range=(1, 2), max_features=MOST_WORDS, sublinear_tf=True, token_pattern=r"(?u)\b\w+\b"
    )
    return make_pipeline(words, LogisticRegression(C=10.0, max_iter=ITERATIONS, class_weight=weights))


def _image_model(weights: str | None) -> Any:
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    return make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=ITERATIONS, class_weight=weights))
