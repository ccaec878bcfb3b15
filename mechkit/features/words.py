"""Tokens as running text: those of a tokenizer that keeps no spaces (whole words) are parted again for the reader.

>>> "".join(parted(["Lily", "ran", ",", "35", "+", "59"], True))
'Lily ran, 35+59'
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mechkit.features.index import FeatureIndex

_AFTER = ".,;:?!"
"""Signs that a space follows."""


def parted(tokens: Sequence[str], spaceless: bool) -> list[str]:
    """The tokens, with a space in front of those that follow a word or a stop where no token holds spaces."""
    if not spaceless:
        return list(tokens)
    before = ["", *tokens[:-1]]
    return [
        f" {token}" if old and token and _word(token[0]) and (_word(old[-1]) or old[-1] in _AFTER) else token
        for old, token in zip(before, tokens, strict=True)
    ]


def is_spaceless(index: "FeatureIndex") -> bool:
    """Whether no token of the index's vocabulary holds a space; token numbers (`#12`) count as such."""
    kept = vars(index)
    if "_spaceless" not in kept:
        words = index.text.words
        kept["_spaceless"] = words is None or not any(" " in word for word in words)
    return kept["_spaceless"]


def _word(sign: str) -> bool:
    return sign.isalnum() or sign == "#"


def word_at(tokens: Sequence[str], at: int, spaceless: bool) -> str:
    """The whole word that a token is part of, without the space before it; a token that is no part of a word, itself.

    >>> word_at([" Stock", "hol", "m", "."], 1, False)
    'Stockholm'
    """
    first = last = at
    if not spaceless:
        while first > 0 and _go_on(tokens[first - 1], tokens[first]):
            first -= 1
        while last + 1 < len(tokens) and _go_on(tokens[last], tokens[last + 1]):
            last += 1
    word = "".join(tokens[first : last + 1])
    return word.strip() or word


def _go_on(left: str, right: str) -> bool:
    """Whether two tokens are pieces of one word."""
    return bool(left and right) and left[-1].isalnum() and right[0].isalnum()
