"""What can be said of an image whose label is known: captions, and questions with their answers.

The labels of a dataset stand for attributes such as the organ or the finding (`CorpusSection.shows`). Each
attribute has several wordings here, written for this package; which one a row takes is drawn.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence

Attributes = Mapping[str, str]

# Of each attribute: open questions, and questions about one value that are answered by yes or no.
OPEN: Mapping[str, tuple[str, ...]] = {
    "modality": (
        "what imaging modality is this?",
        "which modality was used?",
        "how was this image taken?",
        "what type of image is this?",
    ),
    "organ": (
        "which organ is shown?",
        "what part of the body is this?",
        "which part of the body does the image show?",
        "what is imaged here?",
    ),
    "view": (
        "what is the view?",
        "which projection is this?",
        "from which direction was the image taken?",
        "in which projection was the patient imaged?",
    ),
    "finding": (
        "what is the finding?",
        "what does the image show?",
        "what is the diagnosis?",
        "what can be seen in this image?",
    ),
    "severity": (
        "how severe is the disease?",
        "what is the severity of the disease?",
        "which grade has the disease?",
        "how far has the disease progressed?",
    ),
    "size": ("how large is the finding?", "what is the size of the finding?", "how big is it?"),
    "count": ("how many are there?", "what is the number of findings?", "how many findings are shown?"),
}
CLOSED: Mapping[str, tuple[str, ...]] = {
    "modality": ("is this image of the kind {}?", "was {} used?", "is the modality {}?"),
    "organ": ("is this the {}?", "does the image show the {}?", "is the {} imaged here?"),
    "view": ("is the view {}?", "is this {} projection?", "was the image taken in {} projection?"),
    "finding": ("does the image show {}?", "is there {}?", "is {} the finding?", "can {} be seen?"),
    "severity": ("is the severity {}?", "is the grade of the disease {}?", "is the disease {}?"),
    "size": ("is the size {}?", "is the finding {} in size?"),
    "count": ("is the number {}?", "is the number of findings {}?"),
}
ATTRIBUTES = tuple(OPEN)

# A caption is one of the openings whose attributes are known, then what else is known, in this order.
_OPENINGS = (
    "{modality} of the {organ}",
    "{organ} {modality}",
    "this is {modality} of the {organ}",
    "image of the {organ}, {modality}",
    "{modality}",
    "image of the {organ}",
    "medical image",
)
_CLAUSES: Mapping[str, tuple[str, ...]] = {
    "view": (" in {} projection", ", {} view", ", {}"),
    "finding": (" showing {}", " with {}", ", finding {}", ", {}"),
    "severity": (", severity {}", ", grade {}"),
    "size": (", size {}", ", {} in size"),
    "count": (", {} in number", ", count {}"),
}
_LESS_OFTEN = 0.3
"""Of captions, the share that leaves the view out: what an image shows matters more."""

_ASKED_FOR: Mapping[str, int] = {"view": 2, "finding": 4, "severity": 4, "size": 4, "count": 4}
"""How often an attribute is asked for, relative to modality and organ, which a dataset's images mostly share."""


def caption(shown: Attributes, generator: random.Random, *, whole: bool = False) -> str:
    """What is known of an image, in lower case and without a full stop; `whole` never leaves out the view."""
    known = {name for name in ("modality", "organ") if name in shown}
    fitting = [opening for opening in _OPENINGS if _fields(opening) == known]
    text = generator.choice(fitting).format(**shown)
    for name, wordings in _CLAUSES.items():
        if name in shown and (whole or name != "view" or generator.random() >= _LESS_OFTEN):
            text += generator.choice(wordings).format(shown[name])
    return text


def question(shown: Attributes, others: Mapping[str, Sequence[str]], generator: random.Random) -> tuple[str, str]:
    """A question about an image and its answer; half of them are answered by yes or no, those evenly.

    Args:
        shown: what is known of the image; not empty.
        others: attribute -> values that an image could have had but that this one has not.
        generator: draws attribute, wording and value.
    """
    names = sorted(shown)
    name = generator.choices(names, [_ASKED_FOR.get(name, 1) for name in names])[0]
    if generator.random() < 0.5 or not others.get(name):
        return generator.choice(OPEN[name]), shown[name]
    agrees = generator.random() < 0.5
    value = shown[name] if agrees else generator.choice(others[name])
    return generator.choice(CLOSED[name]).format(value), "yes" if agrees else "no"


def _fields(opening: str) -> set[str]:
    return {name for name in ("modality", "organ") if "{" + name + "}" in opening}
