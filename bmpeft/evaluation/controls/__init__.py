"""Controls: what needs no model, or not all of the input, to answer.

A score means something only beside them. `constants` answers without looking at a row, or with its first
sentence; `images` exchanges images; `classic` trains a small model on the same rows; the rest runs the very
model without a part of its input, or without its adapter. `selection` says which of them fit the rows.
"""

from __future__ import annotations

from bmpeft.evaluation.controls.classic import ClassicBaseline
from bmpeft.evaluation.controls.constants import best_constant, lead_sentences, majority_predictions
from bmpeft.evaluation.controls.images import distinct_images, with_shuffled_images
from bmpeft.evaluation.controls.selection import fitting_controls

__all__ = [
    "ClassicBaseline",
    "best_constant",
    "distinct_images",
    "fitting_controls",
    "lead_sentences",
    "majority_predictions",
    "with_shuffled_images",
]
