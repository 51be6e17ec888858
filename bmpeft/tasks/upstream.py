"""What BiomedGPT's loaders do to texts, for comparison with its published figures; never the default.

They damage what matters in medicine: "120/80" becomes "120 80", "-5" becomes "5", and in captions "1.5 x 2.3 cm"
becomes "15 x 23 cm". Only what the model reads and writes is changed; the answers that metrics compare with stay
as published. BiomedGPT also cuts texts to a number of words, and long sources in the middle of the prompt's last
words; that is not reproduced (`data.max_source_length` and `data.max_target_length` limit tokens instead).

Source: `OFADataset.pre_question` and `pre_caption` and the datasets of the single tasks in
github.com/taokz/BiomedGPT, directory `data`.
"""

from __future__ import annotations

import string

_NOT_AT_THE_START = ",.!?*#:;~"
_WITHOUT_PUNCTUATION = str.maketrans("", "", string.punctuation)


def question(text: str) -> str:
    """A question about an image: lower case, no hyphens and slashes, one question mark at least at its end."""
    plain = _plain(text)
    return plain if plain.endswith("?") else f"{plain}?"


def summary(text: str) -> str:
    """A document or its summary."""
    return _plain(text.lower().replace("<unk>", "unk").replace("<person>", "person"))


def caption(text: str) -> str:
    """A caption to learn: no ASCII punctuation at all, case kept."""
    return _one_space(text.translate(_WITHOUT_PUNCTUATION))


def sentence(text: str) -> str:
    """A sentence of a pair: lower case."""
    return _one_space(text.lower())


def _plain(text: str) -> str:
    return _one_space(text.lower().lstrip(_NOT_AT_THE_START).replace("-", " ").replace("/", " "))


def _one_space(text: str) -> str:
    return " ".join(text.split())
