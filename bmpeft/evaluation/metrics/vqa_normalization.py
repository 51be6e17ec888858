r"""The answer normalisation of the VQA challenge (Antol et al. 2015), as LLaVA-Med's evaluation applies it.

It is reproduced with what looks like slips in it, because published figures depend on them:

- a punctuation mark is deleted if it stands beside a space anywhere in the answer, or if a comma stands
  between digits anywhere; otherwise it becomes a space;
- only the first 32 full stops that no digit follows are deleted (a flag passed as a count); the "1." of a list
  loses its full stop, "1.5" keeps it;
- "none" becomes "0".
"""

from __future__ import annotations

import re

_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_ARTICLES = frozenset({"a", "an", "the"})
_COUNTED = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_NUMBERS = {"none": "0", **{word: str(number) for number, word in enumerate(_COUNTED)}}
_COMMA_BETWEEN_DIGITS = re.compile(r"\d,\d")
_FULL_STOP = re.compile(r"\.(?!\d)")
_FULL_STOPS_REMOVED = 32
_CONTRACTED = """
    ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd
    he'd've he's how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've might've mustn't must've
    needn't not've o'clock oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've somebody'd've
    somebody'll somebody's someone'd someone'd've someone'll someone's something'd something'd've something'll
    that's there'd there'd've there're there's they'd they'd've they'll they're they've 'twas wasn't we'd've we've
    weren't what'll what're what's what've when's where'd where's where've who'd who'd've who'll who's who've
    why'll why're why's won't would've wouldn't wouldn't've y'all y'all'll y'all'd've you'd you'd've you'll you're
    you've
"""


def _without_one_apostrophe(word: str) -> list[str]:
    return [word[:i] + word[i + 1 :] for i, character in enumerate(word) if character == "'"]


_CONTRACTIONS = {key: word for word in _CONTRACTED.split() for key in _without_one_apostrophe(word)}
_CONTRACTIONS["somebody'd"] = "somebodyd"  # turned round in the challenge's table


def normalized(answer: str) -> str:
    """An answer in lower case without punctuation and articles, number words as digits, apostrophes put back."""
    text = answer
    comma = _COMMA_BETWEEN_DIGITS.search(answer) is not None
    for mark in _PUNCTUATION:
        beside_space = f"{mark} " in answer or f" {mark}" in answer
        text = text.replace(mark, "" if beside_space or comma else " ")
    text = _FULL_STOP.sub("", text, count=_FULL_STOPS_REMOVED)
    words = [_NUMBERS.get(word, word) for word in text.lower().split()]
    return " ".join(_CONTRACTIONS.get(word, word) for word in words if word not in _ARTICLES)
