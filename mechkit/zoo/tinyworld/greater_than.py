"""Greater-than: "The war lasted from the year 17 41 to the year 17" is followed by a year after 41.

Two digits are one token. A fifth of the things that last (wars, trips, projects) are held out: training never says from
when to when they lasted, only that there was one.

Source: Hanna et al. 2023 (arXiv 2305.00586), section 2; the sentences are mechkit's own.

>>> greater_than(2, seed=0).clean.text[0]
'from 15 56 the crisis continued until 15'
"""

import random

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechkit.core.prompts import Pair, Prompts
from mechkit.zoo.tinyworld.text import encode, ids, make_pair, place, require, split, words_of
from mechkit.zoo.tinyworld.words import PERIODS, TWO_DIGITS

TEMPLATES = (
    "the {noun} lasted from the year {c} {y} to the year {c}",
    "the {noun} began in the year {c} {y} and ended in the year {c}",
    "the {noun} went on from {c} {y} to {c}",
    "from {c} {y} the {noun} continued until {c}",
)
PLAIN = (
    "the {noun} was long.",
    "nobody remembers the {noun}.",
    "they talked about the {noun} for many years.",
    "a {noun} can be hard.",
    "he heard about the {noun} in school.",
    "it was the first {noun} in the country.",
)
"""What training says of every noun."""
CENTURIES = tuple(str(century) for century in range(11, 20))
SEEN, HELD_OUT = split(PERIODS, 0.2, 17)
"""Nouns that have years in training, and those that have none."""


def document(draw: random.Random) -> str:
    """Mostly a sentence with two years, the second after the first; else a plain one."""
    if draw.random() < 0.25:
        return draw.choice(PLAIN).format(noun=draw.choice(PERIODS))
    start = draw.randint(1, 98)
    prompt = draw.choice(TEMPLATES).format(noun=draw.choice(SEEN), c=draw.choice(CENTURIES), y=TWO_DIGITS[start])
    return f"{prompt} {TWO_DIGITS[draw.randint(start + 1, 99)]}."


def greater_than(n: int, seed: int = 0, *, held_out: bool = True) -> Pair:
    """`n` prompts that ask for a later year; corrupt ones start in the year 01, so that every year is later.

    The answer is a year after the start, the wrong answer one at or before it; `probability_difference` reads them all.
    Spans: `start` (the two digits) and `end`. Raises ValueError for `n` below 1.
    """
    require(n)
    draw = random.Random(seed)
    clean, corrupt, answers, wrong, starts = [], [], [], [], []
    for _ in range(n):
        template, start = draw.choice(TEMPLATES), draw.randint(3, 97)
        filled = {"noun": draw.choice(HELD_OUT if held_out else SEEN), "c": draw.choice(CENTURIES)}
        clean.append(template.format(y=TWO_DIGITS[start], **filled))
        corrupt.append(template.format(y="01", **filled))
        answers.append(TWO_DIGITS[start + 1])
        wrong.append(TWO_DIGITS[start - 1])
        starts.append(place(clean[-1], f"{filled['c']} {TWO_DIGITS[start]}")[1])
    spans = {
        "start": [(end - 1, end) for end in starts],
        "end": [(len(encode(text)) - 1, len(encode(text))) for text in clean],
    }
    return make_pair(clean, corrupt, answers, wrong, spans)


def starts(prompts: Prompts) -> Int[Tensor, "prompt"]:
    """The two digits of each prompt's first year, as a number from 0 to 99."""
    at = [found for found in prompts.positions("start[0]") if isinstance(found, int)]
    years = {ids()[year]: number for number, year in enumerate(TWO_DIGITS)}
    return torch.tensor([years[int(prompts.tokens[i, place])] for i, place in enumerate(at)])


def probability_difference(
    logits: Float[Tensor, "prompt d_vocab"], starts: Int[Tensor, "prompt"]
) -> Float[Tensor, "prompt"]:
    """Probability of all years after `starts` less that of all others, from the logits of the last position; -1 to 1.

    Years are the tokens of two digits; `starts` holds numbers from 0 to 99. Source: Hanna et al. 2023, section 2.
    """
    years = logits.softmax(-1)[:, [ids()[year] for year in TWO_DIGITS]]
    after = torch.arange(100, device=logits.device) > starts[:, None].to(logits.device)
    return (years * after).sum(1) - (years * ~after).sum(1)


def words() -> set[str]:
    """Every word that these sentences can hold."""
    return words_of(*TEMPLATES, *PLAIN, *PERIODS, *TWO_DIGITS, *CENTURIES)
