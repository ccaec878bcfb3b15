"""Agreement across an attractor: "The keys near the cabinet" is followed by "are", though "cabinet" stands nearer.

A fifth of all pairs of a subject and an attractor are held out: in training the two never stand in one such sentence,
in neither number.

Source: Linzen et al. 2016 (arXiv 1611.01368); the sentences are mechkit's own.

>>> agreement(2, seed=0).clean.text[0]
'the soldier with the cellos'
"""

import random
from functools import cache

from mechkit.core.prompts import Pair
from mechkit.zoo.tinyworld.text import encode, make_pair, require, words_of
from mechkit.zoo.tinyworld.words import COMPARATIVES, PLURALS

VERBS = {"is": "are", "was": "were", "has": "have", "looks": "look", "seems": "seem"}
"""Verbs for one and for many."""
LINKS = ("near", "behind", "beside", "with", "above")
HELD_OUT = 0.2
SEED = 19


@cache
def combinations(held_out: bool) -> tuple[tuple[str, str], ...]:
    """Ordered pairs of two things, subject and attractor, that are held out, or that are not."""
    pairs = [(a, b) for a in PLURALS for b in PLURALS if a != b]
    out = set(random.Random(SEED).sample(range(len(pairs)), round(HELD_OUT * len(pairs))))
    return tuple(pair for i, pair in enumerate(pairs) if (i in out) == held_out)


def subject(things: tuple[str, str], many: bool, many_attractors: bool, link: str) -> str:
    """The sentence up to its verb."""
    words = (PLURALS[word] if plural else word for word, plural in zip(things, (many, many_attractors), strict=True))
    return f"the {next(words)} {link} the {next(words)}"


def document(draw: random.Random) -> str:
    """A sentence with or without an attractor, its verb in the number of its subject."""
    things, many, more = draw.choice(combinations(False)), draw.random() < 0.5, draw.random() < 0.5
    verb = draw.choice(list(VERBS.items()))[many]
    quality = draw.choice(tuple(COMPARATIVES))
    quality = f"been {quality}" if verb in ("has", "have") else quality
    if draw.random() < 0.2:
        return f"the {PLURALS[things[0]] if many else things[0]} {verb} {quality}."
    return f"{subject(things, many, more, draw.choice(LINKS))} {verb} {quality}."


def agreement(n: int, seed: int = 0, *, held_out: bool = True) -> Pair:
    """`n` sentences up to the verb, whose attractor has the other number; in corrupt ones the subject has it too.

    Answers are "is" or "are", wrong answers the other. Spans: `subject`, `attractor` and `end` (the same token).
    Raises ValueError for `n` below 1.
    """
    require(n)
    draw = random.Random(seed)
    clean, corrupt, answers, wrong = [], [], [], []
    for _ in range(n):
        things, many, link = draw.choice(combinations(held_out)), draw.random() < 0.5, draw.choice(LINKS)
        clean.append(subject(things, many, not many, link))
        corrupt.append(subject(things, not many, not many, link))
        answers.append("are" if many else "is")
        wrong.append("is" if many else "are")
    ends = [(len(encode(text)) - 1, len(encode(text))) for text in clean]
    subjects = [(1, 2)] * n
    return make_pair(clean, corrupt, answers, wrong, {"subject": subjects, "attractor": ends, "end": ends})


def words() -> set[str]:
    """Every word that these sentences can hold."""
    return words_of("the .", *LINKS, *VERBS, *VERBS.values(), *PLURALS, *PLURALS.values(), *COMPARATIVES, "been")
